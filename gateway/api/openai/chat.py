"""POST /v1/chat/completions."""

from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from aiohttp import web

from compat.openai import ChatCompletion, ChatCompletionRequest, Message
from gateway.api import pipeline
from gateway.api.call_spec import new_spec
from gateway.api.openai.tools import (
    ToolCallParserFactory,
    constrain_tool_calls,
    tool_call_parser_factory,
    tools_of,
    unenforced_warning,
)
from gateway.api.program_tracker import PromptSource, RequestFacts, chat_messages, prompt_source
from gateway.api.sampling import answer_slot, named_slots, request_sampling
from gateway.api.schema_checks import answer_checker_of
from gateway.api.semantic.extension import CALL_HEADERS, NO_EXTENSION
from gateway.api.semantic.maps import each_spec
from gateway.api.serializers.chat import ChatSerializer
from gateway.api.services import normalizes_prompt
from gateway.errors import RequestError, field_path
from gateway.graph.call import CallSpec
from gateway.graph.segments import Slot
from gateway.http.json_body import read_json
from gateway.http.openapi import EVENTS, operation
from gateway.http.warnings import add_warning
from gateway.programs import PromptMessage
from gateway.prompts.normalize import normalize_messages
from gateway.prompts.prompt import ChatInput, Prompt
from gateway.prompts.served_models import ServedModel

routes = web.RouteTableDef()


@routes.post("/v1/chat/completions")
@operation(
    ChatCompletion,
    body=ChatCompletionRequest,
    others={EVENTS: None},
    headers=CALL_HEADERS,
    errors=(404, 409, 410, 422, 424, 429, 503),
)
async def create(request: web.Request) -> web.StreamResponse:
    """Answer a conversation with a message, as a whole or as a stream.

    If the call is deferred, answer immediately with a reference to its output.
    """
    body = await read_json(request, ChatCompletionRequest)
    target = await pipeline.admit(request, body.model, body.semantic)
    model, scope = target.model, target.scope
    has_programs = target.services.programs is not None
    builder = ChatSpecBuilder(
        body,
        references=scope.references,
        deferred=scope.is_deferred,
        normalizes=normalizes_prompt(request),
        has_programs=has_programs,
    )
    spec = await pipeline.build_spec(builder, model, target.fallbacks, len(await request.read()))
    each = body.semantic.each if body.semantic is not None else None
    if each is not None:
        if body.choice_count > 1:
            message = "n must be 1 for a request with semantic.each"
            raise RequestError(400, message, code="unsupported_with_semantic", param="n")
        spec = each_spec(spec, each)
    add_warning(request, builder.warning)
    parser_factory = tool_call_parser_factory(body, model) if each is None else None
    checker = answer_checker_of(
        body,
        parser_factory,
        target.services.schema_check_gate,
        scope.session.tenant,
        checks_inputs=model.is_passthrough,
    )
    serializer = ChatSerializer(body, model, scope, parser_factory, checker)
    specs = pipeline.repeat(spec, body.choice_count)
    facts = builder.facts(body.prompt_cache_key, body.user, parser_factory)
    return await pipeline.respond(target, specs, serializer, streamed=body.is_streamed, facts=facts)


