"""gateway/journal/postgres.py: what several gateways keep in one database, and what each of them may do there."""

import asyncio
import sys
from typing import Any

import asyncpg
import pytest

from gateway.graph.limits import SessionLimits
from gateway.graph.session_store import SessionStore
from gateway.graph.variable import VariableState
from gateway.journal import Journal, JournalError, LeaseLost, PostgresStorage
from gateway.journal.storage import SCHEMA, Batch, NewSession
from tests.fakes.postgres_cluster import PostgresCluster, content, entry
from tests.fakes.postgres_server import PostgresServer

NOTHING = Batch([], [], [])


async def test_tables_are_created_once_by_concurrent_gateways(cluster: PostgresCluster) -> None:
    await asyncio.gather(*(cluster.gateway(f"g{index}") for index in range(6)))
    assert await cluster.query("SELECT count(*) FROM myna_schema") == 1


async def test_facts_are_stored_in_order_and_deleted_with_their_session(cluster: PostgresCluster) -> None:
    a = await cluster.gateway("a")
    gateway, two = await cluster.session(a, "one"), await cluster.session(a, "two")
    await a.commit(Batch([entry(gateway, 10, "[10]"), entry(two, 1, "[1]"), entry(gateway, 2, "[2]")], [], []))
    assert await content(a, gateway) == [(0, "[]"), (2, "[2]"), (10, "[10]")]
    await a.commit(Batch([entry(gateway, 11, "[11]"), entry(two, 2, "[2]")], [gateway], [("t", "one")]))
    assert await content(a, gateway) == []
    assert await content(a, two) == [(0, "[]"), (1, "[1]"), (2, "[2]")]
    assert await a.find("t", "one") is None
    assert await a.has_expired("t", "one")
    assert not await a.has_expired("t", "two")


async def test_a_stored_batch_may_be_committed_again(cluster: PostgresCluster) -> None:
    a = await cluster.gateway("a")
    gone = await cluster.session(a, "gone")
    key = a.new_key()
    batch = Batch([entry(key, 0), entry(key, 1, "[1]")], [gone], [("t", "gone")], [NewSession(key, "t", "s")])
    await a.commit(batch)
    more = Batch([*batch.entries, entry(key, 2, "[2]")], batch.ended, batch.expired, batch.opened)
    await a.commit(more)
    assert await content(a, key) == [(0, "[]"), (1, "[1]"), (2, "[2]")]
    assert await a.has_expired("t", "gone")


async def test_an_id_is_free_in_the_commit_that_ends_its_session(cluster: PostgresCluster) -> None:
    a = await cluster.gateway("a")
    old = await cluster.session(a, "s")
    new = a.new_key()
    await a.commit(Batch([entry(new, 0)], [old], [], [NewSession(new, "t", "s")]))
    assert await cluster.query("SELECT key FROM myna_sessions WHERE id = 's'") == new


async def test_one_of_concurrent_claims_succeeds(cluster: PostgresCluster) -> None:
    gateways = await asyncio.gather(*(cluster.gateway(f"g{index}") for index in range(4)))
    for name in range(20):
        claims = await asyncio.gather(*(gateway.claim("t", str(name)) for gateway in gateways for _ in range(2)))
        assert sum(claims) == 2, "both claims of the same gateway succeed"
        home = await gateways[0].find("t", str(name))
        assert home is not None
        winner = next(index for index, claimed in enumerate(claims) if claimed) // 2
        assert home.gateway == gateways[winner].gateway
        assert home.url == f"http://g{winner}"
    assert await gateways[0].claim("another", "0") or await gateways[1].claim("another", "1"), "ids belong to a tenant"


async def test_unused_claims_are_released(cluster: PostgresCluster) -> None:
    a, b = await cluster.gateway("a"), await cluster.gateway("b")
    kept = await cluster.session(a, "kept")
    for name in ("held", "stale", "fresh"):
        assert await a.claim("t", name)
    await cluster.query("UPDATE myna_sessions SET claimed = now() - interval '2 min' WHERE id <> 'fresh' RETURNING 1")
    await a.release_unused_claims(lambda _, id: id == "held")
    assert await b.claim("t", "stale")
    assert not any([await b.claim("t", name) for name in ("kept", "held", "fresh")])
    assert await content(a, kept)


async def test_a_gateway_with_an_expired_lease_is_dead_for_good(cluster: PostgresCluster) -> None:
    a, b = await cluster.gateway("a"), await cluster.gateway("b")
    key = await cluster.session(a, "s")
    assert await a.renew_lease() == {b.gateway: "http://b"}
    assert await b.mark_dead_gateways() == [], "its lease is valid"
    await cluster.expire_lease(a)
    assert await b.mark_dead_gateways() == ["http://a"]
    assert await b.renew_lease() == {}
    home = await b.find("t", "s")
    assert home is not None
    assert (home.gateway, home.is_alive) == (a.gateway, False)
    with pytest.raises(LeaseLost):
        await a.renew_lease()
    for batch in (
        Batch([entry(key, 1)], [], []),
        Batch([entry(key, 1)], [], [], [NewSession(a.new_key(), "t", "new")]),
        Batch([], [key], [("t", "s")]),
    ):
        with pytest.raises(LeaseLost):
            await a.commit(batch)
    assert cluster.lost == ["a"] * 4
    assert not await a.claim("t", "another")
    assert await content(b, key) == [(0, "[]")], "no fact of the dead gateway was stored"
    assert await b.find("t", "new") is None
    assert not await b.has_expired("t", "s")


