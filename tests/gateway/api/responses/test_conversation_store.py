"""gateway/api/responses/conversation_store.py: changes of a conversation at the same time."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest

from compat.bounds import MAX_ELEMENTS
from gateway.api.responses.conversation_store import (
    ConversationRecord,
    _turns,
    change_conversation,
    check_size,
    create_conversation,
    find_conversation,
    is_conversation_id,
)
from gateway.errors import RequestError
from gateway.responses import MemoryDatabase, ResponseStoreError, SqliteResponseStore

USER = {"role": "user", "content": "x"}


@pytest.fixture
async def store() -> AsyncIterator[SqliteResponseStore]:
    store = SqliteResponseStore(MemoryDatabase(), 1 << 22, 60.0, owns=True)
    yield store
    await store.close()


def adds(name: str) -> Any:
    def change(record: ConversationRecord) -> ConversationRecord:
        return replace(record, items=[*record.items, {**USER, "id": name}])

    return change


async def test_no_change_is_lost(store: SqliteResponseStore) -> None:
    created = await create_conversation(store, "t", [USER], {})
    id = created.conversation.id
    assert is_conversation_id(id)
    await asyncio.gather(*(change_conversation(store, "t", id, adds(str(number))) for number in range(30)))
    items = (await find_conversation(store, "t", id)).items
    assert sorted(item["id"] for item in items[1:]) == sorted(map(str, range(30)))


async def test_a_conversation_that_changes_all_the_time_fails_in_the_end(
    store: SqliteResponseStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    id = (await create_conversation(store, "t", [], {})).conversation.id

    async def never(*rows: Any) -> bool:
        return False

    monkeypatch.setattr(store, "replace", never)
    with pytest.raises(ResponseStoreError, match="try again"):
        await change_conversation(store, "t", id, adds("x"))


async def test_a_conversation_has_a_maximum_number_of_items(store: SqliteResponseStore) -> None:
    record = await create_conversation(store, "t", [USER], {})
    check_size(replace(record, items=[USER] * MAX_ELEMENTS))
    with pytest.raises(RequestError, match="start a new one"):
        check_size(replace(record, items=[USER] * (MAX_ELEMENTS + 1)))
    for tenant, other in (("other", record.conversation.id), ("t", "conv_x"), ("t", "resp_x")):
        with pytest.raises(RequestError, match="not found"):
            await find_conversation(store, tenant, other)


@pytest.mark.parametrize("size", [1, 300_000])
async def test_many_changes_at_the_same_time_take_turns(
    store: SqliteResponseStore, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    id = (await create_conversation(store, "t", [{**USER, "content": "x" * size}], {})).conversation.id
    other = (await create_conversation(store, "t", [USER], {})).conversation.id
    found: list[str] = []
    find = store.find

    async def count(tenant: str, id: str) -> Any:
        found.append(id)
        return await find(tenant, id)

    monkeypatch.setattr(store, "find", count)
    await asyncio.gather(
        *(change_conversation(store, "t", id, adds(str(number))) for number in range(100)),
        change_conversation(store, "t", other, adds("y")),
    )
    assert len(found) == 101, "5,000 if each of them tries again after each change, until some fail"
    assert found.index(other) < 10, "no request waits for the changes of another conversation"
    assert len((await find_conversation(store, "t", id)).items) == 101
    assert not _turns, "a lock is forgotten after the last change"


async def test_a_cancelled_change_lets_the_next_begin(store: SqliteResponseStore) -> None:
    id = (await create_conversation(store, "t", [USER], {})).conversation.id
    first, second, third = (asyncio.ensure_future(change_conversation(store, "t", id, adds(name))) for name in "abc")
    await asyncio.sleep(0)
    first.cancel()
    second.cancel()
    assert [item["id"] for item in (await third).items][-1] == "c"
    await asyncio.gather(first, second, return_exceptions=True)
