"""gateway/responses/store.py: stores in memory, in a journal's file and in PostgreSQL behave the same."""

import asyncio
import dataclasses
import random

import pytest

from gateway.responses.store import ConversationTooLarge
from tests.gateway.responses.stored_responses import Open, inputs_of, response, rows


@pytest.mark.parametrize("seed", range(4))
async def test_random_operations_match_a_model(open_store: Open, seed: int) -> None:
    """Compare a store with a model of plain dictionaries."""
    rng = random.Random(seed)
    before: dict[str, str | None] = {}
    found: dict[str, str | None] = {}
    """Sessions of the responses that can be found, by response id."""
    async with open_store() as store:
        for number in range(120):
            id, some = f"r{number}", rng.choice([*found, "nothing"])
            match rng.choice("kkkkffsgc"):
                case "k":
                    continued = some if some != "nothing" and rng.random() < 0.7 else None
                    session = None if continued is None else found[continued]
                    session = session or rng.choice([None, "s1", "s2"])
                    await store.add(response(id, continued, rng.randrange(100), session=session))
                    before[id], found[id] = continued, session
                case "f":
                    assert await store.delete("", some) == (found.pop(some, 0) != 0)
                    assert not await store.delete("", some)
                case "s":
                    gone = rng.choice(["s1", "s2", "s3"])
                    await store.delete_sessions([("", gone), ("another", gone)])
                    found = {id_: session for id_, session in found.items() if session != gone}
                case "g":
                    there = await store.find("", some)
                    assert (there is None) == (some not in found)
                    assert there is None or (there.id, there.session) == (some, found[some])
                case _:
                    expected, current = [], some if some in found else None
                    while current is not None:
                        expected.append(current)
                        current = before[current]
                    assert await inputs_of(store, some) == expected[::-1]
                    assert await inputs_of(store, some, "another") == []
            reachable = set()
            for id_ in found:
                current = id_
                while current is not None and current not in reachable:
                    reachable.add(current)
                    current = before[current]
            kept = await rows(store)
            assert len(kept) == len(reachable)
            assert sum(row[2] for row in kept) == len(found)
            assert sum(row[3] for row in kept) == sum(row[1] is not None for row in kept)


async def test_all_responses_of_a_tenant_can_be_deleted(open_store: Open) -> None:
    async with open_store() as store:
        for number in range(450):
            await store.add(response(f"r{number}", f"r{number - 1}" if number % 3 else None))
        other = dataclasses.replace(response("r0"), tenant="another")
        await store.add(other)
        await store.delete_tenant("")
        await store.delete_tenant("nobody' OR ''='")
        assert len(await rows(store)) == 1
        assert await store.find("another", "r0") is not None


async def test_concurrent_operations(open_store: Open) -> None:
    async with open_store() as store:
        await store.add(response("first"))
        await asyncio.gather(*(store.add(response(f"r{number}", "first")) for number in range(50)))
        assert await store.delete("", "first")
        forgotten = await asyncio.gather(*(store.delete("", f"r{number}") for number in [*range(50)] * 2))
        assert sum(forgotten) == 50
        assert await rows(store) == []


async def test_earlier_turns_may_be_deleted_while_a_response_is_generated(open_store: Open) -> None:
    async with open_store() as store:
        await store.add(response("first"))
        await store.add(response("second", "first", session="s"))
        earlier = await store.load_conversation("", "second")
        assert await store.delete("", "second")
        assert await store.delete("", "first")
        assert await rows(store) == []
        await store.add(response("third", "second"), earlier)
        assert await inputs_of(store, "third") == ["first", "second", "third"]
        assert [turn.session for turn in await store.load_conversation("", "third")] == [None, "s", None]
        assert [await store.find("", id) for id in ("", "first", "second")] == [None] * 3
        assert await store.delete("", "third")
        assert await rows(store) == []


async def test_unfinished_responses(open_store: Open) -> None:
    begun = response("r", session="s", resume_data=b"{}", call_session="s")
    async with open_store() as store:
        await store.add(begun)
        await store.add(response("other", resume_data=b"{}", call_session="other"))
        await store.add(response("ended"))
        assert [unfinished.id for unfinished in await store.list_unfinished()] == ["r", "other"]
        assert [unfinished.id for unfinished in await store.list_unfinished("", "s")] == ["r"]
        assert await store.list_unfinished("another", "s") == []
        (turn,) = await store.load_conversation("", "r")
        assert not turn.has_ended
        ended = response("r", length=50, session="s")
        assert await store.complete(ended)
        assert not await store.complete(ended), "it has ended already"
        assert await store.find("", "r") == ended
        assert (await store.load_conversation("", "r"))[0].has_ended
        assert not await store.complete(response("never kept"))
        assert await store.delete("", "other")
        assert not await store.complete(response("other")), "it was hidden in the meantime"
        assert await store.list_unfinished() == []


async def test_responses_survive_a_restart(open_store: Open, request: pytest.FixtureRequest) -> None:
    if "memory" in request.node.name:
        pytest.skip("a database in memory does not survive")
    async with open_store() as store:
        await store.add(response("first"))
        await store.add(response("second", "first"))
    async with open_store() as store:
        assert await inputs_of(store, "second") == ["first", "second"]
        assert await store.find("", "second") == response("second")


