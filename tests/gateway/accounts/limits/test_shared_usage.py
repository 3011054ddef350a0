"""gateway/accounts/limits/shared_usage.py: the exchange with a database."""

import asyncio
from dataclasses import dataclass

import pytest

from gateway.accounts.errors import KeyStoreError
from gateway.accounts.limits.shared_meter import UsageGrant, UsageReport
from gateway.accounts.limits.shared_usage import SharedUsage
from gateway.journal import LeaseLost, PostgresStorage
from tests.fakes.postgres_cluster import PostgresCluster


@dataclass
class Member:
    storage: PostgresStorage
    usage: SharedUsage

    async def exchange(self, *, used: float = 0, held: float = 0, wanted: float = 0, **more: object) -> UsageGrant:
        fields = {"key": "key_1", "kind": "budget_tokens", "window": 0.0, "rate": 0.0, "limit": 100.0, **more}
        (grant,) = await self.usage.exchange([UsageReport(used=used, held=held, wanted=wanted, **fields)])  # type: ignore[arg-type]
        return grant


async def member(cluster: PostgresCluster, name: str) -> Member:
    storage = await cluster.gateway(name)
    usage = SharedUsage(storage)
    await usage.create_tables()
    return Member(storage, usage)


async def test_allotments_and_use_together_stay_below_the_limit(cluster: PostgresCluster) -> None:
    first, second = await member(cluster, "a"), await member(cluster, "b")
    assert await first.exchange(wanted=60) == (60, 0, 0)
    assert await second.exchange(wanted=60) == (40, 0, 60)
    assert await first.exchange(used=50, held=0, wanted=60) == (10, 50, 40)
    assert await second.exchange(used=5, held=10, wanted=0) == (0, 55, 10)
    assert await first.exchange(used=10, wanted=100) == (25, 65, 10)
    assert await first.exchange(used=200, wanted=1) == (-175, 265, 10), "a call used more than it had reserved"


async def test_a_rate_refills_with_the_clock_of_the_database(cluster: PostgresCluster) -> None:
    first = await member(cluster, "a")
    assert await first.exchange(used=90, wanted=60, rate=1.0) == (10, 90, 0)
    await cluster.query("UPDATE myna_key_usage SET at = at - interval '30 s' RETURNING 1")
    granted, used, _ = await first.exchange(wanted=60, rate=1.0)
    assert used == pytest.approx(60, abs=5)
    assert granted == pytest.approx(100 - used)


async def test_a_new_window_begins_with_nothing_used(cluster: PostgresCluster) -> None:
    first, second = await member(cluster, "a"), await member(cluster, "b")
    await first.exchange(used=100, window=1_000.0)
    assert await first.exchange(wanted=10, window=1_000.0) == (0, 100, 0)
    assert await second.exchange(wanted=10, used=3, window=2_000.0) == (10, 3, 0)
    assert (await first.exchange(wanted=10, window=1_000.0)).used == 3, "a clock that is slow opens no old window"


async def test_several_reports_are_answered_in_their_order(cluster: PostgresCluster) -> None:
    first = await member(cluster, "a")
    reports = [
        UsageReport(key, kind, 0.0, 0.0, limit, 0.0, 0.0, 1_000.0)
        for key, kind, limit in (
            ("z", "tokens", 1.0),
            ("a", "parallel", 2.0),
            ("m", "tokens", 3.0),
            ("a", "tokens", 4.0),
        )
    ]
    assert [grant.granted for grant in await first.usage.exchange(reports)] == [1, 2, 3, 4]


async def test_parallel_exchanges_do_not_grant_more_than_the_limit(cluster: PostgresCluster) -> None:
    members = [await member(cluster, name) for name in "abcd"]
    reports = [UsageReport(key, "tokens", 0.0, 0.0, 100.0, 0.0, 0.0, 40.0) for key in ("x", "y", "z")]
    for _ in range(5):
        await cluster.query("DELETE FROM myna_key_usage RETURNING 1")
        await cluster.query("DELETE FROM myna_key_allotments RETURNING 1")
        orders = (reports, reports[::-1], reports[1:], reports[:2][::-1])
        grants = await asyncio.gather(
            *(each.usage.exchange(order) for each, order in zip(members, orders, strict=True))
        )
        total: dict[str, float] = {}
        for order, granted in zip(orders, grants, strict=True):
            for report, grant in zip(order, granted, strict=True):
                total[report.key] = total.get(report.key, 0.0) + grant.granted
        assert total == {"x": 100, "y": 100, "z": 100}


async def test_a_dead_gateway_holds_nothing_and_learns_that_it_is_dead(cluster: PostgresCluster) -> None:
    first, second = await member(cluster, "a"), await member(cluster, "b")
    await first.exchange(used=10, held=30, wanted=60)
    await second.usage.free_allotments()
    await cluster.query("UPDATE myna_gateways SET alive = false WHERE id = $1 RETURNING 1", first.storage.gateway)
    await second.usage.free_allotments()
    assert await second.exchange(wanted=100) == (90, 10, 0)
    with pytest.raises(LeaseLost):
        await first.exchange(wanted=1)
    assert cluster.lost == ["a"]
    assert await second.exchange(held=90) == (0, 10, 0), "the refused exchange has left nothing"


async def test_a_deleted_key_leaves_nothing(cluster: PostgresCluster) -> None:
    first = await member(cluster, "a")
    await first.exchange(used=10, wanted=60)
    await first.usage.forget("key_1")
    for table in ("usage", "allotments"):
        assert await cluster.query(f"SELECT count(*) FROM myna_key_{table}") == 0


async def test_texts_are_data(cluster: PostgresCluster) -> None:
    first = await member(cluster, "a")
    key = "'; DROP TABLE myna_key_usage; --"
    assert await first.exchange(key=key, wanted=5) == (5, 0, 0)


async def test_a_database_that_is_gone_is_reported(cluster: PostgresCluster) -> None:
    first = await member(cluster, "a")
    await first.storage.close()
    for work in (first.exchange(), first.usage.free_allotments(), first.usage.forget("key_1")):
        with pytest.raises(KeyStoreError):
            await work
