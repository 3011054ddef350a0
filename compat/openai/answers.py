"""Responses, chunks and errors of OpenAI's endpoints."""

from typing import Any, Literal, NotRequired, TypedDict

import msgspec


class TopLogprob(msgspec.Struct, frozen=True):
    """An alternative to a token of the answer."""

    token: str
    logprob: float
    bytes: list[int]


class TokenLogprob(msgspec.Struct, frozen=True):
    """A token of the answer, and the most likely alternatives."""

    token: str
    logprob: float
    bytes: list[int]
    top_logprobs: list[TopLogprob]


class ChoiceLogprobs(msgspec.Struct, frozen=True):
    """Log probabilities of the tokens of an answer."""

    content: list[TokenLogprob]
    refusal: None = None


class PromptTokensDetails(msgspec.Struct, frozen=True):
    """Number of prompt tokens that were found in a cache."""

    cached_tokens: int


class CompletionTokensDetails(msgspec.Struct, frozen=True):
    """Number of tokens of the request's prediction that are in the answer and that are not, and number of reasoning
    tokens, which are not part of the answer."""

    accepted_prediction_tokens: int
    rejected_prediction_tokens: int
    reasoning_tokens: int


class CompletionUsage(msgspec.Struct, frozen=True):
    """Number of tokens of the prompt and of the answer. Details of the answer are omitted if all of them are 0. `cost`:
    if the client requests it."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails
    completion_tokens_details: CompletionTokensDetails | msgspec.UnsetType = msgspec.UNSET
    cost: float | msgspec.UnsetType = msgspec.UNSET


class FunctionCall(msgspec.Struct, frozen=True, omit_defaults=True):
    """A called function, with arguments as JSON; in a chunk, a part of it."""

    name: str | None = None
    arguments: str | None = None


class CustomCall(msgspec.Struct, frozen=True, omit_defaults=True):
    """A called custom tool, with its input; in a chunk, a part of it."""

    name: str | None = None
    input: str | None = None


class ToolCallAnswer(msgspec.Struct, frozen=True, tag_field="type", tag="function"):
    """A call of a function that the client has to run."""

    id: str
    function: FunctionCall


class CustomToolCallAnswer(msgspec.Struct, frozen=True, tag_field="type", tag="custom"):
    """A call of a custom tool that the client has to run."""

    id: str
    custom: CustomCall


class ToolCallDelta(msgspec.Struct, frozen=True, omit_defaults=True):
    """A chunk's addition to a tool call."""

    index: int
    function: FunctionCall | None = None
    id: str | None = None
    type: Literal["function", "custom"] | None = None
    custom: CustomCall | None = None


class ResponseMessage(msgspec.Struct, frozen=True):
    """The assistant's answer. `reasoning_content` and `reasoning`: the model's reasoning, under both names that servers
    use."""

    content: str | None
    role: Literal["assistant"] = "assistant"
    refusal: None = None
    reasoning_content: str | msgspec.UnsetType = msgspec.UNSET
    reasoning: str | msgspec.UnsetType = msgspec.UNSET
    tool_calls: list[ToolCallAnswer | CustomToolCallAnswer] | msgspec.UnsetType = msgspec.UNSET


class Choice(msgspec.Struct, frozen=True):
    """One answer. `schema_violation`: where the answer violates a schema that was sent without `strict`; omitted if it
    does not, or was not checked."""

    index: int
    message: ResponseMessage
    finish_reason: str
    logprobs: ChoiceLogprobs | None = None
    schema_violation: str | msgspec.UnsetType = msgspec.UNSET


class SemanticInfo(TypedDict):
    """The `semantic` object of an answer. `others`: objects of the other calls, if a request ran several."""

    session: str
    call: str
    output: str
    status: str
    waiting_on: list[str]
    variables: dict[str, str | None]
    others: NotRequired[list[Any]]


class ChatCompletion(msgspec.Struct, frozen=True, kw_only=True):
    """Response to a chat completion without `stream`. `service_tier`: set if the request names one."""

    id: str
    created: int
    model: str
    choices: list[Choice]
    usage: CompletionUsage
    object: Literal["chat.completion"] = "chat.completion"
    system_fingerprint: str | None = None
    service_tier: Literal["default"] | msgspec.UnsetType = msgspec.UNSET
    semantic: SemanticInfo | msgspec.UnsetType = msgspec.UNSET


class ChoiceDelta(msgspec.Struct, frozen=True, omit_defaults=True):
    """A chunk's addition to an answer."""

    role: Literal["assistant"] | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    content: str | None = None
    tool_calls: list[ToolCallDelta] | None = None


class ChunkChoice(msgspec.Struct, frozen=True):
    """One answer's part of a chunk. `schema_violation`: as in `Choice`, in the chunk with the finish reason."""

    index: int
    delta: ChoiceDelta
    finish_reason: str | None = None
    logprobs: ChoiceLogprobs | None = None
    schema_violation: str | msgspec.UnsetType = msgspec.UNSET


class ChatCompletionChunk(msgspec.Struct, frozen=True, kw_only=True):
    """One event of a streamed chat completion. `usage` is omitted unless the client requests it."""

    id: str
    created: int
    model: str
    choices: list[ChunkChoice]
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    system_fingerprint: str | None = None
    usage: CompletionUsage | None | msgspec.UnsetType = msgspec.UNSET
    semantic: SemanticInfo | msgspec.UnsetType = msgspec.UNSET


class CompletionLogprobs(msgspec.Struct, frozen=True):
    """Log probabilities of a completion's tokens, and the offset of each token in the text."""

    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]]
    text_offset: list[int]


class CompletionChoice(msgspec.Struct, frozen=True):
    """One answer of a completion, or its part of a chunk. `schema_violation`: as in a chat completion."""

    text: str
    finish_reason: str | None
    index: int = 0
    logprobs: CompletionLogprobs | None = None
    schema_violation: str | msgspec.UnsetType = msgspec.UNSET


class TextCompletion(msgspec.Struct, frozen=True, kw_only=True):
    """Response to a completion, or one event of it. `usage` is omitted from events unless the client requests it."""

    id: str
    created: int
    model: str
    choices: list[CompletionChoice]
    object: Literal["text_completion"] = "text_completion"
    system_fingerprint: str | None = None
    usage: CompletionUsage | None | msgspec.UnsetType = msgspec.UNSET
    semantic: SemanticInfo | msgspec.UnsetType = msgspec.UNSET


class Model(msgspec.Struct, frozen=True, kw_only=True):
    """A served model. `max_model_len`: its context window in tokens, if known. `capabilities`: what it can do, such as
    `chat` or `embeddings`."""

    id: str
    created: int
    max_model_len: int | None
    capabilities: list[str] = msgspec.field(default_factory=list)
    object: Literal["model"] = "model"
    owned_by: str = "myna"


class ModelList(msgspec.Struct, frozen=True):
    """GET /v1/models."""

    data: list[Model]
    object: Literal["list"] = "list"


class Error(msgspec.Struct, frozen=True):
    """Description of an error."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(msgspec.Struct, frozen=True):
    """Body of every error response."""

    error: Error
