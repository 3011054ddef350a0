"""gateway/engines/openai/concurrency.py"""

import asyncio

from hypothesis import given
from hypothesis import strategies as st

from gateway.engines.openai.concurrency import ConcurrencyLimiter, ConcurrencySlot


async def test_a_request_that_is_cancelled_when_it_is_admitted_passes_its_slot_on() -> None:
    limiter = ConcurrencyLimiter(1)
    first, second, third = (ConcurrencySlot(float(rank)) for rank in range(3))
    await limiter.acquire(first)
    waiting = [asyncio.create_task(limiter.acquire(slot)) for slot in (second, third)]
    await asyncio.sleep(0)
    limiter.release()  # the second one is admitted, but its task has not run yet
    waiting[0].cancel()
    async with asyncio.timeout(10):
        await waiting[1]
    assert limiter.running == 1
    limiter.release()
    assert limiter.running == 0


_steps = st.lists(
    st.tuples(st.sampled_from(["take", "leave", "cancel", "rerank"]), st.integers(0, 9), st.integers(0, 5)), max_size=60
)


@given(limit=st.integers(1, 3), steps=_steps)
def test_the_limit_holds_and_no_slot_is_free_while_requests_wait(limit: int, steps: list[tuple[str, int, int]]) -> None:
    asyncio.run(_run_steps(limit, steps))


async def _run_steps(limit: int, steps: list[tuple[str, int, int]]) -> None:
    limiter = ConcurrencyLimiter(limit)
    waiting: dict[ConcurrencySlot, asyncio.Task[None]] = {}
    running: list[ConcurrencySlot] = []
    for action, position, rank in steps:
        queued = list(waiting)
        if action == "take":
            slot = ConcurrencySlot(float(rank))
            waiting[slot] = asyncio.create_task(limiter.acquire(slot))
        elif action == "leave" and running:
            running.pop(position % len(running))
            limiter.release()
        elif action == "cancel" and queued:
            waiting.pop(queued[position % len(queued)]).cancel()
        elif action == "rerank" and queued:
            limiter.rerank(queued[position % len(queued)], float(rank))
        for _ in range(4):
            await asyncio.sleep(0)
        admitted = [slot for slot, task in waiting.items() if task.done()]
        for slot in admitted:
            await waiting.pop(slot)
            running.append(slot)
        assert limiter.running == len(running) <= limit
        assert not waiting or len(running) == limit, "a request waits although a slot is free"
        if action == "leave" and admitted:
            assert all(request.rank <= slot.rank for request in admitted for slot in waiting), (
                "the most urgent goes first"
            )
    for task in waiting.values():
        task.cancel()
    await asyncio.gather(*waiting.values(), return_exceptions=True)