async def test_the_oldest_responses_make_room(open_store: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.responses.postgres._RETENTION_SECONDS", 0.0)
    size = response("r0", length=1_000).size
    async with open_store(5 * size) as store:
        await store.add(response("begun", length=1_000, resume_data=b"{}", call_session="s"))
        for number in range(8):
            await store.add(response(f"r{number}", length=1_000))
        await store.enforce_retention()
        found = [number for number in range(8) if await store.find("", f"r{number}")]
        assert found in ([4, 5, 6, 7], [5, 6, 7])
        assert await store.find("", "begun"), "unfinished responses stay"
        await store.add(response("on", "r7", 1_000))
        await store.add(response("further", "on", 1_000))
        for number in range(3):
            await store.add(response(f"s{number}", length=1_000))
            await store.enforce_retention()
        assert len(await rows(store)) <= 6
        if await store.find("", "further"):
            assert await inputs_of(store, "further") == ["r7", "on", "further"]


async def test_a_response_larger_than_the_limit_is_not_kept(open_store: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.responses.postgres._RETENTION_SECONDS", 0.0)
    async with open_store(1_000) as store:
        await store.add(response("large", length=5_000))
        await store.enforce_retention()
        assert await store.find("", "large") is None
        assert await rows(store) == []


async def test_old_responses_are_hidden(open_store: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.responses.postgres._RETENTION_SECONDS", 0.0)
    async with open_store() as store:
        await store.add(response("r"))
        await store.add(response("begun", resume_data=b"{}", call_session="s"))
        await store.enforce_retention()
        assert await store.find("", "r")
    async with open_store(ttl=0.0) as store:
        await store.add(response("new"))
        await asyncio.sleep(0.01)
        await store.enforce_retention()
        assert await store.find("", "new") is None
        assert await store.find("", "r") is None


async def test_long_conversations(open_store: Open) -> None:
    last: str | None = None
    async with open_store() as store:
        for number in range(500):
            await store.add(response(f"r{number}", last))
            last = f"r{number}"
            assert number == 0 or await store.delete("", f"r{number - 1}")
        assert await inputs_of(store, "r499") == [f"r{number}" for number in range(500)]
        assert await store.delete("", "r499")
        assert await rows(store) == []


async def test_one_tenant_does_not_push_out_responses_of_others(
    open_store: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.responses.postgres._RETENTION_SECONDS", 0.0)
    async with open_store(max_bytes=6_000) as store:
        for number in range(3):
            await store.add(response(f"modest{number}", length=300, tenant="modest"))
        for number in range(40):
            await store.add(response(f"greedy{number}", length=300, tenant="greedy"))
        await store.enforce_retention()
        kept = [number for number in range(3) if await store.find("modest", f"modest{number}")]
        assert kept == [0, 1, 2]
        left = [number for number in range(40) if await store.find("greedy", f"greedy{number}")]
        assert left == list(range(40 - len(left), 40))
        assert 5 < len(left) < 20


async def test_a_response_that_cannot_be_stored_does_not_fail_others(open_store: Open) -> None:
    async with open_store() as store:
        broken = response("broken")
        object.__setattr__(broken, "id", "\ud800")
        kept = await asyncio.gather(
            *(store.add(one) for one in (response("a"), broken, response("b"))), return_exceptions=True
        )
        assert [isinstance(end, Exception) for end in kept] == [False, True, False]
        assert await store.find("", "a")
        assert await store.find("", "b")


async def test_a_conversation_that_is_too_large_is_not_read(open_store: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("store", "postgres"):
        monkeypatch.setattr(f"gateway.responses.{module}.CONVERSATION_BYTES", 2_000)
    monkeypatch.setattr("gateway.responses.sqlite._CHAIN_BYTES", 4_000)
    async with open_store() as store:
        before = None
        for number in range(40):
            await store.add(response(f"r{number}", before, length=300))
            before = f"r{number}"
        assert len(await store.load_conversation("", "r5")) == 6
        with pytest.raises(ConversationTooLarge, match="more than 2000 bytes"):
            await store.load_conversation("", "r39")


async def test_a_response_is_replaced_only_if_it_is_unchanged(open_store: Open) -> None:
    async with open_store() as store:
        first, second = response("r"), response("r", length=50)
        assert not await store.replace(first, second), "there is none yet"
        await store.add(first)
        await store.add(response("other"))
        assert await store.replace(first, second)
        assert not await store.replace(first, response("r", length=70)), "another request was faster"
        assert await store.find("", "r") == second
        assert await store.find("", "other") == response("other")
        assert len(await rows(store)) == 2
        assert not await store.replace(response("r", tenant="t"), second)
        changes = [store.replace(second, response("r", length=60 + number)) for number in range(10)]
        assert sum(await asyncio.gather(*changes)) == 1
        assert await store.delete("", "r")
        assert len(await rows(store)) == 1


async def test_a_replaced_response_counts_as_new(open_store: Open) -> None:
    if_any = response("r", length=2_000)
    async with open_store(max_bytes=6_000) as store:
        await store.add(if_any)
        await store.add(response("a", length=2_000))
        assert await store.replace(if_any, response("r", length=2_001))
        await store.add(response("b", length=2_000))
        await store.enforce_retention()
        assert await store.find("", "r") is not None
        assert await store.find("", "a") is None
