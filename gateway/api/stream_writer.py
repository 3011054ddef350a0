"""Write the events of growing values to a client.

The producer of a value calls back, and the events are written from that callback: a task that wakes for each token
would cost as much as the rest. The request's own task does what needs waiting: the status line, a client that reads
slowly, and exposure, which must be persisted before part of an unfinished value is sent.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import ExitStack

from gateway.api.serializers.base import EventSerializer
from gateway.graph.variable import Reader
from gateway.http.sse import HEARTBEAT_SECONDS, EventStream


class StreamWriter:
    """Writer of the events of some values to one client. Values are numbered."""

    def __init__(
        self,
        stream: EventStream,
        serializer: EventSerializer,
        first: float = HEARTBEAT_SECONDS,
        prepare: Callable[[int], Awaitable[None] | None] | None = None,
        opening: Callable[[], bytes] | None = None,
    ) -> None:
        """`first`: longest silence before the status line, in seconds. `prepare`: called before
        `serializer.end_events`; the writer waits for the returned awaitable, while the other values grow. `opening`:
        returns the events that are written after the first silence, if nothing else was."""
        self._loop = asyncio.get_running_loop()
        self._stream = stream
        self._serializer = serializer
        self._first = first
        self._prepare = prepare
        self._opening = opening
        self._ending: dict[int, asyncio.Future[None]] = {}
        """Awaitables of `prepare` that are not done, by index of the value."""
        self._readers: dict[int, Reader] = {}
        """Readers of values that have not ended, by index."""
        self._events = b""
        """Serialized events that are not written yet."""
        self._error: Exception | None = None
        self._task_writes = True
        """Whether the request's own task is active. Callbacks write nothing then."""
        self._scheduled = False
        """Whether `_push` is about to run."""
        self._task_needed = False
        """Whether the request's own task has something to do."""
        self._wake: asyncio.Future[None] | None = None

    async def run(self, readers: Sequence[Reader]) -> bytes:
        """Write all events but the last ones, and return those: the caller ends the stream with them.

        Raises the errors of the serializer, after all earlier events are written.
        """
        with ExitStack() as stack:
            stack.callback(self._cancel_endings)
            for index, reader in enumerate(readers):
                self._readers[index] = stack.enter_context(reader)
                reader.watch(self._on_change)
            while True:
                self._serialize_new()
                if self._error is not None or self._has_ended:
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
            self._error = None  # its traceback refers to the serializer and its calls: that would be a cycle

    @property
    def _has_ended(self) -> bool:
        """Whether all values have ended."""
        return not self._readers and not self._ending

    def _end(self, index: int) -> None:
        """Add the events of a value's end, unless `prepare` is not done."""
        preparing = None if self._prepare is None else self._prepare(index)
        if preparing is None:
            self._events += self._serializer.end_events(index)
            return
        self._ending[index] = asyncio.ensure_future(preparing)
        self._ending[index].add_done_callback(lambda ending: self._on_change())

    def _cancel_endings(self) -> None:
        for ending in self._ending.values():
            ending.cancel()

    async def _wait(self) -> None:
        """Wait until there is something that `_push` cannot do."""
        self._task_writes = self._task_needed = False
        try:
            await self._stream.with_heartbeats(self._needed, self._first, self._opening)
        finally:
            self._task_writes = True

    async def _needed(self) -> None:
        if not self._task_needed:
            self._wake = self._loop.create_future()
            await self._wake

    def _on_change(self) -> None:
        """Schedule a write: a value has grown or ended. Changes of one turn of the event loop are written together."""
        if not self._task_writes and not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self._push)

    def _push(self) -> None:
        """Write new events without waiting, or wake the request's own task if that is not possible."""
        self._scheduled = False
        if self._task_writes:
            return
        self._serialize_new()
        must_wait = self._error is not None or self._has_ended
        if not must_wait and not any(reader.must_expose for reader in self._readers.values()):
            try:
                if not self._events or self._stream.try_write(self._events):
                    self._events = b""
                    return
            except Exception as error:
                self._error = error
        self._task_needed = True
        if self._wake is not None and not self._wake.done():
            self._wake.set_result(None)

    def _serialize_new(self) -> None:
        """Serialize the new pieces, up to the first error."""
        if self._error is not None:
            return
        try:
            for index, reader in [*self._readers.items()]:
                if pieces := reader.take_available():
                    self._events += self._serializer.piece_events(index, pieces)
                if reader.is_exhausted:
                    del self._readers[index]
                    self._end(index)
            for index, ending in [*self._ending.items()]:
                if ending.done():
                    del self._ending[index]
                    ending.result()
                    self._events += self._serializer.end_events(index)
        except Exception as error:  # raised by the request's own task
            self._error = error
