"""POST /v1/responses: a chat completion, asked and answered as items, that can be gone on with by its id."""

from collections.abc import Sequence
from functools import partial

import msgspec
from aiohttp import web

from compat.openai.responses import Deleted, InputItems, Response, ResponseRequest, listed
from gateway.api.answers import STATUS_SECONDS, check_done, reference_to, respond
from gateway.api.calls import prepared
from gateway.api.openai.chat import chat_spec, reader_of
from gateway.api.responses.answer import ResponseBuilder, again, last_of, response_of, told
from gateway.api.responses.background import BACKGROUND
from gateway.api.responses.conversations import Turn, new_response_id, not_kept
from gateway.api.schema_checks import AnswerChecks, checks_of
from gateway.api.semantic.extension import SESSION_HEADERS, Scope, scope_of
from gateway.api.services import SERVICES
from gateway.api.stream_writer import StreamWriter
from gateway.errors import FailedCall, RequestError
from gateway.graph.call import Call
from gateway.graph.variable import Piece
from gateway.http.json_body import encode_json, hold_bytes, json_response, read_json
from gateway.http.middleware.auth import TENANT
from gateway.http.openapi import EVENTS, operation
from gateway.http.query_params import choice, flag, integer
from gateway.http.sse import EventStream
from gateway.prompts.served_models import ServedModel
from gateway.responses import ResponseStoreError, StoredResponse

routes = web.RouteTableDef()

_PARAMS = {"reasoning_effort": "reasoning.effort", "verbosity": "text.verbosity"}
"""Fields of a chat completion that stand elsewhere here."""


@routes.post("/v1/responses")
@operation(
    Response,
    body=ResponseRequest,
    others={EVENTS: None},
    headers=SESSION_HEADERS,
    errors=(404, 409, 410, 422, 424, 429, 503),
)
async def create(request: web.Request) -> web.StreamResponse:
    """Answers with items, a stream of events, or at once with the reference to an answer still to be made; or begins to
    make one while nobody waits."""
    services = request.app[SERVICES]
    body = await read_json(request, ResponseRequest)
    model = await services.models.get(body.model)
    scope = scope_of(request, body.semantic)
    session = scope.session.id if scope.named else None
    turn = await Turn.begin(services.archive, request[TENANT], body, session, deferred=scope.deferred)
    services.scheduler.admit(scope.session.tenant, continues=bool(scope.session.calls))
    others = services.models.behind(model)
    hold_bytes(request, turn.size)
    messages, places = await prepared(lambda: turn.conversation, turn.size, model)
    chat = body.chat.model_copy(update={"messages": messages})
    make = partial(
        chat_spec,
        chat,
        model,
        others,
        references=scope.named,
        deferred=scope.deferred,
        field="input",
        places=places,
    )
    try:
        length = len(await request.read()) + sum([message.length for message in messages])
        spec = await prepared(make, length, model, *others)
    except RequestError as error:
        error.param = _PARAMS.get(error.param or "", error.param)
        raise
    raw = await request.read()
    if not body.background:
        checks = checks_of(body.chat, reader_of(body.chat, model), services.form_checks, scope.session.tenant)
        tell = partial(_Answer, raw, body, model, scope, turn, checks)
        return await respond(request, scope, [spec], tell, body.streamed)
    work = await request.app[BACKGROUND].begin(raw, body, model, scope, turn, spec)
    return await work.follow(request, -1) if body.streamed else json_response(work.response)


@routes.get("/v1/responses/{id}")
@operation(
    Response,
    others={EVENTS: None},
    query={"stream": {"type": "boolean"}, "starting_after": {"type": "integer", "minimum": 0}},
    errors=(400, 404, 429, 503),
)
async def get(request: web.Request) -> web.StreamResponse:
    """A response as it stands, or its events, from the first or from behind one of them."""
    streamed, after = flag(request, "stream"), integer(request, "starting_after", -1, least=0)
    background, key = request.app[BACKGROUND], (request[TENANT], request.match_info["id"])
    work = background.find(*key)
    if work is not None:
        return await work.follow(request, after) if streamed else json_response(work.response)
    kept = await _kept(request)
    if not streamed:
        return web.Response(body=kept.answer, content_type="application/json")
    if kept.begun:
        message = "the server has only just started; ask again"
        raise RequestError(503, message, code="engine_unavailable")
    late = background.late(*key)
    if late:
        events = b"".join(late[after + 1 :])
    elif after < 0:
        events = again(response_of(kept))
    else:
        events = last_of(response_of(kept), after + 1)
    return await EventStream(request).end(events, done=False)


@routes.post("/v1/responses/{id}/cancel")
@operation(Response, errors=(400, 404, 503))
async def cancel(request: web.Request) -> web.Response:
    """Ends one that is made while nobody waits. One that has ended stays as it is."""
    work = request.app[BACKGROUND].find(request[TENANT], request.match_info["id"])
    if work is not None:
        work.cancel()
        await work.finished.wait()
        return json_response(work.response)
    response = response_of(await _kept(request))
    if not response.background:
        message = f"response {response.id!r} was not made in the background: hanging up cancels such a one"
        raise RequestError(400, message, code="invalid_value")
    return json_response(response)


