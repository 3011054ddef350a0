"""Give calls that may have killed an engine a second attempt, each alone on an engine.

All calls that an engine works on when it dies are suspects: one of them may have killed it. A suspect gets one more
attempt, on an engine that works on nothing else. If it kills that engine too, no other call is lost. Meanwhile new
calls for that engine wait, except calls of sessions that already have contexts there: these contexts may depend on
them.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import ExitStack, asynccontextmanager, contextmanager

from gateway.engines.protocol import Engine, EngineFailure

_POLL_SECONDS = 0.02
"""Poll interval for an engine that is ready and idle, in seconds."""
_ALONE_SECONDS = 60.0
"""Longest wait of a suspect for its turn, and then for an idle engine, in seconds each. Suspects run one after another
while other calls wait, so this also limits the wait of other calls, for any number of suspects."""


class _Reservation:
    """State of one engine that is reserved for suspects: calls that may have killed an engine."""

    def __init__(self) -> None:
        self.suspects = 0
        self.turn = asyncio.Lock()
        self.empty = asyncio.Event()


class Isolation:
    """Owner of the reservations of engines for suspects."""

    def __init__(self) -> None:
        self._reservations: dict[str, _Reservation] = {}

    async def open(self, engines: Sequence[Engine], *, passes: Callable[[Engine], bool]) -> Sequence[Engine]:
        """Return the engines on which a call may begin. If all are reserved for suspects, wait until the first one is
        free, and return none: the caller then asks again which engines are ready. `passes`: whether the call may begin
        on an engine although it is reserved."""
        if not self._reservations:
            return engines
        free = [engine for engine in engines if engine.name not in self._reservations or passes(engine)]
        if not free:
            await self._reservations[engines[0].name].empty.wait()
        return free

    @asynccontextmanager
    async def alone(self, lost: str, serving: Callable[[], Awaitable[Sequence[Engine]]]) -> AsyncIterator[Engine]:
        """Reserve an idle engine for a suspect: another one, or the engine `lost`, once it is restarted.

        `serving` returns the engines that are ready. Raises EngineFailure if none becomes idle in time.
        """
        with ExitStack() as stack:
            reservation = stack.enter_context(self._reserved(lost))
            async with self._turn(reservation):
                engine = await self._free(lost, serving)
                with self._reserved(engine.name):
                    stack.close()  # if it runs on another engine, other calls may begin on the engine that it lost
                    yield engine

    @asynccontextmanager
    async def _turn(self, reservation: _Reservation) -> AsyncIterator[None]:
        """Wait for the reservation's turn and hold it. Raises EngineFailure if the wait is too long."""
        try:
            async with asyncio.timeout(_ALONE_SECONDS):
                await reservation.turn.acquire()
        except TimeoutError:
            raise _not_free() from None
        try:
            yield
        finally:
            reservation.turn.release()

    @contextmanager
    def _reserved(self, name: str) -> Iterator[_Reservation]:
        reservation = self._reservations.setdefault(name, _Reservation())
        reservation.suspects += 1
        try:
            yield reservation
        finally:
            reservation.suspects -= 1
            if not reservation.suspects:
                del self._reservations[name]
                reservation.empty.set()

    async def _free(self, lost: str, serving: Callable[[], Awaitable[Sequence[Engine]]]) -> Engine:
        await serving()
        try:
            async with asyncio.timeout(_ALONE_SECONDS):
                while True:
                    # prefer another engine: perhaps the lost engine itself is at fault
                    for engine in sorted(await serving(), key=lambda engine: engine.name == lost):
                        if not engine.load and (engine.name == lost or engine.name not in self._reservations):
                            return engine
                    await asyncio.sleep(_POLL_SECONDS)
        except TimeoutError:
            raise _not_free() from None


def _not_free() -> EngineFailure:
    message = f"the call lost its engine, and no engine became idle within {_ALONE_SECONDS:g} s for a second attempt"
    return EngineFailure(message)
