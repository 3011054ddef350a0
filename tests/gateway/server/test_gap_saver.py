"""gateway/server/gap_saver.py: what is learned about tools survives a restart."""

import asyncio
import logging
import time
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress

import pytest

from gateway.api.program_tracker import ProgramTracker
from gateway.journal.gap_store import GapRow, GapStoreError, gaps_of, merged_rows
from gateway.programs import EndedGap, ProgramCall, ProgramIndex
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
        self.forgotten: list[Sequence[str]] = []
        self.has_table = False
        self.error: Exception | None = None

    async def load(self, now: float) -> Sequence[GapRow]:
        if self.error is not None:
            raise self.error
        self.has_table = True
        return list(self.rows.values())

    async def forget(self, tenants: Sequence[str]) -> None:
        if self.error is not None:
            raise self.error
        self.forgotten.append(tenants)
        self.rows = {key: row for key, row in self.rows.items() if row.tenant not in tenants}

    async def add(self, gaps: Sequence[EndedGap]) -> None:
        assert self.has_table
        self.additions.append(gaps)
        self.added.set()
        error = self.error
        await asyncio.sleep(0)
        if error is not None:
            raise error
        stored = {key: row.gaps for key, row in self.rows.items()}
        self.rows.update({(row.tenant, row.word): row for row in merged_rows(gaps, stored, time.time())})


class Clock:
    """Steady clock of a machine: seconds since its start."""

    def __init__(self, now: float) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


def tracker_of(clock: Callable[[], float] = time.monotonic) -> ProgramTracker:
    return ProgramTracker(ProgramIndex(), now=clock)


def learn(tracker: ProgramTracker, seconds: float, tool: str = "grep", tenant: str = "t") -> None:
    now = tracker.now()
    first = ProgramCall(f"{tool} {seconds}", Program("p", tenant, 0.0, 0.0), 0.0, tool_names=(tool,))
    tracker.gaps.begin(first, now - seconds)
    tracker.gaps.end(ProgramCall("next", first.program, 0.0, parent=first), now)


def forecast(tracker: ProgramTracker, tool: str = "grep") -> list[float]:
    call = ProgramCall("later", Program("p", "t", 0.0, 0.0), 0.0, tool_names=(tool,))
    return list(tracker.gaps.begin(call, tracker.now()))


async def started(store: FakeStore, is_gone: Collection[str] = ()) -> tuple[GapSaver, ProgramTracker]:
    """Return a saver that has restored what there is, if the database can be used, and its tracker."""
    tracker = tracker_of()
    saver = GapSaver(store, tracker, lambda tenant: tenant in is_gone)
    with suppress(GapStoreError):
        await saver.restore()
    saver.start()
    return saver, tracker


async def test_the_last_durations_are_stored_at_the_end_and_restored() -> None:
    store = FakeStore()
    saver, tracker = await started(store)
    learn(tracker, 5.0)
    learn(tracker, 3.0)
    assert store.additions == [], "no request waits for the database"
    await saver.close()
    assert len(store.additions) == 1
    saver, tracker = await started(store)
    assert forecast(tracker) == pytest.approx([3.0, 5.0], abs=0.002)
    await saver.close()
    assert len(store.additions) == 1, "nothing new"


