"""gateway/cluster/membership.py: who lives, and what becomes of the sessions of those that do not."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from gateway.cluster import Membership
from gateway.graph.session import Session, SessionLimits
from gateway.graph.store import SessionStore
from gateway.journal import Journal, PostgresStorage
from tests.gateway.town import Town


class Gateway:
    """One that is heard of every half second, and takes over."""

    def __init__(self, storage: PostgresStorage) -> None:
        self.storage = storage
        self.journal = Journal(storage)
        self.store = SessionStore(lambda call, failure: None, SessionLimits(), 60.0, 100, 100, self.journal)
        self.resumed: list[Session] = []
        self.membership = Membership(storage, self.journal, self.store, SessionLimits(), self.resumed.append)

    async def has(self, *ids: str) -> None:
        """Returns once it has these."""
        await until(lambda: sorted(session.id for session in self.store.of("t")) == sorted(ids))


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not holds():
            await asyncio.sleep(0.02)


async def gateway(town: Town, name: str, lease: float = 1.0) -> Gateway:
    """It has not joined yet."""
    storage = PostgresStorage(town.url, lease, lambda: town.lost.append(name))
    await storage.start()
    one = Gateway(storage)
    town.stack.push_async_callback(storage.close)
    town.stack.push_async_callback(one.membership.close)
    return one


async def silent(town: Town, *ids: str) -> PostgresStorage:
    """A gateway with sessions that says nothing more."""
    dead = await town.gateway("dead", lease=0.1)
    store = Gateway(dead)
    for id in ids:
        assert await dead.claim("t", id)
        session = store.store.create("t", id)
        session.settle(session.put("x", id))
    await store.journal.flushed()
    return dead


async def test_sessions_of_the_dead_are_taken_over_and_resumed(town: Town) -> None:
    ids = [f"s{at}" for at in range(45)]
    await silent(town, *ids)
    one = await gateway(town, "a")
    await one.membership.join("http://a", "here")
    one.membership.inherit()
    await one.has(*ids)
    assert {session.id: session.variable("x").value for session in one.resumed} == {id: id for id in ids}


async def test_nothing_is_taken_over_before_there_is_somebody_to_do_it(town: Town) -> None:
    await silent(town, "s")
    one = await gateway(town, "a", lease=1.0)
    await one.membership.join("http://a", "here")
    await asyncio.sleep(2.5)
    assert not one.resumed
    one.membership.inherit()
    await one.has("s")


async def test_others_may_be_silent_for_as_long_as_we_have_listened(town: Town) -> None:
    """Who has just come, or whose database was away, cannot tell who is dead from who could not be heard."""
    one = await gateway(town, "a", lease=5.0)
    await silent(town, "s")
    await one.membership.join("http://a", "here")
    one.membership.inherit()
    await asyncio.sleep(2.0)
    assert not one.resumed, "as long as we may be silent, others may"
    await one.has("s")


@pytest.mark.parametrize("at", ["inherit", "rows"])
async def test_a_database_that_goes_away_in_the_middle_leaves_no_session_behind(
    town: Town, at: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = [f"s{at}" for at in range(5)]
    await silent(town, *ids)
    one = await gateway(town, "a")
    asked = getattr(one.storage, at)
    failures = iter([False, False, True, True] if at == "rows" else [True, False])

    async def unheard(argument: Any) -> Any:
        answer = await asked(argument)  # it is done, and the answer lost
        if next(failures, False):
            raise ConnectionResetError("gone")
        return answer

    monkeypatch.setattr(one.storage, at, unheard)
    await one.membership.join("http://a", "here")
    one.membership.inherit()
    await one.has(*ids)
    assert len(one.resumed) == len(ids), "each once"
    one.store.delete(one.store.get("t", "s3"))
    await one.journal.flushed()
    one.membership.look()
    await asyncio.sleep(1.0)
    assert not one.store.holds("t", "s3"), "what has ended does not come back"


async def test_a_damaged_session_keeps_no_other_back(town: Town, caplog: pytest.LogCaptureFixture) -> None:
    await silent(town, "s1", "s2", "s3")
    await town.query(
        "UPDATE myna_facts SET facts = '[1, [[0, [\"nonsense\"]]]]' WHERE first = 0 AND session = (SELECT key FROM myna_sessions WHERE id = 's2') RETURNING 1"
    )
    one = await gateway(town, "a")
    await one.membership.join("http://a", "here")
    one.membership.inherit()
    await one.has("s1", "s3")
    assert "session s2 cannot be taken over: the journal at" in caplog.text
    assert await town.query("SELECT count(*) FROM myna_facts") >= 3, "it is left as it was found"


async def test_a_session_that_cannot_go_on_ends_no_gateway(town: Town, caplog: pytest.LogCaptureFixture) -> None:
    await silent(town, "s1", "s2", "s3")
    one = await gateway(town, "a")
    resume = one.resumed.append

    def poisoned(session: Session) -> None:
        if session.id == "s2":
            raise ZeroDivisionError("of our own")
        resume(session)

    one.membership._resume = poisoned
    await one.membership.join("http://a", "here")
    one.membership.inherit()
    await until(lambda: [session.id for session in one.resumed] == ["s1", "s3"])
    assert "session s2 was taken over, but cannot go on" in caplog.text
    assert one.store.holds("t", "s2")


async def test_who_waits_for_a_gateway_that_died_waits_no_longer(town: Town) -> None:
    one = await gateway(town, "a")
    await one.membership.join("http://a", "here")
    one.membership.inherit()
    dead = await silent(town, "s")
    await until(lambda: dead.gateway in one.membership.others)

    async def waits() -> None:
        limit = one.membership.while_alive(dead.gateway)
        try:
            async with limit:
                await asyncio.sleep(60)
        finally:
            one.membership.no_longer(dead.gateway, limit)

    async with asyncio.timeout(20):
        ended = await asyncio.gather(waits(), waits(), return_exceptions=True)
    assert [type(one) for one in ended] == [TimeoutError] * 2


async def test_who_was_taken_for_dead_says_so_once(town: Town) -> None:
    one = await gateway(town, "a")
    await one.membership.join("http://a", "here")
    await town.query("UPDATE myna_gateways SET alive = false RETURNING 1")
    await until(lambda: town.lost == ["a"])
    await asyncio.sleep(1.5)
    assert town.lost == ["a"]
