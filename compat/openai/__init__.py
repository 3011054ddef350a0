"""OpenAI's wire shapes, with the `semantic` extension of API.md: requests, answers, chunks, errors.

Requests are pydantic models: they come from outside and need checking, with the field's path. Answers are
msgspec structs: they are ours, and are encoded up to once a token.
"""

from compat.openai.messages import Message, NamedTool
from compat.openai.refused import REFUSED
from compat.openai.requests import ChatCompletionRequest, CompletionRequest, DetokenizeRequest, TokenizeRequest
from compat.openai.responses import (
    ChatCompletion,
    ChatCompletionChunk,
    Choice,
    ChoiceDelta,
    ChoiceLogprobs,
    ChunkChoice,
    CompletionChoice,
    CompletionLogprobs,
    CompletionUsage,
    Error,
    ErrorBody,
    FunctionCall,
    Model,
    ModelList,
    PromptTokensDetails,
    ResponseMessage,
    TextCompletion,
    TokenLogprob,
    ToolCallAnswer,
    ToolCallDelta,
    TopLogprob,
)
from compat.openai.semantic import (
    GraphRequest,
    Semantic,
    SessionRequest,
    SlotRequest,
    Transform,
    VariableRequest,
)

__all__ = [
    "REFUSED",
    "ChatCompletion",
    "ChatCompletionChunk",
    "ChatCompletionRequest",
    "Choice",
    "ChoiceDelta",
    "ChoiceLogprobs",
    "ChunkChoice",
    "CompletionChoice",
    "CompletionLogprobs",
    "CompletionRequest",
    "CompletionUsage",
    "DetokenizeRequest",
    "Error",
    "ErrorBody",
    "FunctionCall",
    "GraphRequest",
    "Message",
    "Model",
    "ModelList",
    "NamedTool",
    "PromptTokensDetails",
    "ResponseMessage",
    "Semantic",
    "SessionRequest",
    "SlotRequest",
    "TextCompletion",
    "TokenLogprob",
    "TokenizeRequest",
    "ToolCallAnswer",
    "ToolCallDelta",
    "TopLogprob",
    "Transform",
    "VariableRequest",
]
