"""Requests of POST /v1/messages and POST /v1/messages/count_tokens."""

import re
from typing import Annotated, Any, Literal, Self

from pydantic import (
    ConfigDict,
    Discriminator,
    Field,
    JsonValue,
    Tag,
    ValidationInfo,
    field_validator,
    model_validator,
)

from compat.anthropic.blocks import CacheControl, InputMessage, TextBlock, ToolName
from compat.bounds import BoundedModel, TokenCount
from compat.openai.base import MAX_STOP_LENGTH, MAX_STOPS, Request, field_error
from compat.openai.custom_tools import SmallGrammars
from compat.openai.response_formats import enforced_schema
from compat.openai.schemas.policy import Enforcement
from compat.openai.semantic import Semantic

MAX_TOOLS = 512
"""Maximum number of tools. Agents with several MCP servers send more than OpenAI's 128."""
_BILLING_LINE = re.compile(r"x-anthropic-billing-header:[^\n]*\n?")
"""First line of Claude Code's system prompt. It differs for each conversation, so that no prompt would have a cached
beginning."""
_BUILT_IN = re.compile(r"[a-z0-9_]{1,64}_20\d{6}|mcp_toolset")
"""Pattern of the types of Anthropic's own tools."""


class ClientTool(Request):
    """A tool that the client can run for the model. Fields after `strict` and `input_schema` are hints without effect,
    except `eager_input_streaming`: the arguments are then streamed while they are generated, unchecked."""

    type: Literal["custom"] | None = None
    name: ToolName
    description: str | None = None
    strict: bool | None = None  # before the schema, whose check depends on it
    input_schema: dict[str, JsonValue]
    eager_input_streaming: bool | None = None
    cache_control: CacheControl = None
    defer_loading: bool | None = None
    allowed_callers: list[str] | None = None
    input_examples: list[dict[str, JsonValue]] | None = None

    @field_validator("input_schema")
    @classmethod
    def _can_be_enforced(cls, schema: Any, info: ValidationInfo) -> Any:
        if info.data.get("strict"):
            enforced_schema(schema)
        return schema


class BuiltInTool(BoundedModel):
    """A tool that Anthropic defines, such as web search. The server drops it, so the model does not see it."""

    model_config = ConfigDict(extra="allow", strict=True)

    type: str
    name: str | None = None

    @field_validator("type")
    @classmethod
    def _is_built_in(cls, type: str) -> str:
        if not _BUILT_IN.fullmatch(type):
            raise ValueError(
                "a tool's type must be custom, or a type that Anthropic defines, such as web_search_20250305"
            )
        return type


def _tool_kind(tool: Any) -> str:
    kind = tool.get("type") if isinstance(tool, dict) else getattr(tool, "type", None)
    return "custom" if kind in (None, "custom") else "built-in"


AnyTool = Annotated[
    Annotated[ClientTool, Tag("custom")] | Annotated[BuiltInTool, Tag("built-in")], Discriminator(_tool_kind)
]


class ToolChoice(Request):
    """Whether the model may, must or must not call tools."""

    type: Literal["auto", "any", "tool", "none"]
    name: str | None = None
    disable_parallel_tool_use: bool | None = None

    @model_validator(mode="after")
    def _names_a_tool(self) -> Self:
        if (self.name is None) == (self.type == "tool"):
            raise field_error("name", "name is required with the type tool, and not allowed with others")
        return self


class Thinking(Request):
    """Whether the model reasons before it answers. `budget_tokens` is a hint without effect. With `display` `omitted`,
    the answer does not contain the reasoning."""

    type: Literal["enabled", "disabled", "adaptive", "between_tools"]
    budget_tokens: Annotated[int, Field(ge=1)] | None = None
    display: Literal["summarized", "omitted"] | None = None

    @model_validator(mode="after")
    def _has_a_budget(self) -> Self:
        if self.type == "enabled" and self.budget_tokens is None:
            raise field_error("budget_tokens", "budget_tokens is required with the type enabled")
        return self

    @property
    def is_on(self) -> bool:
        """Whether the model is asked to reason."""
        return self.type != "disabled"


class JsonOutputFormat(Request):
    """Form of the answer: JSON that is valid for a schema. Keywords that cannot be enforced are dropped."""

    type: Literal["json_schema"]
    schema_: dict[str, JsonValue] = Field(alias="schema")

    @field_validator("schema_")
    @classmethod
    def _can_be_enforced(cls, schema: Any) -> Any:
        enforced_schema(schema, Enforcement.BEST_EFFORT)
        return schema


class OutputConfig(Request):
    """Form and effort of the answer. `effort` and `task_budget` are hints."""

    effort: Literal["low", "medium", "high", "xhigh", "max"] | None = None
    format: JsonOutputFormat | None = None
    task_budget: dict[str, JsonValue] | None = None


