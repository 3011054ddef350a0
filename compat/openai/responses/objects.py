"""A response: the items that a model has answered with, and what it was asked beside them."""

from typing import Any, Literal

import msgspec

from compat.openai.answers import SemanticInfo, TokenLogprob

ItemStatus = Literal["in_progress", "completed", "incomplete"]
Status = Literal["queued", "in_progress", "completed", "incomplete", "failed", "cancelled"]
ErrorCode = Literal["server_error", "rate_limit_exceeded", "invalid_prompt"]


class OutputText(msgspec.Struct, frozen=True, kw_only=True):
    """A part of a message. `logprobs`: of its tokens, where they were asked for."""

    type: Literal["output_text"] = "output_text"
    text: str
    annotations: list[Any] = []
    logprobs: list[TokenLogprob] = []


class OutputMessage(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="message"):
    """What the model says."""

    id: str
    status: ItemStatus
    role: Literal["assistant"] = "assistant"
    content: list[OutputText]


class FunctionToolCall(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="function_call"):
    """A call that the client is to make, with arguments as JSON; its output names `call_id`."""

    id: str
    call_id: str
    name: str
    arguments: str
    status: ItemStatus


class ReasoningText(msgspec.Struct, frozen=True, kw_only=True):
    """A part of what a model told beside its answer."""

    type: Literal["reasoning_text"] = "reasoning_text"
    text: str


class ReasoningItem(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="reasoning"):
    """What the model told beside its answer."""

    id: str
    summary: list[Any] = []
    content: list[ReasoningText]
    status: ItemStatus


OutputItem = OutputMessage | FunctionToolCall | ReasoningItem


class ResponseError(msgspec.Struct, frozen=True):
    """Why a response failed. `type`: our own code for it."""

    code: ErrorCode
    message: str
    type: str


class IncompleteDetails(msgspec.Struct, frozen=True):
    """Why there is not more of it."""

    reason: Literal["max_output_tokens"]


class InputTokensDetails(msgspec.Struct, frozen=True):
    """How many of the prompt's tokens were found in a cache. What is written there costs nothing."""

    cached_tokens: int
    cache_write_tokens: int = 0


class OutputTokensDetails(msgspec.Struct, frozen=True):
    """How many of the tokens are no part of the answer."""

    reasoning_tokens: int


class ResponseUsage(msgspec.Struct, frozen=True, kw_only=True):
    """Tokens read and made."""

    input_tokens: int
    input_tokens_details: InputTokensDetails
    output_tokens: int
    output_tokens_details: OutputTokensDetails
    total_tokens: int


class TextConfig(msgspec.Struct, frozen=True):
    """The form of the text, as it was asked for."""

    format: dict[str, Any]
    verbosity: str = "medium"


class ReasoningConfig(msgspec.Struct, frozen=True):
    """How much the model was asked to reason."""

    effort: str | None = None
    summary: None = None


class Response(msgspec.Struct, frozen=True, kw_only=True):
    """The answer to POST /v1/responses. Times are seconds of the Unix clock; `usage` is there at the end.
    `schema_violation`: where the answer violates a schema that was sent without `strict`; left out if it does not, or
    was not checked."""

    id: str
    object: Literal["response"] = "response"
    created_at: int
    status: Status
    completed_at: int | None = None
    background: bool = False
    error: ResponseError | None = None
    incomplete_details: IncompleteDetails | None = None
    instructions: str | None
    max_output_tokens: int | None
    max_tool_calls: int | None = None
    metadata: dict[str, Any]
    model: str
    output: list[OutputItem]
    parallel_tool_calls: bool
    previous_response_id: str | None
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    prompt_cache_key: str | None
    prompt_cache_retention: str | None = None
    reasoning: ReasoningConfig
    safety_identifier: str | None
    service_tier: Literal["default"] = "default"
    store: bool
    temperature: float
    text: TextConfig
    tool_choice: Any
    tools: list[Any]
    top_logprobs: int
    top_p: float
    truncation: Literal["disabled"] = "disabled"
    usage: ResponseUsage | None = None
    user: str | None
    schema_violation: str | msgspec.UnsetType = msgspec.UNSET
    semantic: SemanticInfo | msgspec.UnsetType = msgspec.UNSET


class InputItems(msgspec.Struct, frozen=True, kw_only=True):
    """GET /v1/responses/{id}/input_items: some of them, with the ids of the first and the last."""

    object: Literal["list"] = "list"
    data: list[dict[str, Any]]
    first_id: str | None
    last_id: str | None
    has_more: bool


class Deleted(msgspec.Struct, frozen=True):
    """DELETE /v1/responses/{id}."""

    id: str
    object: Literal["response"] = "response"
    deleted: Literal[True] = True
