"""Tools of the Responses API, and their translation to the functions that a model reads.

A model knows functions alone. A function of a namespace is called `namespace__name` there. A custom tool, whose input
is a text, becomes a function with the one argument `input`. Tools that OpenAI runs itself, such as web search, do not
exist here and are dropped.
"""

import hashlib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Any, Literal, Self, get_args
from urllib.parse import urlsplit

from pydantic import (
    ConfigDict,
    Discriminator,
    Field,
    JsonValue,
    StringConstraints,
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
_NOT_IN_NAME = re.compile(r"[^A-Za-z0-9_-]")
_REDACTED = "<redacted>"
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


def mcp_name(label: str, name: str) -> str:
    """Return the name under which the model knows a tool of an MCP server. It has the label, so that the names of
    servers and clients do not clash. Other characters than those of function names are replaced, and a digest added."""
    flat = flat_name(label, name)
    known = _NOT_IN_NAME.sub("_", flat)
    if known == flat:
        return flat
    digest = hashlib.sha256(f"{label}\0{name}".encode()).hexdigest()[:_DIGEST]
    return f"{known[: _MAX_NAME - _DIGEST - 1]}_{digest}"


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


ToolNames = Annotated[list[Annotated[str, StringConstraints(max_length=256)]], Field(max_length=MAX_TOOLS)]


class McpFilter(Request):
    """A choice of the tools of an MCP server: by name, by whether they only read, or both."""

    tool_names: ToolNames | None = None
    read_only: bool | None = None

    @cached_property
    def _names(self) -> frozenset[str]:
        return frozenset(self.tool_names or ())

    def matches(self, name: str, *, is_read_only: bool) -> bool:
        """Return whether the filter selects a tool."""
        by_name = self.tool_names is None or name in self._names
        return by_name and self.read_only in (None, is_read_only)


class McpApprovals(Request):
    """Tools that need the client's approval always, and never. `always` goes before `never`, and tools in neither need
    it."""

    always: McpFilter | None = None
    never: McpFilter | None = None


class McpTool(_ToolHints):
    """Tools of an MCP server, which the gateway runs for the model: a server that the operator names, or one at a URL
    that the operator allows. `headers` and `authorization` are sent to this URL alone."""

    type: Literal["mcp"]
    server_label: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9._-]{1,64}$")]
    server_url: str | None = None
    headers: Annotated[dict[str, str], Field(max_length=100)] | None = None
    authorization: str | None = None
    server_description: str | None = None
    allowed_tools: ToolNames | McpFilter | None = None
    require_approval: Literal["always", "never"] | McpApprovals | None = None
    connector_id: str | None = None
    tunnel_id: str | None = None

    @model_validator(mode="after")
    def _can_be_reached(self) -> Self:
        for field in ("connector_id", "tunnel_id"):
            if getattr(self, field) is not None:
                raise field_error(field, f"{field} is not supported; use server_url, or a server of the operator")
        for field in ("headers", "authorization"):
            if getattr(self, field) and self.server_url is None:
                raise field_error(field, f"{field} needs server_url: it is sent to a server of the client alone")
        if self.authorization and any(name.lower() == "authorization" for name in self.headers or ()):
            raise field_error("authorization", "only one of authorization and the header Authorization is allowed")
        return self

    @property
    def all_headers(self) -> dict[str, str]:
        """Headers of requests to the server."""
        headers = dict(self.headers or {})
        if self.authorization:
            headers["Authorization"] = f"Bearer {self.authorization}"
        return headers

    def allows(self, name: str, *, is_read_only: bool) -> bool:
        """Return whether the model may call a tool of the server."""
        return self._filter.matches(name, is_read_only=is_read_only)

    @property
    def names_tools(self) -> bool:
        """Whether the client allows tools by their names."""
        return bool(self._filter.tool_names)

    @cached_property
    def _filter(self) -> McpFilter:
        allowed = self.allowed_tools
        return allowed if isinstance(allowed, McpFilter) else McpFilter(tool_names=allowed)

    def needs_approval(self, name: str, *, is_read_only: bool) -> bool:
        """Return whether the client has to approve each call of a tool."""
        approvals = self.require_approval
        if not isinstance(approvals, McpApprovals):
            return approvals != "never"
        if approvals.always is not None and approvals.always.matches(name, is_read_only=is_read_only):
            return True
        never = approvals.never
        if never is None or (never.tool_names is None and never.read_only is None):
            return True
        return not never.matches(name, is_read_only=is_read_only)

    @property
    def echoed(self) -> dict[str, Any]:
        """The tool as the response object repeats it, without what may be secret."""
        fields = {"type", "server_label", "server_description", "allowed_tools", "require_approval"}
        echoed = self.model_dump(include=fields)
        return {
            **echoed,
            "require_approval": echoed["require_approval"] or "always",
            "server_url": None if self.server_url is None else _without_path(self.server_url),
            "headers": None,
        }

    def flat(self, name: str, description: str, schema: dict[str, Any], introduction: str = "") -> "FlatTool":
        """Return a tool of the server as the model knows it. `introduction`: description of the server, for its first
        tool."""
        if introduction:
            names = f"{_NOT_IN_NAME.sub('_', self.server_label)}__*"
            description = f"Tools {names}: {introduction}\n\n{description}".rstrip()
        function = FunctionDefinition.model_construct(
            name=mcp_name(self.server_label, name), description=description, parameters=schema, strict=False
        )
        return FlatTool("mcp", name, self.server_label, _definition(function))


