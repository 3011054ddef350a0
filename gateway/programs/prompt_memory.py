"""Remember the latest prompt of each conversation, and find the first place where a later prompt differs from it."""

import json
import marshal
from collections import OrderedDict
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from sys import getsizeof
from typing import Any, Generic, TypeVar

from gateway.graph.limits import SharedLimit
from gateway.programs.prompt_difference import Difference, Spoiler, common_length, first_difference

Key = TypeVar("Key", bound=Hashable)

MAX_PROMPT_BYTES = 2 << 20
"""Memory of a prompt, in bytes, beyond which it is not remembered."""
_ENTRY_BYTES = 400
"""Approximate memory of a remembered prompt beside its values, in bytes."""
_MAX_PARSED = 131_072
"""Maximum length of the arguments that one comparison parses, in characters. Each takes the interpreter's lock while it
is parsed, so that a thread does not help."""
_MAX_WALKED = 32_768
"""Maximum length of the arguments that one comparison compares value by value, in characters. Further ones are compared
as JSON texts with sorted names."""
_MAX_INSTRUCTIONS = 131_072
"""Number of characters of the instructions by which two prompts are found to be of one agent."""
_COMMON_SHARE = 0.5
"""Share of the shorter instructions that two prompts of one agent have in common."""


@dataclass(frozen=True, slots=True)
class HeldPrompt:
    """Messages and tools of a prompt, as JSON values. `size`: their approximate memory, in bytes.

    A message has `role`, `content`, and if it has them, `name`, `reasoning_content`, and `tool_calls`. Each tool call
    has a `name` and the text of its `arguments`.
    """

    messages: Sequence[Mapping[str, Any]]
    tools: Sequence[Mapping[str, Any]]
    size: int


def held_prompt(messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]]) -> HeldPrompt | None:
    """Return a prompt with its size, or None if it is too large to be remembered. Time is linear in the number of its
    values."""
    size = _memory_of((messages, tools), MAX_PROMPT_BYTES)
    return HeldPrompt(messages, tools, size) if size <= MAX_PROMPT_BYTES else None


def _memory_of(values: Any, limit: int) -> int:
    """Return the approximate memory of JSON values, in bytes; beyond the limit, any number above it."""
    total, stack = _ENTRY_BYTES, [values]
    while stack and total <= limit:
        value = stack.pop()
        total += getsizeof(value)
        if isinstance(value, dict):
            total += sum(map(getsizeof, value))  # clients choose names, of any length
            stack.extend(value.values())
        elif isinstance(value, list | tuple):
            stack.extend(value)
    return total


@dataclass(frozen=True, slots=True)
class Comparison:
    """Result of the comparison of two prompts. `is_continued`: whether the later prompt should extend the earlier one;
    see `compare_prompts`. `difference`: where it does not."""

    is_continued: bool
    difference: Difference | None


def compare_prompts(earlier: HeldPrompt, later: HeldPrompt) -> Comparison:
    """Compare the prompt of a turn with that of a later call which has the answer of that turn in its history.

    The later prompt should extend the earlier one if both are of one agent. They are not if only one of them has
    instructions at its start, or if less than half of the shorter instructions stand in the longer ones: as equal
    beginning and end, or as equal lines. Such calls are, for example, those that let a small agent name or judge the
    conversation of another. Time is linear in the size of the prompts.

    Arguments of tool calls are compared as objects, so that white space and the order of names do not count. If the
    arguments that differ as texts are longer than `_MAX_PARSED` together, no difference in them or after them is found.
    """
    if not _are_similar(_instructions(earlier.messages), _instructions(later.messages)):
        return Comparison(False, None)
    return Comparison(True, _first_difference(earlier, later))


def _first_difference(earlier: HeldPrompt, later: HeldPrompt) -> Difference | None:
    """Return the first difference that a model reads.

    Most messages are equal, which is found by comparing them directly.
    """
    if not _are_equal_tools(earlier.tools, later.tools):
        found = first_difference((), (), earlier_tools=earlier.tools, later_tools=later.tools)
        if found is not None and found.spoiler is not Spoiler.CACHE_CONTROL:
            return found
    arguments = _Arguments()
    for index, message in enumerate(earlier.messages):
        if index == len(later.messages):
            found = first_difference([message], [])
        elif _are_equal(message, other := later.messages[index]):
            continue
        else:
            before, after = arguments.parsed(message, other)
            found = first_difference([before], [after])
            if arguments.is_exhausted and (found is None or found.field.startswith("tool_calls")):
                return None
        if found is not None and found.spoiler is not Spoiler.CACHE_CONTROL:
            return replace(found, message=index)
    return None


def _are_equal(first: object, second: object) -> bool:
    try:
        return first == second
    except RecursionError:
        return False


def _are_equal_tools(first: Any, second: Any) -> bool:
    """Return whether tools are equal, including the order of the names in objects; False if they are nested too deeply
    for a direct comparison."""
    if len(first) != len(second):
        return False
    try:  # version 0 has no references, so that equal values have equal bytes
        return marshal.dumps(first, 0) == marshal.dumps(second, 0)
    except ValueError:
        return False


