"""gateway/journal/postgres.py: what several gateways keep in one database, and what each of them may do there."""

import asyncio
import sys
from typing import Any

import asyncpg
import pytest

from gateway.graph.session import SessionLimits
from gateway.graph.store import SessionStore
from gateway.graph.variable import VariableState
from gateway.journal import Journal, JournalError, LeaseLost, PostgresStorage
from gateway.journal.storage import Batch, Opened
from tests.gateway.town import Town, content, entry
from tests.postgres import Postgres

NOTHING = Batch([], [], [])


async def test_tables_are_made_once_however_many_start(town: Town) -> None:
    await asyncio.gather(*(town.gateway(f"g{at}") for at in range(6)))
    assert await town.query("SELECT count(*) FROM myna_schema") == 1


async def test_facts_are_kept_in_order_and_go_with_their_session(town: Town) -> None:
    a = await town.gateway("a")
    one, two = await town.session(a, "one"), await town.session(a, "two")
    await a.commit(Batch([entry(one, 10, "[10]"), entry(two, 1, "[1]"), entry(one, 2, "[2]")], [], []))
    assert await content(a, one) == [(0, "[]"), (2, "[2]"), (10, "[10]")]
    await a.commit(Batch([entry(one, 11, "[11]"), entry(two, 2, "[2]")], [one], [("t", "one")]))
    assert await content(a, one) == []
    assert await content(a, two) == [(0, "[]"), (1, "[1]"), (2, "[2]")]
    assert await a.find("t", "one") is None
    assert await a.has_expired("t", "one")
    assert not await a.has_expired("t", "two")


async def test_a_batch_that_was_kept_may_be_given_again(town: Town) -> None:
    a = await town.gateway("a")
    gone = await town.session(a, "gone")
    key = a.new_key()
    batch = Batch([entry(key, 0), entry(key, 1, "[1]")], [gone], [("t", "gone")], [Opened(key, "t", "s")])
    await a.commit(batch)
    more = Batch([*batch.entries, entry(key, 2, "[2]")], batch.ended, batch.expired, batch.opened)
    await a.commit(more)
    assert await content(a, key) == [(0, "[]"), (1, "[1]"), (2, "[2]")]
    assert await a.has_expired("t", "gone")


async def test_a_name_is_free_again_in_the_commit_that_ends_its_session(town: Town) -> None:
    a = await town.gateway("a")
    old = await town.session(a, "s")
    new = a.new_key()
    await a.commit(Batch([entry(new, 0)], [old], [], [Opened(new, "t", "s")]))
    assert await town.query("SELECT key FROM myna_sessions WHERE id = 's'") == new


async def test_of_those_that_claim_a_name_at_once_one_has_it(town: Town) -> None:
    gateways = await asyncio.gather(*(town.gateway(f"g{at}") for at in range(4)))
    for name in range(20):
        claims = await asyncio.gather(*(one.claim("t", str(name)) for one in gateways for _ in range(2)))
        assert sum(claims) == 2, "both claims of one gateway"
        home = await gateways[0].find("t", str(name))
        assert home is not None
        winner = next(at for at, claimed in enumerate(claims) if claimed) // 2
        assert home.gateway == gateways[winner].gateway
        assert home.url == f"http://g{winner}"
    assert await gateways[0].claim("another", "0") or await gateways[1].claim("another", "1"), "names are a tenant's"


async def test_claims_that_came_to_nothing_are_given_back(town: Town) -> None:
    a, b = await town.gateway("a"), await town.gateway("b")
    kept = await town.session(a, "kept")
    for name in ("held", "stale", "fresh"):
        assert await a.claim("t", name)
    await town.query("UPDATE myna_sessions SET claimed = now() - interval '2 min' WHERE id <> 'fresh' RETURNING 1")
    await a.unclaim(lambda _, id: id == "held")
    assert await b.claim("t", "stale")
    assert not any([await b.claim("t", name) for name in ("kept", "held", "fresh")])
    assert await content(a, kept)


