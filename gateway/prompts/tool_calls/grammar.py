"""Constrain the tool calls of an answer: by a JSON schema if it must consist of tool calls, by a grammar if it may
have some."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from llguidance import StructTag

from gateway.prompts.tool_calls.formats import ToolCallFormat
from gateway.prompts.tool_calls.tools import Tool, Tools

_MAX_CALLS = 16
"""Maximum number of tool calls in an answer that may have several."""
_COMPACT_JSON = {"x-guidance": {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}}
"""Options of llguidance for JSON: no free white space, in which a small model could ramble."""


def forced_grammar(tools: Tools, format: ToolCallFormat) -> str | None:
    """Return the grammar of an answer that must consist of tool calls; None if `answer_schema` can describe it.

    An answer with the text of a tool with a grammar has one call, because only the end of the answer ends the text.
    """
    if all(tool.input_lark is None for tool in tools.callable):
        return None
    names, rules = list[str](), list[str]()
    for index, tool in enumerate(tools.callable):
        names.append(f"call_{index}")
        rules += _call_rules(index, tool, format, tool.enforced)
    return "\n".join([f"start: {' | '.join(names)}", *rules])


def _call_rules(index: int, tool: Tool, format: ToolCallFormat, enforced: Mapping[str, Any]) -> list[str]:
    """Return the rules for a call of a tool. `enforced`: schema of its arguments."""
    if tool.input_lark is not None:
        return [f"call_{index}: {json.dumps(text_call_head(tool.name))} text_{index}", _text_rule(index, tool)]
    return [
        f'call_{index}: {json.dumps(_json_head(tool, format))} args_{index} "}}"',
        f"args_{index}: %json {json.dumps({**_COMPACT_JSON, **enforced})}",
    ]


def text_call_head(name: str) -> str:
    """Return the head of a call whose input is a text: its name alone, as JSON, on a line of its own."""
    return f'{{"name": {json.dumps(name)}}}\n'


def _text_rule(index: int, tool: Tool) -> str:
    """Return the rule for the input of a tool with a grammar."""
    return f"text_{index}: %lark {{\n{tool.input_lark}\n}}"


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

    Return None if the choice is not `auto`, or no tool is strict or has a grammar. `control`: the model's control
    tokens; the mark before a tool call may be one of them.
    """
    if tools.choice != "auto" or not any(tool.strict or tool.input_lark is not None for tool in tools.known):
        return None
    mark = format.begin.strip()
    if mark and mark not in control:
        return _marked_grammar(tools.known, format, mark)
    json_calls, text_calls, rules = list[str](), list[str](), list[str]()
    for index, tool in enumerate(tools.known):
        (json_calls if tool.input_lark is None else text_calls).append(f"call_{index}")
        rules += _call_rules(index, tool, format, _free_schema(tool))
    if json_calls:
        rules.append(f"json_call: {' | '.join(json_calls)}")
    if not mark:  # a call is the whole answer, and text does not begin like one
        free = r'/(?s:.*)/ & ~/\s*\{\s*"name"(?s:.*)/'
        calls = [*(["json_call"] if json_calls else []), *text_calls]
        return "\n".join([f"start: FREE | {' | '.join(calls)}", f"FREE: {free}", *rules])
    listed = '"[" json_call (", " json_call)* "]"' if format.listed else "json_call"
    space, end = json.dumps(format.begin.removeprefix(mark)), json.dumps(format.end)
    calls = [f"{listed} {end}"] if json_calls else []
    # the end of a call is optional after a text that can contain it: the text goes on to the end of the answer
    calls += [f"{call} ({end})?" if format.end else call for call in text_calls]
    start = f"start: FREE (<[{control[mark]}]> {space} ({' | '.join(calls)}))?"
    return "\n".join([start.replace(' ""', ""), "FREE: /(?s:.*)/", *rules])


def _marked_grammar(tools: Sequence[Tool], format: ToolCallFormat, mark: str) -> str:
    """Return the grammar of a text with calls between marks that are ordinary text."""
    before, after = format.begin + ("[" if format.listed else ""), "}" + ("]" if format.listed else "") + format.end
    tags, texts = list[StructTag](), list[str]()
    for index, tool in enumerate(tools):
        if tool.input_lark is None:
            begin, schema, end = before + _json_head(tool, format), {**_COMPACT_JSON, **_free_schema(tool)}, after
        else:
            # the tags cannot hold a grammar in Lark: its place is marked by a schema, which is replaced below
            begin, schema, end = format.begin + text_call_head(tool.name), {"const": f"text_{index}"}, format.end
            texts.append(_text_rule(index, tool))
        tags.append(StructTag(trigger=mark, begin=begin, grammar=schema, end=end))
    lines = StructTag.to_grammar(tags, assume_special=False).splitlines()
    for index, tool in enumerate(tools):
        if tool.input_lark is None:
            continue
        position = next(number for number, line in enumerate(lines) if line.startswith(f"tag_{index}: "))
        schema_text = f"%json {json.dumps({'const': f'text_{index}'})}"
        lines[position] = lines[position].replace(schema_text, f"text_{index}")
        # a text that can contain the end of the call goes on to the end of the answer
        unended = lines[position].removesuffix(json.dumps(format.end) if format.end else "")
        texts.append(f"unended_{unended.removeprefix('tag_')}")
        lines = [f"{line} | unended_{index}" if line.startswith("tag_end: ") else line for line in lines]
    if not format.end:  # nothing ends a text, so no other text may follow it
        ended = " | ".join(f"tag_{index}" for index, tool in enumerate(tools) if tool.input_lark is None)
        lines = [
            f"start: {f'({ended})* ' if ended else ''}tag_end" if line.startswith("start: ") else line for line in lines
        ]
    return "\n".join([*lines, *texts])


def _json_head(tool: Tool, format: ToolCallFormat) -> str:
    return f'{{"name": {json.dumps(tool.name)}, "{format.arguments}": '


def _free_schema(tool: Tool) -> Mapping[str, Any]:
    """Return the schema that constrains the arguments of a call that the model is free to make."""
    return tool.enforced if tool.strict else {"type": "object"}


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
