"""Find tool calls in an answer while it grows."""

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from gateway.prompts.tool_calls.arguments import ArgumentsReader
from gateway.runtime.suffix_overlap import suffix_overlap


@dataclass(frozen=True)
class AnswerText:
    """A piece of ordinary text."""

    text: str


@dataclass(frozen=True)
class ToolCallStart:
    """The beginning of a tool call. `index`: its position among the tool calls of the answer."""

    index: int
    name: str


@dataclass(frozen=True)
class ToolCallArguments:
    """A piece of a tool call's arguments, as JSON."""

    index: int
    text: str


ToolCallEvent = AnswerText | ToolCallStart | ToolCallArguments

_HEAD = re.compile(r'\{\s*"name"\s*:\s*("(?:[^"\\]|\\.)*")\s*,\s*"(?:arguments|parameters)"\s*:\s*(?=\S)')
_TEXT_HEAD = re.compile(r'\{\s*"name"\s*:\s*("(?:[^"\\]|\\.)*")\s*\}[ \t]*\n')
"""Head of a call whose input is the text after it; see `text_call_head`."""
_TEXT_HEAD_BEGINS = re.compile(r'\{\s*"name"\s*:\s*"(?:[^"\\]|\\.)*"\s*\}[ \t]*')
_MAX_HEAD = 400
"""Length in characters after which a text without a complete head is not a tool call."""
_MAX_HELD = 2_000
"""Number of characters from which white space is no longer held back until it is known what follows it."""
_SLICE = 8_192
"""Number of characters that are searched for tool calls at a time."""
_INPUT_BEGIN = '{"input": "'
"""Beginning of the arguments of a call whose input is a text."""
_OPEN, _CLOSE = "<tool_call>", "</tool_call>"
_MARKS_BEGIN = frozenset(mark[:length] for mark in (_OPEN, _CLOSE) for length in range(len(mark) + 1))
_NAMED = re.compile(r'\{\s*"name"\s*:\s*("(?:[^"\\]|\\.)*")')


def _head_prefixes(*tails: str) -> re.Pattern[str]:
    """Return a pattern that matches each prefix of a tool call's head, up to its arguments. `tails`: names of the
    arguments' key."""

    def nested(parts: Sequence[str], inner: str = "") -> str:
        for part in reversed(parts):
            inner = f"(?:{part}{inner})?"
        return inner

    tail = "|".join(nested([*f'"{key}"', r"\s*", ":", r"\s*"]) for key in tails)
    string = r'(?:[^"\\]|\\.)*'
    head = [r"\{", r"\s*", *'"name"', r"\s*", ":", r"\s*", '"', string + r"\\?", '"', r"\s*", ",", r"\s*"]
    return re.compile(nested(head, f"(?:{tail})"))


_HEAD_BEGINS = _head_prefixes("arguments", "parameters")
"""Pattern of texts that may become a tool call's head when more text arrives."""