def _without_path(url: str) -> str:
    """Return a URL without its path and query, which may contain secrets."""
    try:
        parts = urlsplit(url)
        return f"{parts.scheme}://{parts.hostname}/{_REDACTED}"
    except ValueError:
        return _REDACTED


class HostedTool(BoundedModel):
    """A tool that only OpenAI has. It is dropped, with all of its fields."""

    model_config = ConfigDict(extra="ignore", strict=True)

    type: HostedType


def _kind(tool: Any) -> Any:
    kind = tool.get("type") if isinstance(tool, dict) else getattr(tool, "type", None)
    return "hosted" if isinstance(kind, str) and kind in get_args(HostedType) else kind


ResponseTool = Annotated[
    Annotated[FunctionTool, Tag("function")]
    | Annotated[McpTool, Tag("mcp")]
    | Annotated[CustomTool, Tag("custom")]
    | Annotated[NamespaceTool, Tag("namespace")]
    | Annotated[SearchTool, Tag("tool_search")]
    | Annotated[HostedTool, Tag("hosted")],
    Discriminator(
        _kind,
        custom_error_type=FIELD_ERROR,
        custom_error_message=(
            "a tool's type must be function, custom, namespace, tool_search or mcp; tools that OpenAI runs, such as "
            "web_search, are dropped"
        ),
        custom_error_context={"field": "type"},
    ),
]

ToolKind = Literal["function", "custom", "tool_search", "mcp"]


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


class McpChoice(Request):
    """The MCP server of which the model has to call a tool, and the name of the tool if it has to be that one."""

    type: Literal["mcp"]
    server_label: str
    name: str | None = None

    def choose(self, tools: Sequence[FlatTool]) -> list[FlatTool]:
        """Return the tools among which the model has to choose. Raises an error if there is none."""
        found = [
            tool
            for tool in tools
            if (tool.kind, tool.namespace) == ("mcp", self.server_label) and self.name in (None, tool.name)
        ]
        if not found:
            name = "" if self.name is None else f" {self.name!r}"
            raise field_error("tool_choice", f"the MCP server {self.server_label!r} of the request has no tool{name}")
        return found


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

    type: Literal["function", "custom", "namespace", "tool_search", "mcp"] | HostedType
    name: str | None = None
    namespace: str | None = None
    server_label: str | None = None

    @model_validator(mode="after")
    def _has_name(self) -> Self:
        if self.name is None and self.type in ("function", "custom", "namespace"):
            raise field_error("name", f"a tool of type {self.type} needs a name")
        if self.type == "mcp" and self.server_label is None:
            raise field_error("server_label", "a tool of type mcp needs a server_label")
        return self

    def allows(self, tool: FlatTool) -> bool:
        """Return whether this is a reference to the tool."""
        if self.type == "namespace":
            return tool.namespace == self.name
        if self.type == "tool_search":
            return tool.kind == "tool_search"
        if self.type == "mcp":
            return tool.kind == "mcp" and tool.namespace == self.server_label and self.name in (None, tool.name)
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
    | Annotated[McpChoice, Tag("mcp")]
    | Annotated[AllowedTools, Tag("allowed_tools")]
    | Annotated[HostedChoice, Tag("hosted")],
    Discriminator(
        _kind_of_choice,
        custom_error_type="unknown_choice",
        custom_error_message="tool_choice must be none, auto, required, or an object of type function, custom, mcp "
        "or allowed_tools",
    ),
]
