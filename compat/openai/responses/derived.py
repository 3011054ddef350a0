"""Requests of the routes below /v1/responses: the number of input tokens, and the compaction of a conversation."""

from typing import Annotated, Literal

from pydantic import Field

from compat.openai.base import Request
from compat.openai.custom_tools import SmallGrammars
from compat.openai.messages import MAX_TOOLS
from compat.openai.requests import CacheOptions, CacheRetention, ServiceTier
from compat.openai.responses.items import InputItem
from compat.openai.responses.requests import ConversationId, ReasoningOptions, TextOptions
from compat.openai.responses.tools import ResponseTool, ToolChoice


class _DerivedRequest(Request):
    """Fields that both requests have in common with that for a response. They are checked again as such a request."""

    model: str | None = None
    input: Annotated[str | list[InputItem] | None, SmallGrammars] = Field(None, min_length=1)
    instructions: str | None = None
    previous_response_id: str | None = None


class InputTokensRequest(_DerivedRequest):
    """POST /v1/responses/input_tokens."""

    conversation: str | ConversationId | None = None
    tools: Annotated[list[ResponseTool] | None, SmallGrammars] = Field(None, max_length=MAX_TOOLS)
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    text: TextOptions | None = None
    # hints without effect on the prompt
    reasoning: ReasoningOptions | None = None
    truncation: Literal["auto", "disabled"] | None = None
    personality: Annotated[str, Field(max_length=64)] | None = None


class CompactRequest(_DerivedRequest):
    """POST /v1/responses/compact."""

    model: str
    # hints without effect
    prompt_cache_key: str | None = None
    prompt_cache_retention: CacheRetention | None = None
    prompt_cache_options: CacheOptions | None = None
    service_tier: ServiceTier | None = None
