"""Store conversations in the response store.

A conversation is a record of its own there: its input is the list of its items, its answer the object that clients
get. So it has the limits, the lifetime and the owner of a response.
"""

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any
from weakref import WeakValueDictionary

import msgspec

from compat.bounds import MAX_ELEMENTS
from compat.openai.conversations import Conversation, ConversationItem
from compat.openai.responses import Response, input_items_with_ids
from gateway.errors import RequestError
from gateway.graph.ids import new_id
from gateway.responses import CONVERSATION_BYTES, ResponseStore, ResponseStoreError, StoredResponse
from gateway.runtime.executors import offload
from gateway.runtime.json_codec import encode_json

_PREFIX = "conv_"
_MAX_TRIES = 50
"""Maximum number of attempts to change a conversation that other gateways change at the same time."""
_LONG_BYTES = 200_000
"""Size of a conversation from which it is changed in a thread."""
_turns: WeakValueDictionary[tuple[str, str], asyncio.Lock] = WeakValueDictionary()
"""Locks of the conversations that requests change now, by tenant and id. Without them, each of many requests would try
again after each change, and would decode the whole conversation each time."""

_decode_conversation = msgspec.json.Decoder(Conversation).decode
_decode_items = msgspec.json.Decoder(list[ConversationItem]).decode


@dataclass(frozen=True)
class ConversationRecord:
    """A conversation with its items, as the store has it."""

    row: StoredResponse
    conversation: Conversation
    items: Sequence[ConversationItem]

    def to_row(self) -> StoredResponse:
        """Return the row that stores this."""
        return replace(self.row, input=encode_json(self.items), answer=encode_json(self.conversation))


def is_conversation_id(id: str) -> bool:
    """Return whether the id is that of a conversation and not of a response."""
    return id.startswith(_PREFIX)


async def create_conversation(
    store: ResponseStore, tenant: str, items: Sequence[ConversationItem], metadata: dict[str, str]
) -> ConversationRecord:
    """Store a new conversation. Raises RequestError and ResponseStoreError."""
    if not store.is_enabled:
        raise RequestError(400, "this server does not store conversations", code="unsupported_value")
    conversation = Conversation(id=f"{_PREFIX}{new_id(24)}", created_at=int(time.time()), metadata=metadata)
    row = StoredResponse(tenant, conversation.id, b"", b"")
    record = ConversationRecord(row, conversation, with_new_ids(items))
    check_size(record)
    row = record.to_row()
    await store.add(row)
    return replace(record, row=row)


async def find_conversation(store: ResponseStore, tenant: str, id: str, param: str | None = None) -> ConversationRecord:
    """Return a conversation of the tenant. `param`: the field that names it. Raises RequestError 404 and
    ResponseStoreError."""
    return _decode(await _find_row(store, tenant, id, param))


async def _find_row(store: ResponseStore, tenant: str, id: str, param: str | None = None) -> StoredResponse:
    row = await store.find(tenant, id) if is_conversation_id(id) else None
    if row is None:
        message = f"Conversation with id {id!r} not found: it was deleted, or evicted by newer ones"
        raise RequestError(404, message, code="conversation_not_found", param=param)
    return row


def _decode(row: StoredResponse) -> ConversationRecord:
    return ConversationRecord(row, _decode_conversation(row.answer), _decode_items(row.input))


async def change_conversation(
    store: ResponseStore, tenant: str, id: str, change: Callable[[ConversationRecord], ConversationRecord]
) -> ConversationRecord:
    """Store what `change` returns for the conversation, and return it. Raises RequestError and ResponseStoreError.

    `change` may be called several times, and in a thread. Requests that change one conversation take turns.
    """
    turn = _turns.get((tenant, id))
    if turn is None:
        turn = _turns[tenant, id] = asyncio.Lock()
    async with turn:
        for _ in range(_MAX_TRIES):
            before = await _find_row(store, tenant, id)
            if before.size < _LONG_BYTES:
                after = _changed(before, change)
            else:
                after = await offload(partial(_changed, before, change), before.size)
            if after.row == before or await store.replace(before, after.row):
                return after
    raise ResponseStoreError("too many requests change this conversation now; try again")


def _changed(row: StoredResponse, change: Callable[[ConversationRecord], ConversationRecord]) -> ConversationRecord:
    after = change(_decode(row))
    return replace(after, row=after.to_row())


async def append_response(store: ResponseStore, tenant: str, id: str, input: bytes, response: Response) -> bool:
    """Add the input and the output of a response to a conversation, unless they are there. Raises ResponseStoreError.

    Return whether they are there: not if the conversation was deleted, or if responses that ran at the same time have
    made it too large.
    """
    sent = msgspec.json.decode(input)
    new = input_items_with_ids(_without_ids(sent), response.id.removeprefix("resp_"))
    new += msgspec.to_builtins(response.output)

    def append(record: ConversationRecord) -> ConversationRecord:
        known = {item["id"] for item in record.items}
        after = replace(record, items=[*record.items, *(item for item in new if item["id"] not in known)])
        # one response may exceed the maximum of its beginning; the next one is refused
        check_size(after, times=2)
        return after

    try:
        await change_conversation(store, tenant, id, append)
    except RequestError:
        return False
    return True


def with_new_ids(items: Sequence[ConversationItem]) -> list[ConversationItem]:
    """Return the items with ids of their own."""
    return input_items_with_ids(_without_ids(items), new_id(24))


def _without_ids(items: Any) -> Any:
    if isinstance(items, str):
        return items
    return [{name: value for name, value in item.items() if name != "id"} for item in items]


def check_size(record: ConversationRecord, param: str = "items", *, times: int = 1) -> None:
    """Raise RequestError if the conversation has too many items or bytes. `param`: the field at fault. `times`: factor
    of the maxima."""
    if len(record.items) > times * MAX_ELEMENTS:
        message = f"a conversation has at most {MAX_ELEMENTS} items; start a new one"
        raise RequestError(400, message, code="invalid_value", param=param)
    size = max(len(record.row.input), len(encode_json(record.items)))
    if size > times * CONVERSATION_BYTES:
        message = f"a conversation has at most {CONVERSATION_BYTES} bytes; start a new one"
        raise RequestError(413, message, code="too_large", param=param)
