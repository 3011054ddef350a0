"""Formats in which model families write tool calls."""

from dataclasses import dataclass


@dataclass(frozen=True)
class ToolCallFormat:
    """A format of calls: JSON with a `name` and with the arguments under a key of the family's, between two marks.

    `listed`: calls are in a list, even a single one.
    """

    name: str
    begin: str
    end: str
    arguments: str = "arguments"
    listed: bool = False


HERMES = ToolCallFormat("hermes", "<tool_call>\n", "\n</tool_call>")
"""Format of Hermes, Qwen, SmolLM3 and many others."""
LLAMA = ToolCallFormat("llama", "", "", "parameters")
MISTRAL = ToolCallFormat("mistral", "[TOOL_CALLS] ", "", listed=True)
UPSTREAM = ToolCallFormat("passed on", "", "")
"""Format of upstream servers, which write and find calls themselves. Calls come back in the Hermes format."""


def format_of_template(template: str) -> ToolCallFormat:
    """Return the format that a chat template shows."""
    if "[TOOL_CALLS]" in template:
        return MISTRAL
    if "<tool_call>" not in template and '"parameters"' in template and "ipython" in template:
        return LLAMA
    return HERMES


INVALID_JSON = "INVALID_JSON"
"""Key of a tool call's input, in Anthropic's API, under which arguments that are not a JSON object are kept."""
