"""gateway/server/maintenance.py: periodic work, and faults in it."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest

from gateway.graph.session import SessionLimits
from gateway.graph.session_store import SessionStore
from gateway.responses import MemoryDatabase, ResponseStoreError, SqliteResponseStore, StoredResponse
from gateway.server import maintenance
from gateway.server.gc_tuning import GcTuner
from tests.gateway.scheduler.scheduler_harness import SchedulerHarness


@dataclass
class MaintenanceHarness:
    """The services that periodic work uses, and a task that runs it every few milliseconds."""

    store: SessionStore
    response_store: SqliteResponseStore
    scheduler: SchedulerHarness = field(default_factory=SchedulerHarness)
    sweeps: list[bool] = field(default_factory=list)

    def start(self) -> "asyncio.Task[None]":
        services: Any = SimpleNamespace(
            sessions=self.store, scheduler=self.scheduler.scheduler, response_store=self.response_store
        )
        tuner = GcTuner()
        tuner.sweep = lambda *, idle: bool(self.sweeps.append(idle))  # type: ignore[method-assign]
        return asyncio.create_task(maintenance.maintain(services, tuner))


@pytest.fixture
async def harness(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[MaintenanceHarness]:
    monkeypatch.setattr(maintenance, "_DISSOLVE_SECONDS", 0.005)
    monkeypatch.setattr(maintenance, "_SWEEP_SECONDS", 0.0)
    response_store = SqliteResponseStore(MemoryDatabase(), 1 << 20, 60.0, owns=True)
    store = SessionStore(lambda call, failure: None, SessionLimits(), 60.0, 100, 100)
    yield MaintenanceHarness(store, response_store)
    await response_store.close()


async def swept(harness: MaintenanceHarness, times: int) -> None:
    before = len(harness.sweeps)
    async with asyncio.timeout(5):
        while len(harness.sweeps) < before + times:
            await asyncio.sleep(0.005)


async def test_expired_sessions_end_with_their_responses(harness: MaintenanceHarness) -> None:
    brief = harness.store.create("t", "brief", ttl=0.0)
    harness.store.create("t", "long")
    for session in ("brief", "long"):
        await harness.response_store.add(StoredResponse("t", f"in {session}", b"1", b"2", session=session))
    working = harness.start()
    await swept(harness, 2)
    working.cancel()
    assert [session.id for session in harness.store.all()] == ["long"]
    assert brief.is_closed
    assert await harness.response_store.find("t", "in brief") is None
    assert await harness.response_store.find("t", "in long") is not None
    assert harness.sweeps[0] is True, "no call runs, so the server is idle"


async def test_a_fault_does_not_end_the_work(
    harness: MaintenanceHarness, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    faults = iter([ZeroDivisionError("test fault"), ZeroDivisionError("test fault")])
    expire = harness.store.expire

    def broken(now: float) -> Any:
        for fault in faults:
            raise fault
        return expire(now)

    monkeypatch.setattr(harness.store, "expire", broken)
    working = harness.start()
    await swept(harness, 1)
    assert caplog.text.count("periodic work failed") == 2
    working.cancel()


async def test_an_unavailable_response_store_is_a_warning(
    harness: MaintenanceHarness, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def unavailable() -> None:
        raise ResponseStoreError("the disk is full")

    monkeypatch.setattr(harness.response_store, "enforce_retention", unavailable)
    harness.store.create("t", "brief", ttl=0.0)
    working = harness.start()
    await swept(harness, 2)
    working.cancel()
    assert "the disk is full" in caplog.text
    assert "Traceback" not in caplog.text
    assert harness.store.all() == []
