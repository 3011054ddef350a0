"""gateway/journal/sqlite.py: the file of a journal, damaged ones included."""

import os
import sqlite3
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.journal import JournalError
from gateway.journal.sqlite import FileStorage, JournalFile
from gateway.journal.storage import SCHEMA, Batch, Entry
from tests.gateway.journal.journal_harness import JournalHarness


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
    harness = JournalHarness(tmp_path / "j")
    session = harness.store.create("", "s")
    await harness.put(session, "a", "x" * 200_000)
    await harness.journal.close()
    harm(tmp_path / "j")
    before = (tmp_path / "j").read_bytes() if (tmp_path / "j").is_file() else b""
    with pytest.raises(JournalError, match=words):
        JournalHarness(tmp_path / "j")
    if before:
        assert (tmp_path / "j").read_bytes() == before


async def test_a_file_of_the_schema_before_is_read_and_marked_at_the_first_commit(tmp_path: Path) -> None:
    harness = JournalHarness(tmp_path / "j")
    await harness.put(harness.store.create("", "s"), "a", "x")
    await harness.journal.close()
    _of_schema(2)(tmp_path / "j")
    restored = JournalHarness(tmp_path / "j")
    (session,) = restored.restored
    assert session.variable("a").value == "x"
    assert _schema_of(tmp_path / "j") == 2, "an older version can still read it"
    await restored.put(session, "b", "y")
    await restored.journal.close()
    assert _schema_of(tmp_path / "j") == SCHEMA


def _schema_of(path: Path) -> int:
    """Return the schema from the file's header, since the file is locked."""
    return int.from_bytes(path.read_bytes()[60:64])


async def test_a_file_without_one_of_its_tables_is_damaged(tmp_path: Path) -> None:
    await JournalHarness(tmp_path / "j").journal.close()
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
    harness = JournalHarness(tmp_path / "j")
    with pytest.raises(JournalError, match="in use: another myna runs already"):
        FileStorage(tmp_path / "j")
    await harness.die()


def test_the_file_is_private(tmp_path: Path) -> None:
    file = JournalFile(tmp_path / "deep" / "j")
    assert (tmp_path / "deep" / "j").stat().st_mode & 0o077 == 0
    file.close()
