"""Formats of tool calls."""

import pytest

from gateway.prompts.tool_calls.formats import HERMES, LLAMA, MISTRAL, ToolCallFormat, format_of_template


@pytest.mark.parametrize(
    ("template", "format"),
    [
        ("{{ '[AVAILABLE_TOOLS]' }}{{ '[TOOL_CALLS] [' }}", MISTRAL),
        ("{{ '{\"name\": name, \"parameters\": …}' }}{{ 'ipython' }}", LLAMA),
        ("{{ '<tool_call>' }}", HERMES),
        ("{{ messages }}", HERMES),
    ],
)
def test_the_call_format_is_detected_from_the_template(template: str, format: ToolCallFormat) -> None:
    assert format_of_template(template) is format
