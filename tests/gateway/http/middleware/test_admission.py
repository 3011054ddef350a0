"""gateway/http/middleware/admission.py: of many who come at once a few enter in each turn of the event loop."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from gateway.http.middleware.admission import AdmissionGate


class Door:
    """Who entered, by the turn of the event loop in which they did."""

    def __init__(self) -> None:
        self.turnstile = AdmissionGate()
        self.turn = 0
        self.entered: list[tuple[int, int]] = []

    async def enter(self, number: int) -> None:
        if (place := self.turnstile.enter()) is not None:
            await place
        self.entered.append((self.turn, number))

    def most_in_a_turn(self) -> int:
        turns = [turn for turn, _ in self.entered]
        return max(map(turns.count, turns))


@contextmanager
def turns(door: Door) -> Iterator[None]:
    """Counts them."""

    async def count() -> None:
        while True:
            door.turn += 1
            await asyncio.sleep(0)

    counting = asyncio.create_task(count())
    try:
        yield
    finally:
        counting.cancel()


async def test_who_comes_alone_does_not_wait() -> None:
    door = Door()
    for number in range(5):
        entering = door.enter(number)
        with pytest.raises(StopIteration):
            entering.send(None)
        for _ in range(3):
            await asyncio.sleep(0)
    assert len(door.entered) == 5


async def test_many_enter_in_the_order_of_coming_and_others_have_turns_between() -> None:
    door = Door()
    with turns(door):
        await asyncio.gather(*map(door.enter, range(50)))
    assert [number for _, number in door.entered] == list(range(50))
    assert door.most_in_a_turn() <= 4, "two that wait, and two that come just then"
    assert door.entered[-1][0] >= 15


async def test_nobody_overtakes_those_who_wait() -> None:
    door = Door()
    with turns(door):
        first = [asyncio.create_task(door.enter(number)) for number in range(20)]
        for number in range(20, 30):
            await asyncio.sleep(0)
            first.append(asyncio.create_task(door.enter(number)))
        await asyncio.gather(*first)
    assert [number for _, number in door.entered] == list(range(30))


async def test_who_goes_away_keeps_nobody() -> None:
    door = Door()
    tasks = [asyncio.create_task(door.enter(number)) for number in range(30)]
    await asyncio.sleep(0)
    for task in tasks[5:25]:
        task.cancel()
    async with asyncio.timeout(5):
        await asyncio.gather(*tasks, return_exceptions=True)
    assert [number for _, number in door.entered] == [*range(5), *range(25, 30)]
    entering = door.enter(99)
    with pytest.raises(StopIteration):  # and it is as it was before
        for _ in range(3):
            await asyncio.sleep(0)
        entering.send(None)
