"""gateway/journal/: accepted calls and exposed values survive the process, wherever it is killed."""

import asyncio
import dataclasses
import os
import sqlite3
import threading
from array import array
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.api.semantic.events import describe_event
from gateway.graph.call import Call, CallSpec, CallState, Objective, Rendering, Times
from gateway.graph.events import CallAddition, Exposure
from gateway.graph.limits import SessionLimits
from gateway.graph.prefix_hash import prefix_hashes
from gateway.graph.references import Reference
from gateway.graph.sampling import SamplingParams, Transform
from gateway.graph.segments import Input, Slot, Text
from gateway.graph.session import Session
from gateway.graph.session_store import SessionStore
from gateway.graph.variable import Piece, Variable, VariableState
from gateway.journal import Journal, JournalError, JournalFailed
from gateway.journal.records import (
    CallRecord,
    Record,
    SlotTextRecord,
    entries_of,
    facts_of,
    record_of,
    session_record,
    spec_of,
)
from gateway.journal.sqlite import FileStorage, JournalFile
from gateway.journal.storage import Batch, Entry
from gateway.scheduler import Scheduler
from tests.fakes.engine import StubEngine
from tests.gateway.scheduler.test_scheduler import StubEngines

GREEDY = SamplingParams(temperature=0.0)
ANSWER = Slot(None, GREEDY)


class GatewayHarness:
    """A session store, a scheduler with one stub engine, and a journal: the parts of `app.py` without HTTP."""

    def __init__(self, path: Path) -> None:
        self.engine = StubEngine()
        self.scheduler = Scheduler(StubEngines(self.engine), 1000)
        self.storage = FileStorage(path)
        self.journal = Journal(self.storage)
        self.store = SessionStore(self.scheduler.cancel, SessionLimits(), 60.0, 100, 100, self.journal)
        self.restored = self.journal.restore(self.storage.rows(), SessionLimits())
        for session in self.restored:
            self.store.add(session)

    async def run(self, session: Session, *specs: CallSpec) -> list[Call]:
        addition = session.add_all(specs)
        await self.scheduler.start(session, addition, promised=True)
        return list(addition.calls)

    async def put(self, session: Session, name: str, value: str | None = None) -> None:
        await self.scheduler.start(session, session.add_variable(name, value), promised=True)

    async def resume(self) -> None:
        for session in self.restored:
            self.scheduler.resume(session)
        await self.scheduler.wait_idle()

    async def die(self) -> None:
        """End like a killed process: no more facts are stored, and no waiting task is resolved."""
        self.journal._closed = True
        await self.scheduler.close()
        self.storage.file.close()


def spec(output: str, *reads: str, deferred: bool = True, slots: tuple[Slot, ...] = (ANSWER,)) -> CallSpec:
    inputs = [Input(Reference(name), f"messages.{index}.content") for index, name in enumerate(reads)]
    return CallSpec(model="m", segments=[Text([7, 8]), *inputs, *slots], output=output, deferred=deferred)


