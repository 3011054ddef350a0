"""Remove from prompts what agents change from turn to turn although no model should read it.

Only rules that change nothing for the model are applied:

- The attribution line of Claude Code at the start of the system prompt, `x-anthropic-billing-header: …`. It is meant
  for the accounts of Anthropic's API, which removes it as well. It differs for each conversation and kind of call, so
  that no two prompts would have a common beginning. Messages requests lose it always (`compat.anthropic`). Chat
  completions and responses have it if a proxy translated them.
- `cache_control` needs no rule here: no prompt and no prefix key contains it. Servers with Anthropic's API get it.

Markers that count tokens down, dates, and reasoning that a client dropped are texts that the model reads. They stay,
and `gateway.programs.prompt_difference` names them.
"""

import re
from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Any

_BILLING_LINE = re.compile(r"x-anthropic-billing-header:[^\n]*\n?")
_AGENT_HEADERS = ("X-Claude-Code-Session-Id", "originator", "X-Session-Id", "X-Session-Affinity")
"""Headers that agents send by themselves: Claude Code, Codex, and OpenCode the last two."""
_AGENT_PRODUCTS = re.compile(r"(?:claude-cli|codex[\w-]{0,32}|opencode)/", re.IGNORECASE)
"""Names with which user agents of agents begin."""


class NormalizePrompts(StrEnum):
    """Requests whose prompts are normalized: all, none, or those of known agents."""

    ON = "on"
    OFF = "off"
    AGENTS = "agents"

    def applies_to(self, headers: Mapping[str, str]) -> bool:
        """Return whether the prompt of a request with these headers is normalized. Names of headers must match in any
        case."""
        return self is NormalizePrompts.ON or (self is NormalizePrompts.AGENTS and is_from_agent(headers))


def is_from_agent(headers: Mapping[str, str]) -> bool:
    """Return whether the headers are those of a known agent. Names of headers must match in any case."""
    if _AGENT_PRODUCTS.match(headers.get("User-Agent", "")):
        return True
    return any(name in headers for name in _AGENT_HEADERS)


def normalize_messages(messages: Sequence[dict[str, Any]]) -> Sequence[dict[str, Any]]:
    """Return the messages without an attribution line at the start of the system prompt.

    Contents are strings, or lists of strings and of parts that are no text. The number of messages stays the same. All
    messages but the first, and all lines but the first, stay as they are.
    """
    first: Mapping[str, Any] = messages[0] if messages else {}
    if first.get("role") not in ("system", "developer"):
        return messages
    content = first.get("content")
    text = content[0] if isinstance(content, list) and content else content
    if not isinstance(text, str) or (line := _BILLING_LINE.match(text)) is None:
        return messages
    rest = text[line.end() :]
    if isinstance(content, list):
        content = [rest, *content[1:]] if rest.strip() or len(content) == 1 else content[1:]
    else:
        content = rest
    return [{**first, "content": content}, *messages[1:]]
