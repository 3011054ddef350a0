"""Tools of the Responses API, and their translation to the functions that a model reads.

A model knows functions alone. A function of a namespace is called `namespace__name` there. A custom tool, whose input
is a text, becomes a function with the one argument `input`. Tools that OpenAI runs itself, such as web search, do not
exist here and are dropped.
"""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import (
    ConfigDict,
    Discriminator,
    Field,
    JsonValue,
    Tag,
    model_validator,
)

from compat.bounds import BoundedModel
from compat.openai.base import FIELD_ERROR, Request, field_error
from compat.openai.custom_tools import CustomFunction, GrammarSyntax, InputGrammar, check_definition, custom_function
from compat.openai.messages import MAX_TOOLS, DescribedFunction, FunctionDefinition, FunctionName, ToolDefinition
from compat.openai.response_formats import enforced_schema

HostedType = Literal[
    "apply_patch",
    "code_interpreter",
    "computer",
    "computer_use",
    "computer_use_preview",
    "file_search",
    "image_generation",
    "local_shell",
    "mcp",
    "programmatic_tool_calling",
    "shell",
    "web_search",
    "web_search_2025_08_26",
    "web_search_preview",
    "web_search_preview_2025_03_11",
]
"""Types of tools that OpenAI runs itself, or defines itself."""

SEARCH_NAME = "tool_search"
"""Name of the function by which a model searches for tools."""

_MAX_NAME = 64
"""Maximum length of a function's name, in characters; OpenAI's limit, which upstream servers check."""
_DIGEST = 8
_SEARCH_SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"query": {"type": "string", "description": "What the tool should do."}},
    "required": ["query"],
    "additionalProperties": False,
}


def flat_name(namespace: str | None, name: str) -> str:
    """Return the name under which the model knows a tool. A long name ends with a digest instead."""
    if namespace is None:
        return name
    flat = f"{namespace}__{name}"
    if len(flat) <= _MAX_NAME:
        return flat
    return f"{flat[: _MAX_NAME - _DIGEST - 1]}_{hashlib.sha256(flat.encode()).hexdigest()[:_DIGEST]}"


class _ToolHints(Request):
    """Fields of a tool that do not change what the model reads. `defer_loading`: the model finds the tool by search."""

    defer_loading: bool | None = None
    allowed_callers: list[Literal["direct", "programmatic"]] | None = None
    async_: bool | None = Field(None, alias="async")


class FunctionTool(DescribedFunction, _ToolHints):
    """A function that the client can run for the model. Its parameters are enforced with `strict`, and also if `strict`
    is omitted and they can be enforced."""

    type: Literal["function"]
    output_schema: dict[str, JsonValue] | None = None

    @property
    def is_strict(self) -> bool:
        """Return whether the parameters are enforced."""
        if self.strict is None and self.parameters is not None:
            try:
                enforced_schema(self.parameters)
            except ValueError:
                return False
        return self.strict is not False

    @property
    def echoed(self) -> dict[str, Any]:
        """The tool as the response object repeats it."""
        fields = self.model_dump(include={"type", "name", "description", "parameters"})
        return {**fields, "strict": self.is_strict, **_hints(self)}

    def function(self, name: str) -> FunctionDefinition:
        """Return the function that the model reads under this name."""
        return FunctionDefinition(
            name=name, description=self.description, parameters=self.parameters, strict=self.is_strict
        )


class InputFormat(Request):
    """Format of a custom tool's input: any text, or a text that matches a grammar."""

    type: Literal["text", "grammar"]
    syntax: GrammarSyntax | None = None
    definition: str | None = None

    @model_validator(mode="after")
    def _has_its_grammar(self) -> Self:
        for field in ("syntax", "definition"):
            if (getattr(self, field) is None) == (self.type == "grammar"):
                raise field_error(field, "a grammar needs syntax and definition, and other formats have neither")
        if self.grammar is not None:
            check_definition(self.grammar)
        return self

    @property
    def grammar(self) -> InputGrammar | None:
        """Grammar of the input; None if it may be any text."""
        return None if self.syntax is None or self.definition is None else InputGrammar(self.syntax, self.definition)


