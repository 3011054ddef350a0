"""The event log of a session: its events in order, and the clients that wait for the next one."""

import asyncio
import bisect
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from gateway.graph.errors import GraphError
from gateway.graph.events import Change, Event, Fact, FactSink

if TYPE_CHECKING:
    from gateway.graph.session import Session


class EventLog:
    """Owner of a session's events. It numbers the facts and writes them to a sink, the journal.

    After a restart, the journal's replay restores `events` and `fact_count`.

    A session without an id belongs to one request: its facts are neither stored nor emitted as events.
    """

    def __init__(self, session: "Session", sink: FactSink, clock: Callable[[], float]) -> None:
        """`sink` stores the facts. `clock`: current time in seconds."""
        self.events: list[Event] = []
        self.fact_count = 0
        """Number of facts so far. It numbers the events."""
        self.error: GraphError | None = None
        """Error because of which the sink cannot store the session, if there is one."""
        self.sink = sink
        self.is_closed = False
        """Whether the last event was emitted."""
        self._session = session if session.id else None
        """The session that emits events; None if it has no id or has ended, so that no reference cycle is left."""
        self._created = session.created
        self._clock = clock
        self._next_event: asyncio.Future[None] | None = None

    def check(self) -> None:
        """Raise GraphError if facts cannot be stored now, so that no new work may begin."""
        if self._session is not None:
            self.sink.check()
        if self.error is not None:
            raise self.error

    def write(self, fact: Fact) -> None:
        """Write a fact that is not an event. Do nothing after the last event."""
        if self._session is not None:
            self.fact_count += 1
            self.sink.write(self._session, fact)

    def emit(self, change: Change, time: float | None = None) -> None:
        """Emit an event and store it.

        `time`: time of the fact before, if the event follows from it. The sink does not store such an event.
        """
        if self._session is None:
            return
        event = Event(self.fact_count + 1, self._clock() if time is None else time, change)
        self.events.append(event)
        if time is None:
            self.write(event)
        else:
            self.fact_count += 1
        future, self._next_event = self._next_event, None
        if future is not None and not future.done():
            future.set_result(None)

    def close(self) -> None:
        """Ignore all facts and events from now on."""
        self.is_closed = True
        self._session = None

    async def flush(self) -> None:
        """Wait until the sink has stored all facts so far. Raises GraphError if it cannot store them."""
        await self.sink.flush()
        if self.error is not None:
            raise self.error

    @property
    def last_id(self) -> int:
        """Id of the last event; 0 if there was none."""
        return self.events[-1].id if self.events else 0

    @property
    def last_time(self) -> float:
        """Time of the last event, in seconds of the Unix clock; the session's creation if there was none."""
        return self.events[-1].time if self.events else self._created

    async def next_events(self, after: int) -> Sequence[Event]:
        """Wait for events numbered above `after`, and return them once they are stored. Return none after the last
        one."""
        while True:
            index = bisect.bisect_right(self.events, after, key=lambda event: event.id)
            if index < len(self.events):
                last = len(self.events)
                await self.flush()
                return self.events[index:last]
            if self.is_closed:
                return []
            if self._next_event is None:
                self._next_event = asyncio.get_running_loop().create_future()
            await asyncio.shield(self._next_event)