class RequestMetadata(Request):
    """Description of the request's user. It is ignored."""

    user_id: str | None = Field(None, max_length=4_096)


class CountTokensRequest(Request):
    """POST /v1/messages/count_tokens: a conversation without the fields of an answer."""

    model: str
    messages: list[InputMessage] = Field(min_length=1)
    system: str | list[TextBlock] | None = None
    tools: Annotated[list[AnyTool] | None, SmallGrammars] = Field(None, max_length=MAX_TOOLS)
    tool_choice: ToolChoice | None = None
    thinking: Thinking | None = None
    output_config: OutputConfig | None = None
    output_format: JsonOutputFormat | None = None  # the older place of output_config.format
    # hints without effect
    cache_control: CacheControl = None
    context_management: dict[str, JsonValue] | None = None
    speed: Literal["standard", "fast"] | None = None
    betas: list[str] | None = None
    # accepted and ignored: only Anthropic's own service uses them
    user_profile_id: str | None = None
    workspace_id: str | None = None

    @model_validator(mode="after")
    def _is_consistent(self) -> Self:
        if self.output_format is not None and self.output_config is not None and self.output_config.format is not None:
            raise field_error("output_format", "only one of output_config.format and output_format is allowed")
        names = [tool.name for tool in self.client_tools]
        if len(set(names)) < len(names):
            raise field_error("tools", "two tools have the same name")
        choice = self.tool_choice
        if choice is None or choice.type in ("auto", "none"):
            return self
        if not self.tools:
            raise field_error("tool_choice", "tool_choice requires a tool call, but there are no tools")
        known = [*names, *(tool.name or tool.type for tool in self.tools if isinstance(tool, BuiltInTool))]
        if choice.type == "tool" and choice.name not in known:
            message = f"tool_choice names {choice.name!r}, but the tools are {', '.join(known[:20])}"
            raise field_error("tool_choice.name", message)
        return self

    @model_validator(mode="after")
    def _ends_with_text(self) -> Self:
        last = self.messages[-1]
        if last.role == "assistant" and any(block.type == "tool_use" for block in last.blocks):
            message = "the last message has a tool_use block; a user's message with its tool_result must follow"
            raise field_error(f"messages.{len(self.messages) - 1}.content", message)
        return self

    @property
    def client_tools(self) -> list[ClientTool]:
        """The tools that the model sees."""
        return [tool for tool in self.tools or () if isinstance(tool, ClientTool)]

    @property
    def built_in_types(self) -> list[str]:
        """Types of the tools that the model does not see, without repetitions."""
        return list(dict.fromkeys([tool.type for tool in self.tools or () if isinstance(tool, BuiltInTool)]))

    @property
    def json_format(self) -> JsonOutputFormat | None:
        """The schema of the answer, if there is one."""
        return self.output_format or (None if self.output_config is None else self.output_config.format)

    @property
    def system_blocks(self) -> list[TextBlock]:
        """The system prompt as blocks, without the billing line."""
        if not self.system:
            return []
        first, *others = [TextBlock(type="text", text=self.system)] if isinstance(self.system, str) else self.system
        match = _BILLING_LINE.match(first.text)
        if match is None:
            return [first, *others]
        rest = first.text[match.end() :]
        return [first.model_copy(update={"text": rest}), *others] if rest.strip() else others


class MessagesRequest(CountTokensRequest):
    """POST /v1/messages."""

    max_tokens: TokenCount
    stop_sequences: list[str] | None = Field(None, max_length=MAX_STOPS)
    temperature: Annotated[float, Field(ge=0.0, le=1.0)] | None = None
    top_p: Annotated[float, Field(ge=0.0, le=1.0)] | None = None
    top_k: Annotated[int, Field(ge=0)] | None = None
    stream: bool | None = None
    # hints without effect
    service_tier: Literal["auto", "standard_only"] | None = None
    diagnostics: dict[str, JsonValue] | None = None
    fallbacks: JsonValue = None
    # accepted and ignored: only Anthropic's own service uses them
    metadata: RequestMetadata | None = None
    inference_geo: str | None = None
    billing_policy: dict[str, JsonValue] | None = None
    fallback_credit_token: JsonValue = None

    semantic: Semantic | None = None

    @field_validator("stop_sequences")
    @classmethod
    def _check_stops(cls, stops: list[str] | None) -> list[str] | None:
        if any(not text for text in stops or ()):
            raise ValueError("a stop sequence must not be empty")
        if any(len(text) > MAX_STOP_LENGTH for text in stops or ()):
            raise ValueError(f"a stop sequence has at most {MAX_STOP_LENGTH} characters")
        return stops

    @property
    def is_streamed(self) -> bool:
        """Return whether the answer is a stream."""
        return bool(self.stream)
