"""Translate the forms that use tools: `tool` and `agent`."""

import re
import secrets
from collections.abc import Awaitable, Callable, Container, Mapping, Sequence
from typing import Any

from compat.openai import AgentOptions, LimitsRequest, ToolRequest
from gateway.errors import RequestError
from gateway.graph.budget import Limits
from gateway.graph.call import CallSpec
from gateway.graph.forms.arguments import Path, dotted_path, path_text, replace_strings, strings_of
from gateway.graph.forms.form import Agent, AgentTool, Binding, ToolRun
from gateway.graph.references import Reference, parse
from gateway.graph.segments import Input
from gateway.runtime.json_codec import encode_json
from gateway.tools.protocol import BadArguments, ToolDescription, ToolFailed, ToolRefused, Tools

_PREFIX_BYTES = 8
_MAX_FUNCTIONS = 128
"""Maximum number of an agent's tools, as in OpenAI's API."""
_FUNCTION_LENGTH = 64
_BAD_IN_FUNCTION = re.compile(r"[^A-Za-z0-9_-]")

ChatBuilder = Callable[[dict[str, Any]], Awaitable[CallSpec]]
"""Builds the call of a chat completion's body, which may be refused."""


class ToolFormBuilder:
    """Builder of forms with tools for one request. It raises RequestError and GraphError."""

    def __init__(self, tools: Tools, tenant: str) -> None:
        self._tools = tools
        self._tenant = tenant

    async def tool(self, run: ToolRequest, where: str) -> ToolRun:
        """Return the run of a tool. Arguments that are known now are checked against the tool's schema."""
        inputs: list[Input] = []
        unknown = []
        for path, text in strings_of(run.arguments):
            parts = [part for part in parse(text) if isinstance(part, Reference)]
            inputs += [Input(part, f"{where}.arguments.{path_text(path)}") for part in parts]
            if parts:
                unknown.append(path)
        try:
            await self._tools.check(run.server, run.name, run.arguments, unknown=unknown, tenant=self._tenant)
        except (ToolRefused, ToolFailed) as error:
            raise _refusal(error, where) from error
        names = {part.reference.name: part.reference.name for part in inputs}
        return ToolRun(run.server, run.name, encode_json(run.arguments).decode(), inputs, Binding(names))

    async def agent(self, chat: dict[str, Any], options: AgentOptions, build: ChatBuilder, where: str) -> Agent:
        """Return an agent. `chat`: the body of its chat completion, which `build` checks."""
        semantic = chat.get("semantic")
        for key in ("output", "slots", "inputs", "transform", "defer"):
            if isinstance(semantic, dict) and semantic.get(key):
                message = f"semantic.{key} is not possible in an agent, whose `output` names the last answer"
                raise _unsupported(message, f"{where}.semantic.{key}")
        tools, described = await self._functions(options.tools, where)
        if described:
            chat = {**chat, "tools": described}
        spec = await build(chat)
        prefix = f"a{secrets.token_hex(_PREFIX_BYTES)}"
        names: dict[str, str] = {}

        def rename(text: str, path: Path) -> str:
            return "".join([_renamed(part, prefix, names) for part in parse(text)])

        body = {**chat, "messages": replace_strings(chat["messages"], rename)}
        if isinstance(semantic, dict) and semantic.get("defaults"):  # `build` has checked that the prompt reads them
            defaults = {names[name]: default for name, default in semantic["defaults"].items()}
            body["semantic"] = {**semantic, "defaults": defaults}
        return Agent(
            model=spec.model,
            body=encode_json(body).decode(),
            prefix=prefix,
            tools=tools,
            max_turns=options.max_turns,
            inputs=list(spec.references),
            binding=Binding({new: old for old, new in names.items()}),
            on_max=options.on_max,
            limits=limits_of(options.limits),
            forces_each=options.on_max == "answer",
        )

    async def _functions(self, patterns: Sequence[str], where: str) -> tuple[list[AgentTool], list[Mapping[str, Any]]]:
        """Return the tools that match an agent's patterns, and their descriptions for a chat completion."""
        functions: dict[str, AgentTool] = {}
        known: set[tuple[str, str]] = set()
        described: list[Mapping[str, Any]] = []
        for index, pattern in enumerate(dict.fromkeys(patterns)):
            server, slash, name = pattern.partition("/")
            field = f"{where}.tools.{index}"
            if not slash:
                message = f"{field}: {pattern!r} must be server/tool, where * in the tool's name stands for any text"
                raise RequestError(400, message, code="invalid_value", param=field)
            try:
                found = await self._tools.describe(server, name)
            except (ToolRefused, ToolFailed) as error:
                raise _refusal(error, field) from error
            for tool in found:
                if (tool.server, tool.name) in known:
                    continue
                known.add((tool.server, tool.name))
                function = _function_name(tool, functions)
                functions[function] = AgentTool(function, tool.server, tool.name)
                definition = {
                    "name": function,
                    "description": tool.description,
                    "parameters": dict(tool.input_schema),
                }
                described.append({"type": "function", "function": definition})
        if len(described) > _MAX_FUNCTIONS:
            message = f"the patterns match {len(described)} tools; the maximum is {_MAX_FUNCTIONS}"
            raise RequestError(400, message, code="too_large", param=f"{where}.tools")
        return list(functions.values()), described


def limits_of(requested: LimitsRequest | None) -> Limits | None:
    """Return the limits that a request sets; None if it sets none."""
    if requested is None:
        return None
    limits = Limits(requested.tokens, requested.cost, requested.calls, requested.seconds)
    return None if limits == Limits() else limits


def _refusal(error: ToolRefused | ToolFailed, where: str) -> RequestError:
    """Return the error for a request with a tool that cannot be run."""
    if isinstance(error, ToolFailed):
        return RequestError(503, str(error), code=error.code, param=where)
    field = where
    if isinstance(error, BadArguments):
        field = f"{where}.arguments.{dotted_path(error.where)}" if error.where else f"{where}.arguments"
    return RequestError(400, f"{field}: {error}", code=error.code, param=field)


def _function_name(tool: ToolDescription, taken: Container[str]) -> str:
    """Return a name for a tool that models may call: letters, digits, `_` and `-`, at most 64 of them."""
    names = [_BAD_IN_FUNCTION.sub("_", name) for name in (tool.name, f"{tool.server}_{tool.name}")]
    for name in names:
        if name and len(name) <= _FUNCTION_LENGTH and name not in taken:
            return name
    stem, number = names[0][: _FUNCTION_LENGTH - 4], 2
    while f"{stem}_{number}" in taken:
        number += 1
    return f"{stem}_{number}"


def _renamed(part: str | Reference, prefix: str, names: dict[str, str]) -> str:
    """Return a text, or a reference under a name that begins with `prefix`. `names`: new names by old ones."""
    if isinstance(part, str):
        return part
    name = names.setdefault(part.name, f"{prefix}_{len(names)}")
    return str(Reference(name, part.path))


def _unsupported(message: str, param: str) -> RequestError:
    return RequestError(400, message, code="unsupported_with_semantic", param=param)
