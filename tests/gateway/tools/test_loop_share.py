"""Tests of gateway/tools/loop_share.py: servers that send much are slowed down."""

import asyncio
import time

import pytest

from gateway.tools import loop_share
from gateway.tools.loop_share import LoopShare


async def rests(monkeypatch: pytest.MonkeyPatch, pause: float, messages: int) -> float:
    """Return the sum of the waits for messages with a pause before each."""
    clock, total = 0.0, 0.0

    async def sleep(seconds: float) -> None:
        nonlocal clock, total
        clock += seconds
        total += seconds

    monkeypatch.setattr(time, "monotonic", lambda: clock)
    monkeypatch.setattr(loop_share.asyncio, "sleep", sleep)
    share = LoopShare()
    for _ in range(messages):
        clock += pause
        await share.spend(100)
    return total


async def test_a_flood_takes_a_fifth_of_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    work = 10_000 * 31e-6
    assert work * 3.5 < await rests(monkeypatch, 0.0, 10_000) < work * 4.5


async def test_single_messages_do_not_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    assert await rests(monkeypatch, 0.001, 10_000) == 0.0


async def test_a_wait_can_be_cancelled() -> None:
    share = LoopShare()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await share.spend(1 << 40)
