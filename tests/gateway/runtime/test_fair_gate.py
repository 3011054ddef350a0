"""FairGate: turns between tenants, and pauses after work."""

import asyncio

import pytest

from gateway.runtime.fair_gate import FairGate


async def test_tenants_take_turns_even_if_one_has_more_work() -> None:
    gate, order = FairGate(), list[str]()

    async def work(tenant: str) -> None:
        async with gate.turn(tenant):
            order.append(tenant)

    tasks = [asyncio.create_task(work(tenant)) for tenant in ["a"] * 6 + ["b"] * 2 + ["c"]]
    async with asyncio.timeout(5):
        await asyncio.gather(*tasks)
    assert "".join(order) == "aabcabaaa"
    async with asyncio.timeout(5), gate.turn("a"):
        pass


async def test_several_pieces_of_work_run_together() -> None:
    gate, running, most = FairGate(rests=False, places=3), 0, 0

    async def work(tenant: str) -> None:
        nonlocal running, most
        async with gate.turn(tenant):
            running += 1
            most = max(most, running)
            await asyncio.sleep(0)
            running -= 1

    async with asyncio.timeout(5):
        await asyncio.gather(*(work(tenant) for tenant in "aaaaabbcc"))
    assert (running, most) == (0, 3)


async def test_the_gate_stays_closed_as_long_as_the_work_took(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 0.2, 1.0, 1.0])
    rests: list[float] = []
    loop = asyncio.get_running_loop()
    monkeypatch.setattr(loop, "call_later", lambda rest, call: (rests.append(rest), loop.call_soon(call)))
    gate = FairGate(clock=lambda: next(clock))
    async with gate.turn("a"):
        pass
    await asyncio.sleep(0)
    async with gate.turn("a"):
        pass
    assert rests == [0.2, 0.0]


@pytest.mark.parametrize("late", [False, True])
async def test_a_cancelled_wait_takes_no_turn(late: bool) -> None:
    gate, entered = FairGate(), asyncio.Event()

    async def work() -> None:
        async with gate.turn("a"):
            entered.set()

    async with gate.turn("a"):
        first, second = asyncio.create_task(work()), asyncio.create_task(work())
        await asyncio.sleep(0)
        if not late:
            first.cancel()
    if late:
        first.cancel()
        gate._open()  # the first task is admitted, and cancelled before it runs
        first.cancel()
    async with asyncio.timeout(5):
        await entered.wait()
        await asyncio.gather(first, second, return_exceptions=True)
        async with gate.turn("b"):
            pass
