"""gateway/accounts/sqlite_ledger.py: files of the ledger. tests/gateway/accounts/test_ledger.py tests its answers."""

import stat
from pathlib import Path

import pytest

from gateway.accounts import sqlite_ledger
from gateway.accounts.sqlite_ledger import SqliteLedger
from gateway.accounts.usage_query import LedgerError, UsageQuery
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


async def test_a_long_query_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger = SqliteLedger(tmp_path / "ledger.sqlite")
    await ledger.insert(spend(str(number)) for number in range(30_000))
    monkeypatch.setattr(sqlite_ledger, "_QUERY_SECONDS", 0.0)
    with pytest.raises(LedgerError, match="takes too long"):
        await ledger.sums(UsageQuery(("session", "day"), 0, 1e12))
    monkeypatch.undo()
    assert (await ledger.sums(UsageQuery((), 0, 1e12)))[0].calls == 30_000
    await ledger.close()


async def test_a_ledger_in_memory_keeps_the_newest_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite_ledger, "_MAX_MEMORY_ROWS", 50)
    for path, kept in ((None, [str(number) for number in range(150, 200)]), (tmp_path / "ledger.sqlite", None)):
        ledger = SqliteLedger(path)
        for number in range(200):
            await ledger.insert([spend(f"{number}", session=f"{number}")])
        found = [row.groups[0] for row in await ledger.sums(UsageQuery(("session",), 0, 1e12, limit=1_000))]
        assert len(found) == 200 if kept is None else sorted(found) == sorted(kept)
        await ledger.close()