class CustomTool(_ToolHints):
    """A tool that the client can run for the model, and whose input is a text."""

    type: Literal["custom"]
    name: FunctionName
    description: str | None = None
    format: InputFormat | None = None

    @property
    def echoed(self) -> dict[str, Any]:
        """The tool as the response object repeats it."""
        format = {"type": "text"} if self.format is None else self.format.model_dump(exclude_none=True)
        return {
            **self.model_dump(include={"type", "name", "description"}, exclude_none=True),
            "format": format,
            **_hints(self),
        }

    def function(self, name: str) -> CustomFunction:
        """Return the function that the model reads under this name."""
        return custom_function(name, self.description, None if self.format is None else self.format.grammar)


def _hints(tool: _ToolHints) -> dict[str, Any]:
    return tool.model_dump(include=set(_ToolHints.model_fields), exclude_none=True, by_alias=True)


NamespacedTool = Annotated[FunctionTool | CustomTool, Field(discriminator="type")]


class NamespaceTool(Request):
    """Tools with a common namespace, such as those of one MCP server."""

    type: Literal["namespace"]
    name: FunctionName
    description: str | None = None
    tools: list[NamespacedTool] = Field(max_length=MAX_TOOLS)

    @property
    def echoed(self) -> dict[str, Any]:
        """The namespace as the response object repeats it."""
        return {
            "type": "namespace",
            "name": self.name,
            "description": self.description or "",
            "tools": [tool.echoed for tool in self.tools],
        }


class SearchTool(Request):
    """A search for tools that the model does not know yet. The client runs it if `execution` is `client`; otherwise
    the model gets all tools, and there is nothing to search for."""

    type: Literal["tool_search"]
    execution: Literal["server", "client"] | None = None
    description: str | None = None
    parameters: dict[str, JsonValue] | None = None

    @property
    def is_run_by_client(self) -> bool:
        """Return whether the client searches."""
        return self.execution == "client"

    @property
    def echoed(self) -> dict[str, Any]:
        """The tool as the response object repeats it."""
        return self.model_dump(exclude_none=True)

    @property
    def function(self) -> FunctionDefinition:
        """The function that the model reads."""
        return FunctionDefinition(
            name=SEARCH_NAME,
            description=self.description or "Search for tools that are not listed here.",
            parameters=self.parameters or _SEARCH_SCHEMA,
            strict=self.parameters is None,
        )


class HostedTool(BoundedModel):
    """A tool that only OpenAI has. It is dropped, with all of its fields."""

    model_config = ConfigDict(extra="ignore", strict=True)

    type: HostedType


def _kind(tool: Any) -> Any:
    kind = tool.get("type") if isinstance(tool, dict) else getattr(tool, "type", None)
    return "hosted" if isinstance(kind, str) and kind in get_args(HostedType) else kind


ResponseTool = Annotated[
    Annotated[FunctionTool, Tag("function")]
    | Annotated[CustomTool, Tag("custom")]
    | Annotated[NamespaceTool, Tag("namespace")]
    | Annotated[SearchTool, Tag("tool_search")]
    | Annotated[HostedTool, Tag("hosted")],
    Discriminator(
        _kind,
        custom_error_type=FIELD_ERROR,
        custom_error_message=(
            "a tool's type must be function, custom, namespace or tool_search; tools that OpenAI runs, such as "
            "web_search, are dropped"
        ),
        custom_error_context={"field": "type"},
    ),
]

ToolKind = Literal["function", "custom", "tool_search"]


@dataclass(frozen=True)
class FlatTool:
    """A tool as the model knows it: its kind, and its namespace and name in the request."""

    kind: ToolKind
    name: str
    namespace: str | None
    definition: ToolDefinition

    @property
    def flat_name(self) -> str:
        """Name under which the model knows the tool."""
        return self.definition.function.name


def flat_tools(tools: Iterable[ResponseTool], found: Iterable[ResponseTool] = ()) -> list[FlatTool]:
    """Return the tools that the model reads. `found`: tools that a search has found; they may repeat others.

    If the client searches for tools, tools with `defer_loading` are left out until the search has found them.
    """
    tools = list(tools)
    searches = any(isinstance(tool, SearchTool) and tool.is_run_by_client for tool in tools)
    flat = [each for tool in tools for each in _flatten(tool, with_deferred=not searches)]
    known = {each.flat_name for each in flat}
    for tool in found:
        for each in _flatten(tool, with_deferred=True):
            if each.flat_name not in known:
                known.add(each.flat_name)
                flat.append(each)
    return flat


