"""Answers, events and errors of Anthropic's endpoints."""

from typing import Any, Literal

import msgspec

StopReason = Literal["end_turn", "max_tokens", "stop_sequence", "tool_use", "refusal", "model_context_window_exceeded"]


class OutputText(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="text"):
    """A text of the answer. `citations` is always null."""

    text: str
    citations: None = None


class OutputThinking(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="thinking"):
    """Reasoning of the model, and the signature by which the server recognises it in a later request."""

    thinking: str
    signature: str


class OutputToolUse(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="tool_use"):
    """A tool call that the client has to run."""

    id: str
    name: str
    input: dict[str, Any]


OutputBlock = OutputText | OutputThinking | OutputToolUse


class ThinkingTokens(msgspec.Struct, frozen=True):
    """Number of output tokens that are reasoning."""

    thinking_tokens: int


class MessageUsage(msgspec.Struct, frozen=True, kw_only=True):
    """Token counts. `input_tokens` does not include tokens that were found in the cache. `output_tokens` includes
    reasoning, whose details are omitted if there is none. `cost`: if the client requests it."""

    input_tokens: int
    cache_creation_input_tokens: int = 0
    cache_read_input_tokens: int
    output_tokens: int
    output_tokens_details: ThinkingTokens | msgspec.UnsetType = msgspec.UNSET
    service_tier: Literal["standard"] | msgspec.UnsetType = msgspec.UNSET
    cost: float | msgspec.UnsetType = msgspec.UNSET


class AnthropicMessage(msgspec.Struct, frozen=True, kw_only=True):
    """Response to a Messages request. `schema_violation`: where the answer violates a schema that is not enforced as a
    whole; omitted if it does not, or was not checked. `semantic`: the object of docs/api.md, in a named session."""

    id: str
    type: Literal["message"] = "message"
    role: Literal["assistant"] = "assistant"
    model: str
    content: list[OutputBlock]
    stop_reason: StopReason | None
    stop_sequence: str | None = None
    usage: MessageUsage
    schema_violation: str | msgspec.UnsetType = msgspec.UNSET
    semantic: Any = msgspec.UNSET


class TokenCountAnswer(msgspec.Struct, frozen=True):
    """Response of POST /v1/messages/count_tokens."""

    input_tokens: int


class MessageStart(msgspec.Struct, frozen=True, tag_field="type", tag="message_start"):
    """First event: the message without its content."""

    message: AnthropicMessage


class Ping(msgspec.Struct, frozen=True, tag_field="type", tag="ping"):
    """Event without a meaning, which keeps the connection alive."""


class TextDelta(msgspec.Struct, frozen=True, tag_field="type", tag="text_delta"):
    """Addition to a text."""

    text: str


class ThinkingDelta(msgspec.Struct, frozen=True, tag_field="type", tag="thinking_delta"):
    """Addition to the reasoning."""

    thinking: str


class SignatureDelta(msgspec.Struct, frozen=True, tag_field="type", tag="signature_delta"):
    """Signature of the whole reasoning."""

    signature: str


class InputJsonDelta(msgspec.Struct, frozen=True, tag_field="type", tag="input_json_delta"):
    """Addition to the arguments of a tool call, as JSON."""

    partial_json: str


BlockDelta = TextDelta | ThinkingDelta | SignatureDelta | InputJsonDelta


class ContentBlockStart(msgspec.Struct, frozen=True, tag_field="type", tag="content_block_start"):
    """Beginning of a block."""

    index: int
    content_block: OutputBlock


class ContentBlockDelta(msgspec.Struct, frozen=True, tag_field="type", tag="content_block_delta"):
    """Addition to a block."""

    index: int
    delta: BlockDelta


class ContentBlockStop(msgspec.Struct, frozen=True, tag_field="type", tag="content_block_stop"):
    """End of a block."""

    index: int


class MessageEnd(msgspec.Struct, frozen=True, kw_only=True):
    """Reason for which the message ended. `schema_violation`, `semantic`: as in `AnthropicMessage`."""

    stop_reason: StopReason
    stop_sequence: str | None = None
    schema_violation: str | msgspec.UnsetType = msgspec.UNSET
    semantic: Any = msgspec.UNSET


class MessageDelta(msgspec.Struct, frozen=True, tag_field="type", tag="message_delta"):
    """Last change of the message, with the token counts of the whole message."""

    delta: MessageEnd
    usage: MessageUsage


class MessageStop(msgspec.Struct, frozen=True, tag_field="type", tag="message_stop"):
    """Last event."""


MessageEvent = (
    MessageStart | Ping | ContentBlockStart | ContentBlockDelta | ContentBlockStop | MessageDelta | MessageStop
)


class AnthropicModel(msgspec.Struct, frozen=True, kw_only=True):
    """A served model. `max_input_tokens`: its context window in tokens, if known."""

    type: Literal["model"] = "model"
    id: str
    display_name: str
    created_at: str
    lifecycle: Literal["active"] = "active"
    max_input_tokens: int | None
    max_tokens: int | None


class AnthropicModelList(msgspec.Struct, frozen=True, kw_only=True):
    """GET /v1/models in Anthropic's shape."""

    data: list[AnthropicModel]
    has_more: bool
    first_id: str | None
    last_id: str | None


class AnthropicErrorDetails(msgspec.Struct, frozen=True, omit_defaults=True):
    """This server's code of the error, and the path of the invalid field."""

    error_code: str | None = None
    param: str | None = None


class AnthropicError(msgspec.Struct, frozen=True):
    """Description of an error."""

    type: str
    message: str
    details: AnthropicErrorDetails


class AnthropicErrorBody(msgspec.Struct, frozen=True, kw_only=True):
    """Body of every error response, and of the event `error` of a stream."""

    type: Literal["error"] = "error"
    error: AnthropicError
    request_id: str | None
