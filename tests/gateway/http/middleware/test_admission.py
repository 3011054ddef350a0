"""AdmissionGate: of many concurrent requests, a few start in each turn of the event loop."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from gateway.http.middleware.admission import AdmissionGate


class GateHarness:
    """A gate, and the requests that passed it, with the turn of the event loop in which they did."""

    def __init__(self) -> None:
        self.gate = AdmissionGate()
        self.turn = 0
        self.entered: list[tuple[int, int]] = []

    async def enter(self, number: int) -> None:
        if (admitted := self.gate.enter()) is not None:
            await admitted
        self.entered.append((self.turn, number))

    def max_per_turn(self) -> int:
        turns = [turn for turn, _ in self.entered]
        return max(map(turns.count, turns))


@contextmanager
def turns(harness: GateHarness) -> Iterator[None]:
    """Count the turns of the event loop."""

    async def count() -> None:
        while True:
            harness.turn += 1
            await asyncio.sleep(0)

    counting = asyncio.create_task(count())
    try:
        yield
    finally:
        counting.cancel()


async def test_a_single_request_does_not_wait() -> None:
    harness = GateHarness()
    for number in range(5):
        entering = harness.enter(number)
        with pytest.raises(StopIteration):
            entering.send(None)
        for _ in range(3):
            await asyncio.sleep(0)
    assert len(harness.entered) == 5


async def test_many_requests_enter_in_order_over_several_turns() -> None:
    harness = GateHarness()
    with turns(harness):
        await asyncio.gather(*map(harness.enter, range(50)))
    assert [number for _, number in harness.entered] == list(range(50))
    assert harness.max_per_turn() <= 4, "two that waited, and two that arrived just then"
    assert harness.entered[-1][0] >= 15


async def test_new_requests_do_not_overtake_waiting_ones() -> None:
    harness = GateHarness()
    with turns(harness):
        first = [asyncio.create_task(harness.enter(number)) for number in range(20)]
        for number in range(20, 30):
            await asyncio.sleep(0)
            first.append(asyncio.create_task(harness.enter(number)))
        await asyncio.gather(*first)
    assert [number for _, number in harness.entered] == list(range(30))


async def test_a_cancelled_request_does_not_block_others() -> None:
    harness = GateHarness()
    tasks = [asyncio.create_task(harness.enter(number)) for number in range(30)]
    await asyncio.sleep(0)
    for task in tasks[5:25]:
        task.cancel()
    async with asyncio.timeout(5):
        await asyncio.gather(*tasks, return_exceptions=True)
    assert [number for _, number in harness.entered] == [*range(5), *range(25, 30)]
    entering = harness.enter(99)
    with pytest.raises(StopIteration):  # the gate is idle again
        for _ in range(3):
            await asyncio.sleep(0)
        entering.send(None)