async def test_marking_a_gateway_as_dead_waits_for_its_running_commit(cluster: PostgresCluster) -> None:
    a, b = await cluster.gateway("a"), await cluster.gateway("b")
    key = await cluster.session(a, "s")
    await cluster.expire_lease(a)
    connection = await asyncpg.connect(cluster.url)
    transaction = connection.transaction()
    await transaction.start()
    await connection.execute(
        "INSERT INTO myna_facts VALUES ($1, 1, '')", key
    )  # the commit waits for the end of this transaction
    commit = asyncio.ensure_future(a.commit(Batch([entry(key, 1, "[1]")], [], [])))
    await asyncio.sleep(0.2)
    burial = asyncio.create_task(b.mark_dead_gateways())
    await asyncio.sleep(0.2)
    assert not commit.done()
    assert not burial.done()
    await transaction.rollback()
    await connection.close()
    await commit
    assert await burial == ["http://a"]
    assert await content(b, key) == [(0, "[]"), (1, "[1]")]


async def test_each_session_of_a_dead_gateway_goes_to_one_gateway(cluster: PostgresCluster) -> None:
    dead, *living = [await cluster.gateway(name) for name in "dabc"]
    keys = [await cluster.session(dead, f"s{index}") for index in range(30)]
    assert await dead.claim("t", "only a name")
    stays = await cluster.session(living[0], "of a living one")
    await cluster.expire_lease(dead)
    await asyncio.gather(*(gateway.mark_dead_gateways() for gateway in living))
    taken: list[int] = []
    while found := await asyncio.gather(*(gateway.take_over(3) for gateway in living)):
        if not any(found):
            break
        for gateway, inherited in zip(living, found, strict=True):
            for session in inherited:
                home = await living[0].find("t", session.id)
                assert home is not None
                assert home.gateway == gateway.gateway
                if session.key is not None:
                    taken.append(session.key)
    assert sorted(taken) == keys
    assert await cluster.query("SELECT owner FROM myna_sessions WHERE key = $1", stays) == living[0].gateway
    mine = [session.key for gateway in living for session in await gateway.list_taken_over() if session.key is not None]
    assert sorted(mine) == keys, "each gateway knows what it took over"


async def test_sessions_of_a_closed_gateway_are_taken_over_at_once(cluster: PostgresCluster) -> None:
    a, b = await cluster.gateway("a"), await cluster.gateway("b")
    key = await cluster.session(a, "s")
    await a.close()
    assert [gateway.key for gateway in await b.take_over(9)] == [key]


async def test_a_closed_storage_raises_its_failures(cluster: PostgresCluster) -> None:
    a = await cluster.gateway("a")
    await a.close()
    for asked in (a.find("", "s"), a.claim("", "s"), a.has_expired("", "s")):
        with pytest.raises(a.failures):
            await asked


async def test_a_restarted_gateway_replaces_the_one_at_its_address(cluster: PostgresCluster) -> None:
    before = await cluster.gateway("a")
    key = await cluster.session(before, "s")
    again = await cluster.gateway("a")
    assert [gateway.key for gateway in await again.take_over(9)] == [key]
    with pytest.raises(JournalError, match="a gateway on here has the same address http://a; use --advertise"):
        await cluster.gateway("a", host="there")
    await cluster.expire_lease(again)
    assert (await cluster.gateway("a", host="there")).gateway > again.gateway


async def test_rows_of_dead_gateways_without_sessions_are_deleted(cluster: PostgresCluster) -> None:
    empty, owner = await cluster.gateway("empty"), await cluster.gateway("owner")
    await cluster.session(owner, "s")
    await cluster.query("UPDATE myna_gateways SET alive = false, until = now() - interval '2 days' RETURNING 1")
    c = await cluster.gateway("c")
    assert await cluster.query("SELECT array_agg(id ORDER BY id) FROM myna_gateways") == [owner.gateway, c.gateway]
    assert empty.gateway


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        ("UPDATE myna_schema SET version = 99 RETURNING 1", "another version of myna .schema 99"),
        ("DELETE FROM myna_schema RETURNING 1", "another version of myna .schema None"),
    ],
)
async def test_tables_of_another_version_are_rejected(cluster: PostgresCluster, harm: str, words: str) -> None:
    await cluster.gateway("a")
    await cluster.query(harm)
    with pytest.raises(JournalError, match=words):
        await cluster.gateway("b")


