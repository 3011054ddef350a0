"""gateway/responses: the same over memory, a journal's file and PostgreSQL: what is found, and what nobody can find goes."""

import asyncio
import random
import sqlite3
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from gateway.journal import FileStorage, PostgresStorage
from gateway.responses import (
    MemoryDatabase,
    PostgresResponseStore,
    ResponseStore,
    ResponseStoreError,
    SqliteResponseStore,
    StoredResponse,
    Told,
)
from gateway.responses.store import ConversationTooLarge
from tests.postgres import Postgres

Open = Callable[..., Any]
DAY = 86_400.0


@pytest.fixture(params=["memory", "file", "postgres"])
def opened(request: pytest.FixtureRequest, tmp_path: Path) -> Open:
    """Opens an archive, and closes it. What is kept stays, but in memory."""
    url = request.getfixturevalue("postgres").database() if request.param == "postgres" else ""

    @asynccontextmanager
    async def archive(max_bytes: int = 1 << 20, ttl: float = DAY) -> AsyncIterator[ResponseStore]:
        if request.param == "postgres":
            storage = PostgresStorage(url, 10.0, lambda: None)
            await storage.start()
            yield await PostgresResponseStore.open(storage, max_bytes, ttl)
            await storage.close()
        elif request.param == "file":
            file = FileStorage(tmp_path / "journal")
            assert list(file.rows()) == []
            one = SqliteResponseStore(file, max_bytes, ttl, owns=False)
            yield one
            await one.close()
            await file.close()
        else:
            one = SqliteResponseStore(MemoryDatabase(), max_bytes, ttl, owns=True)
            yield one
            await one.close()

    return archive


def response(id: str, before: str | None = None, length: int = 10, **more: Any) -> StoredResponse:
    tenant = more.pop("tenant", "")
    return StoredResponse(tenant, id, f'"asked {id}"'.encode(), f'"{"x" * length}"'.encode(), before, **more)


async def told(archive: ResponseStore, id: str, tenant: str = "") -> list[str]:
    """What was asked in the conversation that ends with a response."""
    return [turn.input.decode().strip('"').removeprefix("asked ") for turn in await archive.conversation(tenant, id)]


async def rows(archive: ResponseStore) -> list[tuple[Any, ...]]:
    """Numbers and what came before, of all that take room."""
    query = "SELECT number, before, found, followers, size FROM {} ORDER BY number"
    if isinstance(archive, PostgresResponseStore):
        async with archive._storage.transaction() as connection:
            return [tuple(row) for row in await connection.fetch(query.format("myna_responses"))]
    assert isinstance(archive, SqliteResponseStore)

    def look(connection: sqlite3.Connection) -> list[tuple[Any, ...]]:
        found = connection.execute(query.format("responses")).fetchall()
        assert connection.execute("SELECT total FROM responses_bytes").fetchone() == (sum(row[-1] for row in found),)
        return found

    return await archive._do(look)


@pytest.mark.parametrize("seed", range(4))
async def test_whatever_is_kept_and_forgotten(opened: Open, seed: int) -> None:
    """Against what should be there, in plain dictionaries."""
    chance = random.Random(seed)
    before: dict[str, str | None] = {}
    found: dict[str, str | None] = {}
    """Sessions by the ids of what can be found."""
    async with opened() as archive:
        for number in range(120):
            id, some = f"r{number}", chance.choice([*found, "nothing"])
            match chance.choice("kkkkffsgc"):
                case "k":
                    goes_on = some if some != "nothing" and chance.random() < 0.7 else None
                    session = None if goes_on is None else found[goes_on]
                    session = session or chance.choice([None, "s1", "s2"])
                    await archive.keep(response(id, goes_on, chance.randrange(100), session=session))
                    before[id], found[id] = goes_on, session
                case "f":
                    assert await archive.forget("", some) == (found.pop(some, 0) != 0)
                    assert not await archive.forget("", some)
                case "s":
                    gone = chance.choice(["s1", "s2", "s3"])
                    await archive.forget_sessions([("", gone), ("another", gone)])
                    found = {one: session for one, session in found.items() if session != gone}
                case "g":
                    there = await archive.find("", some)
                    assert (there is None) == (some not in found)
                    assert there is None or (there.id, there.session) == (some, found[some])
                case _:
                    wanted, at = [], some if some in found else None
                    while at is not None:
                        wanted.append(at)
                        at = before[at]
                    assert await told(archive, some) == wanted[::-1]
                    assert await told(archive, some, "another") == []
            reachable = set()
            for one in found:
                at = one
                while at is not None and at not in reachable:
                    reachable.add(at)
                    at = before[at]
            kept = await rows(archive)
            assert len(kept) == len(reachable)
            assert sum(row[2] for row in kept) == len(found)
            assert sum(row[3] for row in kept) == sum(row[1] is not None for row in kept)


