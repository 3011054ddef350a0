"""The MCP servers of a request: their tools, what the model may call, and what the client has approved."""

import asyncio
import dataclasses
import secrets
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from compat.openai import ChatCompletionRequest, Message
from compat.openai.messages import TextPart
from compat.openai.responses import FlatTool, McpListedTool, McpListTools, McpTool, ResponseRequest
from compat.openai.responses.tools import mcp_name
from gateway.api.responses.mcp_history import McpHistory, PendingCall
from gateway.errors import RequestError
from gateway.graph.call import CallSpec
from gateway.graph.forms.expansion import result_reference
from gateway.graph.forms.form import Agent, AgentTool, Binding, ToolRun
from gateway.graph.references import NO_NAME, Reference, parse
from gateway.graph.segments import Input
from gateway.prompts.tool_calls.description import Verbatim
from gateway.runtime.json_codec import decode_json, encode_json
from gateway.scheduler.forms.agent_run import agent_tool_run
from gateway.tools.protocol import ToolDescription, ToolFailed, ToolRefused
from gateway.tools.tool_servers import ToolServers

MAX_TURNS = 50
"""Maximum number of answers of the model in one response."""
_MAX_LISTED_BYTES = 2 << 20
"""Maximum size of all tools that the MCP servers of a request list, in bytes."""
_PREFIX_BYTES = 8


class McpSetup(msgspec.Struct, frozen=True):
    """The MCP servers of a request, for the items of its response. Stored with a response in the background.

    `lists`: tools by server, as new items, whose ids are set later. `functions`: tools that the model may call, by the
    names under which it knows them. `pending`: calls that the client has approved.
    """

    lists: list[McpListTools]
    functions: dict[str, "McpFunction"]
    pending: list[PendingCall]


class McpFunction(msgspec.Struct, frozen=True):
    """A tool of an MCP server. `asks`: whether the client has to approve each call."""

    label: str
    name: str
    asks: bool


class ListingFailed(RequestError):
    """A server of the request cannot list its tools. `label`: that of the server."""

    def __init__(self, label: str, error: ToolFailed) -> None:
        message = f"Error retrieving tool list from MCP server: {label!r}: {error}"
        super().__init__(424, message, code=error.code, param="tools")
        self.label = label
        self.reason = str(error)

    @property
    def type(self) -> str:
        """Return OpenAI's error type."""
        return "external_connector_error"


@dataclass(frozen=True)
class OpenServer:
    """An MCP server of a request. `server`: its name among the tool servers. `tools`: tools that the client allows.
    `size`: that of their names, descriptions and schemas, in bytes."""

    tool: McpTool
    server: str
    tools: Sequence[ToolDescription]
    size: int


async def open_servers(servers: ToolServers, body: ResponseRequest, tenant: str) -> list[OpenServer]:
    """Return the MCP servers of a request with their tools. Raises RequestError, and ListingFailed if one is not
    available."""
    opened = await asyncio.gather(
        *(_open(servers, tool, f"tools.{index}", tenant) for index, tool in body.mcp_tools), return_exceptions=True
    )
    found: list[OpenServer] = []
    for result in opened:
        if isinstance(result, BaseException):
            raise result
        found.append(result)
    if sum(each.size for each in found) > _MAX_LISTED_BYTES:
        raise _too_large()
    return found


async def _open(servers: ToolServers, tool: McpTool, where: str, tenant: str) -> OpenServer:
    """Return an MCP server with the tools that the client allows."""
    try:
        if tool.server_url is None:
            server = tool.server_label
            if server not in servers.names:
                known = f"servers: {', '.join(servers.names[:5])}" if servers.names else "the operator allows none"
                hint = ", or set server_url" if servers.allows_urls else ""
                message = f"{where}.server_label: there is no MCP server {server!r}; {known}{hint}"
                raise RequestError(400, message, code="unknown_tool", param=f"{where}.server_label")
        elif tool.server_label in servers.names:
            message = f"{where}.server_label: {tool.server_label!r} is a server of the operator; choose another label"
            raise RequestError(400, message, code="invalid_value", param=f"{where}.server_label")
        else:
            server = await servers.open_url(tool.server_url, tool.all_headers, tenant=tenant)
        described = await servers.describe(server)
    except ToolRefused as error:
        field = f"{where}.{error.where}" if error.where else where
        raise RequestError(400, f"{field}: {error}", code=error.code, param=field) from error
    except ToolFailed as error:
        raise ListingFailed(tool.server_label, error) from error
    allowed = []
    size = 0
    for each in described:
        if tool.allows(each.name, is_read_only=each.is_read_only):
            allowed.append(each)
            size += len(encode_json([each.name, each.description, each.input_schema]))
            if size > _MAX_LISTED_BYTES:
                raise _too_large()
    if tool.names_tools and not allowed:
        message = f"{where}.allowed_tools: the MCP server {tool.server_label!r} has none of these tools"
        raise RequestError(400, message, code="unknown_tool", param=f"{where}.allowed_tools")
    return OpenServer(tool, server, allowed, size)


def _too_large() -> RequestError:
    message = f"the tools of the MCP servers have more than {_MAX_LISTED_BYTES} bytes; choose some with allowed_tools"
    return RequestError(400, message, code="too_large", param="tools")


def functions_of(opened: Sequence[OpenServer]) -> list[FlatTool]:
    """Return the tools of MCP servers as the model knows them."""
    return [
        each.tool.flat(
            tool.name,
            tool.description,
            dict(tool.input_schema),
            "" if index else each.tool.server_description or "",
        )
        for each in opened
        for index, tool in enumerate(each.tools)
    ]


