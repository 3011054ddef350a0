"""Find the first text in which two turns of one program differ although the later turn should extend the earlier one.

From this text on, no engine can reuse the KV of the earlier turn.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import zip_longest
from typing import Any

EXCERPT_CHARACTERS = 80
"""Maximum length of an excerpt, in characters."""
FIELD_CHARACTERS = 160
"""Maximum length of the path of a field, in characters."""
_BEFORE = 24
"""Length of the equal text in front of a difference that its excerpts show, in characters."""
_WINDOW = 160
"""Distance from a difference up to which patterns are searched, in characters."""
_REASONING_PARTS = frozenset({"thinking", "redacted_thinking", "reasoning"})
"""Types of content parts that are reasoning."""
_FIELDS = ("role", "name", "reasoning_content", "content")
"""Fields of a message in the order in which chat templates write them. Other fields follow."""
_MARKER_DEPTH = 5
"""Maximum length of the path of a `cache_control`: a part of a tool's result in a message's content."""
_FREE_NAMES = frozenset({"parameters", "input_schema", "arguments", "input"})
"""Fields in which clients choose the names of all fields."""
_BILLING_LINE = re.compile(r"\s*x-anthropic-billing-header:")
_COUNTDOWN = re.compile(
    r"(?:<(?:system_warning|budget:token_budget|system-reminder)>\s*)?"
    r"(?:Token usage: [\d,]{1,20}\s?/\s?[\d,]{1,20}; [\d,]{1,20} remaining"
    r"|USD budget: \$[\d.,]{1,20}/\$[\d.,]{1,20}; \$[\d.,]{1,20} remaining"
    r"|(?<=<budget:token_budget>)\s*[\d,]{1,20})",
    re.IGNORECASE,
)
"""Markers of Anthropic's context awareness and of Claude Code, which count tokens or money down from turn to turn."""
_MONTH = r"(?:Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec)[a-z]{0,6}\.?"
_DATE = re.compile(
    r"\d{4}[-/.]\d{1,2}[-/.]\d{1,2}(?:[T ]\d{1,2}:\d{2}(?::\d{2}(?:[.,]\d{1,9})?)?)?"
    r"|\d{1,2}[-/.]\d{1,2}[-/.]\d{4}"
    r"|\d{1,2}:\d{2}(?::\d{2}(?:[.,]\d{1,9})?)?"
    rf"|\b{_MONTH} \d{{1,2}}(?:st|nd|rd|th)?(?:,? \d{{4}})?|\b\d{{1,2}}\.? {_MONTH}(?: \d{{4}})?"
    r"|(?<!\d)1\d{9}(?:\d{3})?(?!\d)"
)
"""Dates, times of day, and Unix times in seconds or milliseconds."""


class Spoiler(StrEnum):
    """Known cause of a difference between two turns of a program."""

    BILLING_LINE = "billing_line"
    COUNTDOWN = "countdown"
    DATE = "date"
    REASONING = "reasoning"
    TOOLS = "tools"
    CACHE_CONTROL = "cache_control"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Difference:
    """First difference between two turns of a program.

    `message`: index of the message, None for the tools. `role`: its role. `field`: path of the field in the message or
    in the tools, empty if one turn lacks the message. `offset`: position of the difference in the field's text, in
    characters. `earlier`, `later`: excerpts of both texts around it, empty where a turn lacks the text.
    """

    message: int | None
    role: str
    field: str
    offset: int
    earlier: str
    later: str
    spoiler: Spoiler


def first_difference(
    earlier: Sequence[Mapping[str, Any]],
    later: Sequence[Mapping[str, Any]],
    *,
    earlier_tools: Sequence[Mapping[str, Any]] = (),
    later_tools: Sequence[Mapping[str, Any]] = (),
) -> Difference | None:
    """Return the first difference, or None if the later turn extends the earlier one.

    Messages and tools are JSON values as in a chat completion or in a Messages request. Tools precede the messages, as
    in most chat templates. A field that is None equals a missing one, and a content that is a string equals a list with
    this text. Differences of `cache_control` are no text that a model reads: the first of them is returned only if
    there is no other difference. Time is linear in the size of the earlier turn and of the first message that differs.
    """
    marker: Difference | None = None
    for pair in _pairs(earlier, later, earlier_tools, later_tools):
        walk = _Walk(pair)
        found = walk.difference()
        if found is not None:
            return found
        marker = marker or walk.marker
    return marker