async def test_a_session_is_restored_unchanged(tmp_path: Path) -> None:
    harness = GatewayHarness(tmp_path / "j")
    session = harness.store.create("tenant", "s", metadata={"a": "b"}, ttl=30.0)
    await harness.put(session, "given", "wörld\0\n<<x>>")
    await harness.put(session, "declared")
    parts = ["T ", Input(Reference("given"), "template")]
    await harness.scheduler.start(session, session.add_variable("shown", template=parts), promised=True)
    slots = (Slot("inner", GREEDY), Text([1]), ANSWER)
    calls = await harness.run(session, spec("a", "given"), spec("b", "a", slots=slots), spec("c", "given"))
    await harness.scheduler.wait_idle()
    session.delete("c")
    await harness.journal.flush()
    await harness.die()

    restored = GatewayHarness(tmp_path / "j")
    (back,) = restored.restored
    assert (back.id, back.tenant, back.metadata, back.ttl) == ("s", "tenant", {"a": "b"}, 30.0)
    assert {v.name: (v.state, v.value) for v in back.variables.values()} == {
        v.name: (v.state, v.value) for v in session.variables.values()
    }
    assert back.variable("shown").value == "T wörld\0\n<<x>>"
    assert back.usage() == session.usage()
    assert [c.state for c in back.calls.values()] == [c.state for c in session.calls.values()]
    assert [c.id for c in back.variable("given").consumers] == [c.id for c in session.variable("given").consumers]
    assert back.variable("b").producer is back.calls[calls[1].id]
    assert prefix_hashes(back.calls[calls[1].id]) == prefix_hashes(calls[1])
    assert back.resources.bytes == session.resources.bytes
    assert [event.id for event in back.event_log.events] == [event.id for event in session.event_log.events]
    assert [describe_event(event) for event in back.event_log.events] == [
        describe_event(event) for event in session.event_log.events
    ]
    assert "c" in back._retired_names
    shared = (await restored.run(back, spec("twin", "given")))[0]
    await restored.scheduler.wait_idle()
    assert shared.leader is back.calls[calls[0].id], "a restored call serves identical new calls"
    assert restored.engine.opened[0].generates == 0
    await restored.die()


async def test_unfinished_calls_run_again_and_finished_ones_do_not(tmp_path: Path) -> None:
    harness = GatewayHarness(tmp_path / "j")
    session = harness.store.create("", "s")
    await harness.run(session, spec("done"))
    await harness.scheduler.wait_idle()
    harness.engine.hold()
    running, waiting = await harness.run(session, spec("a", "done"), spec("b", "a"))
    other = dataclasses.replace(spec("c", deferred=False), segments=[Text([9]), ANSWER])
    blocking = (await harness.run(session, other))[0]
    needed = (await harness.run(session, spec("d", deferred=False)))[0]
    await harness.run(session, spec("e", "d"))
    for call in (blocking, needed):
        harness.scheduler.subscribe(call.output)
    for _ in range(20):
        await asyncio.sleep(0)
    assert running.state is CallState.PREFILL
    await harness.journal.flush()
    await harness.die()

    restored = GatewayHarness(tmp_path / "j")
    await restored.resume()
    (back,) = restored.restored
    assert back.calls[running.id].state is back.calls[waiting.id].state is CallState.DONE
    assert back.calls[blocking.id].state is CallState.CANCELLED, "it lost its client, and no other call reads it"
    assert back.calls[needed.id].state is CallState.DONE, "another call reads it"
    assert sum(context.generates for context in restored.engine.opened) == 2, (
        "the other calls are served by finished ones"
    )
    assert back.unfinished_calls == 0
    await restored.die()


async def test_an_exposed_random_value_is_not_generated_again(tmp_path: Path) -> None:
    harness = GatewayHarness(tmp_path / "j")
    session = harness.store.create("", "s")
    harness.engine.deaths = 1
    random = Slot(None, SamplingParams(temperature=1.0))
    long = Text([1] * 98)
    specs = [
        dataclasses.replace(spec(name, slots=(slot,)), segments=[long, slot])
        for name, slot in (("random", random), ("greedy", ANSWER))
    ]
    harness.engine.released.clear()
    calls = await harness.run(session, *specs)
    for call in calls:  # part of each value exists
        call.set_state(CallState.DECODE)
        call.output.append(Piece("4", 1))
        with session.read(call.output) as reader:
            assert [piece.text for piece in await reader.next_pieces()] == ["4"]
    await harness.die()

    restored = GatewayHarness(tmp_path / "j")
    await restored.resume()
    (back,) = restored.restored
    failed, same = back.calls[calls[0].id], back.calls[calls[1].id]
    assert failed.state is CallState.FAILED
    assert failed.output.failure is not None
    assert failed.output.failure.code == "interrupted"
    assert same.output.value == "98"
    await restored.die()


