"""gateway/cluster/membership.py: leases of the gateways, and takeover of the sessions of dead ones."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from gateway.cluster import Membership
from gateway.graph.limits import SessionLimits
from gateway.graph.session import Session
from gateway.graph.session_store import SessionStore
from gateway.journal import Journal, PostgresStorage
from tests.fakes.postgres_cluster import PostgresCluster

pytestmark = pytest.mark.waits


class GatewayHarness:
    """A gateway with a journal, a session store and a membership."""

    def __init__(self, storage: PostgresStorage) -> None:
        self.storage = storage
        self.journal = Journal(storage)
        self.store = SessionStore(lambda call, failure: None, SessionLimits(), 60.0, 100, 100, self.journal)
        self.resumed: list[Session] = []
        self.membership = Membership(storage, self.journal, self.store, SessionLimits(), self.resumed.append)

    async def wait_for_sessions(self, *ids: str) -> None:
        """Wait until the gateway has exactly these sessions."""
        await until(lambda: sorted(session.id for session in self.store.of_tenant("t")) == sorted(ids))


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not holds():
            await asyncio.sleep(0.02)


async def gateway(cluster: PostgresCluster, name: str, lease: float = 1.0) -> GatewayHarness:
    """Create a gateway that has not joined yet."""
    storage = PostgresStorage(cluster.url, lease, lambda: cluster.lost.append(name))
    await storage.start()
    harness = GatewayHarness(storage)
    cluster.stack.push_async_callback(storage.close)
    cluster.stack.push_async_callback(harness.membership.close)
    return harness


async def dead_gateway(cluster: PostgresCluster, *ids: str) -> PostgresStorage:
    """Create a gateway with sessions that never renews its lease."""
    dead = await cluster.gateway("dead", lease=0.1)
    store = GatewayHarness(dead)
    for id in ids:
        assert await dead.claim("t", id)
        session = store.store.create("t", id)
        session.set_values(session.add_variable("x", id))
    await store.journal.flush()
    return dead


async def test_sessions_of_dead_gateways_are_taken_over_and_resumed(cluster: PostgresCluster) -> None:
    ids = [f"s{index}" for index in range(45)]
    await dead_gateway(cluster, *ids)
    harness = await gateway(cluster, "a")
    await harness.membership.join("http://a", "here")
    harness.membership.set_takeover(True)
    await harness.wait_for_sessions(*ids)
    assert {session.id: session.variable("x").value for session in harness.resumed} == {id: id for id in ids}


async def test_no_session_is_taken_over_before_inherit(cluster: PostgresCluster) -> None:
    await dead_gateway(cluster, "s")
    harness = await gateway(cluster, "a", lease=1.0)
    await harness.membership.join("http://a", "here")
    await asyncio.sleep(2.5)
    assert not harness.resumed
    harness.membership.set_takeover(True)
    await harness.wait_for_sessions("s")


async def test_a_gateway_waits_a_lease_before_it_marks_others_as_dead(cluster: PostgresCluster) -> None:
    """Check that a new gateway gives the others as much time as its own lease: their database may have been away."""
    harness = await gateway(cluster, "a", lease=5.0)
    await dead_gateway(cluster, "s")
    await harness.membership.join("http://a", "here")
    harness.membership.set_takeover(True)
    await asyncio.sleep(2.0)
    assert not harness.resumed, "the lease is 5 s"
    await harness.wait_for_sessions("s")


@pytest.mark.parametrize("method", ["take_over", "rows"])
async def test_a_database_failure_during_a_takeover_loses_no_session(
    cluster: PostgresCluster, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = [f"s{method}" for method in range(5)]
    await dead_gateway(cluster, *ids)
    harness = await gateway(cluster, "a")
    original = getattr(harness.storage, method)
    failures = iter([False, False, True, True] if method == "rows" else [True, False])

    async def lose_answer(argument: Any) -> Any:
        answer = await original(argument)  # the statement is done, and its answer lost
        if next(failures, False):
            raise ConnectionResetError("gone")
        return answer

    monkeypatch.setattr(harness.storage, method, lose_answer)
    await harness.membership.join("http://a", "here")
    harness.membership.set_takeover(True)
    await harness.wait_for_sessions(*ids)
    assert len(harness.resumed) == len(ids), "each session is resumed once"
    harness.store.delete(harness.store.get("t", "s3"))
    await harness.journal.flush()
    harness.membership.request_check()
    await asyncio.sleep(1.0)
    assert not harness.store.holds("t", "s3"), "an ended session does not come back"


async def test_a_damaged_session_does_not_block_others(
    cluster: PostgresCluster, caplog: pytest.LogCaptureFixture
) -> None:
    await dead_gateway(cluster, "s1", "s2", "s3")
    await cluster.query(
        "UPDATE myna_facts SET facts = '[1, [[0, [\"nonsense\"]]]]' WHERE first = 0 AND session = (SELECT key FROM myna_sessions WHERE id = 's2') RETURNING 1"
    )
    harness = await gateway(cluster, "a")
    await harness.membership.join("http://a", "here")
    harness.membership.set_takeover(True)
    await harness.wait_for_sessions("s1", "s3")
    assert "session s2 cannot be taken over: the journal at" in caplog.text
    assert await cluster.query("SELECT count(*) FROM myna_facts") >= 3, "the damaged rows are left unchanged"


async def test_a_session_that_cannot_be_resumed_does_not_end_the_gateway(
    cluster: PostgresCluster, caplog: pytest.LogCaptureFixture
) -> None:
    await dead_gateway(cluster, "s1", "s2", "s3")
    harness = await gateway(cluster, "a")
    resume = harness.resumed.append

    def poisoned(session: Session) -> None:
        if session.id == "s2":
            raise ZeroDivisionError("test error")
        resume(session)

    harness.membership._resume = poisoned
    await harness.membership.join("http://a", "here")
    harness.membership.set_takeover(True)
    await until(lambda: [session.id for session in harness.resumed] == ["s1", "s3"])
    assert "session s2 was taken over, but cannot be resumed" in caplog.text
    assert harness.store.holds("t", "s2")


async def test_requests_to_a_dead_gateway_end(cluster: PostgresCluster) -> None:
    harness = await gateway(cluster, "a")
    await harness.membership.join("http://a", "here")
    harness.membership.set_takeover(True)
    dead = await dead_gateway(cluster, "s")
    await until(lambda: dead.gateway in harness.membership.others)

    async def waits() -> None:
        limit = harness.membership.lifetime_of(dead.gateway)
        try:
            async with limit:
                await asyncio.sleep(60)
        finally:
            harness.membership.release_lifetime(dead.gateway, limit)

    async with asyncio.timeout(20):
        ended = await asyncio.gather(waits(), waits(), return_exceptions=True)
    assert [type(harness) for harness in ended] == [TimeoutError] * 2


async def test_a_gateway_that_was_marked_as_dead_reports_it_once(cluster: PostgresCluster) -> None:
    harness = await gateway(cluster, "a")
    await harness.membership.join("http://a", "here")
    await cluster.query("UPDATE myna_gateways SET alive = false RETURNING 1")
    await until(lambda: cluster.lost == ["a"])
    await asyncio.sleep(1.5)
    assert cluster.lost == ["a"]
