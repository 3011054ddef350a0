"""OpenAI's wire shapes, with the `semantic` extension of API.md: requests, answers, chunks, errors.

Requests are pydantic models: they come from outside and need checking, with the field's path. Answers are
msgspec structs: they are ours, and are encoded up to once a token.
"""

from compat.openai.requests import (
    ChatCompletionRequest,
    CompletionRequest,
    GraphRequest,
    Message,
    Semantic,
    SessionRequest,
    SlotRequest,
    Transform,
    VariableRequest,
)
from compat.openai.responses import (
    ChatCompletion,
    ChatCompletionChunk,
    Choice,
    ChoiceDelta,
    ChoiceLogprobs,
    ChunkChoice,
    CompletionChoice,
    CompletionUsage,
    Error,
    ErrorBody,
    Model,
    ModelList,
    PromptTokensDetails,
    ResponseMessage,
    TextCompletion,
    TokenLogprob,
    TopLogprob,
)

__all__ = [
    "ChatCompletion",
    "ChatCompletionChunk",
    "ChatCompletionRequest",
    "Choice",
    "ChoiceDelta",
    "ChoiceLogprobs",
    "ChunkChoice",
    "CompletionChoice",
    "CompletionRequest",
    "CompletionUsage",
    "Error",
    "ErrorBody",
    "GraphRequest",
    "Message",
    "Model",
    "ModelList",
    "PromptTokensDetails",
    "ResponseMessage",
    "Semantic",
    "SessionRequest",
    "SlotRequest",
    "TextCompletion",
    "TokenLogprob",
    "TopLogprob",
    "Transform",
    "VariableRequest",
]
