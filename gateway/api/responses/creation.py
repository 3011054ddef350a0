"""Create responses, for HTTP and for WebSockets."""

from dataclasses import dataclass

from aiohttp import web

from compat.openai.responses import ResponseRequest
from gateway.api import pipeline
from gateway.api.openai.chat import ChatSpecBuilder
from gateway.api.openai.tools import tool_call_parser_factory
from gateway.api.program_tracker import RequestFacts
from gateway.api.responses.background import BACKGROUND
from gateway.api.responses.conversations import LocalTurns, Turn
from gateway.api.responses.item_references import resolve_references
from gateway.api.schema_checks import answer_checker_of
from gateway.api.semantic.extension import find_agent_session
from gateway.api.serializers.responses import ResponseSerializer
from gateway.api.services import normalizes_prompt
from gateway.errors import RequestError
from gateway.graph.call import CallSpec
from gateway.http.json_body import json_response, reserve_bytes, validate_async
from gateway.http.middleware.auth import TENANT
from gateway.http.sse import EventStream
from gateway.http.warnings import add_warning

_PARAMS = {"reasoning_effort": "reasoning.effort", "verbosity": "text.verbosity"}
"""Paths of fields that are elsewhere in a chat completion."""


@dataclass(frozen=True)
class ResponseCall:
    """The call for a response, before it is submitted. `raw`: body of the request, with references replaced."""

    target: pipeline.Target
    body: ResponseRequest
    raw: bytes
    turn: Turn
    spec: CallSpec
    facts: RequestFacts | None
    """Facts of the request about its program; None if the gateway looks for no programs."""


async def build_call(
    request: web.Request, body: ResponseRequest, raw: bytes, local: LocalTurns | None = None
) -> ResponseCall:
    """Return the call for a response. `local`: turns of the client's connection. Raises RequestError and GraphError;
    changes nothing."""
    target = await pipeline.resolve(request, body.model, body.semantic)
    services, model = target.services, target.model
    agent_session = find_agent_session(request)
    if body.references:
        named = target.scope.session if target.scope.is_named else agent_session
        session = None if named is None else named.id
        tenant = request[TENANT]
        content, raw = await resolve_references(services.response_store, tenant, body, raw, session)
        reserve_bytes(request, len(raw))
        body = await validate_async(request, content, ResponseRequest, raw)
    turn = await Turn.load(
        services.response_store,
        request[TENANT],
        body,
        target.scope,
        agent_session=agent_session,
        local=local,
    )
    scope = target.scope = turn.scope
    pipeline.check_admission(target)
    reserve_bytes(request, turn.size)
    messages, places = await pipeline.offload_if_long(lambda: turn.messages_with_paths, turn.size, model)
    if turn.earlier_tools:
        try:
            body = body.with_earlier_tools(turn.earlier_tools)
        except ValueError as error:
            message = f"tools of earlier turns: {error}"
            raise RequestError(400, message, code="invalid_value", param="tools") from None
    chat = body.chat.model_copy(update={"messages": messages})
    builder = ChatSpecBuilder(
        chat,
        scope.references,
        scope.is_deferred,
        field="input",
        places=places,
        normalizes=normalizes_prompt(request),
        has_programs=services.programs is not None,
    )
    length = len(raw) + sum([message.length for message in messages])
    try:
        spec = await pipeline.build_spec(builder, model, target.fallbacks, length)
    except RequestError as error:
        error.param = _PARAMS.get(error.param or "", error.param)
        raise
    add_warning(request, builder.warning)
    facts = builder.facts(body.prompt_cache_key, body.user, tool_call_parser_factory(body.chat, model))
    return ResponseCall(target, body, raw, turn, spec, facts)


async def create_response(
    request: web.Request,
    body: ResponseRequest,
    raw: bytes,
    *,
    stream: EventStream | None = None,
    local: LocalTurns | None = None,
) -> web.StreamResponse:
    """Answer with a response, as a whole or as a stream of events. `stream`: writer of the events; by
    default, the answer to the request. `local`: responses that only this WebSocket can continue."""
    call = await build_call(request, body, raw, local)
    target, body, model, scope = call.target, call.body, call.target.model, call.target.scope
    if body.background:
        running = await request.app[BACKGROUND].start(call.raw, body, target, call.turn, call.spec, call.facts)
        return await running.follow(request, -1) if body.is_streamed else json_response(running.response)
    parser_factory = tool_call_parser_factory(body.chat, model)
    checker = answer_checker_of(
        body.chat,
        parser_factory,
        target.services.schema_check_gate,
        scope.session.tenant,
        checks_inputs=model.is_passthrough,
    )
    serializer = ResponseSerializer(call.raw, body, model, scope, call.turn, checker, local)
    return await pipeline.respond(
        target, [call.spec], serializer, streamed=body.is_streamed, stream=stream, facts=call.facts
    )
