"""gateway/accounts/key_sync.py: several gateways share the limits of a key."""

import asyncio
from contextlib import AsyncExitStack
from dataclasses import dataclass, field

import pytest

from gateway.accounts.accounts import Accounts
from gateway.accounts.errors import KeyStoreError, LimitReached, QuotaReached
from gateway.accounts.key_sync import KeySync
from gateway.accounts.keys.key_admin import KeyAdmin
from gateway.accounts.keys.postgres_key_store import PostgresKeyStore
from gateway.accounts.ledger.spend import FREE
from gateway.accounts.limits.key_limits import KeyLimits, WaitingRule
from gateway.accounts.limits.shared_usage import SharedUsage
from gateway.accounts.prices import Prices
from gateway.journal import PostgresStorage
from tests.fakes.postgres_cluster import PostgresCluster

CALL = 10
"""Tokens that a request uses."""


@dataclass
class Member:
    """A gateway without HTTP, as `gateway.server.lifespan` builds it."""

    storage: PostgresStorage
    accounts: Accounts
    admin: KeyAdmin
    sync: KeySync
    used: int = 0
    running: int = 0
    most_running: int = 0
    answers: list[str] = field(default_factory=list)

    def limits(self, id: str) -> KeyLimits:
        limits = self.accounts.limits_of(id)
        assert limits is not None
        return limits

    async def request(self, id: str, number: int, *, dies: bool = False) -> None:
        """Run a request with one call. `dies`: its gateway dies meanwhile."""
        limits = self.limits(id)
        try:
            place = await limits.enter()
        except LimitReached as error:
            self.answers.append(error.code)
            return
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        try:
            await self.accounts.make_room(id)
            limits.check()
            limits.reserve(f"call_{number}", 3 * CALL, 0.0)
            await asyncio.sleep(0)
            if dies:
                return
            self.accounts.settle(id, f"call_{number}", FREE._replace(prompt=CALL))
            self.used += CALL
            self.answers.append("done")
        except LimitReached as error:
            self.answers.append(error.code)
        finally:
            self.running -= 1
            if not dies:
                limits.leave(place)


async def member(cluster: PostgresCluster, name: str, wait: float = 0.0, lease: float = 60.0) -> Member:
    storage = await cluster.gateway(name, lease)
    usage = SharedUsage(storage)
    await usage.create_tables()
    accounts = Accounts(lambda model: None, Prices({}), WaitingRule(wait), usage)
    admin = KeyAdmin(accounts, PostgresKeyStore(storage))
    await admin.load()
    return Member(storage, accounts, admin, KeySync(accounts, admin, usage))


async def members(
    cluster: PostgresCluster, count: int = 2, wait: float = 0.0, **limits: object
) -> tuple[list[Member], str]:
    """Return gateways and the id of a key that all of them know."""
    found = [await member(cluster, f"g{number}", wait) for number in range(count)]
    record, _ = await found[0].admin.create(limits)
    for each in found:
        await each.admin.refresh()
    return found, record.id


async def total(cluster: PostgresCluster, table: str, column: str, kind: str) -> float:
    query = f"SELECT coalesce(sum({column}), 0) FROM myna_key_{table} WHERE kind = $1"
    return float(await cluster.query(query, kind))


async def test_a_change_of_a_key_reaches_the_other_gateways(cluster: PostgresCluster) -> None:
    async with AsyncExitStack() as stack:
        first, second = await member(cluster, "a"), await member(cluster, "b")
        second.sync.start()
        stack.push_async_callback(second.sync.close)
        record, _ = await first.admin.create({"rpm": 5})
        while second.accounts.limits_of(record.id) is None:
            await asyncio.sleep(0.01)
        await first.admin.delete(record.id)
        while second.accounts.limits_of(record.id) is not None:
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("count", [1, 2])
async def test_a_hundred_clients_exceed_a_budget_by_one_request_for_each_gateway(
    count: int, cluster: PostgresCluster
) -> None:
    found, id = await members(cluster, count, budget_tokens=500)
    number = 0
    while not any(each.answers[-1:] == ["insufficient_quota"] for each in found):
        await asyncio.gather(*(found[each % count].request(id, number + each) for each in range(100)))
        number += 100
        for each in found:
            await each.sync.exchange()
    used = sum(each.used for each in found)
    assert 500 <= used < 500 + count * 3 * CALL
    assert await total(cluster, "usage", "used", "budget_tokens") == used
    for each in found:
        await each.sync.exchange()
        await each.sync.exchange()
    assert await total(cluster, "allotments", "amount", "budget_tokens") == 0


