"""gateway/journal/journal.py: accepted calls and exposed values are stored before clients see them."""

import asyncio
import sqlite3
import threading
from pathlib import Path

import pytest

from gateway.graph.call import (
    CallState,
)
from gateway.graph.events import Exposure
from gateway.graph.session import Session
from gateway.graph.variable import Variable, VariableState
from gateway.journal import JournalFailed
from gateway.journal.storage import Batch
from tests.gateway.journal.journal_harness import JournalHarness, spec


async def test_deleted_and_expired_sessions_are_removed_from_the_file(tmp_path: Path) -> None:
    harness = JournalHarness(tmp_path / "j")
    for name in ("deleted", "expired", "stays"):
        session = harness.store.create("t", name, ttl=1.0 if name == "expired" else 1e6)
        await harness.put(session, "big", "x" * 500_000)
    harness.store.delete(harness.store.get("t", "deleted"))
    harness.store.expire(harness.store.get("t", "expired").last_used + 2.0)
    await harness.journal.close()
    await harness.scheduler.close()
    assert (tmp_path / "j").stat().st_size < 1_000_000, "the space of two of three values was returned"

    restored = JournalHarness(tmp_path / "j")
    assert [session.id for session in restored.restored] == ["stays"]
    assert restored.storage.expired() == [("t", "expired")]
    await restored.die()


async def test_facts_after_closing_are_dropped(tmp_path: Path) -> None:
    harness = JournalHarness(tmp_path / "j")
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

    restored = JournalHarness(tmp_path / "j")
    await restored.resume()
    assert restored.restored[0].variable("a").value == "2", "the call runs again after the next start"
    await restored.die()


@pytest.mark.parametrize("problem", ["query_only = ON", "max_page_count = 1"])
async def test_a_file_that_cannot_be_written_rejects_new_work_and_loses_nothing(tmp_path: Path, problem: str) -> None:
    harness = JournalHarness(tmp_path / "j")
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
    restored = JournalHarness(tmp_path / "j")
    states = {v.name: v.state for v in restored.restored[0].variables.values()}
    assert states == {"early": "ready", "lost": "failed", "goes_on": "ready"}
    await restored.die()


async def test_a_fact_that_cannot_be_written_fails_only_its_session(tmp_path: Path) -> None:
    harness = JournalHarness(tmp_path / "j")
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
    restored = JournalHarness(tmp_path / "j")
    assert {s.id: sorted(s.variables) for s in restored.restored} == {"good": ["a", "b"]}
    await restored.journal.close()


def _broken(session: Session) -> Variable:
    return Variable("x", number="\ud800")  # type: ignore[arg-type]


async def test_facts_that_the_storage_refuses_fail_only_their_session(tmp_path: Path) -> None:
    harness = JournalHarness(tmp_path / "j")
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
    restored = JournalHarness(tmp_path / "j")
    assert sorted(session.id for session in restored.restored) == ["s0", "s1", "s3", "s4"]
    await restored.journal.close()


async def test_a_commit_that_cannot_start_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.journal.journal._RETRY_SECONDS", 0.01)
    harness = JournalHarness(tmp_path / "j")
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
    harness = JournalHarness(tmp_path / "j")
    release = threading.Event()
    commit = harness.storage.file.commit
    monkeypatch.setattr(harness.storage.file, "commit", lambda batch: (release.wait(10), commit(batch)))
    harness.store.create("t", "s")
    async with asyncio.timeout(5):
        await harness.journal.close()
    assert "did not close within 0.05 s" in caplog.text
    release.set()
    harness.storage._thread.shutdown()
