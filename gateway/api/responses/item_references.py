"""Replace references to items by the items, from the responses that the server has stored."""

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from compat.openai.responses import ResponseRequest, input_items_with_ids
from compat.openai.responses.items import ItemReference
from gateway.api.responses.items import response_id_of
from gateway.errors import RequestError
from gateway.responses import CONVERSATION_BYTES, ResponseStore, StoredResponse
from gateway.runtime.json_codec import decode_json, encode_json

_MAX_RESPONSES = 1_000
"""Maximum number of responses that the references of a request lead to. Each is one query."""


class _Output(msgspec.Struct):
    output: list[dict[str, Any]]


_decode_output = msgspec.json.Decoder(_Output).decode


async def resolve_references(
    store: ResponseStore, tenant: str, body: ResponseRequest, raw: bytes, session: str | None
) -> tuple[dict[str, Any], bytes]:
    """Return the request's content with items instead of references, decoded and as JSON. `raw`: the content as the
    client sent it. `session`: id of the request's session, if it has a name.

    Raises RequestError for items that are not stored or belong to another session, and ResponseStoreError.
    """
    content: dict[str, Any] = decode_json(raw)
    items: list[dict[str, Any]] = content["input"]
    places = {item.id: index for index, item in enumerate(body.input or ()) if isinstance(item, ItemReference)}
    known: dict[str, Mapping[str, Any]] = {}
    size, responses = 0, dict.fromkeys(response_id_of(id) for id in places)
    if len(responses) > _MAX_RESPONSES:
        message = f"the references lead to {len(responses)} responses; at most {_MAX_RESPONSES} are allowed"
        raise RequestError(400, message, code="invalid_value", param="input")
    for response_id in responses:
        row = None if response_id is None else await store.find(tenant, response_id)
        if row is None or row.is_unfinished:
            continue
        size += row.size
        if size > CONVERSATION_BYTES:
            message = f"the responses with these items have more than {CONVERSATION_BYTES} bytes; send the items"
            raise RequestError(413, message, code="too_large", param="input")
        if row.session not in (None, session):
            message = f"response {row.id!r} belongs to session {row.session!r}; its items can be used only in it"
            raise RequestError(400, message, code="session_conflict", param="input")
        known |= {item["id"]: item for item in _items_of(row)}
    for item_id, index in places.items():
        if item_id not in known:
            message = (
                f"Item with id {item_id!r} not found. Items of responses that were deleted, were evicted, or had "
                "`store` set to false are not stored: send the item itself"
            )
            raise RequestError(404, message, code="item_not_found", param=f"input.{index}.id")
    sizes = {item_id: len(encode_json(known[item_id])) for item_id in places}
    size = len(raw) + sum(sizes[item.id] for item in body.input or () if isinstance(item, ItemReference))
    if size > CONVERSATION_BYTES:  # a short request can refer to one large item ten thousand times
        message = f"the input with its items has {size} bytes; at most {CONVERSATION_BYTES} are allowed"
        raise RequestError(413, message, code="too_large", param="input")
    content["input"] = [
        known[parsed.id] if isinstance(parsed, ItemReference) else item
        for item, parsed in zip(items, body.input or (), strict=True)
    ]
    return content, encode_json(content)


def _items_of(row: StoredResponse) -> Sequence[Mapping[str, Any]]:
    """Return all items of a response, with their ids."""
    inputs = input_items_with_ids(msgspec.json.decode(row.input), row.id.removeprefix("resp_"))
    return [*inputs, *_decode_output(row.answer).output]