def _flatten(tool: ResponseTool, *, with_deferred: bool) -> list[FlatTool]:
    match tool:
        case FunctionTool() | CustomTool():
            return [_flat(tool, None)] if with_deferred or not tool.defer_loading else []
        case NamespaceTool():
            inner = [each for each in tool.tools if with_deferred or not each.defer_loading]
            return [_flat(each, tool.name, "" if index else tool.description or "") for index, each in enumerate(inner)]
        case SearchTool() if tool.is_run_by_client:
            return [FlatTool("tool_search", SEARCH_NAME, None, _definition(tool.function))]
    return []


def _flat(tool: FunctionTool | CustomTool, namespace: str | None, introduction: str = "") -> FlatTool:
    """Return a tool as the model knows it. `introduction`: the namespace's description, for its first tool."""
    function = tool.function(flat_name(namespace, tool.name))
    if introduction:
        about = f"{introduction}\n\n{function.description or ''}".rstrip()
        function = function.model_copy(update={"description": f"Tools {namespace}__*: {about}"})
    return FlatTool(tool.type, tool.name, namespace, _definition(function))


def _definition(function: FunctionDefinition) -> ToolDefinition:
    return ToolDefinition.model_construct(type="function", function=function)


class NamedChoice(Request):
    """The tool that the model has to call."""

    type: Literal["function", "custom"]
    name: str
    namespace: str | None = None


class HostedChoice(BoundedModel):
    """A tool that only OpenAI has. The model cannot be made to call it."""

    model_config = ConfigDict(extra="ignore", strict=True)

    type: HostedType

    @model_validator(mode="after")
    def _is_refused(self) -> Self:
        raise field_error("type", f"the model cannot call {self.type}: this server has no such tool")


class AllowedTool(BoundedModel):
    """A reference to a tool."""

    model_config = ConfigDict(extra="ignore", strict=True)

    type: Literal["function", "custom", "namespace", "tool_search"] | HostedType
    name: str | None = None
    namespace: str | None = None

    @model_validator(mode="after")
    def _has_name(self) -> Self:
        if self.name is None and self.type in ("function", "custom", "namespace"):
            raise field_error("name", f"a tool of type {self.type} needs a name")
        return self

    def allows(self, tool: FlatTool) -> bool:
        """Return whether this is a reference to the tool."""
        if self.type == "namespace":
            return tool.namespace == self.name
        if self.type == "tool_search":
            return tool.kind == "tool_search"
        return (self.type, self.name) == (tool.kind, tool.name) and self.namespace in (None, tool.namespace)


class AllowedTools(Request):
    """The tools that the model may call, or, if the mode is `required`, has to call. The model reads no others."""

    type: Literal["allowed_tools"]
    mode: Literal["auto", "required"]
    tools: list[AllowedTool] = Field(min_length=1, max_length=MAX_TOOLS)

    def choose(self, tools: Sequence[FlatTool]) -> list[FlatTool]:
        """Return the allowed ones of these tools. Raises an error for a reference to a tool that is not among them."""
        for index, allowed in enumerate(self.tools):
            is_hosted = allowed.type in get_args(HostedType)
            if not is_hosted and not any(allowed.allows(tool) for tool in tools):
                message = f"the request has no tool {allowed.name or allowed.type!r}"
                raise field_error(f"tool_choice.tools.{index}", message)
        return [tool for tool in tools if any(allowed.allows(tool) for allowed in self.tools)]


def _kind_of_choice(choice: Any) -> Any:
    if isinstance(choice, str):
        return "mode"
    kind = _kind(choice)
    return "named" if kind in ("function", "custom") else kind


ToolChoice = Annotated[
    Annotated[Literal["none", "auto", "required"], Tag("mode")]
    | Annotated[NamedChoice, Tag("named")]
    | Annotated[AllowedTools, Tag("allowed_tools")]
    | Annotated[HostedChoice, Tag("hosted")],
    Discriminator(
        _kind_of_choice,
        custom_error_type="unknown_choice",
        custom_error_message="tool_choice must be none, auto, required, or an object of type function, custom or "
        "allowed_tools",
    ),
]
