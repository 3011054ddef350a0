"""POST /v1/responses: a chat completion, asked and answered as items, that can be gone on with by its id."""

import time
from collections.abc import Iterable, Sequence
from functools import partial
from itertools import count

from aiohttp import web

from compat.openai import TokenLogprob
from compat.openai.responses import (
    Deleted,
    ErrorCode,
    IncompleteDetails,
    InputTokensDetails,
    ItemStatus,
    OutputTokensDetails,
    ReasoningConfig,
    Response,
    ResponseError,
    ResponseEvent,
    ResponseEventType,
    ResponseRequest,
    ResponseUsage,
    Status,
    TextConfig,
)
from gateway.api.answers import STATUS_SECONDS, check_done, extra_of, reference_to, respond, usage_of
from gateway.api.calls import prepared
from gateway.api.chat import chat_spec, reader_of
from gateway.api.conversations import Kept, Turn, not_kept
from gateway.api.items import Event as ItemsEvent
from gateway.api.items import Items
from gateway.api.logprobs import token_logprobs
from gateway.api.semantic import SESSION_HEADERS, Scope, scope_of
from gateway.api.services import SERVICES
from gateway.api.streaming import Streaming
from gateway.errors import FailedCall, RequestError
from gateway.graph.call import Call, Usage
from gateway.graph.variable import Piece, reasoning_of
from gateway.http.auth import TENANT
from gateway.http.bodies import encode_json, json_response, read_json
from gateway.http.openapi import EVENTS, operation
from gateway.http.sse import EventStream, named
from gateway.models import ServedModel
from gateway.tools import Found, Said

routes = web.RouteTableDef()

Event = ResponseEvent | ItemsEvent
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
    """Answers with items, a stream of events, or at once with the reference to an answer still to be made."""
    services = request.app[SERVICES]
    body = await read_json(request, ResponseRequest)
    model = await services.models.get(body.model)
    scope = scope_of(request, body.semantic)
    session = scope.session.id if scope.named else None
    turn = Turn(services.conversations, request[TENANT], body, session, deferred=scope.deferred)
    services.scheduler.admit(continues=bool(scope.session.calls))
    others = services.models.behind(model)
    messages, places = turn.conversation
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
        spec = await prepared(make, sum([message.length for message in messages]), model, *others)
    except RequestError as error:
        error.param = _PARAMS.get(error.param or "", error.param)
        raise
    return await respond(request, scope, [spec], partial(_Answer, body, model, scope, turn), body.streamed)


@routes.get("/v1/responses/{id}")
@operation(Response, errors=(404,))
async def get(request: web.Request) -> web.Response:
    """A response that is kept, as it was answered."""
    kept = _kept(request)
    return web.Response(body=kept.answer, content_type="application/json")


@routes.delete("/v1/responses/{id}")
@operation(Deleted, errors=(404,))
async def delete(request: web.Request) -> web.Response:
    """Nobody can go on with it any more; what went on with it stays."""
    kept = _kept(request)
    request.app[SERVICES].conversations.forget(kept.tenant, kept.id)
    return json_response(Deleted(kept.id))


def _kept(request: web.Request) -> Kept:
    """The response that the path names. Raises RequestError 404."""
    id = request.match_info["id"]
    kept = request.app[SERVICES].conversations.find(request[TENANT], id)
    if kept is None:
        raise RequestError(404, not_kept(id), code="response_not_found")
    return kept