async def test_tables_of_the_schema_before_are_marked_with_this_one(cluster: PostgresCluster) -> None:
    """Gateways of the version before must not start beside this one: they cannot read its records."""
    await cluster.gateway("a")
    await cluster.query("UPDATE myna_schema SET version = 2 RETURNING 1")
    await cluster.gateway("b")
    assert await cluster.query("SELECT version FROM myna_schema") == SCHEMA


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("postgresql://u:secret@127.0.0.1:1/x", r"postgresql://127.0.0.1:1/x cannot be used: .*Connect call failed"),
        ("{server}/nowhere", 'database "nowhere" does not exist'),
        ("postgresql://127.0.0.1:port/x", "cannot be used"),
    ],
)
async def test_errors_of_the_database_do_not_contain_its_password(
    postgres: PostgresServer, url: str, words: str
) -> None:
    storage = PostgresStorage(url.format(server=postgres.url.rpartition("/")[0]), 1.0, lambda: None)
    with pytest.raises(JournalError, match=words) as told:
        await storage.start()
    assert "secret" not in str(told.value)


async def test_a_missing_asyncpg_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "asyncpg", None)
    with pytest.raises(JournalError, match=r"pip install 'myna\[postgres\]'"):
        await PostgresStorage("postgresql://127.0.0.1/x", 1.0, lambda: None).start()


async def test_a_session_continues_on_another_gateway(cluster: PostgresCluster) -> None:
    a, b = await cluster.gateway("a"), await cluster.gateway("b")
    first = Journal(a)
    store = SessionStore(lambda call, failure: None, SessionLimits(), 60.0, 100, 100, first)
    session = store.create("t", "s", metadata={"ä": "\0"})
    session.set_values(session.add_variable("x", "wörld\0\n<<y>>"))
    await first.flush()
    await cluster.expire_lease(a)
    await b.mark_dead_gateways()
    (gateway,) = await b.take_over(9)
    assert gateway.key is not None
    second = Journal(b)
    (back,) = second.restore(await b.rows(gateway.key), SessionLimits())
    assert (back.id, back.tenant, back.metadata) == ("s", "t", {"ä": "\0"})
    assert back.variable("x").value == "wörld\0\n<<y>>"
    back.set_values(back.add_variable("y", "there"))
    await second.flush()
    waits = asyncio.ensure_future(_settled(session, first))
    await asyncio.sleep(0.3)
    assert cluster.lost == ["a"]
    assert not waits.done(), "flush() never returns on a dead gateway"
    waits.cancel()
    third = Journal(b)
    (again,) = third.restore(await b.rows(gateway.key), SessionLimits())
    assert {name: v.value for name, v in again.variables.items()} == {"x": "wörld\0\n<<y>>", "y": "there"}
    assert again.variable("y").state is VariableState.READY


async def _settled(session: Any, journal: Journal) -> None:
    session.set_values(session.add_variable("y", "here"))
    await journal.flush()


async def test_a_failing_database_rejects_new_work_and_loses_nothing(cluster: PostgresCluster) -> None:
    a = await cluster.gateway("a")
    journal = Journal(a)
    store = SessionStore(lambda call, failure: None, SessionLimits(), 60.0, 100, 100, journal)
    session = store.create("t", "s")
    await journal.flush()
    hold = await asyncpg.connect(cluster.url)
    await hold.execute("ALTER TABLE myna_facts RENAME TO elsewhere")
    session.set_values(session.add_variable("x", "kept"))
    with pytest.raises(Exception, match=r"the journal cannot be written: relation .myna_facts. does not exist"):
        await journal.flush()
    with pytest.raises(Exception, match="cannot be written"):
        store.create("t", "refused")
    await hold.execute("ALTER TABLE elsewhere RENAME TO myna_facts")
    await hold.close()
    async with asyncio.timeout(10):
        while journal._failure is not None:
            await asyncio.sleep(0.05)
    key = journal._keys[session]
    (back,) = Journal(a).restore(await a.rows(key), SessionLimits())
    assert back.variable("x").value == "kept"


async def test_the_latest_expired_sessions_are_remembered(
    cluster: PostgresCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.journal.postgres._MAX_EXPIRED", 3)
    a = await cluster.gateway("a")
    keys = [await cluster.session(a, f"s{index}") for index in range(5)]
    await a.commit(Batch([], keys, [("t", f"s{index}") for index in range(5)]))
    assert [await a.has_expired("t", f"s{index}") for index in range(5)] == [False, False, True, True, True]


async def test_sessions_that_end_in_their_first_commit_leave_no_rows(cluster: PostgresCluster) -> None:
    a = await cluster.gateway("a")
    key = a.new_key()
    await a.commit(Batch([entry(key, 0)], [key], [], [NewSession(key, "t", "s")]))
    assert await a.find("t", "s") is None
    assert await content(a, key) == []