async def test_who_said_nothing_for_a_while_is_dead_for_good(town: Town) -> None:
    a, b = await town.gateway("a"), await town.gateway("b")
    key = await town.session(a, "s")
    assert await a.beat() == {b.gateway: "http://b"}
    assert await b.bury() == [], "it lives"
    await town.silent(a)
    assert await b.bury() == ["http://a"]
    assert await b.beat() == {}
    home = await b.find("t", "s")
    assert home is not None
    assert (home.gateway, home.alive) == (a.gateway, False)
    with pytest.raises(LeaseLost):
        await a.beat()
    for batch in (
        Batch([entry(key, 1)], [], []),
        Batch([entry(key, 1)], [], [], [Opened(a.new_key(), "t", "new")]),
        Batch([], [key], [("t", "s")]),
    ):
        with pytest.raises(LeaseLost):
            await a.commit(batch)
    assert town.lost == ["a"] * 4
    assert not await a.claim("t", "another")
    assert await content(b, key) == [(0, "[]")], "nothing of it was kept"
    assert await b.find("t", "new") is None
    assert not await b.has_expired("t", "s")


async def test_a_commit_that_is_on_its_way_is_waited_for_before_its_gateway_is_dead(town: Town) -> None:
    a, b = await town.gateway("a"), await town.gateway("b")
    key = await town.session(a, "s")
    await town.silent(a)
    connection = await asyncpg.connect(town.url)
    transaction = connection.transaction()
    await transaction.start()
    await connection.execute(
        "INSERT INTO myna_facts VALUES ($1, 1, '')", key
    )  # the commit waits to see what becomes of it
    commit = asyncio.ensure_future(a.commit(Batch([entry(key, 1, "[1]")], [], [])))
    await asyncio.sleep(0.2)
    burial = asyncio.create_task(b.bury())
    await asyncio.sleep(0.2)
    assert not commit.done()
    assert not burial.done()
    await transaction.rollback()
    await connection.close()
    await commit
    assert await burial == ["http://a"]
    assert await content(b, key) == [(0, "[]"), (1, "[1]")]


async def test_each_session_of_the_dead_goes_to_one(town: Town) -> None:
    dead, *living = [await town.gateway(name) for name in "dabc"]
    keys = [await town.session(dead, f"s{at}") for at in range(30)]
    assert await dead.claim("t", "only a name")
    stays = await town.session(living[0], "of a living one")
    await town.silent(dead)
    await asyncio.gather(*(one.bury() for one in living))
    taken: list[int] = []
    while found := await asyncio.gather(*(one.inherit(3) for one in living)):
        if not any(found):
            break
        for one, inherited in zip(living, found, strict=True):
            for session in inherited:
                home = await living[0].find("t", session.id)
                assert home is not None
                assert home.gateway == one.gateway
                if session.key is not None:
                    taken.append(session.key)
    assert sorted(taken) == keys
    assert await town.query("SELECT owner FROM myna_sessions WHERE key = $1", stays) == living[0].gateway
    mine = [session.key for one in living for session in await one.inherited() if session.key is not None]
    assert sorted(mine) == keys, "and each can tell what it took over"


async def test_who_leaves_is_followed_at_once(town: Town) -> None:
    a, b = await town.gateway("a"), await town.gateway("b")
    key = await town.session(a, "s")
    await a.close()
    assert [one.key for one in await b.inherit(9)] == [key]


async def test_who_asks_one_that_has_left_is_told_as_where_the_database_is_away(town: Town) -> None:
    a = await town.gateway("a")
    await a.close()
    for asked in (a.find("", "s"), a.claim("", "s"), a.has_expired("", "s")):
        with pytest.raises(a.failures):
            await asked


async def test_who_starts_anew_at_an_address_follows_who_was_there(town: Town) -> None:
    before = await town.gateway("a")
    key = await town.session(before, "s")
    again = await town.gateway("a")
    assert [one.key for one in await again.inherit(9)] == [key]
    with pytest.raises(
        JournalError, match="a gateway on here has the same address http://a; give each with --advertise"
    ):
        await town.gateway("a", host="there")
    await town.silent(again)
    assert (await town.gateway("a", host="there")).gateway > again.gateway