async def test_many_at_once(opened: Open) -> None:
    async with opened() as archive:
        await archive.keep(response("first"))
        await asyncio.gather(*(archive.keep(response(f"r{number}", "first")) for number in range(50)))
        assert await archive.forget("", "first")
        forgotten = await asyncio.gather(*(archive.forget("", f"r{number}") for number in [*range(50)] * 2))
        assert sum(forgotten) == 50
        assert await rows(archive) == []


async def test_what_came_before_may_go_while_an_answer_is_made(opened: Open) -> None:
    async with opened() as archive:
        await archive.keep(response("first"))
        await archive.keep(response("second", "first", session="s"))
        earlier = await archive.conversation("", "second")
        assert await archive.forget("", "second")
        assert await archive.forget("", "first")
        assert await rows(archive) == []
        await archive.keep(response("third", "second"), earlier)
        assert await told(archive, "third") == ["first", "second", "third"]
        assert [turn.session for turn in await archive.conversation("", "third")] == [None, "s", None]
        assert [await archive.find("", id) for id in ("", "first", "second")] == [None] * 3
        assert await archive.forget("", "third")
        assert await rows(archive) == []


async def test_what_has_not_ended(opened: Open) -> None:
    begun = response("r", session="s", begun=b"{}", runs_in="s")
    async with opened() as archive:
        await archive.keep(begun)
        await archive.keep(response("other", begun=b"{}", runs_in="other"))
        await archive.keep(response("ended"))
        assert [one.id for one in await archive.unfinished()] == ["r", "other"]
        assert [one.id for one in await archive.unfinished("", "s")] == ["r"]
        assert await archive.unfinished("another", "s") == []
        (turn,) = await archive.conversation("", "r")
        assert not turn.ended
        ended = response("r", length=50, session="s")
        assert await archive.end(ended)
        assert not await archive.end(ended), "once"
        assert await archive.find("", "r") == ended
        assert (await archive.conversation("", "r"))[0].ended
        assert not await archive.end(response("never kept"))
        assert await archive.forget("", "other")
        assert not await archive.end(response("other")), "it was forgotten meanwhile"
        assert await archive.unfinished() == []


async def test_it_is_there_again(opened: Open, request: pytest.FixtureRequest) -> None:
    if "memory" in request.node.name:
        pytest.skip("memory is not kept")
    async with opened() as archive:
        await archive.keep(response("first"))
        await archive.keep(response("second", "first"))
    async with opened() as archive:
        assert await told(archive, "second") == ["first", "second"]
        assert await archive.find("", "second") == response("second")