async def test_stored_times_are_of_the_unix_clock_and_ages_survive_a_restart_of_the_machine(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Check the ages of durations after a restart of the machine, with which the clock of ages begins anew."""
    unix = Clock(1.7e9)
    monkeypatch.setattr("gateway.server.gap_saver.time.time", unix)
    store, uptime = FakeStore(), Clock(9_000.0)
    tracker = tracker_of(uptime)
    saver = GapSaver(store, tracker)
    await saver.restore()
    saver.start()
    learn(tracker, 7.0)
    for clock in (unix, uptime):
        clock.now += 50_000.0
    learn(tracker, 5.0)
    await saver.close()
    (row,) = store.rows.values()
    assert gaps_of([row])[0] == [EndedGap("t", row.word, 7.0, 1.7e9), EndedGap("t", row.word, 5.0, 1.7e9 + 50_000)]

    unix.now += 10_000.0
    uptime = Clock(100.0)
    tracker = tracker_of(uptime)
    await GapSaver(store, tracker).restore()
    assert list(tracker.gaps.times.forecast("t", row.word)) == [5.0, 7.0]
    for later, expected in (
        (MAX_AGE_SECONDS - 60_001, [1.0, 5.0, 7.0]),
        (MAX_AGE_SECONDS - 59_999, [1.0, 1.0, 5.0]),
        (MAX_AGE_SECONDS - 10_001, [1.0, 1.0, 1.0, 5.0]),
        (MAX_AGE_SECONDS - 9_999, [1.0, 1.0, 1.0, 1.0]),
    ):
        uptime.now = 100.0 + later
        learn(tracker, 1.0)
        assert list(tracker.gaps.times.forecast("t", row.word)) == expected


async def test_a_full_table_is_restored_between_other_work(monkeypatch: pytest.MonkeyPatch) -> None:
    store = FakeStore()
    rows = merged_rows(
        [EndedGap("t", f"w{number}", 2.0, time.time() - number) for number in range(90)], {}, time.time()
    )
    store.rows = {(row.tenant, row.word): row for row in rows}
    decoded: list[int] = []
    monkeypatch.setattr(gap_saver, "gaps_of", lambda rows: (decoded.append(len(rows)), gaps_of(rows))[1])
    tracker = tracker_of()
    saver = GapSaver(store, tracker)
    saver.start()
    learn(tracker, 5.0, "while it restores")
    turns = 0
    while len(tracker.gaps.times) < 91:
        turns += 1
        await asyncio.sleep(0)
    assert max(decoded) <= 2
    assert turns >= 45
    assert sum(decoded) == 90
    await saver.close()
    assert len(store.rows) == 91
    assert len(store.additions) == 1, "what is restored is stored already"


async def test_a_deleted_tenant_leaves_the_database_whenever_it_is_deleted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gap_saver, "_SAVE_SECONDS", 0.001)
    store, gone = FakeStore(), set[str]()
    saver, tracker = await started(store, gone)
    for tenant in ("stays", "goes", "went"):
        learn(tracker, 5.0, tenant=tenant)
    while len(store.rows) < 3:
        await asyncio.sleep(0.001)
    learn(tracker, 4.0, "other", tenant="goes")  # not stored yet
    gone.add("goes")
    tracker.forget_tenant("goes")
    learn(tracker, 3.0, tenant="goes")  # a request that was already being read
    while len(store.rows) != 2:
        await asyncio.sleep(0.001)
    await saver.close()
    assert {tenant for tenant, _ in store.rows} == {"stays", "went"}

    gone.add("went")  # the process before had no time to delete its rows
    saver, tracker = await started(store, gone)
    assert len(tracker.gaps.times) == 1
    await saver.close()
    assert {tenant for tenant, _ in store.rows} == {"stays"}
    assert len(store.forgotten) == 2, "each once"


async def test_a_tenant_that_is_deleted_while_its_durations_are_stored_leaves_none() -> None:
    store, gone = FakeStore(), set[str]()
    saver, tracker = await started(store, gone)
    learn(tracker, 5.0, tenant="goes")
    saving = asyncio.ensure_future(saver.save())
    await store.added.wait()
    gone.add("goes")
    tracker.forget_tenant("goes")
    await saving
    assert len(store.rows) == 1
    await saver.close()
    assert store.rows == {}


async def test_rows_that_cannot_be_deleted_now_are_deleted_later() -> None:
    store, gone = FakeStore(), {"goes"}
    saver, tracker = await started(store, gone)
    store.rows["goes", ""] = GapRow("goes", "", 1.0, "[1,[]]")
    tracker.forget_tenant("goes")
    store.error = GapStoreError("away")
    with pytest.raises(GapStoreError):
        await saver.save()
    store.error = None
    await saver.close()
    assert store.rows == {}


async def test_durations_are_stored_at_intervals(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gap_saver, "_SAVE_SECONDS", 0.001)
    store = FakeStore()
    saver, tracker = await started(store)
    for seconds in (5.0, 3.0):
        store.added.clear()
        learn(tracker, seconds)
        await store.added.wait()
    await saver.close()
    assert len(forecast((await started(store))[1])) == 2


async def test_a_database_that_fails_gets_the_durations_later(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(gap_saver, "_SAVE_SECONDS", 0.001)
    for error in (GapStoreError("the database is away"), RuntimeError("unexpected")):
        store, tracker = FakeStore(), tracker_of()
        saver = GapSaver(store, tracker)
        await saver.restore()
        store.error = error
        saver.start()
        learn(tracker, 5.0)
        while len(store.additions) < 2:  # the next attempt
            store.added.clear()
            await store.added.wait()
        learn(tracker, 3.0)
        store.error = None
        await saver.close()
        (row,) = store.rows.values()
        assert row.gaps.count("[") == 4, "both durations are in the row"
    assert "the database is away; the next attempt" in caplog.text
    assert "RuntimeError: unexpected" in caplog.text


async def test_a_server_without_its_database_starts_and_says_what_is_lost(caplog: pytest.LogCaptureFixture) -> None:
    store = FakeStore()
    store.error = GapStoreError("the database is away")
    saver, tracker = await started(store)
    learn(tracker, 5.0)
    while not caplog.records:
        await asyncio.sleep(0)
    await saver.close()
    assert [record.message for record in caplog.records] == [
        "the database is away; the next attempt is in 20 s",
        "the last 1 durations of tools are lost: the database is away",
    ]


async def test_durations_are_restored_once_the_database_can_be_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gap_saver, "_SAVE_SECONDS", 0.001)
    store = FakeStore()
    saver, tracker = await started(store)
    learn(tracker, 5.0)
    await saver.close()
    store.error = GapStoreError("away")
    saver, tracker = await started(store)
    learn(tracker, 3.0)
    store.error = None
    while len(tracker.gaps.times.forecast("t", "")) < 2:
        await asyncio.sleep(0.001)
    await saver.close()
    (row,) = store.rows.values()
    assert len(gaps_of([row])[0]) == 2


async def test_a_server_that_stops_before_it_could_restore_stores_its_durations() -> None:
    store = FakeStore()
    store.error = GapStoreError("away")
    saver, tracker = await started(store)
    learn(tracker, 5.0)
    store.error = None
    await saver.close()
    assert store.has_table
    assert len(store.rows) == 1


async def test_the_number_of_unsaved_durations_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gap_saver, "_MAX_UNSAVED", 3)
    store = FakeStore()
    saver, tracker = await started(store)
    for seconds in range(4):
        learn(tracker, float(seconds))
    store.error = GapStoreError("away")
    saving = asyncio.ensure_future(saver.save())
    await store.added.wait()
    learn(tracker, 9.0)
    with pytest.raises(GapStoreError):
        await saving
    store.error = None
    await saver.close()
    assert [round(gap.seconds) for gap in store.additions[-1]] == [2, 3, 9]


async def test_damaged_rows_are_ignored_with_one_line(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    store = FakeStore()
    saver, tracker = await started(store)
    learn(tracker, 5.0)
    await saver.close()
    for word in "abc":
        store.rows["t", word] = GapRow("t", word, 1.0, "[7,[]]")
    caplog.clear()
    saver, tracker = await started(store)
    await saver.close()
    assert forecast(tracker) == pytest.approx([5.0], abs=0.002)
    assert [record.message for record in caplog.records] == [
        "3 rows with durations of tools are ignored: they are damaged, or of another version",
        "restored 1 durations of 1 sets of tools",
    ]