class RecordedTurns:
    """Recorder of the facts by turn of the event loop. A process may be killed after each of these turns."""

    def __init__(self, journal: Journal) -> None:
        self.turns: list[list[tuple[int, int, Record]]] = []
        self._journal = journal
        self._open = False
        begin_soon = journal._schedule

        def record_fact() -> None:
            if not self._open:
                self._open = True
                self.turns.append([])
                asyncio.get_running_loop().call_soon(self._close)
            self.turns[-1].append(journal._facts[-1])
            begin_soon()

        journal._schedule = record_fact  # type: ignore[method-assign]

    def _close(self) -> None:
        self._open = False


async def test_a_restart_after_any_fact_completes_all_accepted_calls(tmp_path: Path) -> None:
    harness = GatewayHarness(tmp_path / "j")
    recorded = RecordedTurns(harness.journal)
    session = harness.store.create("", "s")
    await harness.put(session, "late")
    random = Slot("dice", SamplingParams(temperature=1.0))
    specs = [
        spec("a"),
        spec("twin"),
        spec("b", "a", slots=(random, Text([3]), Slot("greedy", GREEDY), Text([4]), ANSWER)),
        spec("c", "b", "late"),
        dataclasses.replace(spec("d", "c"), segments=[Text([5]), Slot(None, GREEDY, Transform(regex="nothing"))]),
        spec("e", "d"),
    ]
    await harness.run(session, *specs)
    await harness.put(session, "late", "now")
    await harness.scheduler.wait_idle()
    expected = {v.name: (v.state, v.value) for v in session.variables.values()}
    assert {state for state, _ in expected.values()} == {VariableState.READY, VariableState.FAILED}
    await harness.die()
    assert len(recorded.turns) > 12

    for end in range(2, len(recorded.turns) + 1):
        path = tmp_path / f"cut-{end}"
        file = JournalFile(path)
        file.commit(Batch(entries_of(fact for turn in recorded.turns[:end] for fact in turn), [], []))
        file.close()
        restored = GatewayHarness(path)
        (back,) = restored.restored
        told = {event.id for event in back.event_log.events}
        known = {v.name: v.value for v in back.variables.values() if v.state is VariableState.READY}
        assert all(expected[name] == (VariableState.READY, value) for name, value in known.items())
        if back.variable("late").state is VariableState.DECLARED:
            await restored.put(back, "late", "now")
        await restored.resume()
        assert back.unfinished_calls == 0
        if back.calls:
            assert {v.name: (v.state, v.value) for v in back.variables.values()} == expected, f"cut behind {end}"
        assert len({event.id for event in back.event_log.events}) == len(back.event_log.events), "event ids are unique"
        assert told <= {event.id for event in back.event_log.events}
        await restored.die()
        third = GatewayHarness(path)  # the results after the restart are stored as well
        if back.calls:
            assert {v.name: (v.state, v.value) for v in third.restored[0].variables.values()} == expected
        await third.die()


async def test_a_finished_slot_is_not_generated_again(tmp_path: Path) -> None:
    harness = GatewayHarness(tmp_path / "j")
    recorded = RecordedTurns(harness.journal)
    session = harness.store.create("", "s")
    dice = Slot("dice", SamplingParams(temperature=1.0))
    await harness.run(session, spec("whole", slots=(dice, Text([3]), ANSWER)))
    await harness.scheduler.wait_idle()
    await harness.die()
    done = next(
        index for index, turn in enumerate(recorded.turns) if any(isinstance(fact[2], SlotTextRecord) for fact in turn)
    )
    file = JournalFile(tmp_path / "cut")
    file.commit(Batch(entries_of(fact for turn in recorded.turns[: done + 1] for fact in turn), [], []))
    file.close()

    restored = GatewayHarness(tmp_path / "cut")
    (back,) = restored.restored
    assert (back.variable("dice").value, back.variable("whole").state) == ("2", VariableState.PENDING)
    await restored.resume()
    assert back.variable("whole").value == session.variable("whole").value
    assert sum(context.generates for context in restored.engine.opened) == 1, "only the answer is generated"
    await restored.die()


