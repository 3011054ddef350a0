"""Describe tools, calls and results in texts, for chat templates that do not support tools."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from gateway.prompts.tool_calls.formats import HERMES, ToolCallFormat
from gateway.prompts.tool_calls.tools import Tool

Message = Mapping[str, Any]


class Verbatim(str):
    """Text of the server in a message. References in it are not resolved."""

    __slots__ = ()


def describe_in_text(
    messages: Sequence[Message], tools: Sequence[Tool], format: ToolCallFormat = HERMES, *, system: bool = True
) -> list[dict[str, Any]]:
    """Return the conversation for a template that does not support tools: tools, calls and results become texts.

    `system`: whether the template supports system messages. If not, and the client sent none, the user's first message
    describes the tools.
    """
    converted = [_convert(message, format) for message in messages]
    if not tools:
        return converted
    listed = "\n".join(json.dumps(tool.as_openai()) for tool in tools)
    description = (
        "You can call functions. Each is described here as JSON:\n"
        f"<tools>\n{listed}\n</tools>\n"
        "To call one, write its name and its arguments as JSON:\n"
        f'{format.begin}{{"name": <name>, "{format.arguments}": <arguments>}}{format.end}'
    )
    if converted and converted[0]["role"] == "system":
        content = converted[0]["content"]
        before = content if isinstance(content, list) else [content]
        return [{**converted[0], "content": [*before, "", Verbatim(description)]}, *converted[1:]]
    if system:
        return [{"role": "system", "content": Verbatim(description)}, *converted]
    if not converted or converted[0]["role"] != "user":
        return [{"role": "user", "content": Verbatim(description)}, *converted]
    content = converted[0]["content"]
    after = content if isinstance(content, list) else [content]
    return [{**converted[0], "content": [Verbatim(description), Verbatim(""), *after]}, *converted[1:]]


def _convert(message: Message, format: ToolCallFormat) -> dict[str, Any]:
    if message["role"] == "tool":
        content = message["content"]
        texts = content if isinstance(content, list) else [content]
        return {"role": "user", "content": [Verbatim("<tool_response>"), *texts, Verbatim("</tool_response>")]}
    converted = {key: value for key, value in message.items() if key != "tool_calls"}
    if calls := message.get("tool_calls"):
        call_texts = [_call_text(call["function"], format) for call in calls]
        content = message.get("content") or []
        converted["content"] = [*([content] if isinstance(content, str) else content), *call_texts]
    return converted


def _call_text(function: Mapping[str, Any], format: ToolCallFormat) -> Verbatim:
    body = json.dumps({"name": function["name"], format.arguments: function["arguments"]})
    return Verbatim(f"{format.begin}{body}{format.end}")