@dataclass(frozen=True, slots=True)
class _Pair:
    """Two values that should be equal. `message`: index of the message, None for the tools."""

    message: int | None
    earlier: Any
    later: Any


def _pairs(
    earlier: Sequence[Mapping[str, Any]],
    later: Sequence[Mapping[str, Any]],
    earlier_tools: Sequence[Mapping[str, Any]],
    later_tools: Sequence[Mapping[str, Any]],
) -> Iterator[_Pair]:
    yield _Pair(None, earlier_tools, later_tools)
    for index, message in enumerate(earlier):
        yield _Pair(index, message, later[index] if index < len(later) else None)


class _Walk:
    """Owner of the way through two values that should be equal. It needs no recursion, whatever their depth is."""

    def __init__(self, pair: _Pair) -> None:
        self._pair = pair
        self._path: list[str] = []
        self._children: list[Iterator[tuple[str, Any, Any]]] = []
        self.marker: Difference | None = None
        """First difference of a `cache_control`."""

    def difference(self) -> Difference | None:
        """Return the first difference that is not a `cache_control`, if there is one."""
        found = self._compare(self._pair.earlier, self._pair.later)
        while found is None and self._children:
            child = next(self._children[-1], None)
            if child is None:
                self._children.pop()
                if self._path:
                    self._path.pop()
                continue
            name, earlier, later = child
            self._path.append(name)
            depth = len(self._children)
            if name == "cache_control" and self._is_marker():
                if self.marker is None and _text(earlier) != _text(later):
                    self.marker = self._difference(earlier, later, Spoiler.CACHE_CONTROL)
            else:
                found = self._compare(earlier, later)
            if found is None and len(self._children) == depth:
                self._path.pop()
        return found

    def _is_marker(self) -> bool:
        """Return whether the path ends with a field of a tool, a message or a part, not with a name in a JSON schema or
        in the arguments of a call."""
        return len(self._path) <= _MARKER_DEPTH and _FREE_NAMES.isdisjoint(self._path)

    def _compare(self, earlier: Any, later: Any) -> Difference | None:
        """Return the difference of two values; if they are containers, prepare to compare their children."""
        if earlier is later:
            return None
        if not self._path and self._pair.message is not None and isinstance(later, Mapping):
            self._children.append(_fields(earlier, later))
            return None
        if isinstance(earlier, Mapping) and isinstance(later, Mapping):
            if _kind(earlier) != _kind(later):
                return self._difference(earlier, later)
            if self._pair.message is None and (before := _order(earlier)) != (after := _order(later)):
                return self._difference(before, after)
            self._children.append(_members(earlier, later))
            return None
        if isinstance(earlier, list | tuple) and isinstance(later, list | tuple):
            pairs = enumerate(zip_longest(earlier, later))
            self._children.append((str(index), before, after) for index, (before, after) in pairs)
            return None
        if type(earlier) is type(later) and earlier == later:
            return None
        return self._difference(earlier, later)

    def _difference(self, earlier: Any, later: Any, spoiler: Spoiler | None = None) -> Difference:
        before, after = _text(earlier), _text(later)
        offset = common_length(before, after)
        role = "" if self._pair.message is None else _role(self._pair)
        if spoiler is None:
            spoiler = self._spoiler(role, earlier, later, before, after, offset)
        field = ".".join(name[:FIELD_CHARACTERS] for name in self._path[:FIELD_CHARACTERS])[:FIELD_CHARACTERS]
        shown = slice(start := max(0, offset - _BEFORE), start + EXCERPT_CHARACTERS)
        return Difference(self._pair.message, role, field, offset, before[shown], after[shown], spoiler)

    def _spoiler(self, role: str, earlier: Any, later: Any, before: str, after: str, offset: int) -> Spoiler:
        if self._pair.message is None:
            return Spoiler.TOOLS
        if role == "assistant" and self._drops_reasoning(earlier, later, before, after):
            return Spoiler.REASONING
        if role in ("system", "developer") and any(
            _BILLING_LINE.match(text) and "\n" not in text[:offset].lstrip() for text in (before, after)
        ):
            return Spoiler.BILLING_LINE
        if _match_at(_COUNTDOWN, before, offset) != _match_at(_COUNTDOWN, after, offset):
            return Spoiler.COUNTDOWN
        dates = _match_at(_DATE, before, offset), _match_at(_DATE, after, offset)
        if all(dates) and dates[0] != dates[1]:
            return Spoiler.DATE
        return Spoiler.UNKNOWN

    def _drops_reasoning(self, earlier: Any, later: Any, before: str, after: str) -> bool:
        if self._path[:1] == ["reasoning_content"] or self._path[-1:] == ["thinking"]:
            return True
        kinds = {_kind(value) for value in (earlier, later)}
        if len(kinds) == 2:
            return not _REASONING_PARTS.isdisjoint(kinds)
        return self._path[:1] == ["content"] and _has_reasoning(before) != _has_reasoning(after)