async def test_a_hundred_clients_of_two_gateways_share_the_places(cluster: PostgresCluster) -> None:
    found, id = await members(cluster, 2, wait=60.0, parallel=5)
    most = 0

    async def watch() -> None:
        nonlocal most
        while True:
            most = max(most, sum(each.running for each in found))
            await asyncio.sleep(0)

    for each in found:
        each.sync.start()
    watching = asyncio.create_task(watch())
    await asyncio.gather(*(found[number % 2].request(id, number) for number in range(100)))
    watching.cancel()
    for each in found:
        await each.sync.close()
    assert [each.answers for each in found] == [["done"] * 50] * 2
    assert most <= 5
    assert await total(cluster, "allotments", "amount", "parallel") == 0


async def test_a_minute_of_two_gateways_is_one_minute(cluster: PostgresCluster) -> None:
    found, id = await members(cluster, 2, rpm=40)
    await asyncio.gather(*(found[number % 2].request(id, number) for number in range(200)))
    answers = [answer for each in found for answer in each.answers]
    await asyncio.gather(*(each.sync.exchange() for each in found))
    used = await total(cluster, "usage", "used", "requests")
    done = answers.count("done")
    assert done >= 40 - 2 * 2, "an idle gateway holds one allotment at most"
    assert done <= 40 + 2 + 1, "a part of the minute may have passed"
    assert used <= 40 + 2
    assert answers.count("rate_limit_exceeded") == 200 - done


async def test_what_a_killed_gateway_has_reserved_is_freed(cluster: PostgresCluster) -> None:
    (first, second), id = await members(cluster, 2, parallel=2, budget_tokens=10_000)
    await asyncio.gather(*(first.request(id, number, dies=True) for number in range(2)))
    await first.sync.exchange()
    await second.request(id, 5)
    assert second.answers == ["rate_limit_exceeded"], "the places are taken"
    await cluster.query("UPDATE myna_gateways SET alive = false WHERE id = $1 RETURNING 1", first.storage.gateway)
    second.sync.start()
    while second.answers[-1] != "done":
        await asyncio.sleep(0.05)
        await second.request(id, 6 + len(second.answers))
    await second.sync.close()
    for kind in ("parallel", "budget_tokens"):
        assert await total(cluster, "allotments", "amount", kind) == 0
    assert await total(cluster, "usage", "used", "budget_tokens") == CALL


async def test_gateways_that_are_killed_again_and_again_exceed_no_budget(cluster: PostgresCluster) -> None:
    """Kill gateways after an exchange: a kill may lose the calls that ended since the last one."""
    first, id = await members(cluster, 1, budget_tokens=2_000)
    survivor, killed_used, number = first[0], 0, 1_000
    for round_number in range(6):
        victim = await member(cluster, f"victim{round_number}")
        await asyncio.gather(
            *(victim.request(id, number + each, dies=each % 3 == 0) for each in range(20)),
            *(survivor.request(id, number + 20 + each) for each in range(10)),
        )
        await victim.sync.exchange()
        killed_used += victim.used
        number += 100
        await cluster.query("UPDATE myna_gateways SET alive = false WHERE id = $1 RETURNING 1", victim.storage.gateway)
    survivor.sync.start()
    while survivor.answers[-1] != "insufficient_quota":
        number += 1
        await survivor.request(id, number)
        await asyncio.sleep(0.001)
    await survivor.sync.close()
    assert 2_000 <= survivor.used + killed_used < 2_000 + 7 * 3 * CALL
    assert await total(cluster, "usage", "used", "budget_tokens") == survivor.used + killed_used
    assert await total(cluster, "allotments", "amount", "budget_tokens") == 0


async def test_without_the_database_limits_admit_nothing_more(cluster: PostgresCluster) -> None:
    (only,), id = await members(cluster, 1, rpm=1_000)
    await only.request(id, 1)
    limits = only.limits(id)
    await only.storage.close()
    with pytest.raises(KeyStoreError):
        for _ in range(1_000):
            limits.leave(await limits.enter())


async def test_a_client_that_disconnects_during_an_exchange_is_reported_once(cluster: PostgresCluster) -> None:
    (only,), id = await members(cluster, 1, rpm=1_000, budget_tokens=10_000)
    for number in range(30):
        task = asyncio.create_task(only.request(id, number))
        for _ in range(number % 7):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        only.limits(id).settle(f"call_{number}", 0, 0.0)
    await asyncio.sleep(0.1)
    await only.sync.exchange()
    await only.sync.exchange()
    assert await total(cluster, "usage", "used", "budget_tokens") == only.used
    assert only.limits(id).waiting_requests == 0


async def test_a_budget_of_several_gateways_survives_restarts(cluster: PostgresCluster) -> None:
    (only,), id = await members(cluster, 1, budget_tokens=CALL)
    await only.request(id, 1)
    await only.sync.close()
    await only.sync.exchange()
    later = await member(cluster, "later")
    with pytest.raises(QuotaReached):
        await later.limits(id).enter()