def setup_of(opened: Sequence[OpenServer], history: McpHistory) -> McpSetup:
    """Return what the items need to know. Servers whose tools an earlier response lists are not listed again."""
    functions = {}
    lists = []
    for each in opened:
        label = each.tool.server_label
        for tool in each.tools:
            asks = each.tool.needs_approval(tool.name, is_read_only=tool.is_read_only)
            functions[mcp_name(label, tool.name)] = McpFunction(label, tool.name, asks)
        if label not in history.listed:
            lists.append(McpListTools(id="", server_label=label, tools=[_listed(tool) for tool in each.tools]))
    return McpSetup(lists, functions, list(history.pending))


def _listed(tool: ToolDescription) -> McpListedTool:
    return McpListedTool(
        name=tool.name,
        description=tool.description,
        input_schema=dict(tool.input_schema),
        annotations={"readOnlyHint": tool.is_read_only, "idempotentHint": tool.is_idempotent},
    )


class McpAgentBuilder:
    """Builder of the agent that answers a request with MCP servers."""

    def __init__(self, body: ResponseRequest, opened: Sequence[OpenServer], setup: McpSetup) -> None:
        """`body`: the request with the functions of its servers."""
        self.names: dict[str, str] = {}
        """Names of variables in the agent's request, by their names in the session."""
        self.prefix = f"a{secrets.token_hex(_PREFIX_BYTES)}"
        self._body = body
        self._setup = setup
        self._tools = {
            mcp_name(each.tool.server_label, tool.name): AgentTool(
                mcp_name(each.tool.server_label, tool.name), each.server, tool.name
            )
            for each in opened
            for tool in each.tools
        }
        self._pending = self._runs()

    def _runs(self) -> list[ToolRun | str]:
        """Return the runs of the approved calls. Raises RequestError if the request has no such tool."""
        runs: list[ToolRun | str] = []
        for call in self._setup.pending:
            known = mcp_name(call.label, call.name)
            tool, function = self._tools.get(known), self._setup.functions.get(known)
            # a tool of another server may be known under the same name
            if tool is None or function is None or (function.label, function.name) != (call.label, call.name):
                message = f"the request has no tool {call.name!r} of an MCP server {call.label!r}, which was approved"
                raise RequestError(400, message, code="unknown_tool", param="tools")
            runs.append(agent_tool_run(tool, call.arguments))
        return runs

    def chat(self, messages: Sequence[Message], references: Container[str]) -> ChatCompletionRequest:
        """Return the chat completion of the agent's turns. `references`: names that are references in the messages.
        The results of approved calls are references as well."""
        results = {call.id: index for index, call in enumerate(self._setup.pending)}
        form = Agent("", "", self.prefix, (), 0)
        renamed = []
        for message in messages:
            index = results.get(message.tool_call_id or "")
            if index is not None and message.content is None:
                content: Any = result_reference(form, 0, index)
            else:
                content = self._rename(message.content, references)
            renamed.append(message.model_copy(update={"content": content}))
        chat = self._body.chat
        semantic = chat.semantic
        if semantic is not None:
            defaults = {self.names.get(name, name): default for name, default in semantic.defaults.items()}
            semantic = semantic.model_copy(update={"defaults": defaults})
        return chat.model_copy(update={"messages": renamed, "semantic": semantic})

    def _rename(self, content: Any, references: Container[str]) -> Any:
        """Return the content of a message with names that only this agent knows."""
        if references is NO_NAME and not isinstance(content, Verbatim):
            return content
        if isinstance(content, str):
            if isinstance(content, Verbatim):
                return str(content)
            return "".join(
                part if isinstance(part, str) else str(Reference(self._new_name(part.name), part.path))
                for part in parse(content, references)
            )
        if content is None:
            return None
        return [
            part.model_copy(update={"text": self._rename(part.text, references)})
            if isinstance(part, TextPart)
            else part
            for part in content
        ]

    def _new_name(self, name: str) -> str:
        return self.names.setdefault(name, f"{self.prefix}_{len(self.names)}")

    def spec(self, turn: CallSpec, chat: ChatCompletionRequest) -> CallSpec:
        """Return the call of the agent. `turn`: the call for its first answer."""
        old = {new: name for name, new in self.names.items()}
        inputs = [
            dataclasses.replace(part, reference=Reference(old[part.reference.name], part.reference.path))
            for part in turn.references
            if isinstance(part, Input) and part.reference.name in old
        ]
        functions = self._setup.functions
        form = Agent(
            model=turn.model,
            body=encode_json(_json_of(chat)).decode(),
            prefix=self.prefix,
            tools=list(self._tools.values()),
            max_turns=MAX_TURNS,
            inputs=inputs,
            binding=Binding(old),
            on_max="answer",
            first=self._pending,
            final=[name for name in self._body.flat_tools if name not in functions or functions[name].asks],
            max_calls=self._body.max_tool_calls,
        )
        return turn.as_form(form)


def _json_of(chat: ChatCompletionRequest) -> Mapping[str, Any]:
    """Return a chat completion as JSON, without the parts of `semantic` that belong to the agent."""
    content = chat.model_dump(mode="json", by_alias=True, exclude_none=True, exclude={"semantic", "stream"})
    if chat.semantic is not None:
        kept = chat.semantic.model_dump(mode="json", by_alias=True, exclude_none=True)
        content["semantic"] = {name: kept[name] for name in kept if name in ("share", "objective", "defaults")}
    return content


def without_secrets(raw: bytes) -> bytes:
    """Return the body of a request without the headers for MCP servers, which are never stored."""
    body = decode_json(raw)
    for tool in body["tools"]:
        if tool.get("type") == "mcp":
            tool.pop("headers", None)
            tool.pop("authorization", None)
    return encode_json(body)
