"""gateway/accounts/ledger/sqlite_ledger.py: files of the ledger. tests/gateway/accounts/ledger/test_ledger.py tests its answers."""

import sqlite3
import stat
from contextlib import closing
from pathlib import Path

import pytest

from gateway.accounts.ledger import sqlite_ledger
from gateway.accounts.ledger.spend import storable_row
from gateway.accounts.ledger.sqlite_ledger import SqliteLedger
from gateway.accounts.ledger.usage_query import LedgerError, UsageQuery
from tests.gateway.accounts.spends import spend


async def test_only_the_owner_can_read_the_file(tmp_path: Path) -> None:
    ledger = SqliteLedger(tmp_path / "new" / "ledger.sqlite")
    await ledger.insert([spend("call")])
    files = list((tmp_path / "new").iterdir())
    assert len(files) == 3, "the database, and two files of SQLite that contain rows as well"
    assert {stat.S_IMODE(file.stat().st_mode) for file in files} == {0o600}
    await ledger.close()


def test_a_file_that_is_no_ledger_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no database, but long enough to be one" * 100)
    with pytest.raises(LedgerError, match="cannot be used"):
        SqliteLedger(tmp_path / "file")


async def test_a_file_of_an_earlier_version_gets_the_new_columns(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    columns = "id TEXT PRIMARY KEY, ended REAL NOT NULL, " + ", ".join(
        f"{name} {kind} NOT NULL"
        for kind, names in (
            ("TEXT", ("key", "session", "model", "engine", "state")),
            ("INTEGER", ("prompt", "cached", "completion", "reasoning", "lost")),
            ("REAL", ("cost",)),
            ("TEXT", ("tags",)),
        )
        for name in names
    )
    with closing(sqlite3.connect(path)) as old, old:
        old.execute(f"CREATE TABLE spend ({columns})")
        old.execute(f"INSERT INTO spend VALUES ({', '.join('?' * 14)})", storable_row(spend("old"))[:14])
    for number in range(2):
        ledger = SqliteLedger(path)
        await ledger.insert([spend("old"), spend(f"new{number}", tool_calls=1, prompt=0)])
        (total,) = await ledger.sums(UsageQuery((), 0, 1e12))
        assert (total.calls, total.tool_calls, total.prompt) == (1, number + 1, 10)
        await ledger.close()


async def test_a_long_query_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger = SqliteLedger(tmp_path / "ledger.sqlite")
    await ledger.insert(spend(str(number)) for number in range(30_000))
    monkeypatch.setattr(sqlite_ledger, "_QUERY_SECONDS", 0.0)
    with pytest.raises(LedgerError, match="takes too long"):
        await ledger.sums(UsageQuery(("session", "day"), 0, 1e12))
    monkeypatch.undo()
    assert (await ledger.sums(UsageQuery((), 0, 1e12)))[0].calls == 30_000
    await ledger.close()


async def test_totals_keep_what_was_deleted(tmp_path: Path) -> None:
    ledger = SqliteLedger(tmp_path / "ledger.sqlite")
    await ledger.insert(spend(str(number), ended=1_000.0 * number) for number in range(200))
    assert await ledger.delete_before(150_000.0, 1_000) == 150
    assert await ledger.totals("key_1", 0.0) == (200 * 15, 200 * 0.25)
    await ledger.close()


async def test_a_ledger_in_memory_has_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite_ledger, "_BOUND", sqlite_ledger._BOUND.replace("200000", "100"))
    ledger = SqliteLedger(None)
    await ledger.insert(spend(str(number)) for number in range(250))
    assert (await ledger.sums(UsageQuery((), 0, 1e12)))[0].calls == 100
    assert await ledger.totals("key_1", 0.0) == (250 * 15, 250 * 0.25)
    await ledger.close()