class ToolCallParser:
    """Finder of tool calls in an answer that grows. Text that turns out not to be a tool call becomes content, but a
    tool call that is cut off does not.

    The arguments of a call whose input is a text are emitted as JSON, as those of other calls are.

    States: `text` is ordinary text, until a mark, or until JSON at the beginning of the answer. `between` follows a
    mark or a tool call: JSON with a name, or a closing mark, is expected. `arguments` is inside a tool call's
    arguments. `behind` follows the arguments. `input` is inside the text of a call. In `plain`, no tool call follows.
    """

    def __init__(
        self, names: Sequence[str], *, forced: bool, repairs: bool = True, text_names: Sequence[str] = ()
    ) -> None:
        """`names`: names of the tools. `forced`: whether the answer consists of tool calls only. `repairs`: whether
        arguments that are not JSON are repaired. `text_names`: names of the tools whose input may be a text after the
        name."""
        self._repairs = repairs and not forced  # a forced tool call is constrained to its schema
        self._names = frozenset(names)
        self._text_names = frozenset(text_names)
        self._forced = forced
        self._state = "between" if forced else "text"
        self._marked = False
        """Whether a mark was opened and not yet closed."""
        self._buffer = ""
        """Text that arrived and was not emitted yet."""
        self._pending_mark = ""
        """Opening mark before the buffer, which is emitted with the buffer if it is text after all."""
        self._text_emitted = False
        self._after_call = False
        """Whether no text was emitted since the end of a tool call."""
        self._calls = 0
        self._arguments = self._new_reader()

    def _new_reader(self) -> ArgumentsReader:
        return ArgumentsReader(_CLOSE if self._marked else "", repairs=self._repairs)

    @property
    def calls(self) -> int:
        """Return the number of tool calls found so far."""
        return self._calls

    @property
    def whole(self) -> bool:
        """Return whether the arguments of the last tool call are complete."""
        return self._state not in ("arguments", "input")

    def push(self, text: str) -> list[ToolCallEvent]:
        """Add text, and return the events found in it."""
        found: list[ToolCallEvent] = []
        for begin in range(0, len(text), _SLICE):  # each tool call found copies the rest of the slice
            self._buffer += text[begin : begin + _SLICE]
            found += self._find(last=False, cut=False)
        return found

    def finish(self, *, cut: bool = False) -> list[ToolCallEvent]:
        """Return the events at the end of the text. `cut`: whether a token limit ended it, perhaps within a tool
        call."""
        found = list(self._find(last=True, cut=cut))
        if self._buffer or self._pending_mark or (self._state == "arguments" and self._arguments.held):
            if self._state == "arguments":
                found.append(ToolCallArguments(self._calls - 1, self._arguments.held + self._buffer))
            elif self._state == "input":
                found.append(self._input(self._buffer))
            elif not self._hides(cut) and (self._calls == 0 or (self._pending_mark + self._buffer).strip(" \n\t,[]")):
                found.append(AnswerText(self._pending_mark + self._buffer))
        if self._state == "input" and not cut:
            found.append(ToolCallArguments(self._calls - 1, '"}'))
            self._state = "behind"
        self._buffer = self._pending_mark = ""
        return found

    def _hides(self, cut: bool) -> bool:
        """Return whether the end of the text is hidden from the client if it may be the beginning of a tool call."""
        return self._forced or (cut and self._marked)

    def _find(self, *, last: bool, cut: bool) -> Iterator[ToolCallEvent]:
        while self._buffer:
            before = self._state, self._buffer
            match self._state:
                case "text":
                    yield from self._text(last=last)
                case "between":
                    yield from self._between(last=last, cut=cut)
                case "arguments":
                    piece = self._arguments.push(self._buffer)
                    self._buffer = self._buffer[self._arguments.consumed :]
                    if piece:
                        yield ToolCallArguments(self._calls - 1, piece)
                    if self._arguments.has_ended:
                        self._state = "behind"
                case "input":
                    yield from self._find_input_end()
                case "behind":
                    self._buffer = self._buffer.lstrip()
                    if self._buffer:
                        self._buffer = self._buffer.removeprefix("}")
                        self._state = "between"
                case _:
                    yield AnswerText(self._buffer)
                    self._buffer = ""
            if (self._state, self._buffer) == before:
                return

    def _find_input_end(self) -> Iterator[ToolCallEvent]:
        """Emit the text of a call up to the closing mark, or as far as it cannot be a part of that."""
        end = f"\n{_CLOSE}"
        position = self._buffer.find(end) if self._marked else -1
        if position >= 0:
            if position:
                yield self._input(self._buffer[:position])
            yield ToolCallArguments(self._calls - 1, '"}')
            self._buffer, self._state = self._buffer[position + 1 :], "between"
            return
        length = len(self._buffer) - (suffix_overlap(self._buffer, end) if self._marked else 0)
        if length:
            yield self._input(self._buffer[:length])
            self._buffer = self._buffer[length:]

    def _input(self, text: str) -> ToolCallArguments:
        """Return a piece of a call's text as a piece of JSON."""
        return ToolCallArguments(self._calls - 1, json.dumps(text, ensure_ascii=False)[1:-1])

    def _text(self, *, last: bool) -> Iterator[ToolCallEvent]:
        if not self._text_emitted and not self._calls and self._buffer.lstrip()[:1] in ("{", "["):
            self._state = "between"
            return
        position = self._buffer.find(_OPEN)
        if position >= 0:
            yield from self._emit(self._buffer[:position].rstrip("\n"))
            self._pending_mark, self._buffer = _OPEN, self._buffer[position + len(_OPEN) :]
            self._state, self._marked = "between", True
            return
        if not self._text_emitted and len(self._buffer) < _MAX_HELD and not self._buffer.strip() and not last:
            return  # white space before a tool call is no text
        if self._calls and self._after_call:
            self._buffer = self._buffer.lstrip("\n")
        text = self._buffer
        if not last or self._forced:  # line breaks before a mark are part of it
            text = text[: len(text) - suffix_overlap(text, _OPEN)]
            text = text.rstrip("\n") or text[:-_MAX_HELD]
        self._buffer = self._buffer[len(text) :]
        yield from self._emit(text)

    def _emit(self, text: str) -> Iterator[ToolCallEvent]:
        if text:
            self._text_emitted, self._after_call = True, False
            yield AnswerText(text)

    def _between(self, *, last: bool, cut: bool) -> Iterator[ToolCallEvent]:
        rest = self._buffer.lstrip(" \n\t,[]" if not self._marked else " \n\t")
        if self._marked and rest.startswith(_CLOSE):
            self._buffer, self._pending_mark = rest[len(_CLOSE) :].lstrip("\n"), ""
            self._state, self._marked, self._after_call = "text", False, True
            return
        head = _HEAD.match(rest)
        if head is not None and (name := _name(head[1])) in self._names:
            yield ToolCallStart(self._calls, name)
            self._calls += 1
            self._buffer, self._pending_mark = rest[head.end() :], ""
            self._state, self._arguments = "arguments", self._new_reader()
            return
        text_head = _TEXT_HEAD.match(rest) if self._text_names else None
        if text_head is not None and (name := _name(text_head[1])) in self._text_names:
            yield ToolCallStart(self._calls, name)
            yield ToolCallArguments(self._calls, _INPUT_BEGIN)
            self._calls += 1
            self._buffer, self._pending_mark, self._state = rest[text_head.end() :], "", "input"
            return
        is_text_head = bool(self._text_names) and _TEXT_HEAD_BEGINS.fullmatch(rest) is not None
        if last and self._hides(cut) and (is_text_head or _HEAD_BEGINS.fullmatch(rest) or rest in _MARKS_BEGIN):
            named = _NAMED.match(rest)
            if named is not None and (name := _name(named[1])) in self._names:
                yield ToolCallStart(self._calls, name)
                self._calls += 1
                self._state, self._arguments = "arguments", self._new_reader()
            self._buffer = self._pending_mark = ""
            return
        growing = not rest or rest.startswith("{") or (self._marked and _CLOSE.startswith(rest))
        if head is None and growing and len(rest) < _MAX_HEAD and len(self._buffer) < _MAX_HELD and not last:
            return
        if last and not rest:
            return
        after_call = self._calls or self._buffer.lstrip()[:1] == "<"  # a bracket at the beginning starts a text
        if after_call and not self._marked and rest and _OPEN.startswith(rest[: len(_OPEN)]):
            self._state = "text"
            return
        self._buffer, self._pending_mark = self._pending_mark + self._buffer, ""
        self._state, self._text_emitted = "plain", True


def parse_answer(reader: ToolCallParser, text: str, *, cut: bool = False) -> tuple[str, list[tuple[str, str]]]:
    """Return the ordinary text of a complete answer, and the name and the arguments of each tool call in it.

    `cut`: whether a token limit ended the answer.
    """
    texts, calls = list[str](), list[tuple[str, list[str]]]()
    for found in (*reader.push(text), *reader.finish(cut=cut)):
        match found:
            case AnswerText(piece):
                texts.append(piece)
            case ToolCallStart(_, name):
                calls.append((name, []))
            case ToolCallArguments(_, piece):
                calls[-1][1].append(piece)
    return "".join(texts), [(name, "".join(arguments)) for name, arguments in calls]


def _name(text: str) -> str | None:
    """Return the name in a JSON string that a model wrote; None if it is not valid."""
    try:
        name = json.loads(text)
    except ValueError:
        return None
    return name if isinstance(name, str) else None
