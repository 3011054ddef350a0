"""Answers, chunks and errors."""

from typing import Any, Literal, NotRequired, TypedDict

import msgspec


class TopLogprob(msgspec.Struct, frozen=True):
    """An alternative at a token's place."""

    token: str
    logprob: float
    bytes: list[int]


class TokenLogprob(msgspec.Struct, frozen=True):
    """A token of the answer and the likeliest alternatives."""

    token: str
    logprob: float
    bytes: list[int]
    top_logprobs: list[TopLogprob]


class ChoiceLogprobs(msgspec.Struct, frozen=True):
    """Log probabilities of an answer's tokens."""

    content: list[TokenLogprob]
    refusal: None = None


class PromptTokensDetails(msgspec.Struct, frozen=True):
    """How many of the prompt's tokens were found in a cache."""

    cached_tokens: int


class CompletionTokensDetails(msgspec.Struct, frozen=True):
    """How many tokens of the request's prediction came, and how many that were tried did not; how many are no part of
    the answer."""

    accepted_prediction_tokens: int
    rejected_prediction_tokens: int
    reasoning_tokens: int


class CompletionUsage(msgspec.Struct, frozen=True):
    """Tokens read and made. The last details are there where one of them is not 0."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails
    completion_tokens_details: CompletionTokensDetails | msgspec.UnsetType = msgspec.UNSET


class FunctionCall(msgspec.Struct, frozen=True, omit_defaults=True):
    """What is called, with arguments as JSON; or a part of that, in a chunk."""

    name: str | None = None
    arguments: str | None = None


class ToolCallAnswer(msgspec.Struct, frozen=True):
    """A call that the client is to make."""

    id: str
    function: FunctionCall
    type: Literal["function"] = "function"


class ToolCallDelta(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a chunk adds to a call."""

    index: int
    function: FunctionCall
    id: str | None = None
    type: Literal["function"] | None = None


class ResponseMessage(msgspec.Struct, frozen=True):
    """The assistant's answer. `reasoning_content`, `reasoning`: what the model told beside it, by the two names that
    servers have for that."""

    content: str | None
    role: Literal["assistant"] = "assistant"
    refusal: None = None
    reasoning_content: str | msgspec.UnsetType = msgspec.UNSET
    reasoning: str | msgspec.UnsetType = msgspec.UNSET
    tool_calls: list[ToolCallAnswer] | msgspec.UnsetType = msgspec.UNSET


class Choice(msgspec.Struct, frozen=True):
    """One answer. `schema_violation`: where it violates a schema that was sent without `strict`; left out if it does
    not, or was not checked."""

    index: int
    message: ResponseMessage
    finish_reason: str
    logprobs: ChoiceLogprobs | None = None
    schema_violation: str | msgspec.UnsetType = msgspec.UNSET


class SemanticInfo(TypedDict):
    """The `semantic` object of an answer. `others`: of the further calls, where a request asked for several."""

    session: str
    call: str
    output: str
    status: str
    waiting_on: list[str]
    variables: dict[str, str | None]
    others: NotRequired[list[Any]]


class ChatCompletion(msgspec.Struct, frozen=True, kw_only=True):
    """The answer to a chat completion without `stream`."""

    id: str
    created: int
    model: str
    choices: list[Choice]
    usage: CompletionUsage
    object: Literal["chat.completion"] = "chat.completion"
    system_fingerprint: str | None = None
    semantic: SemanticInfo | msgspec.UnsetType = msgspec.UNSET


class ChoiceDelta(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a chunk adds."""

    role: Literal["assistant"] | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    content: str | None = None
    tool_calls: list[ToolCallDelta] | None = None


class ChunkChoice(msgspec.Struct, frozen=True):
    """One answer's part in a chunk. `schema_violation`: as in a whole answer, beside the finish reason."""

    index: int
    delta: ChoiceDelta
    finish_reason: str | None = None
    logprobs: ChoiceLogprobs | None = None
    schema_violation: str | msgspec.UnsetType = msgspec.UNSET


class ChatCompletionChunk(msgspec.Struct, frozen=True, kw_only=True):
    """One event of a streamed chat completion. `usage` is left out unless it was asked for."""

    id: str
    created: int
    model: str
    choices: list[ChunkChoice]
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    system_fingerprint: str | None = None
    usage: CompletionUsage | None | msgspec.UnsetType = msgspec.UNSET
    semantic: SemanticInfo | msgspec.UnsetType = msgspec.UNSET


class CompletionLogprobs(msgspec.Struct, frozen=True):
    """Log probabilities of a completion's tokens, and where in the text each begins."""

    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]]
    text_offset: list[int]


class CompletionChoice(msgspec.Struct, frozen=True):
    """One answer of a completion, or its part in a chunk. `schema_violation`: as in a chat completion."""

    text: str
    finish_reason: str | None
    index: int = 0
    logprobs: CompletionLogprobs | None = None
    schema_violation: str | msgspec.UnsetType = msgspec.UNSET


class TextCompletion(msgspec.Struct, frozen=True, kw_only=True):
    """The answer to a completion, or one event of it. `usage` is left out of events unless it was asked for."""

    id: str
    created: int
    model: str
    choices: list[CompletionChoice]
    object: Literal["text_completion"] = "text_completion"
    system_fingerprint: str | None = None
    usage: CompletionUsage | None | msgspec.UnsetType = msgspec.UNSET
    semantic: SemanticInfo | msgspec.UnsetType = msgspec.UNSET


class Model(msgspec.Struct, frozen=True, kw_only=True):
    """A model that is served. `max_model_len`: its window in tokens, if it is known."""

    id: str
    created: int
    max_model_len: int | None
    object: Literal["model"] = "model"
    owned_by: str = "myna"


class ModelList(msgspec.Struct, frozen=True):
    """GET /v1/models."""

    data: list[Model]
    object: Literal["list"] = "list"


class Error(msgspec.Struct, frozen=True):
    """What went wrong."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(msgspec.Struct, frozen=True):
    """Every answer other than success."""

    error: Error
