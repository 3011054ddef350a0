"""POST /v1/messages."""

from aiohttp import web

from compat.anthropic import AnthropicErrorBody, AnthropicMessage, MessagesRequest
from gateway.api import pipeline
from gateway.api.anthropic.messages_builder import MessagesSpecBuilder, chat_of
from gateway.api.anthropic.signature import ThinkingSigner
from gateway.api.openai.tools import tool_call_parser_factory
from gateway.api.schema_checks import answer_checker_of
from gateway.api.semantic.extension import CALL_HEADERS
from gateway.api.serializers.messages import MessageSerializer
from gateway.api.services import models_of
from gateway.http.json_body import read_json
from gateway.http.openapi import EVENTS, operation
from gateway.http.sse import REQUEST_ID
from gateway.http.warnings import add_warning

routes = web.RouteTableDef()


@routes.post("/v1/messages")
@operation(
    AnthropicMessage,
    body=MessagesRequest,
    others={EVENTS: None},
    headers=CALL_HEADERS,
    errors=(404, 409, 410, 422, 424, 429, 529),
    error=AnthropicErrorBody,
)
async def create(request: web.Request) -> web.StreamResponse:
    """Answer a conversation with a message of Anthropic's API, as a whole or as a stream of events.

    If the call is deferred, answer immediately with a reference to its output.
    """
    body = await read_json(request, MessagesRequest)
    served = await models_of(request).get_or_substitute(body.model)
    target = await pipeline.admit(request, served.id, body.semantic)
    model, scope = target.model, target.scope
    chat = chat_of(body)
    signer = ThinkingSigner(scope.session.tenant)
    has_programs = target.services.programs is not None
    builder = MessagesSpecBuilder(
        body, chat, signer.verify, scope.references, scope.is_deferred, has_programs=has_programs
    )
    spec = await pipeline.build_spec(builder, model, target.fallbacks, len(await request.read()))
    if types := body.built_in_types:
        add_warning(request, f"this server does not have tools of the type {', '.join(types)}")
    add_warning(request, builder.warning)
    parser_factory = tool_call_parser_factory(chat, model)
    checker = answer_checker_of(chat, parser_factory, target.services.schema_check_gate, scope.session.tenant)
    serializer = MessageSerializer(body, model, scope, parser_factory, checker, request[REQUEST_ID])
    facts = builder.facts(parser_factory)
    return await pipeline.respond(target, [spec], serializer, streamed=body.is_streamed, facts=facts)
