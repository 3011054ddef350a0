"""Tests of gateway/simulator/clock.py: an event loop on virtual time."""

import asyncio

import pytest

from gateway.simulator import clock


def test_waiting_takes_no_real_time() -> None:
    """Wait for an hour of virtual time. If it were real time, the test's time limit would end it."""

    async def work() -> list[float]:
        loop = asyncio.get_running_loop()

        async def wait(seconds: float) -> float:
            await asyncio.sleep(seconds)
            return loop.time()

        return await asyncio.gather(wait(3600.0), wait(5.0), wait(0.0))

    assert clock.run(work()) == pytest.approx([3600.0, 5.0, 0.0])


def test_waiting_without_a_timer_is_an_error() -> None:
    async def work() -> None:
        await asyncio.get_running_loop().create_future()

    with pytest.raises(RuntimeError, match="would never end"):
        clock.run(work())


def test_tasks_run_in_the_order_of_their_timers() -> None:
    async def work() -> list[tuple[str, float]]:
        loop = asyncio.get_running_loop()
        seen: list[tuple[str, float]] = []

        async def tick(name: str, seconds: float) -> None:
            for _ in range(2):
                await asyncio.sleep(seconds)
                seen.append((name, loop.time()))

        async with asyncio.TaskGroup() as group:
            group.create_task(tick("slow", 3.0))
            group.create_task(tick("fast", 1.0))
        return seen

    assert clock.run(work()) == [("fast", 1.0), ("fast", 2.0), ("slow", 3.0), ("slow", 6.0)]


def test_time_limits_are_virtual_too() -> None:
    async def work() -> float:
        loop = asyncio.get_running_loop()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(50.0):
                await asyncio.sleep(1e6)
        return loop.time()

    assert clock.run(work()) == pytest.approx(50.0)


def test_errors_of_the_work_are_raised() -> None:
    async def work() -> None:
        await asyncio.sleep(1.0)
        raise LookupError("nothing there")

    with pytest.raises(LookupError, match="nothing there"):
        clock.run(work())
    assert clock.run(asyncio.sleep(0, "again")) == "again", "the next run begins anew"