def _has_reasoning(text: str) -> bool:
    return text[:_WINDOW].lstrip().startswith("<think>")


def _role(pair: _Pair) -> str:
    role = pair.earlier.get("role")
    return role[:EXCERPT_CHARACTERS] if isinstance(role, str) else ""


def _kind(value: Any) -> str:
    kind = value.get("type") if isinstance(value, Mapping) else None
    return kind if isinstance(kind, str) else ""


def _order(value: Mapping[str, Any]) -> list[str]:
    """Return the names in an object of a tool, whose JSON text the model reads."""
    return [name for name in value if name != "cache_control" and value[name] is not None]


def _fields(earlier: Mapping[str, Any], later: Mapping[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    """Yield the fields of two messages in the order of chat templates."""
    earlier, later = _canonical(earlier), _canonical(later)
    for name in dict.fromkeys((*_FIELDS, *earlier, *later)):
        before, after = earlier.get(name), later.get(name)
        if name == "content" and not (isinstance(before, str) and isinstance(after, str)):
            before, after = _parts(before), _parts(after)
        yield name, before, after


def _canonical(message: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the message with its reasoning under one name: servers use two."""
    if "reasoning" not in message:
        return message
    fields = {name: value for name, value in message.items() if name != "reasoning"}
    return {**fields, "reasoning_content": fields.get("reasoning_content") or message["reasoning"]}


def _parts(content: Any) -> Any:
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


def _members(earlier: Mapping[str, Any], later: Mapping[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    for name in dict.fromkeys((*earlier, *later)):
        before, after = earlier.get(name), later.get(name)
        if name == "content":
            before, after = (_parts(before), _parts(after)) if type(before) is not type(after) else (before, after)
        yield str(name), before, after


def _text(value: Any) -> str:
    """Return a string unchanged, nothing for None, and the beginning of another value's JSON."""
    if isinstance(value, str):
        return value
    return "" if value is None else "".join(_json(value, 2 * _WINDOW))


def _json(value: Any, room: int) -> Iterator[str]:
    """Yield the JSON text of a value, or its beginning of at least `room` characters. Every level needs a character, so
    that `room` limits the depth."""
    if room <= 0:
        return
    if isinstance(value, Mapping):
        room -= 1
        separator = "{"
        for name, item in value.items():
            for piece in (f"{separator}{json.dumps(str(name)[:room], ensure_ascii=False)}: ", *_json(item, room)):
                yield piece
                room -= len(piece)
            if room <= 0:
                return
            separator = ", "
        yield "}" if separator == ", " else "{}"
    elif isinstance(value, list | tuple):
        room -= 1
        separator = "["
        for item in value:
            for piece in (separator, *_json(item, room)):
                yield piece
                room -= len(piece)
            if room <= 0:
                return
            separator = ", "
        yield "]" if separator == ", " else "[]"
    else:
        yield json.dumps(value[:room] if isinstance(value, str) else value, ensure_ascii=False, default=repr)


def common_length(first: str, second: str) -> int:
    """Return the number of characters that both texts begin with. Time is linear."""
    length = min(len(first), len(second))
    if first[:length] == second[:length]:
        return length
    start, step = 0, length
    while step > 1:
        half = step // 2
        if first[start : start + half] == second[start : start + half]:
            start, step = start + half, step - half
        else:
            step = half
    return start


def _match_at(pattern: re.Pattern[str], text: str, offset: int) -> str:
    """Return the match of the pattern that includes the offset or ends there; nothing if there is none."""
    for match in pattern.finditer(text, max(0, offset - _WINDOW), offset + _WINDOW):
        if match.start() <= offset <= match.end():
            return match[0]
    return ""