@routes.delete("/v1/responses/{id}")
@operation(Deleted, errors=(404, 503))
async def delete(request: web.Request) -> web.Response:
    """Nobody can go on with it any more; what went on with it stays. If it is still made, it is cancelled."""
    kept = await _kept(request)
    await request.app[SERVICES].archive.forget(kept.tenant, kept.id)
    work = request.app[BACKGROUND].find(kept.tenant, kept.id)
    if work is not None:
        work.cancel()
    return json_response(Deleted(kept.id))


@routes.get("/v1/responses/{id}/input_items")
@operation(
    InputItems,
    query={
        "limit": {"type": "integer", "minimum": 1, "maximum": 100},
        "order": {"type": "string", "enum": ["asc", "desc"]},
        "after": {"type": "string"},
    },
    errors=(400, 404, 503),
)
async def input_items(request: web.Request) -> web.Response:
    """What a response was asked with, without what it went on with: the newest item first, if not told otherwise."""
    limit, order = integer(request, "limit", 20, least=1, most=100), choice(request, "order", ("desc", "asc"))
    kept = await _kept(request)
    items = listed(msgspec.json.decode(kept.input), kept.id.removeprefix("resp_"))
    if order == "desc":
        items.reverse()
    after = request.query.get("after")
    if after is not None:
        places = [place for place, item in enumerate(items) if item["id"] == after]
        if not places:
            raise RequestError(400, f"there is no item {after!r} in it", code="invalid_value", param="after")
        items = items[places[0] + 1 :]
    some = items[:limit]
    first, last = (some[0]["id"], some[-1]["id"]) if some else (None, None)
    return json_response(InputItems(data=some, first_id=first, last_id=last, has_more=len(items) > limit))


async def _kept(request: web.Request) -> StoredResponse:
    """The response that the path names. Raises RequestError 404."""
    tenant, id = request[TENANT], request.match_info["id"]
    services, background = request.app[SERVICES], request.app[BACKGROUND]
    kept = await services.archive.find(tenant, id)
    lost = kept is not None and background.resumed and not services.sessions.holds(tenant, kept.runs_in or "")
    if kept is not None and kept.begun and lost:
        await background.lose(kept)
        kept = await services.archive.find(tenant, id)
    if kept is None:
        raise RequestError(404, not_kept(id), code="response_not_found")
    return kept


class _Answer:
    """See `answers.Answer`: one call, as items."""

    def __init__(
        self,
        raw: bytes,
        body: ResponseRequest,
        model: ServedModel,
        scope: Scope,
        turn: Turn,
        checks: AnswerChecks | None,
        calls: Sequence[Call],
    ) -> None:
        """`raw`: the request's body."""
        (self._call,) = calls
        self._raw = raw
        self._turn = turn
        self._builder = ResponseBuilder(
            body, model, scope, self._call, new_response_id(), checks=checks, keeps=turn.keeps
        )

    async def whole(self) -> web.Response:
        """See `Answer`."""
        output = self._call.output
        await output.wait_final()
        check_done(self._call)
        self._builder.grow(output.value or "", output.pieces)
        self._builder.close()
        if (checking := self._builder.check()) is not None:
            await checking
        response = await self._kept()
        return web.Response(body=encode_json(response), content_type="application/json")

    def reference(self) -> web.Response:
        """See `Answer`."""
        self._builder.say(reference_to(self._call))
        self._builder.close()
        return json_response(self._builder.ended())

    async def stream_reference(self, request: web.Request) -> web.StreamResponse:
        """See `Answer`."""
        builder = self._builder
        events = [*builder.open(), *builder.say(reference_to(self._call)), *builder.close()]
        last = builder.last_event(builder.ended())
        return await EventStream(request).end(told([*events, last]), done=False)

    async def stream(self, request: web.Request) -> web.StreamResponse:
        """See `Answer`."""
        stream, builder = EventStream(request), self._builder
        streaming = StreamWriter(stream, self, STATUS_SECONDS, lambda index: builder.check())
        try:
            events = await streaming.run([partial(self._call.session.read, self._call.output)])
        except FailedCall as error:
            if not stream.begun:
                raise
            ending = [*builder.open(), *builder.break_off()]
            return await stream.end(told([*ending, builder.last_event(builder.failed(error))]), done=False)
        if self._turn.keeps:
            await stream.write(events)
            events = b""
        response = await self._kept()
        return await stream.end(events + told([builder.last_event(response)]), done=False)

    def piece(self, index: int, pieces: Sequence[Piece]) -> bytes:
        """See `Teller.piece`."""
        text = "".join([piece.text for piece in pieces])
        return told([*self._builder.open(), *self._builder.grow(text, pieces)])

    def end(self, index: int) -> bytes:
        """See `Teller.end`; the last event is told once the response is kept. Raises FailedCall."""
        check_done(self._call)
        return told([*self._builder.open(), *self._builder.close()])

    async def _kept(self) -> Response:
        """The response as it ended, once it can be gone on with, if it is to be."""
        response = self._builder.ended()
        if self._builder.keeps:
            try:
                await self._turn.keep(response, self._raw, slots=self._call.spec.parts is not None)
            except ResponseStoreError:  # an answer that cannot be kept is one all the same, and says so
                self._builder.keeps = False
                response = self._builder.ended()
        return response