class _Answer:
    """See `answers.Answer`: one call, as items."""

    def __init__(
        self, body: ResponseRequest, model: ServedModel, scope: Scope, turn: Turn, calls: Sequence[Call]
    ) -> None:
        (self._call,) = calls
        self._body = body
        self._model = model
        self._scope = scope
        self._turn = turn
        self._id = turn.new_id
        self._created = int(time.time())
        self._numbers = count()
        self._items = Items(self._numbers)
        reader = reader_of(body.chat, model)
        self._reader = None if reader is None else reader()
        self._unsaid: list[TokenLogprob] = []
        """Of tokens whose text is not told yet."""
        self._opened = False

    async def whole(self) -> web.Response:
        """See `Answer`."""
        call = self._call
        await call.output.final()
        check_done(call)
        self._grow(call.output.value or "", call.output.pieces)
        response, _ = self._end(call.finish_reason or "stop")
        return web.Response(body=encode_json(response), content_type="application/json")

    def reference(self) -> web.Response:
        """See `Answer`."""
        self._items.add(Said(reference_to(self._call)))
        return json_response(self._ended("stop")[0])

    async def stream_reference(self, request: web.Request) -> web.StreamResponse:
        """See `Answer`."""
        events = [*self._opening(), *self._items.add(Said(reference_to(self._call))), *self._ended("stop")[1]]
        return await EventStream(request).end(_told(events), done=False)

    async def stream(self, request: web.Request) -> web.StreamResponse:
        """See `Answer`."""
        stream = EventStream(request)
        streaming = Streaming(stream, self, STATUS_SECONDS)
        try:
            last = await streaming.run([partial(self._call.session.read, self._call.output)])
        except FailedCall as error:
            if not stream.begun:
                raise
            events: list[Event] = [*self._opening(), *self._items.end("incomplete")]
            last = _told([*events, self._event("response.failed", self._response("failed", error=_error(error)))])
        return await stream.end(last, done=False)

    def piece(self, index: int, pieces: Sequence[Piece]) -> bytes:
        """See `Teller.piece`."""
        return _told([*self._opening(), *self._grow("".join([piece.text for piece in pieces]), pieces)])

    def end(self, index: int) -> bytes:
        """See `Teller.end`. Raises FailedCall."""
        check_done(self._call)
        return _told([*self._opening(), *self._end(self._call.finish_reason or "stop")[1]])

    def _opening(self) -> list[Event]:
        if self._opened:
            return []
        self._opened = True
        response = self._response("in_progress")
        return [self._event("response.created", response), self._event("response.in_progress", response)]

    def _grow(self, text: str, pieces: Sequence[Piece]) -> list[Event]:
        """The answer goes on."""
        if self._body.wants_logprobs:
            self._unsaid += token_logprobs(self._model, pieces)
        thought = reasoning_of(pieces)
        events = self._items.think(thought) if thought else []
        return [*events, *self._added([Said(text)] if self._reader is None else self._reader.push(text))]

    def _added(self, found: Iterable[Found]) -> list[Event]:
        events: list[Event] = []
        for one in found:
            if isinstance(one, Said) and one.text:
                unsaid, self._unsaid = self._unsaid, []
                events += self._items.add(one, unsaid)
            elif not isinstance(one, Said):
                events += self._items.add(one)
        return events

    def _end(self, finish: str) -> tuple[Response, list[Event]]:
        """The answer is whole: the response, and what tells so."""
        events = [] if self._reader is None else self._added(self._reader.finish())
        response, last = self._ended(finish)
        self._turn.keep(response, self._call)
        return response, [*events, *last]

    def _ended(self, finish: str) -> tuple[Response, list[Event]]:
        events = self._items.add(Said("")) if self._items.unanswered else []
        cut = finish == "length"
        status: ItemStatus = "incomplete" if cut else "completed"
        events += self._items.end(status)
        response = self._response(status, [] if self._call.spec.deferred else [self._call.usage])
        return response, [*events, self._event("response.incomplete" if cut else "response.completed", response)]

    def _event(self, type: ResponseEventType, response: Response) -> Event:
        return ResponseEvent(type=type, sequence_number=next(self._numbers), response=response)

    def _response(
        self, status: Status, usages: Sequence[Usage] | None = None, error: ResponseError | None = None
    ) -> Response:
        """As it stands. `usages`: of its calls, if it has ended; none so far for an answer that is only a reference."""
        body = self._body
        return Response(
            id=self._id,
            created_at=self._created,
            status=status,
            completed_at=int(time.time()) if status == "completed" else None,
            error=error,
            incomplete_details=IncompleteDetails("max_output_tokens") if status == "incomplete" else None,
            instructions=body.instructions,
            max_output_tokens=body.max_output_tokens,
            metadata=body.metadata or {},
            reasoning=ReasoningConfig(None if body.reasoning is None else body.reasoning.effort),
            model=self._call.model or self._model.id,  # a fallback says its own name
            output=list(self._items.done),
            parallel_tool_calls=body.parallel_tool_calls is not False,
            previous_response_id=body.previous_response_id,
            prompt_cache_key=body.prompt_cache_key,
            safety_identifier=body.safety_identifier,
            store=self._turn.keeps,
            temperature=1.0 if body.temperature is None else body.temperature,
            text=TextConfig(body.form_told, None if body.text is None else body.text.verbosity),
            tool_choice=body.choice_told,
            tools=body.tools_told,
            top_logprobs=body.top_logprobs or 0,
            top_p=1.0 if body.top_p is None else body.top_p,
            usage=None if usages is None else _usage(usages),
            user=body.user,
            semantic=extra_of(self._scope, [self._call]),
        )


def _error(error: FailedCall) -> ResponseError:
    """With one of the few codes that OpenAI's have, and ours as its type."""
    codes: dict[int, ErrorCode] = {400: "invalid_prompt", 429: "rate_limit_exceeded"}
    return ResponseError(codes.get(error.status, "server_error"), str(error), error.code or error.type)


def _usage(usages: Sequence[Usage]) -> ResponseUsage:
    told = usage_of(usages)
    return ResponseUsage(
        input_tokens=told.prompt_tokens,
        input_tokens_details=InputTokensDetails(told.prompt_tokens_details.cached_tokens),
        output_tokens=told.completion_tokens,
        output_tokens_details=OutputTokensDetails(sum(usage.reasoning for usage in usages)),
        total_tokens=told.total_tokens,
    )


def _told(events: Iterable[Event]) -> bytes:
    return b"".join([named(event.type, event) for event in events])
