"""gateway/accounts/ledger/ledger.py: rows of calls, each stored once; on SQLite and PostgreSQL."""

import asyncio
import os
import random
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from gateway.accounts.ledger import ledger as ledger_module
from gateway.accounts.ledger.ledger import Ledger, LedgerStorage
from gateway.accounts.ledger.spend import CallSpend
from gateway.accounts.ledger.sqlite_ledger import SqliteLedger
from gateway.accounts.ledger.usage_query import LedgerError, UsageQuery, UsageSum
from gateway.accounts.prices import Price, Prices
from gateway.errors import RequestError
from gateway.graph.call import Call, CallState, Times, Usage
from gateway.graph.forms.form import ToolRun
from tests.gateway.accounts.spends import spend

PRICES = Prices({"m": Price(1.0, 0.5, 4.0)})
ALWAYS = UsageQuery((), 0, 1e12)


class SlowStorage(SqliteLedger):
    """Database whose queries take some time."""

    def __init__(self) -> None:
        super().__init__(None)
        self.asked: list[str | None] = []
        self.most = self.running = 0

    async def sums(self, query: UsageQuery) -> list[UsageSum]:
        self.asked.append(query.key)
        self.running += 1
        self.most = max(self.most, self.running)
        await asyncio.sleep(0.002)
        self.running -= 1
        return await super().sums(query)


def ended(id: str = "call_1", **fields: Any) -> Call:
    session, spec = SimpleNamespace(tenant="key_t", id="s"), SimpleNamespace(model="m", form=None)
    call = Call(
        id, cast(Any, spec), {}, {}, cast(Any, None), Times(1.0, started=2.0, finished=50.0), cast(Any, session), 0
    )
    call.usage = Usage(prompt=2_000_000, cached=1_000_000, completion=3_000_000, reasoning=7)
    call.engine, call.state = "e", CallState.DONE
    for name, value in fields.items():
        setattr(call, name, value)
    return call


async def test_a_call_has_one_row_with_tokens_and_cost(ledger_storage: LedgerStorage, tmp_path: Path) -> None:
    ledger = Ledger(ledger_storage, PRICES, tmp_path / "log", 1e9)
    ledger.observe(ended())
    ledger.observe(ended(lost_tokens=9))  # the same call, as after a crash
    query = UsageQuery(("key", "session", "model", "day"), 0, 1e12)
    expected = UsageSum(("key_t", "s", "m", "1970-01-01"), 1, 2_000_000, 1_000_000, 3_000_000, 7, 0, 0, 13.5)
    assert [UsageSum(tuple(row.groups), *row[1:]) for row in await ledger.sums(query)] == [expected]
    assert await ledger.totals("key_t", 50.0) == (5_000_000, 13.5)
    assert await ledger.totals("key_t", 50.5) == (0, 0.0)


async def test_shared_calls_are_counted_once(ledger_storage: LedgerStorage) -> None:
    ledger = Ledger(ledger_storage, PRICES, None, 1e9)
    ledger.observe(ended("first"))
    ledger.observe(ended("second", leader=ended("first")))
    (total,) = await ledger.sums(ALWAYS)
    assert (total.calls, total.prompt, total.cost) == (2, 2_000_000, 13.5)


async def test_runs_of_tools_are_counted_once_and_apart(ledger_storage: LedgerStorage) -> None:
    spec = SimpleNamespace(model="", form=ToolRun("files", "read", "{}"))
    ledger = Ledger(ledger_storage, PRICES, None, 1e9)
    ledger.observe(ended())
    for fields in ({}, {"was_running": True, "times": Times(1.0, finished=50.0)}):
        tool = ended("tool", spec=spec, usage=Usage(), **fields)
        assert tool.has_run_tool
        assert ledger.observe(tool).engine == "files/read"  # the second time after a crash
    assert not ended("refused", spec=spec, times=Times(1.0, finished=50.0)).has_run_tool
    assert not ended("shared", spec=spec, leader=ended()).has_run_tool
    rows = await ledger.sums(UsageQuery(("key", "session", "day", "model"), 0, 1e12))
    assert [(row.groups[3], row.calls, row.tool_calls, row.prompt) for row in rows] == [
        ("", 0, 1, 0),
        ("m", 1, 0, 2_000_000),
    ]


