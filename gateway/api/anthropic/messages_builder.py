"""Build the call of a Messages request, by way of the equivalent chat completion."""

import dataclasses
from collections.abc import Container, Sequence
from dataclasses import dataclass
from typing import Any

from compat.anthropic import CountTokensRequest, MessagesRequest
from compat.anthropic.requests import ClientTool
from compat.openai import ChatCompletionRequest, NamedTool
from compat.openai.messages import FunctionDefinition, NamedFunction, ToolDefinition
from compat.openai.response_formats import JsonSchema, ResponseFormat
from gateway.api.anthropic.conversation import VerifySignature, to_chat_messages
from gateway.api.anthropic.token_estimate import estimate_tokens
from gateway.api.openai.chat import ChatSpecBuilder
from gateway.api.openai.tools import ToolCallParserFactory
from gateway.api.program_tracker import PromptSource, RequestFacts
from gateway.graph.call import CallSpec
from gateway.graph.references import NO_NAME
from gateway.graph.segments import Segment, Slot
from gateway.programs import PromptMessage
from gateway.prompts.served_models import ServedModel

_MIN_ANSWER_SHARE = 8
"""Part of the window, as a divisor, below which the answer is not limited if the prompt's length is an estimate."""


def chat_of(body: CountTokensRequest) -> ChatCompletionRequest:
    """Return the equivalent chat completion, without messages. Its fields were validated with the request."""
    fields: dict[str, Any] = {"model": body.model, "messages": []}
    if isinstance(body, MessagesRequest):
        fields |= {
            "max_tokens": body.max_tokens,
            "temperature": body.temperature,
            "top_p": body.top_p,
            "top_k": body.top_k,
            "stop": body.stop_sequences or None,
            "stream": body.stream,
            "semantic": body.semantic,
        }
    fields |= _tool_fields(body)
    if body.json_format is not None:
        schema = JsonSchema.model_construct(name="answer", schema_=body.json_format.schema_)
        fields["response_format"] = ResponseFormat.model_construct(type="json_schema", json_schema=schema)
    if body.messages[-1].role == "assistant":  # the answer continues it
        fields |= {"continue_final_message": True, "add_generation_prompt": False}
    fields = {name: value for name, value in fields.items() if value is not None}
    return ChatCompletionRequest.model_construct(_fields_set=set(fields), **fields)


def _tool_fields(body: CountTokensRequest) -> dict[str, Any]:
    """Return the tools that the model sees, and which of them it must call."""
    tools = body.client_tools
    if not tools:  # none, or only built-in tools, which this server does not have
        return {}
    fields: dict[str, Any] = {"tools": [_tool(tool) for tool in tools]}
    choice = body.tool_choice
    if choice is None:
        return fields
    if choice.disable_parallel_tool_use is not None:
        fields["parallel_tool_calls"] = not choice.disable_parallel_tool_use
    match choice.type:
        case "none":
            fields["tool_choice"] = "none"
        case "any":
            fields["tool_choice"] = "required"
        case "tool" if any(tool.name == choice.name for tool in tools):
            function = NamedFunction.model_construct(name=choice.name or "")
            fields["tool_choice"] = NamedTool.model_construct(type="function", function=function)
    return fields


def _tool(tool: ClientTool) -> ToolDefinition:
    function = FunctionDefinition.model_construct(
        name=tool.name, description=tool.description, strict=bool(tool.strict), parameters=tool.input_schema
    )
    return ToolDefinition.model_construct(type="function", function=function)


@dataclass(slots=True)
class MessagesSpecBuilder:
    """Builder of the call that a Messages request asks for.

    `chat`: what `chat_of` returns for it. `references`: names for which `<<name>>` is a reference. `has_programs`:
    whether the gateway looks for the program of the request.
    """

    body: CountTokensRequest
    chat: ChatCompletionRequest
    verify: VerifySignature
    references: Container[str] = NO_NAME
    deferred: bool = False
    has_programs: bool = False
    warning: str = ""
    """Part of the request that does not apply, once the call is built."""
    program_messages: Sequence[PromptMessage] = ()
    """Hashes of the messages, once the call is built."""
    source: PromptSource | None = None
    """The equivalent conversation, once the call is built, if later ones are compared with it."""

    def facts(self, parser_factory: ToolCallParserFactory | None = None) -> RequestFacts | None:
        """Return what the request shows of its program, once the call is built; None if that is not looked for."""
        if not self.has_programs:
            return None
        metadata = self.body.metadata if isinstance(self.body, MessagesRequest) else None
        user_id = None if metadata is None else metadata.user_id
        return RequestFacts([self.program_messages], user_id=user_id, parser_factory=parser_factory, source=self.source)

    def build(self, model: ServedModel) -> CallSpec:
        """Return the call with the prompt for this model. Raises RequestError and GraphError; changes nothing."""
        builder = self.builder_for(model)
        spec = builder.build(model)
        self.warning, self.program_messages = builder.warning, builder.program_messages
        if self.has_programs and self.source is None:
            self.source = builder.source
        if model.window is None:
            return spec
        limit = model.window - estimate_tokens(spec.segments)
        # a wrong estimate must not cut an answer short: a server whose window is full refuses the request
        limit = max(limit, model.window // _MIN_ANSWER_SHARE if model.is_passthrough else 1)
        return dataclasses.replace(spec, segments=_with_token_limit(spec.segments, limit))

    def builder_for(self, model: ServedModel) -> ChatSpecBuilder:
        """Return the builder of the equivalent chat completion for this model."""
        messages, paths = to_chat_messages(self.body, self.verify, takes_late_system=model.prompts.takes_late_system)
        thinking = None if self.body.thinking is None else {"enable_thinking": self.body.thinking.is_on}
        chat = self.chat.model_copy(
            update={"messages": messages, "chat_template_kwargs": None if model.is_passthrough else thinking}
        )
        hints = None
        if model.is_passthrough:
            hints = {**(thinking or {}), **_hints(self.body)}
        return ChatSpecBuilder(
            chat,
            self.references,
            self.deferred,
            places=paths,
            upstream_hints=hints,
            has_programs=self.has_programs,
            program_messages=self.program_messages,
        )


def _hints(body: CountTokensRequest) -> dict[str, Any]:
    """Return the hints for upstream servers with Anthropic's API. Others do not get them."""
    hints: dict[str, Any] = {}
    if body.output_config is not None and body.output_config.effort is not None:
        hints["effort"] = body.output_config.effort
    if body.thinking is not None:
        hints["thinking"] = body.thinking.model_dump(exclude_none=True)
    if isinstance(body, MessagesRequest) and body.metadata is not None and body.metadata.user_id is not None:
        hints["metadata"] = {"user_id": body.metadata.user_id}
    blocks = [*body.system_blocks, *(block for message in body.messages for block in message.blocks)]
    if any(part.cache_control for part in (body, *body.client_tools, *blocks)):
        hints["cache_control"] = True
    return hints


def _with_token_limit(segments: Sequence[Segment], limit: int) -> list[Segment]:
    """Return the segments, with answers of at most `limit` tokens: upstream servers refuse longer ones, and clients ask
    for more than any window has."""
    return [
        dataclasses.replace(segment, sampling=dataclasses.replace(segment.sampling, max_tokens=limit))
        if isinstance(segment, Slot) and (segment.sampling.max_tokens or 0) > limit
        else segment
        for segment in segments
    ]
