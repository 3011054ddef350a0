"""Runs calls that may have killed an engine again, each alone.

All calls that an engine works on when it dies are suspects: one of them may be to blame. A suspect is tried again once,
on an engine that works on nothing else, so that it takes no other call with it if it kills that one as well. Meanwhile
other calls for that engine wait, but for those of sessions that are already at work there: the session's open contexts
may wait for them.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import ExitStack, asynccontextmanager, contextmanager

from gateway.engines.base import Engine, EngineFailure

_POLL_SECONDS = 0.02
"""Between two looks at whether an engine is there and has nothing to do."""
_ALONE_SECONDS = 60.0
"""Longest wait of a suspect for its turn, in seconds, and for an engine that it has to itself. Suspects run one after
another while other calls wait: this bounds for how long, however many there are."""


class _Ward:
    """One engine that suspects wait for, or run on."""

    def __init__(self) -> None:
        self.suspects = 0
        self.turn = asyncio.Lock()
        self.empty = asyncio.Event()


class Isolation:
    """Owner of the engines that suspects have to themselves."""

    def __init__(self) -> None:
        self._wards: dict[str, _Ward] = {}

    async def open(self, engines: Sequence[Engine], *, passes: Callable[[Engine], bool]) -> Sequence[Engine]:
        """Return the engines on which a call may begin. If suspects have all of them, wait until one is free again, and
        return none: which are ready has to be asked anew. `passes`: where the call need not wait."""
        if not self._wards:
            return engines
        free = [engine for engine in engines if engine.name not in self._wards or passes(engine)]
        if not free:
            await self._wards[engines[0].name].empty.wait()
        return free

    @asynccontextmanager
    async def alone(self, lost: str, serving: Callable[[], Awaitable[Sequence[Engine]]]) -> AsyncIterator[Engine]:
        """Give a suspect an engine to itself: another that has no work, or the one that it lost, once it is back.

        `serving` returns the engines that are ready. Raises EngineFailure if none is free in time.
        """
        with ExitStack() as waiting:
            ward = waiting.enter_context(self._reserved(lost))
            async with self._turn(ward):
                engine = await self._free(lost, serving)
                with self._reserved(engine.name):
                    waiting.close()  # where it runs on another one, calls of others may begin on the one that it lost
                    yield engine

    @asynccontextmanager
    async def _turn(self, ward: _Ward) -> AsyncIterator[None]:
        """Hold the ward's turn. Raises EngineFailure if it does not come in time."""
        try:
            async with asyncio.timeout(_ALONE_SECONDS):
                await ward.turn.acquire()
        except TimeoutError:
            raise _not_free() from None
        try:
            yield
        finally:
            ward.turn.release()

    @contextmanager
    def _reserved(self, name: str) -> Iterator[_Ward]:
        ward = self._wards.setdefault(name, _Ward())
        ward.suspects += 1
        try:
            yield ward
        finally:
            ward.suspects -= 1
            if not ward.suspects:
                del self._wards[name]
                ward.empty.set()

    async def _free(self, lost: str, serving: Callable[[], Awaitable[Sequence[Engine]]]) -> Engine:
        await serving()
        try:
            async with asyncio.timeout(_ALONE_SECONDS):
                while True:
                    # another first: perhaps it was the engine
                    for engine in sorted(await serving(), key=lambda engine: engine.name == lost):
                        if not engine.load and (engine.name == lost or engine.name not in self._wards):
                            return engine
                    await asyncio.sleep(_POLL_SECONDS)
        except TimeoutError:
            raise _not_free() from None


def _not_free() -> EngineFailure:
    return EngineFailure(f"its engine was lost, and none was free within {_ALONE_SECONDS:g} s to run it again alone")
