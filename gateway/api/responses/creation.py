"""Create responses, for HTTP and for WebSockets."""

import dataclasses
from collections.abc import Container
from dataclasses import dataclass

from aiohttp import web
from pydantic import ValidationError

from compat.openai.responses import ResponseRequest
from gateway.api import pipeline
from gateway.api.openai.chat import ChatSpecBuilder
from gateway.api.openai.tools import tool_call_parser_factory
from gateway.api.program_tracker import RequestFacts
from gateway.api.responses.background import BACKGROUND
from gateway.api.responses.builder import ResponseBuilder, encode_events
from gateway.api.responses.conversations import LocalTurns, Turn, new_response_id
from gateway.api.responses.item_references import resolve_references
from gateway.api.responses.mcp_history import USED_APPROVALS
from gateway.api.responses.mcp_setup import (
    ListingFailed,
    McpAgentBuilder,
    McpSetup,
    OpenServer,
    functions_of,
    open_servers,
    setup_of,
)
from gateway.api.schema_checks import answer_checker_of
from gateway.api.semantic.agent_prompts import AgentNames
from gateway.api.semantic.extension import find_agent_session
from gateway.api.serializers.responses import ResponseSerializer
from gateway.api.services import SERVICES, normalizes_prompt
from gateway.errors import FailedCall, RequestError
from gateway.graph.call import CallSpec
from gateway.graph.errors import Failure
from gateway.http.json_body import json_response, reserve_bytes, validate_async
from gateway.http.middleware.auth import TENANT
from gateway.http.sse import EventStream
from gateway.http.warnings import add_warning

_PARAMS = {"reasoning_effort": "reasoning.effort", "verbosity": "text.verbosity"}
"""Paths of fields that are elsewhere in a chat completion."""


@dataclass(frozen=True)
class ResponseCall:
    """The call for a response, before it is submitted.

    `raw`: body of the request, with references replaced. `spec`: the call for the first answer of the model. `agent`:
    the call that runs the model and the tools of MCP servers in turn, and `setup`: these servers, if the request has
    any. `failed`: the server that could not list its tools.
    """

    target: pipeline.Target
    body: ResponseRequest
    raw: bytes
    turn: Turn
    spec: CallSpec
    facts: RequestFacts | None
    """Facts of the request about its program; None if the gateway looks for no programs."""
    agent: CallSpec | None = None
    setup: McpSetup | None = None
    failed: ListingFailed | None = None


async def build_call(
    request: web.Request, body: ResponseRequest, raw: bytes, local: LocalTurns | None = None
) -> ResponseCall:
    """Return the call for a response. `local`: turns of the client's connection. Raises RequestError and GraphError;
    changes nothing."""
    if body.semantic is not None and body.semantic.each is not None:
        message = "semantic.each is supported by chat completions only"
        raise RequestError(400, message, code="unsupported_with_semantic", param="semantic.each")
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
    references: Container[str] = scope.references
    servers = await _servers_of(request, body, turn)
    size = turn.size
    if servers is None:
        chat = body.chat.model_copy(update={"messages": messages})
    else:
        body, size = servers.body, size + servers.size
        chat = await pipeline.offload_if_long(lambda: servers.agent.chat(messages, scope.references), size, model)
        references = AgentNames(servers.agent.prefix)
    builder = ChatSpecBuilder(
        chat,
        references,
        scope.is_deferred,
        field="input",
        places=places,
        normalizes=normalizes_prompt(request),
        has_programs=services.programs is not None,
    )
    length = len(raw) + sum([message.length for message in messages]) + (0 if servers is None else servers.size)
    try:
        spec = await pipeline.build_spec(builder, model, target.fallbacks, length)
    except RequestError as error:
        error.param = _PARAMS.get(error.param or "", error.param)
        raise
    add_warning(request, builder.warning)
    facts = builder.facts(body.prompt_cache_key, body.user, tool_call_parser_factory(body.chat, model))
    call = ResponseCall(target, body, raw, turn, spec, facts)
    if servers is None:
        return call
    agent_spec = await pipeline.offload_if_long(lambda: servers.agent.spec(spec, chat), length, model)
    return dataclasses.replace(call, agent=agent_spec, setup=servers.setup, failed=servers.failed)


@dataclass(frozen=True)
class _Servers:
    """The MCP servers of a request. `body`: the request with their functions. `size`: that of their tools, in bytes."""

    body: ResponseRequest
    agent: McpAgentBuilder
    setup: McpSetup
    size: int
    failed: ListingFailed | None


async def _servers_of(request: web.Request, body: ResponseRequest, turn: Turn) -> _Servers | None:
    """Return the MCP servers of a request; None if it has none. Raises RequestError."""
    if not body.mcp_tools:
        if turn.mcp.pending:
            message = "the request approves a call of a tool, but has no MCP server in tools"
            raise RequestError(400, message, code="unknown_tool", param="tools")
        return None
    _check_semantic(body)
    failed, opened = None, list[OpenServer]()
    try:
        opened = await open_servers(request.app[SERVICES].tools, body, request[TENANT])
    except ListingFailed as error:
        failed = error
    setup = setup_of(opened, turn.mcp)
    if failed is None:
        try:
            body = body.with_mcp_functions(functions_of(opened))
        except ValueError as error:
            reason = error.errors()[0]["msg"] if isinstance(error, ValidationError) else error
            raise RequestError(400, f"tools: {reason}", code="invalid_value", param="tools") from None
    agent = McpAgentBuilder(body, opened, setup)
    return _Servers(body, agent, setup, sum(each.size for each in opened), failed)


def _check_semantic(body: ResponseRequest) -> None:
    """Raise RequestError if the request has fields of the extension that an agent's answers cannot have."""
    for name in ("slots", "transform", "each"):
        if body.semantic is not None and getattr(body.semantic, name):
            message = f"a response with MCP servers has no {name}"
            raise RequestError(400, message, code="unsupported_with_semantic", param=f"semantic.{name}")


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
    if call.failed is not None:
        if not body.is_streamed or body.background:
            raise call.failed
        return await (stream or EventStream(request)).end(_failed_listing(call, call.failed), done=False)
    used, spec = request.app[USED_APPROVALS], call.agent or call.spec
    pending = () if call.setup is None else call.setup.pending
    if body.background:
        background = request.app[BACKGROUND]
        async with used.using(request[TENANT], pending):
            running = await background.start(call.raw, body, target, call.turn, spec, call.facts, call.setup)
        return await running.follow(request, -1) if body.is_streamed else json_response(running.response)
    parser_factory = tool_call_parser_factory(body.chat, model)
    checker = answer_checker_of(
        body.chat,
        parser_factory,
        target.services.schema_check_gate,
        scope.session.tenant,
        checks_inputs=model.is_passthrough,
    )
    serializer = ResponseSerializer(call.raw, body, model, scope, call.turn, checker, local, call.setup)
    async with used.using(request[TENANT], pending, lambda: bool(serializer.calls)):
        return await pipeline.respond(
            target, [spec], serializer, streamed=body.is_streamed, stream=stream, facts=call.facts
        )


def _failed_listing(call: ResponseCall, error: ListingFailed) -> bytes:
    """Return the events of a response that fails because a server cannot list its tools."""
    builder = ResponseBuilder(
        call.body, call.target.model, call.target.scope, None, new_response_id(), checker=None, is_stored=False
    )
    events = [*builder.open(), *builder.add_failed_listing(error.label, error.reason)]
    response = builder.fail(FailedCall(Failure(error.code or "tool_unavailable", str(error))))
    return encode_events([*events, builder.build_last_event(response)])