async def test_deleted_and_expired_sessions_are_removed_from_the_file(tmp_path: Path) -> None:
    harness = GatewayHarness(tmp_path / "j")
    for name in ("deleted", "expired", "stays"):
        session = harness.store.create("t", name, ttl=1.0 if name == "expired" else 1e6)
        await harness.put(session, "big", "x" * 500_000)
    harness.store.delete(harness.store.get("t", "deleted"))
    harness.store.expire(harness.store.get("t", "expired").last_used + 2.0)
    await harness.journal.close()
    await harness.scheduler.close()
    assert (tmp_path / "j").stat().st_size < 1_000_000, "the space of two of three values was returned"

    restored = GatewayHarness(tmp_path / "j")
    assert [session.id for session in restored.restored] == ["stays"]
    assert restored.storage.expired() == [("t", "expired")]
    await restored.die()


async def test_facts_after_closing_are_dropped(tmp_path: Path) -> None:
    harness = GatewayHarness(tmp_path / "j")
    session = harness.store.create("", "s")
    harness.engine.hold()
    (call,) = await harness.run(session, spec("a"))
    await harness.journal.close()
    harness.engine.released.set()
    for _ in range(50):
        await asyncio.sleep(0)
    assert harness.engine.opened[0].generates == 1
    assert not call.state.is_final, "its answer is not published: another run may give another one"
    await harness.scheduler.close()
    assert call.state is CallState.CANCELLED
    with pytest.raises(JournalFailed, match="stopping"):
        await harness.put(session, "b", "x")

    restored = GatewayHarness(tmp_path / "j")
    await restored.resume()
    assert restored.restored[0].variable("a").value == "2", "the call runs again after the next start"
    await restored.die()


@pytest.mark.parametrize("problem", ["query_only = ON", "max_page_count = 1"])
async def test_a_file_that_cannot_be_written_rejects_new_work_and_loses_nothing(tmp_path: Path, problem: str) -> None:
    harness = GatewayHarness(tmp_path / "j")
    session = harness.store.create("", "s")
    await harness.put(session, "early", "kept")
    harness.storage.file._connection.execute(f"PRAGMA {problem}").fetchall()
    words = "readonly database" if "query" in problem else "disk is full"
    with pytest.raises(JournalFailed, match=words):
        await harness.put(session, "lost", "x" * 100_000)
    assert session.variable("lost").state is VariableState.FAILED
    with pytest.raises(JournalFailed):
        await harness.run(session, spec("refused"))
    with pytest.raises(JournalFailed):
        harness.store.create("", "another")
    assert "refused" not in session.variables

    healing = "query_only = OFF" if "query" in problem else "max_page_count = 1000000"
    harness.storage.file._connection.execute(f"PRAGMA {healing}").fetchall()
    async with asyncio.timeout(10):
        while harness.journal._failure is not None:
            await asyncio.sleep(0.05)
    (call,) = await harness.run(session, spec("goes_on", "early"))
    await harness.scheduler.wait_idle()
    assert call.state is CallState.DONE
    await harness.die()
    restored = GatewayHarness(tmp_path / "j")
    states = {v.name: v.state for v in restored.restored[0].variables.values()}
    assert states == {"early": "ready", "lost": "failed", "goes_on": "ready"}
    await restored.die()


def _not_a_database(path: Path) -> None:
    path.write_bytes(b"something else, long enough to be looked at" * 100)


def _of_schema(version: int) -> Callable[[Path], None]:
    def harm(path: Path) -> None:
        connection = sqlite3.connect(path)
        connection.execute(f"PRAGMA user_version = {version}")
        connection.close()

    return harm