async def test_queries_take_turns_between_tenants() -> None:
    """Ask from one tenant many times: others wait for two of its queries at most, and it is refused in the end."""
    storage = SlowStorage()
    ledger = Ledger(storage, PRICES, None, 1e9)
    flood = [asyncio.create_task(ledger.sums_of("key_many", ALWAYS)) for _ in range(40)]
    await asyncio.sleep(0)
    other = asyncio.create_task(ledger.sums_of("key_other", ALWAYS))
    await other
    assert storage.asked.index("key_other") <= 2  # after the query that ran, and one of a tenant that asked before
    answers = await asyncio.gather(*flood, return_exceptions=True)
    refused = [answer for answer in answers if isinstance(answer, RequestError)]
    assert len(refused) == 24
    assert {(error.status, error.code) for error in refused} == {(429, "overloaded")}
    assert storage.asked.count("key_many") == 16
    assert storage.most == 1
    await ledger.sums_of("key_many", ALWAYS)  # it may ask again


async def test_sums_are_those_of_the_rows(ledger_storage: LedgerStorage) -> None:
    """Compare each grouping and filter with a plain loop over random rows."""
    chance = random.Random(5)
    rows = [
        spend(
            f"r{number}",
            ended=chance.uniform(0, 5 * 86_400),
            key=chance.choice("ab"),
            session=chance.choice(["", "s", "'; DROP TABLE spend; --", "ü\u2028"]),
            model=chance.choice(["m", "n"]),
            prompt=chance.randrange(100),
            cost=chance.randrange(1000) / 64,
        )
        for number in range(500)
    ]
    await ledger_storage.insert(rows)
    await ledger_storage.insert(rows[:100])  # stored once all the same
    for groups in ((), ("key",), ("day", "model"), ("session", "key", "day")):
        for filters in ({}, {"key": "a"}, {"session": "'; DROP TABLE spend; --", "model": "n"}):
            query = UsageQuery(groups, 86_400.0, 4 * 86_400.0, limit=1_000, **filters)  # type: ignore[arg-type]
            found = {tuple(row.groups): (row.calls, row.prompt, row.cost) for row in await ledger_storage.sums(query)}
            expected = _sums(rows, query)
            assert found == expected


def _sums(rows: Iterable[CallSpend], query: UsageQuery) -> dict[tuple[str, ...], tuple[int, int, float]]:
    calls, prompts, costs = Counter[tuple[str, ...]](), Counter[tuple[str, ...]](), Counter[tuple[str, ...]]()
    for row in rows:
        if not query.start <= row.ended < query.end:
            continue
        if any(getattr(query, name) not in (None, getattr(row, name)) for name in ("key", "session", "model")):
            continue
        values = {
            "key": row.key,
            "session": row.session,
            "model": row.model,
            "day": f"1970-01-0{int(row.ended // 86_400) + 1}",
        }
        group = tuple(values[name] for name in query.groups)
        calls[group] += 1
        prompts[group] += row.prompt
        costs[group] += row.cost  # type: ignore[assignment]
    found = {group: (calls[group], prompts[group], float(costs[group])) for group in calls}
    return found or ({} if query.groups else {(): (0, 0, 0.0)})


async def test_pages_have_each_group_once(ledger_storage: LedgerStorage) -> None:
    await ledger_storage.insert([spend(f"r{number}", session=f"s{number:03}") for number in range(25)])
    seen = []
    for offset in (0, 10, 20):
        rows = await ledger_storage.sums(UsageQuery(("session",), 0, 1e12, limit=10, offset=offset))
        seen += [row.groups[0] for row in rows]
    assert seen == [f"s{number:03}" for number in range(25)]


async def test_any_text_can_be_stored(ledger_storage: LedgerStorage) -> None:
    hostile = ["\0", "\ud800", "a\nb", "'", '"', "\\", "%s", "$1", "x" * 10_000]
    await ledger_storage.insert([spend(f"r{index}", session=text, model=text) for index, text in enumerate(hostile)])
    (total,) = await ledger_storage.sums(ALWAYS)
    assert total.calls == len(hostile)


async def test_old_rows_are_deleted(ledger_storage: LedgerStorage) -> None:
    await ledger_storage.insert([spend(f"r{number}", ended=float(number)) for number in range(10)])
    assert await ledger_storage.delete_before(6.0, 4) == 4
    assert await ledger_storage.delete_before(6.0, 4) == 2
    (total,) = await ledger_storage.sums(ALWAYS)
    assert total.calls == 4