class _Arguments:
    """Owner of the work that one comparison may spend on the arguments of tool calls."""

    def __init__(self) -> None:
        self._unparsed = _MAX_PARSED
        self._unwalked = _MAX_WALKED
        self.is_exhausted = False
        """Whether there were arguments that could not be parsed any more. They count as equal."""

    def parsed(
        self, earlier: Mapping[str, Any], later: Mapping[str, Any]
    ) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
        """Return two messages with the arguments of their tool calls as objects, as chat templates get them."""
        calls, others = (list(message.get("tool_calls") or ()) for message in (earlier, later))
        if not calls or not others:
            return earlier, later
        for index, (call, other) in enumerate(zip(calls, others, strict=False)):
            before, after = self._comparable(call["arguments"], other["arguments"])
            calls[index], others[index] = {**call, "arguments": before}, {**other, "arguments": after}
        return {**earlier, "tool_calls": calls}, {**later, "tool_calls": others}

    def _comparable(self, earlier: str, later: str) -> tuple[Any, Any]:
        """Return two arguments as they are compared: as objects, or as texts that are equal if the objects are."""
        if earlier == later:
            return "", ""
        if not _may_be_object(earlier) or not _may_be_object(later):
            return earlier, later
        self._unparsed -= len(earlier) + len(later)
        if self._unparsed < 0:
            self.is_exhausted = True
            return "", ""
        before, after = _parsed_text(earlier), _parsed_text(later)
        if isinstance(before, str) or isinstance(after, str):
            return before, after
        try:
            texts = [json.dumps(value, ensure_ascii=False, sort_keys=True) for value in (before, after)]
        except RecursionError:
            return earlier, later
        if texts[0] == texts[1]:
            return "", ""
        self._unwalked -= len(earlier) + len(later)
        return (before, after) if self._unwalked >= 0 else (texts[0], texts[1])


def _may_be_object(text: str) -> bool:
    return not text or text.lstrip()[:1] == "{"


def _parsed_text(text: str) -> Any:
    try:
        value = json.loads(text or "{}")
    except (ValueError, RecursionError):
        return text
    return value if isinstance(value, dict) else text


def _instructions(messages: Sequence[Mapping[str, Any]]) -> str:
    """Return the texts of the instructions before the first other message, at most `_MAX_INSTRUCTIONS` characters."""
    texts: list[str] = []
    for message in messages:
        if message.get("role") not in ("system", "developer"):
            break
        content = message.get("content")
        parts = content if isinstance(content, list | tuple) else [{"text": content}]
        texts += [text for part in parts if isinstance(part, Mapping) and isinstance(text := part.get("text"), str)]
    return "\n".join(texts)[:_MAX_INSTRUCTIONS]


def _are_similar(first: str, second: str) -> bool:
    if first == second:
        return True
    least = _COMMON_SHARE * min(len(first), len(second))
    if not least:
        return False
    if common_length(first, second) + common_length(first[::-1], second[::-1]) >= least:
        return True
    one, other = ({line for text in whole.splitlines() if (line := text.strip())} for whole in (first, second))
    shorter = min(sum(map(len, one)), sum(map(len, other)))
    return sum(map(len, one & other)) >= _COMMON_SHARE * shorter > 0


class PromptMemory(Generic[Key]):
    """Owner of the prompts that later prompts are compared with, by tenant and call.

    If the memory is full, the least recently used prompt of the tenant with the most bytes is forgotten. If a tenant
    exceeds its own share, its least recently used prompts are forgotten at once.
    """

    def __init__(self, max_bytes: int, *, several_tenants: bool = True) -> None:
        """`max_bytes`: maximum memory of all tenants together."""
        self._limit = SharedLimit(max_bytes, several=several_tenants)
        self._tenants: dict[str, OrderedDict[Key, HeldPrompt]] = {}

    def __len__(self) -> int:
        return sum(map(len, self._tenants.values()))

    @property
    def bytes(self) -> int:
        """Approximate memory of all prompts, in bytes."""
        return sum(map(self._limit.amount, list(self._tenants)))

    def add(self, tenant: str, key: Key, prompt: HeldPrompt) -> None:
        """Remember a prompt, in place of an earlier one of the same key."""
        self.remove(tenant, key)
        self._tenants.setdefault(tenant, OrderedDict())[key] = prompt
        self._limit.add(tenant, prompt.size)
        while tenant in self._tenants and not self._limit.has_room(tenant, 0):
            self._forget_oldest(tenant)
        for largest in self._limit.excess_holders():
            self._forget_oldest(largest)

    def get(self, tenant: str, key: Key) -> HeldPrompt | None:
        """Return the prompt of a call and mark it as most recently used; None if it is not remembered."""
        held = self._tenants.get(tenant)
        if held is None or key not in held:
            return None
        held.move_to_end(key)
        return held[key]

    def remove(self, tenant: str, key: Key) -> None:
        """Forget the prompt of a call. Do nothing if it is not remembered."""
        held = self._tenants.get(tenant)
        prompt = None if held is None else held.pop(key, None)
        if held is None or prompt is None:
            return
        self._limit.remove(tenant, prompt.size)
        if not held:
            del self._tenants[tenant]

    def _forget_oldest(self, tenant: str) -> None:
        self.remove(tenant, next(iter(self._tenants[tenant])))
