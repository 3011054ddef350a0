"""Tests of gateway/graph/event_log.py: events in order, and clients that wait for the next one."""

import asyncio
from typing import Any

import pytest

from engine.sampling_params import SamplingParams
from gateway.graph.call import CallSpec
from gateway.graph.errors import GraphError
from gateway.graph.event_log import EventLog
from gateway.graph.events import Event, Exposure, Fact, NullSink, SessionEnded
from gateway.graph.segments import Slot, Text
from gateway.graph.session import Session
from gateway.graph.variable import Piece


class BlockedLog(NullSink):
    """Log that stores facts only once `kept` is set."""

    def __init__(self) -> None:
        self.written: list[Fact] = []
        self.kept = asyncio.Event()

    def write(self, session: Session, fact: Fact) -> None:
        self.written.append(fact)

    async def flush(self) -> None:
        await self.kept.wait()


async def test_random_text_is_readable_only_after_its_exposure_is_stored() -> None:
    log = BlockedLog()
    mine = Session(id="s", tenant="t", created=0.0, ttl=60.0, sink=log)
    call = mine.add(CallSpec(model="m", segments=[Text([1]), Slot(None, SamplingParams(temperature=1.0))]))
    call.output.append(Piece("a"))
    with mine.read(call.output) as one, mine.read(call.output) as other:
        reading = [asyncio.ensure_future(reader.next_pieces()) for reader in (one, other)]
        await asyncio.sleep(0.01)
        assert not any(read.done() for read in reading)
        assert call.output.is_exposed, "its producer cannot start again"
        log.kept.set()
        assert [[piece.text for piece in await read] for read in reading] == [["a"], ["a"]]
    assert sum(isinstance(fact, Exposure) for fact in log.written) == 1


class RecordingSink(NullSink):
    """Sink that keeps the facts and their numbers, and rejects work while `error` is set."""

    def __init__(self) -> None:
        self.facts: list[tuple[int, Fact]] = []
        self.error: GraphError | None = None

    def check(self) -> None:
        if self.error is not None:
            raise self.error

    def write(self, session: Session, fact: Fact) -> None:
        self.facts.append((session.event_log.fact_count, fact))


class Time:
    """Clock that a test sets."""

    def __init__(self) -> None:
        self.now = 1.0

    def __call__(self) -> float:
        return self.now


def logged(sink: NullSink | None = None, *, id: str = "s") -> tuple[EventLog, Time]:
    time = Time()
    log = Session(id, "t", 0.5, 60.0, sink=sink or NullSink(), clock=time).event_log
    return log, time


END: Any = SessionEnded(expired=False)


def test_facts_and_events_are_numbered_together() -> None:
    sink = RecordingSink()
    session = Session("s", "t", 0.5, 60.0, sink=sink, clock=lambda: 2.0)
    log = session.event_log
    assert (log.last_id, log.last_time) == (0, 0.5), "the session's creation"
    log.emit(END)
    log.write(Exposure(session))  # type: ignore[arg-type]
    log.emit(END)
    log.emit(END, time=1.5)
    assert [event.id for event in log.events] == [1, 3, 4]
    assert [event.time for event in log.events] == [2.0, 2.0, 1.5]
    assert [number for number, _ in sink.facts] == [1, 2, 3], "the last event follows from the fact before it"
    assert [fact for _, fact in sink.facts if isinstance(fact, Event)] == log.events[:2]
    assert (log.last_id, log.last_time, log.fact_count) == (4, 1.5, 4)


def test_a_session_without_an_id_has_no_events() -> None:
    sink = RecordingSink()
    log = Session("", "t", 0.5, 60.0, sink=sink).event_log
    sink.error = GraphError("the journal is down")
    log.check()
    log.emit(END)
    log.write(END)
    assert (log.events, sink.facts, log.fact_count) == ([], [], 0)


def test_no_work_begins_while_facts_cannot_be_stored() -> None:
    sink = RecordingSink()
    log = Session("s", "t", 0.5, 60.0, sink=sink).event_log
    log.check()
    sink.error = GraphError("the journal is down")
    with pytest.raises(GraphError, match="the journal is down"):
        log.check()
    sink.error, log.error = None, GraphError("this session cannot be stored")
    with pytest.raises(GraphError, match="this session cannot be stored"):
        log.check()


async def test_events_are_returned_once_they_are_stored() -> None:
    sink = BlockedLog()
    session = Session("s", "t", 0.5, 60.0, sink=sink)
    log = session.event_log
    log.emit(END)
    reading = asyncio.ensure_future(log.next_events(0))
    await asyncio.sleep(0.01)
    assert not reading.done()
    log.emit(END)  # after the read began, so the flush may not cover it
    sink.kept.set()
    assert [event.id for event in await reading] == [1]
    assert [event.id for event in await log.next_events(0)] == [1, 2]
    assert [event.id for event in await log.next_events(1)] == [2]


async def test_an_error_of_the_session_reaches_clients_that_watch() -> None:
    session = Session("s", "t", 0.5, 60.0)
    session.event_log.emit(END)
    session.event_log.error = GraphError("this session cannot be stored")
    with pytest.raises(GraphError, match="cannot be stored"):
        await session.event_log.next_events(0)


async def test_all_clients_that_wait_get_the_next_event() -> None:
    session = Session("s", "t", 0.5, 60.0)
    log = session.event_log
    log.emit(END)
    watching = [asyncio.ensure_future(log.next_events(1)) for _ in range(3)]
    await asyncio.sleep(0)
    watching[0].cancel()
    await asyncio.wait(watching[:1])
    log.emit(END)
    for watch in watching[1:]:
        assert [event.id for event in await watch] == [2], "another client's disconnect changes nothing"


async def test_after_the_last_event_there_are_no_more() -> None:
    sink = RecordingSink()
    session = Session("s", "t", 0.5, 60.0, sink=sink)
    log = session.event_log
    log.emit(END)
    log.close()
    log.emit(END)
    log.write(END)
    assert (len(log.events), len(sink.facts)) == (1, 1)
    assert [event.id for event in await log.next_events(0)] == [1]
    async with asyncio.timeout(5):
        assert await log.next_events(1) == []