def _another_programs(path: Path) -> None:
    path.unlink()
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE theirs (x)")
    connection.close()


def _torn(path: Path) -> None:
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.seek(size // 2)
        file.write(os.urandom(size // 4))


def _unknown_row(path: Path) -> None:
    connection = sqlite3.connect(path)
    connection.execute("UPDATE commits SET facts = '[[1, [[1, [\"nonsense\"]]]]]' ")
    connection.commit()
    connection.close()


def _row(facts: Any) -> Callable[[Path], None]:
    def harm(path: Path) -> None:
        connection = sqlite3.connect(path)
        connection.execute("PRAGMA ignore_check_constraints = ON")
        connection.execute("UPDATE commits SET facts = ?", (facts,))
        connection.commit()
        connection.close()

    return harm


def _without_table(path: Path) -> None:
    connection = sqlite3.connect(path)
    connection.execute("DROP TABLE expired")
    connection.commit()
    connection.close()


SESSION = '[1, ["session", "", "s", 0.0, 60.0, {}]]'
MADE = '[2, ["variable", 0.0, 1, "a", "declared", null]]'
CALLED = '["call", "c", 0.0, 0, "m", [["text", "AQ=="]], null, {}, {"a": 1}, false, null, false]'
MAKES_NOTHING = CALLED.replace('{"a": 1}', "{}").replace("AQ==", "AQAAAA==")
ODD_ROWS = {
    "number": 7,
    "bytes": b"\xff\xfe",
    "no entries": "{}",
    "a session by name": '[["one", []]]',
    "no session first": f"[[1, [{MADE}]]]",
    "a session twice": f"[[1, [{SESSION}, {SESSION}]]]",
    "half a fact": f'[[1, [{SESSION}, [2, ["variable", 0.0]]]]]',
    "an unknown state": f"[[1, [{SESSION}, {MADE.replace('declared', 'lost')}]]]",
    "a variable that is not there": f'[[1, [{SESSION}, [2, ["shown", 9]]]]]',
    "a call that is not there": f'[[1, [{SESSION}, [2, ["state", 0.0, "c", "done", null, null]]]]]',
    "a call without output": f"[[1, [{SESSION}, [2, {MAKES_NOTHING}]]]]",
    "a token of one byte": f"[[1, [{SESSION}, {MADE}, [3, {CALLED}]]]]",
    "words for numbers": f'[[1, [{SESSION}, ["two", ["shown", 1]]]]]',
}


def _folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (_not_a_database, "damaged.*not a database"),
        (_torn, "damaged"),
        (_unknown_row, "damaged.*row 1: session 1"),
        *((_row(facts), "damaged.*row 1: ") for facts in ODD_ROWS.values()),
        (_of_schema(99), "newer myna .schema 99"),
        (_of_schema(1), "older myna .schema 1"),
        (_another_programs, "database of another program"),
        (_folder, "cannot be written: Is a directory"),
    ],
)
async def test_an_unusable_file_is_reported_and_left_unchanged(
    tmp_path: Path, harm: Callable[[Path], None], words: str
) -> None:
    harness = GatewayHarness(tmp_path / "j")
    session = harness.store.create("", "s")
    await harness.put(session, "a", "x" * 200_000)
    await harness.journal.close()
    harm(tmp_path / "j")
    before = (tmp_path / "j").read_bytes() if (tmp_path / "j").is_file() else b""
    with pytest.raises(JournalError, match=words):
        GatewayHarness(tmp_path / "j")
    if before:
        assert (tmp_path / "j").read_bytes() == before


async def test_a_file_without_one_of_its_tables_is_damaged(tmp_path: Path) -> None:
    await GatewayHarness(tmp_path / "j").journal.close()
    _without_table(tmp_path / "j")
    storage = FileStorage(tmp_path / "j")
    with pytest.raises(JournalError, match=r"damaged.*no such table"):
        storage.expired()
    await storage.close()


def _entry(session: int, facts: str = "[]") -> Entry:
    return Entry(session, 0, f"[{session},{facts}]".encode())


def _content(file: JournalFile) -> list[tuple[int, str]]:
    """Return the facts of sessions that have not ended, in order."""
    return [(session, bytes(facts).decode()) for _, entries in file.rows() for session, facts in entries]


@pytest.mark.parametrize(
    "denied", [(sqlite3.SQLITE_DELETE, "commits"), (sqlite3.SQLITE_TRANSACTION, "COMMIT")], ids=["in it", "at its end"]
)
def test_a_failed_batch_may_be_committed_again(tmp_path: Path, denied: tuple[int, str]) -> None:
    file = JournalFile(tmp_path / "j")
    file.commit(Batch([_entry(1)], [], []))
    second = Batch([_entry(2)], [1], [("t", "gone")])
    file._connection.set_authorizer(
        lambda action, what, *_: sqlite3.SQLITE_DENY if (action, what) == denied else sqlite3.SQLITE_OK
    )
    with pytest.raises(sqlite3.Error):
        file.commit(second)
    file._connection.set_authorizer(None)
    rows = "SELECT facts FROM commits ORDER BY id"
    assert file._connection.execute(rows).fetchall() == [("[[1,[]]]",)], "no part of the batch was stored"
    file.commit(second)
    assert file._connection.execute(rows).fetchall() == [("[[2,[]]]",)]
    assert file.expired() == [("t", "gone")]
    file.close()


def test_a_batch_that_was_stored_despite_an_error_may_be_committed_again(tmp_path: Path) -> None:
    file = JournalFile(tmp_path / "j")
    insert = file._insert

    def kept_but_failed(at: int, entries: Sequence[Entry]) -> None:
        insert(at, entries)
        raise sqlite3.OperationalError("disk I/O error")

    file._insert = kept_but_failed  # type: ignore[method-assign]
    with pytest.raises(sqlite3.Error):
        file.commit(Batch([_entry(1, "[1]")], [], []))
    file._insert = insert  # type: ignore[method-assign]
    file.commit(Batch([_entry(1, "[1]"), _entry(1, "[2]")], [], []))
    file.close()
    restored = JournalFile(tmp_path / "j")
    assert _content(restored) == [(1, "[1]"), (1, "[2]")]
    restored.close()


def test_session_keys_are_not_reused_while_their_facts_exist(tmp_path: Path) -> None:
    file = JournalFile(tmp_path / "j")
    file.commit(Batch([_entry(1), _entry(2), _entry(3)], [], []))
    file.commit(Batch([], [3], []))
    file.close()
    restored = JournalFile(tmp_path / "j")
    assert [key for key, _ in _content(restored)] == [1, 2]
    assert restored.last_session == 3
    restored.close()


@settings(deadline=None)
@given(data=st.data())
def test_the_file_contains_live_facts_and_few_others(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    path = tmp_path_factory.mktemp("journal") / "j"
    file = JournalFile(path)
    expected: dict[int, list[str]] = {}
    fresh, fact = 1, 0
    for _ in range(data.draw(st.integers(1, 8))):
        match data.draw(st.sampled_from(["grow", "grow", "end", "reopen"])):
            case "grow":
                entries = []
                new = range(fresh, fresh + data.draw(st.integers(0 if expected else 1, 3)))
                fresh = new.stop
                for session in [*new, *data.draw(st.lists(st.sampled_from([*expected, *new]), max_size=3))]:
                    fact += 1
                    entries.append(_entry(session, f"[{fact}]"))
                    expected.setdefault(session, []).append(f"[{fact}]")
                ended = data.draw(st.sets(st.sampled_from(list(expected)), max_size=2))
                if entries or ended:
                    file.commit(Batch(entries, list(ended), []))
            case "end":
                ended = data.draw(st.sets(st.sampled_from(list(expected)))) if expected else set()
                file.commit(Batch([], list(ended), []))
            case "reopen":
                ended = set()
                file.close()
                file = JournalFile(path)
                list(file.rows())
                fresh = file.last_session + 1
        for session in ended:
            expected.pop(session, None)
    file.close()
    restored = JournalFile(path)
    content = _content(restored)
    assert {key: [facts for session, facts in content if session == key] for key in expected} == expected
    assert sum(map(len, expected.values())) == len(content), "no facts of ended sessions are read"
    assert all(live and 2 * live >= total for live, total in restored._commits.values()), (
        "at least half of each row is live"
    )
    restored.close()


async def test_a_file_is_locked_by_its_process(tmp_path: Path) -> None:
    harness = GatewayHarness(tmp_path / "j")
    with pytest.raises(JournalError, match="in use by another myna"):
        FileStorage(tmp_path / "j")
    await harness.die()


def test_the_file_is_private(tmp_path: Path) -> None:
    file = JournalFile(tmp_path / "deep" / "j")
    assert (tmp_path / "deep" / "j").stat().st_mode & 0o077 == 0
    file.close()


def read_again(record: Record) -> Record:
    ((key, first, entry),) = entries_of([(1, 5, record)])
    assert first == 5
    again_key, facts = msgspec.json.decode(entry, type=tuple[int, msgspec.Raw])
    assert key == again_key == 1
    ((number, restored),) = facts_of(facts)
    assert number == 5
    return restored


samplings = st.builds(
    SamplingParams,
    max_tokens=st.none() | st.integers(1, 99),
    temperature=st.floats(0, 2),
    seed=st.none() | st.integers(-(2**63), 2**63 - 1),
    logit_bias=st.dictionaries(st.integers(0, 9), st.floats(-100, 100)),
    stop=st.lists(st.text()).map(tuple),
    stop_token_ids=st.lists(st.integers(0, 9)).map(tuple),
    logprobs=st.booleans(),
)
inputs = st.builds(Input, st.builds(Reference, st.just("x"), st.lists(st.text()).map(tuple)), st.text())
slots = st.builds(
    Slot,
    st.none() | st.sampled_from(["p", "q"]),
    samplings,
    st.none() | st.builds(Transform, strip=st.booleans(), line=st.none() | st.integers(), json=st.none() | st.text()),
    st.text(),
    st.sampled_from([None, "perhaps", "begun"]),
)
tokens = st.lists(st.integers(0, 2**20)).map(lambda numbers: array("i", numbers))
segments = st.builds(Text, tokens, st.none() | st.integers(0, 9)) | inputs | slots


@given(
    spec=st.builds(
        CallSpec,
        model=st.text(),
        segments=st.lists(segments),
        parts=st.none() | st.lists(st.text() | inputs),
        output=st.just("out"),
        deferred=st.booleans(),
        objective=st.none() | st.sampled_from(Objective),
        share=st.booleans(),
        fallbacks=st.lists(st.builds(Rendering, st.text(), st.lists(segments)), max_size=2).map(tuple),
    )
)
def test_a_call_record_restores_the_call(spec: CallSpec) -> None:
    session = Session(id="s", tenant="t", created=0.0, ttl=1.0)
    made = dict.fromkeys(slot.name for slot in spec.slots if slot.name)
    variables = {name: session.create_variable(name, at) for at, name in enumerate([*made, "out"], 1)}
    call = Call(
        id="call_1",
        spec=spec,
        inputs={},
        slots={name: variables[name] for name in made},
        output=variables["out"],
        times=Times(1.0),
        session=session,
        arrival=0,
    )
    record = read_again(record_of(CallAddition(call)))
    assert isinstance(record, CallRecord)
    assert spec_of(record) == spec


def test_a_session_record_restores_the_session() -> None:
    session = Session(id="s", tenant="t", created=1.5, ttl=1.0, metadata={"ä": "\0"})
    assert read_again(session_record(session)) == session_record(session)


async def test_a_fact_that_cannot_be_written_fails_only_its_session(tmp_path: Path) -> None:
    harness = GatewayHarness(tmp_path / "j")
    harness.journal.on_lost = harness.store.fail
    good, bad = harness.store.create("t", "good"), harness.store.create("u", "bad")
    await harness.put(bad, "before", "x")
    (call,) = await harness.run(bad, spec("o", "before"))
    bad.event_log.write(Exposure(_broken(bad)))  # as if an invalid text had passed every check
    saved = asyncio.ensure_future(harness.put(good, "a", "kept"))
    with pytest.raises(JournalFailed, match="session bad cannot be stored"):
        await bad.event_log.flush()
    await saved
    await harness.put(good, "b", "kept as well")
    assert call.state.is_final
    assert not harness.store.holds("u", "bad")
    with pytest.raises(JournalFailed):
        await harness.put(bad, "c", "x")
    await harness.journal.close()
    restored = GatewayHarness(tmp_path / "j")
    assert {s.id: sorted(s.variables) for s in restored.restored} == {"good": ["a", "b"]}
    await restored.journal.close()


def _broken(session: Session) -> Variable:
    return Variable("x", number="\ud800")  # type: ignore[arg-type]


async def test_facts_that_the_storage_refuses_fail_only_their_session(tmp_path: Path) -> None:
    harness = GatewayHarness(tmp_path / "j")
    harness.journal.on_lost = harness.store.fail
    commit, tried = harness.storage.file.commit, []

    def refuse(batch: Batch) -> None:
        tried.append(len(batch.entries))
        if any(b"poison" in entry.facts for entry in batch.entries):
            raise sqlite3.DataError("string or blob too big")
        commit(batch)

    harness.storage.file.commit = refuse  # type: ignore[method-assign]
    sessions = [harness.store.create("t", f"s{number}") for number in range(5)]
    results = await asyncio.gather(
        *(harness.put(session, "v", "poison" if session.id == "s2" else "x") for session in sessions),
        return_exceptions=True,
    )
    assert [type(result) for result in results] == [type(None)] * 2 + [JournalFailed] + [type(None)] * 2
    assert tried[0] == 5
    await harness.put(sessions[0], "w", "still written")
    await harness.journal.close()
    restored = GatewayHarness(tmp_path / "j")
    assert sorted(session.id for session in restored.restored) == ["s0", "s1", "s3", "s4"]
    await restored.journal.close()


async def test_a_commit_that_cannot_start_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.journal.journal._RETRY_SECONDS", 0.01)
    harness = GatewayHarness(tmp_path / "j")
    session = harness.store.create("t", "s")
    await harness.journal.flush()
    faults = iter([RuntimeError("no thread can be started"), ZeroDivisionError("test error")])
    commit = harness.storage.commit

    def fail(batch: Batch) -> "asyncio.Future[None]":
        for fault in faults:
            raise fault
        return commit(batch)

    monkeypatch.setattr(harness.storage, "commit", fail)
    with pytest.raises(JournalFailed, match="no thread can be started"):
        await harness.put(session, "a", "x")
    async with asyncio.timeout(5):
        while harness.journal._failure is not None:
            await asyncio.sleep(0.01)
    await harness.put(session, "b", "y")
    await harness.journal.close()


async def test_closing_ends_even_if_the_storage_hangs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("gateway.journal.journal._CLOSE_SECONDS", 0.05)
    harness = GatewayHarness(tmp_path / "j")
    release = threading.Event()
    commit = harness.storage.file.commit
    monkeypatch.setattr(harness.storage.file, "commit", lambda batch: (release.wait(10), commit(batch)))
    harness.store.create("t", "s")
    async with asyncio.timeout(5):
        await harness.journal.close()
    assert "did not close within 0.05 s" in caplog.text
    release.set()
    harness.storage._thread.shutdown()
