"""gateway/engines/openai/concurrency.py"""

import asyncio

from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.engines.openai.concurrency import ConcurrencyLimiter, ConcurrencySlot


async def test_one_that_leaves_as_its_turn_comes_gives_it_on() -> None:
    turns = ConcurrencyLimiter(1)
    first, second, third = (ConcurrencySlot(float(rank)) for rank in range(3))
    await turns.take(first)
    waiting = [asyncio.create_task(turns.take(turn)) for turn in (second, third)]
    await asyncio.sleep(0)
    turns.leave()  # the second has it now, but does not know yet
    waiting[0].cancel()
    async with asyncio.timeout(10):
        await waiting[1]
    assert turns.running == 1
    turns.leave()
    assert turns.running == 0


_steps = st.lists(
    st.tuples(st.sampled_from(["take", "leave", "cancel", "rerank"]), st.integers(0, 9), st.integers(0, 5)), max_size=60
)


@settings(deadline=None)
@given(limit=st.integers(1, 3), steps=_steps)
def test_never_too_many_and_never_idle_beside_a_line(limit: int, steps: list[tuple[str, int, int]]) -> None:
    asyncio.run(_drive(limit, steps))


async def _drive(limit: int, steps: list[tuple[str, int, int]]) -> None:
    turns = ConcurrencyLimiter(limit)
    waiting: dict[ConcurrencySlot, asyncio.Task[None]] = {}
    running: list[ConcurrencySlot] = []
    for what, which, rank in steps:
        some = list(waiting)
        if what == "take":
            turn = ConcurrencySlot(float(rank))
            waiting[turn] = asyncio.create_task(turns.take(turn))
        elif what == "leave" and running:
            running.pop(which % len(running))
            turns.leave()
        elif what == "cancel" and some:
            waiting.pop(some[which % len(some)]).cancel()
        elif what == "rerank" and some:
            turns.rerank(some[which % len(some)], float(rank))
        for _ in range(4):
            await asyncio.sleep(0)
        come = [turn for turn, task in waiting.items() if task.done()]
        for turn in come:
            await waiting.pop(turn)
            running.append(turn)
        assert turns.running == len(running) <= limit
        assert not waiting or len(running) == limit, "somebody waits, and there is room"
        if what == "leave" and come:
            assert all(came.rank <= turn.rank for came in come for turn in waiting), "the most urgent goes first"
    for task in waiting.values():
        task.cancel()
    await asyncio.gather(*waiting.values(), return_exceptions=True)
