"""Values as a stream of events, while they are made.

Who makes a value calls back, and its pieces are written from there: a task that woke for each of them would take as
long again. The request's own task waits for what has to be waited for: the status line, a client that reads slowly, and
what must be kept before it is shown.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import ExitStack
from typing import Protocol

from gateway.graph.variable import Piece, Reader
from gateway.http.sse import HEARTBEAT_SECONDS, EventStream


class Teller(Protocol):
    """What the events are, as they go over the wire."""

    def piece(self, index: int, pieces: Sequence[Piece]) -> bytes:
        """Those for some pieces of one of the values."""

    def end(self, index: int) -> bytes:
        """Those for its end. Raises whatever is to be said instead."""


class StreamWriter:
    """Owner of what is still to be told of some values."""

    def __init__(
        self,
        stream: EventStream,
        teller: Teller,
        first: float = HEARTBEAT_SECONDS,
        prepare: Callable[[int], Awaitable[None] | None] | None = None,
    ) -> None:
        """`first`: seconds of silence before the status line. `prepare`: called before `teller.end`, which waits for
        what it returns, while the other values go on."""
        self._loop = asyncio.get_running_loop()
        self._stream = stream
        self._teller = teller
        self._first = first
        self._prepare = prepare
        self._ending: dict[int, asyncio.Future[None]] = {}
        """What the ends of values wait for, by index."""
        self._readers: dict[int, Reader] = {}
        """Of those that have not ended, by index."""
        self._events = b""
        """That could not be written yet."""
        self._error: Exception | None = None
        self._held = True
        """Whether the request's own task is at work, and nobody else may write."""
        self._scheduled = False
        self._needed = False
        """Whether the request's own task has something to do."""
        self._wake: asyncio.Future[None] | None = None

    async def run(self, reads: Sequence[Callable[[], Reader]]) -> bytes:
        """Writes all but the last events, which are returned: the stream is to end with them. Raises what the teller
        raises, behind all that was to be told before."""
        with ExitStack() as stack:
            stack.callback(self._drop_endings)
            for index, read in enumerate(reads):
                reader = self._readers[index] = stack.enter_context(read())
                reader.watch(self._changed)
            while True:
                self._take()
                if self._error is not None or self._over:
                    break
                if must_expose := [reader for reader in self._readers.values() if reader.must_expose]:
                    for reader in must_expose:
                        await reader.expose()
                elif self._events:
                    events, self._events = self._events, b""
                    await self._stream.write(events)
                else:
                    await self._wait()
        if self._error is None:
            return self._events
        if self._events:
            await self._stream.write(self._events)
        try:
            raise self._error
        finally:
            self._error = None  # its traceback knows who tells, and whose call that was

    @property
    def _over(self) -> bool:
        """Whether all values have ended."""
        return not self._readers and not self._ending

    def _end(self, index: int) -> None:
        """Add the events of a value's end, unless they have to wait."""
        preparing = None if self._prepare is None else self._prepare(index)
        if preparing is None:
            self._events += self._teller.end(index)
            return
        self._ending[index] = asyncio.ensure_future(preparing)
        self._ending[index].add_done_callback(lambda ending: self._changed())

    def _drop_endings(self) -> None:
        for ending in self._ending.values():
            ending.cancel()

    async def _wait(self) -> None:
        """Until there is something that `_push` cannot do."""
        self._held = self._needed = False
        try:
            await self._stream.patiently(self._call, self._first)
        finally:
            self._held = True

    async def _call(self) -> None:
        if not self._needed:
            self._wake = self._loop.create_future()
            await self._wake

    def _changed(self) -> None:
        """A value has grown or ended. Others may do so at once: all are told together."""
        if not self._held and not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self._push)

    def _push(self) -> None:
        self._scheduled = False
        if self._held:
            return
        self._take()
        waits = self._error is not None or self._over
        if not waits and not any(reader.must_expose for reader in self._readers.values()):
            try:
                if not self._events or self._stream.told(self._events):
                    self._events = b""
                    return
            except Exception as error:
                self._error = error
        self._needed = True
        if self._wake is not None and not self._wake.done():
            self._wake.set_result(None)

    def _take(self) -> None:
        """What there is by now, as events; nothing behind an error."""
        if self._error is not None:
            return
        try:
            for index, reader in [*self._readers.items()]:
                if pieces := reader.take():
                    self._events += self._teller.piece(index, pieces)
                if reader.ended:
                    del self._readers[index]
                    self._end(index)
            for index, ending in [*self._ending.items()]:
                if ending.done():
                    del self._ending[index]
                    ending.result()
                    self._events += self._teller.end(index)
        except Exception as error:  # raised by the request's own task
            self._error = error