@pytest.mark.parametrize("since", [0.0, 100.0, 86_400.0, 90_000.0, 3 * 86_400.0, 1e9])
async def test_totals_are_those_of_the_rows(ledger_storage: LedgerStorage, since: float) -> None:
    chance = random.Random(3)
    rows = [
        spend(f"r{number}", ended=chance.uniform(0, 5 * 86_400), key=chance.choice("ab"), cost=number / 64)
        for number in range(300)
    ]
    await ledger_storage.insert(rows)
    await ledger_storage.insert(rows[:100])  # stored once all the same
    counted = [row for row in rows if row.key == "a" and row.ended >= since]
    expected = sum(row.tokens for row in counted), sum(row.cost for row in counted)
    assert await ledger_storage.totals("a", since) == expected


class FailingStorage:
    """A database that is down until it is `up`."""

    def __init__(self) -> None:
        self.up = asyncio.Event()
        self.rows: list[CallSpend] = []

    async def insert(self, rows: Iterable[CallSpend]) -> None:
        if not self.up.is_set():
            raise LedgerError("it is down")
        self.rows += rows

    async def delete_before(self, when: float, limit: int) -> int:
        return 0

    async def sums(self, query: UsageQuery) -> list[UsageSum]:
        return []

    async def totals(self, key: str, since: float) -> tuple[int, float]:
        return 0, 0.0

    async def close(self) -> None: ...


@pytest.mark.parametrize("file", ["log", None])
async def test_rows_wait_for_the_database(tmp_path: Path, file: str | None) -> None:
    storage = FailingStorage()
    ledger = Ledger(storage, PRICES, tmp_path / file if file else None, 1e9)
    ledger.start()
    ledger.record(spend("a"))
    with pytest.raises(LedgerError, match="down"):
        await ledger.sums(ALWAYS)
    ledger.record(spend("b"))
    storage.up.set()
    await ledger.close()
    assert [row.id for row in storage.rows] == ["a", "b"]


async def test_sums_without_some_rows_are_refused(tmp_path: Path) -> None:
    ledger = Ledger(SqliteLedger(tmp_path / "ledger.sqlite"), PRICES, tmp_path / "log", 1e9)
    assert ledger._log is not None
    usable, full = os.dup(ledger._log._file), os.open("/dev/full", os.O_WRONLY)
    os.dup2(full, ledger._log._file)
    ledger.record(spend("a"))
    with pytest.raises(LedgerError, match="cannot be written"):
        await ledger.sums(ALWAYS)
    os.dup2(usable, ledger._log._file)
    (total,) = await ledger.sums(ALWAYS)
    assert total.calls == 1
    await ledger.close()
    os.close(full)
    os.close(usable)


async def test_rows_of_the_process_before_are_stored(tmp_path: Path) -> None:
    down = Ledger(FailingStorage(), PRICES, tmp_path / "log", 1e9)
    down.record(spend("a"))
    await down.close()
    database = SqliteLedger(tmp_path / "ledger.sqlite")
    ledger = Ledger(database, PRICES, tmp_path / "log", 1e9)
    (total,) = await ledger.sums(ALWAYS)
    assert total.calls == 1
    await ledger.close()


async def test_a_tenant_sees_its_own_rows(ledger_storage: LedgerStorage) -> None:
    ledger = Ledger(ledger_storage, PRICES, None, 1e9)
    for key in ("key_a", "key_b"):
        ledger.record(spend(key, key=key))
    query = UsageQuery(("key",), 0, 1e12)
    assert [row.groups[0] for row in await ledger.sums(query)] == ["key_a", "key_b"]
    assert [row.groups[0] for row in await ledger.sums_of("key_a", query)] == ["key_a"]
    assert await ledger.sums_of("key_a", UsageQuery(("key",), 0, 1e12, key="key_b")) == []


async def test_an_unknown_error_does_not_end_the_ledger(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    class BrokenOnce(FailingStorage):
        async def insert(self, rows: Iterable[CallSpend]) -> None:
            if not self.up.is_set():
                self.up.set()
                raise OverflowError("unknown")
            await super().insert(rows)

    monkeypatch.setattr(ledger_module, "_FLUSH_SECONDS", 0.001)
    storage = BrokenOnce()
    ledger = Ledger(storage, PRICES, tmp_path / "log", 1e9)
    ledger.record(spend("a"))
    ledger.start()
    async with asyncio.timeout(20):
        while not storage.rows:
            await asyncio.sleep(0.001)
    assert [row.id for row in storage.rows] == ["a"]
    await ledger.close()
