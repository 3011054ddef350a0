"""POST /v1/responses, and the routes of stored responses."""

import msgspec
from aiohttp import web

from compat.openai.responses import Deleted, InputItems, Response, ResponseRequest, input_items_with_ids
from gateway.api.responses.background import BACKGROUND
from gateway.api.responses.builder import last_event_of, replay_events, stored_response
from gateway.api.responses.conversations import is_response_id, not_found_message
from gateway.api.responses.creation import create_response
from gateway.api.responses.pages import PAGE_QUERY, page_of
from gateway.api.semantic.extension import CALL_HEADERS
from gateway.api.services import SERVICES
from gateway.errors import RequestError
from gateway.http.json_body import json_response, read_json
from gateway.http.middleware.auth import TENANT
from gateway.http.openapi import EVENTS, operation
from gateway.http.query_params import bool_param, int_param
from gateway.http.sse import EventStream
from gateway.responses import StoredResponse

routes = web.RouteTableDef()


@routes.post("/v1/responses")
@operation(
    Response,
    body=ResponseRequest,
    others={EVENTS: None},
    headers=CALL_HEADERS,
    errors=(404, 409, 410, 422, 424, 429, 503),
)
async def create(request: web.Request) -> web.StreamResponse:
    """Answer with items, as a whole or as a stream of events.

    If the call is deferred, answer immediately with a reference to its output. A response in the background is
    answered immediately and generated meanwhile.
    """
    body = await read_json(request, ResponseRequest)
    return await create_response(request, body, await request.read())


@routes.get("/v1/responses/{id}")
@operation(
    Response,
    others={EVENTS: None},
    query={"stream": {"type": "boolean"}, "starting_after": {"type": "integer", "minimum": 0}},
    errors=(400, 404, 429, 503),
)
async def get(request: web.Request) -> web.StreamResponse:
    """Return a response, or stream its events: all of them, or those after `starting_after`."""
    streamed, after = bool_param(request, "stream"), int_param(request, "starting_after", -1, minimum=0)
    background, key = request.app[BACKGROUND], (request[TENANT], request.match_info["id"])
    running = background.find(*key)
    if running is not None:
        return await running.follow(request, after) if streamed else json_response(running.response)
    stored = await _find_stored(request)
    if not streamed:
        return web.Response(body=stored.answer, content_type="application/json")
    if stored.is_unfinished:
        message = "the server has just started and is still resuming this response; try again"
        raise RequestError(503, message, code="engine_unavailable")
    recent_events = background.recent_events(*key)
    if recent_events:
        events = b"".join(recent_events[after + 1 :])
    elif after < 0:
        events = replay_events(stored_response(stored))
    else:
        events = last_event_of(stored_response(stored), after + 1)
    return await EventStream(request).end(events, done=False)


@routes.post("/v1/responses/{id}/cancel")
@operation(Response, errors=(400, 404, 503))
async def cancel(request: web.Request) -> web.Response:
    """Cancel a background response. A response that has ended does not change."""
    running = request.app[BACKGROUND].find(request[TENANT], request.match_info["id"])
    if running is not None:
        running.cancel()
        await running.finished.wait()
        return json_response(running.response)
    response = stored_response(await _find_stored(request))
    if not response.background:
        message = f"response {response.id!r} was not created with background=true: close its connection to cancel it"
        raise RequestError(400, message, code="invalid_value")
    return json_response(response)


@routes.delete("/v1/responses/{id}")
@operation(Deleted, errors=(404, 503))
async def delete(request: web.Request) -> web.Response:
    """Delete a response.

    No new response can continue it; responses that continued it stay. If it is in progress, it is cancelled.
    """
    stored = await _find_stored(request)
    await request.app[SERVICES].response_store.delete(stored.tenant, stored.id)
    running = request.app[BACKGROUND].find(stored.tenant, stored.id)
    if running is not None:
        running.cancel()
    return json_response(Deleted(stored.id))


@routes.get("/v1/responses/{id}/input_items")
@operation(
    InputItems,
    query=PAGE_QUERY,
    errors=(400, 404, 503),
)
async def input_items(request: web.Request) -> web.Response:
    """List the input items of a response, without those of the turns before it.

    The newest item is the first, unless `order` is `asc`.
    """
    stored = await _find_stored(request)
    items = input_items_with_ids(msgspec.json.decode(stored.input), stored.id.removeprefix("resp_"))
    return json_response(page_of(request, items))


async def _find_stored(request: web.Request) -> StoredResponse:
    """Return the stored response that the path names. Raises RequestError 404."""
    tenant, id = request[TENANT], request.match_info["id"]
    services, background = request.app[SERVICES], request.app[BACKGROUND]
    stored = await services.response_store.find(tenant, id) if is_response_id(id) else None
    may_be_lost = stored is not None and stored.is_unfinished and background.has_resumed
    if stored is not None and may_be_lost and not services.sessions.holds(tenant, stored.call_session or ""):
        await background.fail_lost(stored)
        stored = await services.response_store.find(tenant, id)
    if stored is None:
        raise RequestError(404, not_found_message(id), code="response_not_found")
    return stored
