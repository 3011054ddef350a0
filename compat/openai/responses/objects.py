"""Response objects of the Responses API, and the output items in them."""

from typing import Any, Literal

import msgspec

from compat.openai.answers import SemanticInfo, TokenLogprob

ItemStatus = Literal["in_progress", "completed", "incomplete"]
McpCallStatus = Literal["in_progress", "calling", "completed", "incomplete", "failed"]
Status = Literal["queued", "in_progress", "completed", "incomplete", "failed", "cancelled"]
ErrorCode = Literal["server_error", "rate_limit_exceeded", "invalid_prompt", "context_length_exceeded"]


class OutputText(msgspec.Struct, frozen=True, kw_only=True):
    """A text part of a message. `logprobs`: log probabilities of its tokens, if requested."""

    type: Literal["output_text"] = "output_text"
    text: str
    annotations: list[Any] = []
    logprobs: list[TokenLogprob] = []


class OutputMessage(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="message"):
    """A message of the model."""

    id: str
    status: ItemStatus
    role: Literal["assistant"] = "assistant"
    content: list[OutputText]


class FunctionToolCall(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="function_call"):
    """A tool call that the client has to run, with arguments as JSON. Its output refers to `call_id`. `namespace`:
    omitted if the tool has none."""

    id: str
    call_id: str
    name: str
    arguments: str
    status: ItemStatus
    namespace: str | msgspec.UnsetType = msgspec.UNSET


class CustomToolCall(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="custom_tool_call"):
    """A call of a custom tool that the client has to run, with a text as input. `namespace`: omitted if the tool has
    none."""

    id: str
    call_id: str
    name: str
    input: str
    status: ItemStatus
    namespace: str | msgspec.UnsetType = msgspec.UNSET


class ToolSearchCall(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="tool_search_call"):
    """A search for tools that the client has to run. `arguments`: JSON, or a text if the model wrote no JSON."""

    id: str
    call_id: str
    arguments: Any
    status: ItemStatus
    execution: Literal["client"] = "client"


class ReasoningText(msgspec.Struct, frozen=True, kw_only=True):
    """A part of the model's reasoning."""

    type: Literal["reasoning_text"] = "reasoning_text"
    text: str


class ReasoningItem(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="reasoning"):
    """The model's reasoning. `encrypted_content`: the reasoning for the client to send back, if it has requested it."""

    id: str
    summary: list[Any] = []
    content: list[ReasoningText]
    status: ItemStatus
    encrypted_content: str | msgspec.UnsetType = msgspec.UNSET


class CompactionBody(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="compaction"):
    """A summary of a conversation, for the client to send back."""

    id: str
    encrypted_content: str


class McpListedTool(msgspec.Struct, frozen=True, kw_only=True):
    """A tool of an MCP server that the model may call."""

    name: str
    description: str | None = None
    input_schema: Any
    annotations: Any = None


class McpListTools(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="mcp_list_tools"):
    """The tools of an MCP server. `error`: the reason why the server could not list them."""

    id: str
    server_label: str
    tools: list[McpListedTool]
    error: str | None = None


class McpCall(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="mcp_call"):
    """A tool call that the gateway has run, with its output or error. `approval_request_id`: id of the approved
    request, if the client had to approve it."""

    id: str
    server_label: str
    name: str
    arguments: str
    output: str | None = None
    error: Any = None
    approval_request_id: str | None = None
    status: McpCallStatus


class McpApprovalRequest(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="mcp_approval_request"):
    """A tool call that the gateway runs only if the client approves it."""

    id: str
    server_label: str
    name: str
    arguments: str


ToolCallItem = FunctionToolCall | CustomToolCall | ToolSearchCall
McpItem = McpListTools | McpCall | McpApprovalRequest
OutputItem = OutputMessage | ToolCallItem | ReasoningItem | McpItem


class ResponseError(msgspec.Struct, frozen=True):
    """The reason why a response failed. `type`: error code of this server."""

    code: ErrorCode
    message: str
    type: str


class IncompleteDetails(msgspec.Struct, frozen=True):
    """The reason why a response is incomplete."""

    reason: Literal["max_output_tokens"]


class InputTokensDetails(msgspec.Struct, frozen=True):
    """Numbers of prompt tokens that were read from a cache, and that were charged for writing to it.

    The second is always 0, because writing to the cache is free.
    """

    cached_tokens: int
    cache_write_tokens: int = 0


class OutputTokensDetails(msgspec.Struct, frozen=True):
    """Number of reasoning tokens, which are not part of the answer."""

    reasoning_tokens: int


class ResponseUsage(msgspec.Struct, frozen=True, kw_only=True):
    """Number of tokens of the prompt and of the answer. `cost`: if the client requests it."""

    input_tokens: int
    input_tokens_details: InputTokensDetails
    output_tokens: int
    output_tokens_details: OutputTokensDetails
    total_tokens: int
    cost: float | msgspec.UnsetType = msgspec.UNSET


class TextConfig(msgspec.Struct, frozen=True):
    """Format of the text, as requested."""

    format: dict[str, Any]
    verbosity: str = "medium"


class ReasoningConfig(msgspec.Struct, frozen=True):
    """Reasoning effort, as requested."""

    effort: str | None = None
    summary: None = None


class ConversationReference(msgspec.Struct, frozen=True):
    """The conversation that the response was added to."""

    id: str


class Response(msgspec.Struct, frozen=True, kw_only=True):
    """Response to POST /v1/responses. Times are seconds of the Unix clock. `usage` is set at the end.
    `schema_violation`: where the answer violates a schema that was sent without `strict`; omitted if it does not, or
    was not checked."""

    id: str
    object: Literal["response"] = "response"
    created_at: int
    status: Status
    completed_at: int | None = None
    background: bool = False
    conversation: ConversationReference | None = None
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


class InputTokens(msgspec.Struct, frozen=True):
    """POST /v1/responses/input_tokens: number of tokens of the prompt."""

    input_tokens: int
    object: Literal["response.input_tokens"] = "response.input_tokens"


class CompactedResponse(msgspec.Struct, frozen=True, kw_only=True):
    """POST /v1/responses/compact: the items that replace a conversation."""

    id: str
    object: Literal["response.compaction"] = "response.compaction"
    created_at: int
    output: list[CompactionBody]
    usage: ResponseUsage


class Deleted(msgspec.Struct, frozen=True):
    """DELETE /v1/responses/{id}."""

    id: str
    object: Literal["response"] = "response"
    deleted: Literal[True] = True