@dataclass(slots=True)  # not frozen: a graph makes thousands, and setting frozen fields takes three times as long
class ChatSpecBuilder:
    """Builder of the call that a chat completion asks for.

    `references`: names for which `<<name>>` is a reference. `where`: path of the request in a larger one. `field`: the
    field with the conversation; `places`: paths of the messages' contents, if these are not the usual ones.
    `upstream_hints`: further fields for an upstream server, which drops those that it does not support. `normalizes`:
    whether the prompt is normalized; see `gateway.prompts.normalize`. `has_programs`: whether the gateway looks for the
    program of the request.
    """

    body: ChatCompletionRequest
    references: Container[str]
    deferred: bool
    where: str = ""
    field: str = "messages"
    places: Sequence[str] = ()
    upstream_hints: Mapping[str, Any] | None = None
    normalizes: bool = False
    has_programs: bool = False
    warning: str = ""
    """Part of the request that does not apply, once the call is built."""
    program_messages: Sequence[PromptMessage] = ()
    """Hashes of the messages, once the call is built."""

    def facts(
        self,
        prompt_cache_key: str | None = None,
        user_id: str | None = None,
        parser_factory: ToolCallParserFactory | None = None,
    ) -> RequestFacts | None:
        """Return what the request shows of its program, once the call is built; None if that is not looked for."""
        if not self.has_programs:
            return None
        return RequestFacts([self.program_messages], prompt_cache_key, user_id, parser_factory, self.source)

    @property
    def source(self) -> PromptSource | None:
        """Return the conversation as the model reads it, if later ones are compared with it."""
        tools = self.body.tools if self.body.tools and self.body.tool_choice != "none" else ()
        return prompt_source(self.body.messages, tools, normalizes=self.normalizes)

    def build(self, model: ServedModel) -> CallSpec:
        """Return the call with the prompt for this model. Raises RequestError and GraphError; changes nothing else."""
        body, where = self.body, self.where
        if self.has_programs and not self.program_messages:  # here, as a long request is built in a thread
            self.program_messages = chat_messages(body.messages)
        semantic = body.semantic or NO_EXTENSION
        sampling = request_sampling(body, model, where)
        tools = tools_of(body)
        if tools is not None:
            if tools.choice == "forced" and semantic.slots:
                message = "a forced tool call needs an answer of its own, which a request with slots does not have"
                raise RequestError(
                    400, message, code="unsupported_with_semantic", param=field_path(where, "tool_choice")
                )
            sampling = constrain_tool_calls(sampling, tools, model)
            self.warning = unenforced_warning(body, model)
        prompt = chat_prompt(
            model,
            body.messages,
            answer_slot(semantic, sampling, where, heals=bool(body.continue_final_message)),
            normalizes=self.normalizes,
            references=self.references,
            slots=named_slots(semantic, sampling, where),
            tools=tools,
            add_generation_prompt=body.add_generation_prompt is not False,
            continue_final_message=bool(body.continue_final_message),
            template_options=body.chat_template_kwargs,
            upstream_fields={**forwarded_fields(body, model), **(self.upstream_hints or {})},
            where=where,
            field=self.field,
            content_paths=self.places,
        )
        return new_spec(model, prompt, body, deferred=self.deferred, where=where)


def forwarded_fields(body: ChatCompletionRequest, model: ServedModel) -> dict[str, str]:
    """Return the fields that are forwarded to an upstream server. They are hints: other models ignore them."""
    return body.upstream_fields if model.is_passthrough else {}


def chat_prompt(
    model: ServedModel, messages: Sequence[Message], answer: Slot, *, normalizes: bool = False, **options: Any
) -> Prompt:
    """Return the prompt of a conversation. `options`: other fields of ChatInput. See `PromptBuilder.chat` for errors.

    `normalizes`: whether to remove what no model should read; see `gateway.prompts.normalize`.

    The template gets the arguments of a tool call as an object, or as text if they are not a JSON object. If the
    template fails because it reads keys of such a text, the text is wrapped: `{"arguments": text}`.
    """
    rendered = [_template_message(message) for message in messages]
    if normalizes:
        rendered = [*normalize_messages(rendered)]
    try:
        return model.prompts.chat(ChatInput(rendered, **options), answer)
    except (RequestError, TypeError):  # a template that reads the keys of a text raises either
        if not any(isinstance(function["arguments"], str) for function in _functions(rendered)):
            raise
    for function in _functions(rendered):
        if isinstance(function["arguments"], str):
            function["arguments"] = {"arguments": function["arguments"]}
    return model.prompts.chat(ChatInput(rendered, **options), answer)


def _functions(messages: Iterable[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """Yield the functions that the messages call."""
    for message in messages:
        for tool_call in message.get("tool_calls", ()):
            yield tool_call["function"]


def _template_message(message: Message) -> dict[str, Any]:
    fields = message.template_fields
    if message.tool_calls:
        fields["tool_calls"] = message.template_tool_calls
    if message.tool_call_id is not None:
        fields["tool_call_id"] = message.tool_call_id
    return fields
