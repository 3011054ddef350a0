"""Work that would hold the event loop, in threads: long texts have one of their own, so that short ones pass them."""

import asyncio
import contextvars
import ctypes
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import TypeVar

_LONG = 100_000
"""Characters; the work on longer texts is done one after another."""
_LARGE = 1_000_000
"""Characters; memory that the work on longer texts took is given back to the system."""
_long_texts = ThreadPoolExecutor(1, thread_name_prefix="long-text")
_Made = TypeVar("_Made")


async def offload(work: Callable[[], _Made], characters: int) -> _Made:
    """Return what `work`, over a text of so many characters, returns; it runs in a thread."""
    if characters < _LONG:
        return await asyncio.to_thread(work)
    run = contextvars.copy_context().run
    try:
        return await asyncio.get_running_loop().run_in_executor(_long_texts, run, work)
    finally:
        if characters >= _LARGE:
            await asyncio.get_running_loop().run_in_executor(_long_texts, _trim())


@cache
def _trim() -> Callable[[], object]:
    """Return what gives free memory back to the system: glibc keeps it in its arenas otherwise."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    return (lambda: trim(0)) if trim is not None else (lambda: None)