async def test_gateways_long_dead_are_forgotten_once_nothing_is_theirs(town: Town) -> None:
    empty, owner = await town.gateway("empty"), await town.gateway("owner")
    await town.session(owner, "s")
    await town.query("UPDATE myna_gateways SET alive = false, until = now() - interval '2 days' RETURNING 1")
    c = await town.gateway("c")
    assert await town.query("SELECT array_agg(id ORDER BY id) FROM myna_gateways") == [owner.gateway, c.gateway]
    assert empty.gateway


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        ("UPDATE myna_schema SET version = 99 RETURNING 1", "another version of myna .schema 99"),
        ("DELETE FROM myna_schema RETURNING 1", "another version of myna .schema None"),
    ],
)
async def test_tables_of_another_version_are_left_alone(town: Town, harm: str, words: str) -> None:
    await town.gateway("a")
    await town.query(harm)
    with pytest.raises(JournalError, match=words):
        await town.gateway("b")


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("postgresql://u:secret@127.0.0.1:1/x", r"postgresql://127.0.0.1:1/x cannot be used: .*Connect call failed"),
        ("{server}/nowhere", 'database "nowhere" does not exist'),
        ("postgresql://127.0.0.1:port/x", "cannot be used"),
    ],
)
async def test_a_database_that_cannot_be_used_is_told_without_its_password(
    postgres: Postgres, url: str, words: str
) -> None:
    storage = PostgresStorage(url.format(server=postgres.url.rpartition("/")[0]), 1.0, lambda: None)
    with pytest.raises(JournalError, match=words) as told:
        await storage.start()
    assert "secret" not in str(told.value)


async def test_without_its_client_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "asyncpg", None)
    with pytest.raises(JournalError, match=r"pip install 'myna\[postgres\]'"):
        await PostgresStorage("postgresql://127.0.0.1/x", 1.0, lambda: None).start()


async def test_a_session_goes_on_in_another_gateway_where_it_was(town: Town) -> None:
    a, b = await town.gateway("a"), await town.gateway("b")
    first = Journal(a)
    store = SessionStore(lambda call, failure: None, SessionLimits(), 60.0, 100, 100, first)
    session = store.create("t", "s", metadata={"ä": "\0"})
    session.settle(session.put("x", "wörld\0\n<<y>>"))
    await first.flushed()
    await town.silent(a)
    await b.bury()
    (one,) = await b.inherit(9)
    assert one.key is not None
    second = Journal(b)
    (back,) = second.restore(await b.rows(one.key), SessionLimits())
    assert (back.id, back.tenant, back.metadata) == ("s", "t", {"ä": "\0"})
    assert back.variable("x").value == "wörld\0\n<<y>>"
    back.settle(back.put("y", "there"))
    await second.flushed()
    waits = asyncio.ensure_future(_settled(session, first))
    await asyncio.sleep(0.3)
    assert town.lost == ["a"]
    assert not waits.done(), "nobody is told how it went on where it does not count"
    waits.cancel()
    third = Journal(b)
    (again,) = third.restore(await b.rows(one.key), SessionLimits())
    assert {name: v.value for name, v in again.variables.items()} == {"x": "wörld\0\n<<y>>", "y": "there"}
    assert again.variable("y").state is VariableState.READY


async def _settled(session: Any, journal: Journal) -> None:
    session.settle(session.put("y", "here"))
    await journal.flushed()


async def test_a_database_that_is_away_refuses_new_work_and_loses_nothing(town: Town) -> None:
    a = await town.gateway("a")
    journal = Journal(a)
    store = SessionStore(lambda call, failure: None, SessionLimits(), 60.0, 100, 100, journal)
    session = store.create("t", "s")
    await journal.flushed()
    hold = await asyncpg.connect(town.url)
    await hold.execute("ALTER TABLE myna_facts RENAME TO elsewhere")
    session.settle(session.put("x", "kept"))
    with pytest.raises(Exception, match=r"the journal cannot be written: relation .myna_facts. does not exist"):
        await journal.flushed()
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


async def test_of_expired_sessions_the_last_are_remembered(town: Town, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.journal.postgres._EXPIRED", 3)
    a = await town.gateway("a")
    keys = [await town.session(a, f"s{at}") for at in range(5)]
    await a.commit(Batch([], keys, [("t", f"s{at}") for at in range(5)]))
    assert [await a.has_expired("t", f"s{at}") for at in range(5)] == [False, False, True, True, True]


async def test_sessions_that_end_in_the_commit_that_would_open_them_leave_nothing(town: Town) -> None:
    a = await town.gateway("a")
    key = a.new_key()
    await a.commit(Batch([entry(key, 0)], [key], [], [Opened(key, "t", "s")]))
    assert await a.find("t", "s") is None
    assert await content(a, key) == []
