"""Constrain the tool calls of an answer: by a JSON schema if it must consist of tool calls, by a grammar if it may
have some."""

import json
from collections.abc import Mapping
from typing import Any

from llguidance import StructTag

from gateway.prompts.tool_calls.formats import ToolCallFormat
from gateway.prompts.tool_calls.tools import Tool, Tools

_MAX_CALLS = 16
"""Maximum number of tool calls in an answer that may have several."""
_COMPACT_JSON = {"x-guidance": {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}}
"""Options of llguidance for JSON: no free white space, in which a small model could ramble."""


def answer_schema(tools: Tools, format: ToolCallFormat) -> dict[str, Any]:
    """Return the JSON schema of an answer that must consist of tool calls."""
    definitions: dict[str, Any] = {}
    calls = [_call(tool, format, definitions) for tool in tools.callable]
    answer = {"anyOf": calls} if len(calls) > 1 else calls[0]
    if tools.parallel or format.listed:
        answer = {"type": "array", "items": answer, "minItems": 1, "maxItems": _MAX_CALLS if tools.parallel else 1}
    return {**answer, "$defs": definitions} if definitions else answer


def answer_grammar(tools: Tools, format: ToolCallFormat, control: Mapping[str, int]) -> str | None:
    """Return a grammar for an answer that may call strict tools: any text, in which all tool calls are valid.

    Return None if the choice is not `auto` or no tool is strict. `control`: the model's control tokens; the mark
    before a tool call may be one of them.
    """
    if tools.choice != "auto" or not any(tool.strict for tool in tools.known):
        return None
    calls = [
        (
            f'{{"name": {json.dumps(tool.name)}, "{format.arguments}": ',
            tool.enforced if tool.strict else {"type": "object"},
        )
        for tool in tools.known
    ]
    mark = format.begin.strip()
    if mark and mark not in control:
        before, after = (
            format.begin + ("[" if format.listed else ""),
            "}" + ("]" if format.listed else "") + format.end,
        )
        tags = [
            StructTag(trigger=mark, begin=before + begin, grammar={**_COMPACT_JSON, **schema}, end=after)
            for begin, schema in calls
        ]
        return StructTag.to_grammar(tags, assume_special=False)
    rules = [f'call_{index}: {json.dumps(begin)} args_{index} "}}"' for index, (begin, _) in enumerate(calls)]
    rules += [
        f"args_{index}: %json {json.dumps({**_COMPACT_JSON, **schema})}" for index, (_, schema) in enumerate(calls)
    ]
    any_call = " | ".join(f"call_{index}" for index in range(len(calls)))
    if not mark:  # a call is the whole answer, and text does not begin like one
        free = r'/(?s:.*)/ & ~/\s*\{\s*"name"(?s:.*)/'
        return "\n".join(["start: FREE | call", f"FREE: {free}", f"call: {any_call}", *rules])
    listed = '"[" call (", " call)* "]"' if format.listed else "call"
    space, end = json.dumps(format.begin.removeprefix(mark)), json.dumps(format.end)
    start = f"start: FREE (<[{control[mark]}]> {space} {listed} {end})?"
    return "\n".join([start.replace(' ""', ""), "FREE: /(?s:.*)/", f"call: {any_call}", *rules])


def _call(tool: Tool, format: ToolCallFormat, definitions: dict[str, Any]) -> dict[str, Any]:
    """Return the schema of a tool call. If the schema of its arguments has references, add that to `definitions`."""
    arguments: dict[str, Any] = dict(tool.enforced)
    if '"$ref"' in json.dumps(arguments):
        definitions[tool.name] = _rebase(arguments, f"#/$defs/{tool.name}")
        arguments = {"$ref": f"#/$defs/{tool.name}"}
    return {
        "type": "object",
        "properties": {"name": {"const": tool.name}, format.arguments: arguments},
        "required": ["name", format.arguments],
        "additionalProperties": False,
    }


def _rebase(schema: Any, to: str) -> Any:
    """Return a schema for the path `to` in a larger one: its references lead to the same parts as before."""
    if isinstance(schema, list):
        return [_rebase(item, to) for item in schema]
    if not isinstance(schema, dict):
        return schema
    return {
        key: value
        if key in ("const", "enum")
        else (to + value[1:] if key == "$ref" and isinstance(value, str) and value[:1] == "#" else _rebase(value, to))
        for key, value in schema.items()
    }
