"""gateway/api/responses/conversation_store.py: changes of a conversation at the same time."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest

from compat.bounds import MAX_ELEMENTS
from gateway.api.responses.conversation_store import (
    ConversationRecord,
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
