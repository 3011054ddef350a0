"""Work in threads: short texts do not wait for long ones."""

import asyncio
import threading

import pytest

from gateway.runtime.executors import offload

_SECONDS = 20.0


async def test_short_texts_do_not_wait_for_long_ones() -> None:
    started, release = threading.Event(), threading.Event()

    def long() -> str:
        started.set()
        assert release.wait(_SECONDS)
        return "long"

    first = asyncio.create_task(offload(long, 2_000_000))
    second = asyncio.create_task(offload(lambda: "longer", 100_000))
    assert await asyncio.to_thread(started.wait, _SECONDS)
    async with asyncio.timeout(_SECONDS):
        assert [await offload(lambda: "short", 99_999) for _ in range(20)] == ["short"] * 20
    assert not first.done()
    assert not second.done(), "long texts are processed one after another"
    release.set()
    async with asyncio.timeout(_SECONDS):
        assert [await first, await second] == ["long", "longer"]


@pytest.mark.parametrize("characters", [10, 200_000, 2_000_000])
async def test_errors_of_the_work_are_raised(characters: int) -> None:
    with pytest.raises(ZeroDivisionError):
        await offload(lambda: 1 // 0, characters)
