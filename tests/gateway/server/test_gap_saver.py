"""gateway/server/gap_saver.py: what is learned about tools survives a restart."""

import asyncio
import logging
import time
from collections.abc import Sequence

import pytest

from gateway.journal.gap_store import GapRow, GapStoreError, merged_rows
from gateway.programs import EndedGap, ProgramCall, ToolGaps
from gateway.programs.program import Program
from gateway.programs.tool_times import MAX_AGE_SECONDS
from gateway.server import gap_saver
from gateway.server.gap_saver import GapSaver


class FakeStore:
    """Storage in memory. `error` is raised by its methods."""

    def __init__(self) -> None:
        self.rows: dict[tuple[str, str], GapRow] = {}
        self.additions: list[Sequence[EndedGap]] = []
        self.added = asyncio.Event()
        self.error: Exception | None = None

    async def load(self, now: float) -> Sequence[GapRow]:
        if self.error is not None:
            raise self.error
        return list(self.rows.values())

    async def add(self, gaps: Sequence[EndedGap]) -> None:
        self.additions.append(gaps)
        self.added.set()
        error = self.error
        await asyncio.sleep(0)
        if error is not None:
            raise error
        stored = {key: row.gaps for key, row in self.rows.items()}
        self.rows.update({(row.tenant, row.word): row for row in merged_rows(gaps, stored)})


def learn(gaps: ToolGaps, seconds: float, tool: str = "grep") -> None:
    now = time.monotonic()
    first = ProgramCall(f"{tool} {seconds}", Program("p", "t", 0.0, 0.0), 0.0, tool_names=(tool,))
    gaps.begin(first, now - seconds)
    gaps.end(ProgramCall("next", first.program, 0.0, parent=first), now)


def forecast(gaps: ToolGaps, tool: str = "grep") -> list[float]:
    return list(
        gaps.begin(ProgramCall("later", Program("p", "t", 0.0, 0.0), 0.0, tool_names=(tool,)), time.monotonic())
    )


async def started(store: FakeStore) -> tuple[GapSaver, ToolGaps]:
    gaps = ToolGaps()
    saver = GapSaver(store, gaps, time.monotonic)
    await saver.restore()
    saver.start()
    return saver, gaps


async def test_the_last_durations_are_stored_at_the_end_and_restored() -> None:
    store = FakeStore()
    saver, gaps = await started(store)
    learn(gaps, 5.0)
    learn(gaps, 3.0)
    assert store.additions == [], "no request waits for the database"
    await saver.close()
    assert len(store.additions) == 1
    saver, gaps = await started(store)
    assert forecast(gaps) == pytest.approx([3.0, 5.0], abs=0.002)
    await saver.close()
    assert len(store.additions) == 1, "nothing new"


async def test_ages_are_right_although_clocks_begin_anew() -> None:
    store = FakeStore()
    saver, gaps = await started(store)
    learn(gaps, 5.0)
    await saver.close()
    (row,) = store.rows.values()
    assert abs(row.updated - time.time()) < 100, "the Unix clock"
    store.rows[row.tenant, row.word] = row._replace(gaps=f"[1,[[{time.time() - 50_000},7.0],[{time.time()},5.0]]]")
    gaps = ToolGaps()
    await GapSaver(store, gaps, lambda: 100.0).restore()
    assert list(gaps.times.forecast("t", row.word)) == [5.0, 7.0]
    gaps.times.observe("t", row.word, 1.0, 100.0 + MAX_AGE_SECONDS - 40_000)
    assert list(gaps.times.forecast("t", row.word)) == [1.0, 5.0], "the other one is more than a day old"


async def test_durations_are_stored_at_intervals(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gap_saver, "_SAVE_SECONDS", 0.001)
    store = FakeStore()
    saver, gaps = await started(store)
    for seconds in (5.0, 3.0):
        store.added.clear()
        learn(gaps, seconds)
        await store.added.wait()
    await saver.close()
    assert len(forecast((await started(store))[1])) == 2


async def test_a_database_that_fails_gets_the_durations_later(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(gap_saver, "_SAVE_SECONDS", 0.001)
    for error in (GapStoreError("the database is away"), RuntimeError("unexpected")):
        store, gaps = FakeStore(), ToolGaps()
        store.error = error
        saver = GapSaver(store, gaps, time.monotonic)
        saver.start()
        learn(gaps, 5.0)
        while len(store.additions) < 2:  # the next attempt
            store.added.clear()
            await store.added.wait()
        learn(gaps, 3.0)
        store.error = None
        await saver.close()
        (row,) = store.rows.values()
        assert row.gaps.count("[") == 4, "both durations are in the row"
    assert "the database is away; the next attempt" in caplog.text
    assert "RuntimeError: unexpected" in caplog.text


async def test_a_server_without_its_database_starts_and_says_what_is_lost(caplog: pytest.LogCaptureFixture) -> None:
    store = FakeStore()
    store.error = GapStoreError("the database is away")
    saver, gaps = await started(store)
    learn(gaps, 5.0)
    await saver.close()
    assert [record.message for record in caplog.records] == [
        "nothing that was learned about programs is restored: the database is away",
        "the last 1 durations of tools are lost: the database is away",
    ]


async def test_the_number_of_unsaved_durations_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gap_saver, "_MAX_UNSAVED", 3)
    store = FakeStore()
    saver, gaps = await started(store)
    for seconds in range(4):
        learn(gaps, float(seconds))
    store.error = GapStoreError("away")
    saving = asyncio.ensure_future(saver.save())
    await store.added.wait()
    learn(gaps, 9.0)
    with pytest.raises(GapStoreError):
        await saving
    store.error = None
    await saver.close()
    assert [round(gap.seconds) for gap in store.additions[-1]] == [2, 3, 9]


async def test_damaged_rows_are_ignored_with_one_line(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    store = FakeStore()
    saver, gaps = await started(store)
    learn(gaps, 5.0)
    await saver.close()
    for word in "abc":
        store.rows["t", word] = GapRow("t", word, 1.0, "[7,[]]")
    caplog.clear()
    saver, gaps = await started(store)
    await saver.close()
    assert forecast(gaps) == pytest.approx([5.0], abs=0.002)
    assert [record.message for record in caplog.records] == [
        "3 rows with durations of tools are ignored: they are damaged, or of another version",
        "restored 1 durations of 1 sets of tools",
    ]