async def test_the_oldest_make_room(opened: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.responses.postgres._TIDY_SECONDS", 0.0)
    size = response("r0", length=1_000).size
    async with opened(5 * size) as archive:
        await archive.keep(response("begun", length=1_000, begun=b"{}", runs_in="s"))
        for number in range(8):
            await archive.keep(response(f"r{number}", length=1_000))
        await archive.tidy()
        found = [number for number in range(8) if await archive.find("", f"r{number}")]
        assert found in ([4, 5, 6, 7], [5, 6, 7])
        assert await archive.find("", "begun"), "nothing that has not ended"
        await archive.keep(response("on", "r7", 1_000))
        await archive.keep(response("further", "on", 1_000))
        for number in range(3):
            await archive.keep(response(f"s{number}", length=1_000))
            await archive.tidy()
        assert len(await rows(archive)) <= 6
        if await archive.find("", "further"):
            assert await told(archive, "further") == ["r7", "on", "further"]


async def test_what_is_too_large_by_itself_is_not_kept(opened: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.responses.postgres._TIDY_SECONDS", 0.0)
    async with opened(1_000) as archive:
        await archive.keep(response("large", length=5_000))
        await archive.tidy()
        assert await archive.find("", "large") is None
        assert await rows(archive) == []


async def test_the_old_go(opened: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.responses.postgres._TIDY_SECONDS", 0.0)
    async with opened() as archive:
        await archive.keep(response("r"))
        await archive.keep(response("begun", begun=b"{}", runs_in="s"))
        await archive.tidy()
        assert await archive.find("", "r")
    async with opened(ttl=0.0) as archive:
        await archive.keep(response("new"))
        await asyncio.sleep(0.01)
        await archive.tidy()
        assert await archive.find("", "new") is None
        assert await archive.find("", "r") is None


async def test_long_conversations(opened: Open) -> None:
    last: str | None = None
    async with opened() as archive:
        for number in range(500):
            await archive.keep(response(f"r{number}", last))
            last = f"r{number}"
            assert number == 0 or await archive.forget("", f"r{number - 1}")
        assert await told(archive, "r499") == [f"r{number}" for number in range(500)]
        assert await archive.forget("", "r499")
        assert await rows(archive) == []


async def test_what_fails_is_said_and_fails_only_what_asked_for_it(tmp_path: Path) -> None:
    file = FileStorage(tmp_path / "journal")
    archive = SqliteResponseStore(file, 1 << 20, DAY, owns=False)
    await archive.keep(response("before"))
    await file.run(lambda connection: connection.execute("PRAGMA max_page_count = 1"))
    large = response("large", length=1 << 18)
    asked = (archive.find("", "before"), archive.forget("", "before"), archive.keep(large))
    _, forgotten, kept = await asyncio.gather(*asked, return_exceptions=True)
    assert (forgotten, type(kept)) == (True, ResponseStoreError)
    assert not await archive.find("", "before"), "done by itself"
    assert not await archive.find("", "large"), "and nothing of what failed"
    await file.run(lambda connection: connection.execute("PRAGMA max_page_count = 1000000"))
    await archive.keep(large)
    assert await archive.find("", "large") == large
    await archive.close()
    late = asyncio.ensure_future(archive.keep(response("late")))
    await asyncio.sleep(0.05)
    assert not late.done(), "what happens once it is closed is told to nobody"
    late.cancel()
    await file.close()


async def test_tables_that_cannot_be_made_leave_the_journal_as_it_is(tmp_path: Path) -> None:
    """Both are at one connection: a transaction left open would swallow the journal's commits."""
    file = FileStorage(tmp_path / "journal")
    archive = SqliteResponseStore(file, 1 << 20, DAY, owns=False)
    await file.run(lambda connection: connection.execute("PRAGMA max_page_count = 1"))
    with pytest.raises(ResponseStoreError):
        await archive.keep(response("r"))
    assert not await file.run(lambda connection: connection.in_transaction)
    await file.run(lambda connection: connection.execute("PRAGMA max_page_count = 1000000"))
    await archive.keep(response("r"))
    assert await archive.find("", "r") == response("r")
    await archive.close()
    await file.close()


async def test_postgres_that_is_away(postgres: Postgres) -> None:
    storage = PostgresStorage(postgres.database(), 10.0, lambda: None)
    await storage.start()
    archive = await PostgresResponseStore.open(storage, 1 << 20, DAY)
    await storage.close()
    with pytest.raises(ResponseStoreError):
        await archive.keep(response("r"), [Told(b'""', b'""', None)])
    with pytest.raises(ResponseStoreError):
        await archive.find("", "r")


async def test_one_tenant_does_not_push_out_what_others_keep(opened: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.responses.postgres._TIDY_SECONDS", 0.0)
    async with opened(max_bytes=6_000) as archive:
        for number in range(3):
            await archive.keep(response(f"modest{number}", length=300, tenant="modest"))
        for number in range(40):
            await archive.keep(response(f"greedy{number}", length=300, tenant="greedy"))
        await archive.tidy()
        kept = [number for number in range(3) if await archive.find("modest", f"modest{number}")]
        assert kept == [0, 1, 2]
        left = [number for number in range(40) if await archive.find("greedy", f"greedy{number}")]
        assert left == list(range(40 - len(left), 40))
        assert 5 < len(left) < 20


async def test_what_cannot_be_kept_fails_none_of_those_beside_it(opened: Open) -> None:
    async with opened() as archive:
        broken = response("broken")
        object.__setattr__(broken, "id", "\ud800")
        kept = await asyncio.gather(
            *(archive.keep(one) for one in (response("a"), broken, response("b"))), return_exceptions=True
        )
        assert [isinstance(end, Exception) for end in kept] == [False, True, False]
        assert await archive.find("", "a")
        assert await archive.find("", "b")


async def test_a_conversation_that_is_too_large_is_not_read(opened: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("store", "postgres"):
        monkeypatch.setattr(f"gateway.responses.{module}.CONVERSATION_BYTES", 2_000)
    monkeypatch.setattr("gateway.responses.sqlite._CHAIN_BYTES", 4_000)
    async with opened() as archive:
        before = None
        for number in range(40):
            await archive.keep(response(f"r{number}", before, length=300))
            before = f"r{number}"
        assert len(await archive.conversation("", "r5")) == 6
        with pytest.raises(ConversationTooLarge, match="more than 2000 bytes"):
            await archive.conversation("", "r39")
