"""Tools described in texts."""

from typing import Any

from gateway.prompts.tool_calls.description import describe_in_text
from gateway.prompts.tool_calls.tools import Tool

TOOLS = [
    Tool("weather", "Of a city.", {"type": "object", "properties": {"city": {"type": "string"}}}),
    Tool("add", strict=True),
]


def test_tools_are_described_in_text_for_templates_without_support() -> None:
    conversation: list[dict[str, Any]] = [
        {"role": "user", "content": "Warm?"},
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [{"id": "1", "function": {"name": "weather", "arguments": {"city": "Bonn"}}}],
        },
        {"role": "tool", "content": "21 degrees", "tool_call_id": "1"},
    ]
    system, user, assistant, tool = describe_in_text(conversation, TOOLS)
    assert system["role"] == "system"
    assert '"name": "weather"' in system["content"]
    assert user == conversation[0]
    assert assistant["content"] == [
        '<tool_call>\n{"name": "weather", "arguments": {"city": "Bonn"}}\n</tool_call>',
    ]
    assert "tool_calls" not in assistant
    assert tool == {"role": "user", "content": ["<tool_response>", "21 degrees", "</tool_response>"]}
    own, _ = describe_in_text([{"role": "system", "content": "Be brief."}, conversation[0]], TOOLS)
    assert own["content"][:2] == ["Be brief.", ""]
    assert own["content"][2].startswith("You can call functions.")
    assert describe_in_text(conversation[:1], []) == conversation[:1]
