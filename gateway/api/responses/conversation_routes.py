"""The routes of /v1/conversations."""

from collections.abc import Sequence
from dataclasses import replace

import msgspec
from aiohttp import web

from compat.openai.conversations import (
    Conversation,
    ConversationDeleted,
    ConversationItem,
    ConversationItemsRequest,
    ConversationRequest,
    ConversationUpdate,
    StoredItem,
)
from compat.openai.responses import InputItems
from gateway.api.responses.conversation_store import (
    ConversationRecord,
    change_conversation,
    check_size,
    create_conversation,
    find_conversation,
    with_new_ids,
)
from gateway.api.responses.pages import PAGE_QUERY, list_of, page_of
from gateway.api.services import SERVICES
from gateway.errors import RequestError
from gateway.http.json_body import json_response, read_json
from gateway.http.middleware.auth import TENANT
from gateway.http.openapi import operation
from gateway.responses import ResponseStore
from gateway.runtime.json_codec import decode_json

routes = web.RouteTableDef()


@routes.post("/v1/conversations")
@operation(Conversation, body=ConversationRequest, errors=(413, 429, 503))
async def create(request: web.Request) -> web.Response:
    """Create a conversation, with items if the request has some."""
    body = await read_json(request, ConversationRequest)
    items = await _sent_items(request) if body.items else []
    record = await create_conversation(_store(request), request[TENANT], items, body.metadata or {})
    return json_response(record.conversation)


@routes.get("/v1/conversations/{id}")
@operation(Conversation, errors=(404, 503))
async def get(request: web.Request) -> web.Response:
    """Return a conversation."""
    return json_response((await _find(request)).conversation)


@routes.post("/v1/conversations/{id}")
@operation(Conversation, body=ConversationUpdate, errors=(404, 413, 429, 503))
async def update(request: web.Request) -> web.Response:
    """Replace the metadata of a conversation."""
    body = await read_json(request, ConversationUpdate)

    def change(record: ConversationRecord) -> ConversationRecord:
        return replace(record, conversation=msgspec.structs.replace(record.conversation, metadata=body.metadata))

    record = await change_conversation(_store(request), request[TENANT], request.match_info["id"], change)
    return json_response(record.conversation)


@routes.delete("/v1/conversations/{id}")
@operation(ConversationDeleted, errors=(404, 503))
async def delete(request: web.Request) -> web.Response:
    """Delete a conversation with its items. Responses that continued it stay."""
    record = await _find(request)
    await _store(request).delete(record.row.tenant, record.row.id)
    return json_response(ConversationDeleted(record.row.id))


@routes.get("/v1/conversations/{id}/items")
@operation(InputItems, query=PAGE_QUERY, errors=(400, 404, 503))
async def list_items(request: web.Request) -> web.Response:
    """List the items of a conversation, the newest first unless `order` is `asc`."""
    return json_response(page_of(request, (await _find(request)).items))


@routes.post("/v1/conversations/{id}/items")
@operation(InputItems, body=ConversationItemsRequest, errors=(404, 413, 429, 503))
async def create_items(request: web.Request) -> web.Response:
    """Add items to a conversation, and return them."""
    await read_json(request, ConversationItemsRequest)
    new = with_new_ids(await _sent_items(request))

    def change(record: ConversationRecord) -> ConversationRecord:
        changed = replace(record, items=[*record.items, *new])
        check_size(changed)
        return changed

    await change_conversation(_store(request), request[TENANT], request.match_info["id"], change)
    return json_response(list_of(new))


@routes.get("/v1/conversations/{id}/items/{item}")
@operation(StoredItem, errors=(404, 503))
async def get_item(request: web.Request) -> web.Response:
    """Return an item of a conversation."""
    record = await _find(request)
    return json_response(record.items[_position(record.items, request.match_info["item"])])


@routes.delete("/v1/conversations/{id}/items/{item}")
@operation(Conversation, errors=(404, 503))
async def delete_item(request: web.Request) -> web.Response:
    """Delete an item of a conversation."""

    def change(record: ConversationRecord) -> ConversationRecord:
        position = _position(record.items, request.match_info["item"])
        return replace(record, items=[*record.items[:position], *record.items[position + 1 :]])

    record = await change_conversation(_store(request), request[TENANT], request.match_info["id"], change)
    return json_response(record.conversation)


def _store(request: web.Request) -> ResponseStore:
    return request.app[SERVICES].response_store


async def _find(request: web.Request) -> ConversationRecord:
    return await find_conversation(_store(request), request[TENANT], request.match_info["id"])


async def _sent_items(request: web.Request) -> list[ConversationItem]:
    """Return the items of the request's body as the client sent them. The body is checked already."""
    content: dict[str, list[ConversationItem]] = decode_json(await request.read())
    return content["items"]


def _position(items: Sequence[ConversationItem], id: str) -> int:
    """Return the position of the item with this id. Raises RequestError 404."""
    found = next((position for position, item in enumerate(items) if item["id"] == id), None)
    if found is None:
        raise RequestError(404, f"this conversation has no item {id!r}", code="item_not_found")
    return found
