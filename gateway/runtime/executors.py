"""Run work that would block the event loop in threads. Long texts share one thread: short ones do not wait for them."""

import asyncio
import contextvars
import ctypes
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import TypeVar

_LONG = 100_000
"""Length in characters from which texts are processed one after another."""
_LARGE = 1_000_000
"""Length in characters from which free memory is returned to the system after the work."""
_long_texts = ThreadPoolExecutor(1, thread_name_prefix="long-text")
_Result = TypeVar("_Result")


async def offload(work: Callable[[], _Result], characters: int) -> _Result:
    """Run `work` in a thread and return its result. `characters`: length of the text that it processes."""
    if characters < _LONG:
        return await asyncio.to_thread(work)
    run = contextvars.copy_context().run
    try:
        return await asyncio.get_running_loop().run_in_executor(_long_texts, run, work)
    finally:
        if characters >= _LARGE:
            await asyncio.get_running_loop().run_in_executor(_long_texts, trim_memory)


def trim_memory() -> None:
    """Return free memory to the system, where the C library can: glibc keeps it in its arenas otherwise."""
    _trim()(0)


@cache
def _trim() -> Callable[[int], object]:
    return getattr(ctypes.CDLL(None), "malloc_trim", lambda pad: None)
