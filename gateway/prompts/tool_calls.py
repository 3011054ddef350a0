"""Tools: how a model is told of them, how its calls are written, and how they are found in what it writes.

Families write calls in ways of their own. Which one a model's is, its chat template shows; where that knows of no
tools, the model is told in words, and asked to write as most do.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from llguidance import StructTag

Message = Mapping[str, Any]


@dataclass(frozen=True)
class Style:
    """How calls are written: JSON with a `name` and the arguments under a key of the family's, between two marks.

    `listed`: they stand in a list, even a single one.
    """

    name: str
    begin: str
    end: str
    arguments: str = "arguments"
    listed: bool = False


HERMES = Style("hermes", "<tool_call>\n", "\n</tool_call>")
"""Hermes, Qwen, SmolLM3 and many others."""
LLAMA = Style("llama", "", "", "parameters")
MISTRAL = Style("mistral", "[TOOL_CALLS] ", "", listed=True)
PASSED_ON = Style("passed on", "", "")
"""Where the engine's own server writes and finds calls; they come back in Hermes's."""


def style_of(template: str) -> Style:
    """The one that a chat template shows."""
    if "[TOOL_CALLS]" in template:
        return MISTRAL
    if "<tool_call>" not in template and '"parameters"' in template and "ipython" in template:
        return LLAMA
    return HERMES


@dataclass(frozen=True)
class Tool:
    """A function that the client can call. `schema`: of its arguments, as the model is told; `held`: what they are held
    to. `strict`: even where the model need not call at all."""

    name: str
    description: str = ""
    schema: Mapping[str, Any] = field(default_factory=lambda: {"type": "object"})
    strict: bool = False
    held: Mapping[str, Any] = field(default_factory=lambda: {"type": "object"})

    def described(self) -> dict[str, Any]:
        """As OpenAI has it, and templates expect it."""
        function = {"name": self.name, "description": self.description, "parameters": dict(self.schema)}
        return {"type": "function", "function": function}

    def told(self) -> dict[str, Any]:
        """The same for another server, which may hold calls to it."""
        described = self.described()
        if self.strict:
            described["function"]["strict"] = True
        return described


Choice = Literal["none", "auto", "forced"]


@dataclass(frozen=True)
class Tools:
    """What a request says of tools. With `forced` the answer is calls of `callable`, one or, if `parallel`, several."""

    known: Sequence[Tool]
    choice: Choice = "auto"
    callable: Sequence[Tool] = ()
    parallel: bool = False
    parallel_told: bool | None = None
    """What the request itself says of calls in parallel."""

    def request(self) -> dict[str, Any]:
        """As a request of OpenAI's has them."""
        if self.choice == "none":
            return {}
        told: dict[str, Any] = {"tools": [tool.told() for tool in self.known]}
        if self.choice == "forced":
            (only, *others) = self.callable
            named = len(self.known) > 1 and not others
            told["tool_choice"] = {"type": "function", "function": {"name": only.name}} if named else "required"
        if self.parallel_told is not None:
            told["parallel_tool_calls"] = self.parallel_told
        return told

    def call_schema(self, style: Style) -> dict[str, Any]:
        """Of what a forced answer is."""
        definitions: dict[str, Any] = {}
        calls = [_call(tool, style, definitions) for tool in self.callable]
        one = {"anyOf": calls} if len(calls) > 1 else calls[0]
        if self.parallel or style.listed:
            one = {"type": "array", "items": one, "minItems": 1, "maxItems": _MOST_CALLS if self.parallel else 1}
        return {**one, "$defs": definitions} if definitions else one

    def grammar(self, style: Style, control: Mapping[str, int]) -> str | None:
        """For an answer that may call strict tools and need not: any text, with calls in it that are right.

        `control`: the model's control tokens, among which the mark before a call may be.
        """
        if self.choice != "auto" or not any(tool.strict for tool in self.known):
            return None
        calls = [
            (
                f'{{"name": {json.dumps(tool.name)}, "{style.arguments}": ',
                tool.held if tool.strict else {"type": "object"},
            )
            for tool in self.known
        ]
        mark = style.begin.strip()
        if mark and mark not in control:
            before, behind = (
                style.begin + ("[" if style.listed else ""),
                "}" + ("]" if style.listed else "") + style.end,
            )
            tags = [
                StructTag(trigger=mark, begin=before + begin, grammar={**_WRITTEN, **schema}, end=behind)
                for begin, schema in calls
            ]
            return StructTag.to_grammar(tags, assume_special=False)
        rules = [f'call_{at}: {json.dumps(begin)} args_{at} "}}"' for at, (begin, _) in enumerate(calls)]
        rules += [f"args_{at}: %json {json.dumps({**_WRITTEN, **schema})}" for at, (_, schema) in enumerate(calls)]
        each = " | ".join(f"call_{at}" for at in range(len(calls)))
        if not mark:  # a call is the whole answer, and text does not begin like one
            free = r'/(?s:.*)/ & ~/\s*\{\s*"name"(?s:.*)/'
            return "\n".join(["start: FREE | call", f"FREE: {free}", f"call: {each}", *rules])
        listed = '"[" call (", " call)* "]"' if style.listed else "call"
        space, end = json.dumps(style.begin.removeprefix(mark)), json.dumps(style.end)
        start = f"start: FREE (<[{control[mark]}]> {space} {listed} {end})?"
        return "\n".join([start.replace(' ""', ""), "FREE: /(?s:.*)/", f"call: {each}", *rules])


_MOST_CALLS = 16
"""Of an answer that may hold several."""
_WRITTEN = {"x-guidance": {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}}
"""How llguidance is to write JSON: without white space in which a small model could ramble."""


def _call(tool: Tool, style: Style, definitions: dict[str, Any]) -> dict[str, Any]:
    """Of a call of the tool. A schema of arguments that refers to parts of itself becomes one of the `definitions`."""
    arguments: dict[str, Any] = dict(tool.held)
    if '"$ref"' in json.dumps(arguments):
        definitions[tool.name] = _moved(arguments, f"#/$defs/{tool.name}")
        arguments = {"$ref": f"#/$defs/{tool.name}"}
    return {
        "type": "object",
        "properties": {"name": {"const": tool.name}, style.arguments: arguments},
        "required": ["name", style.arguments],
        "additionalProperties": False,
    }


def _moved(schema: Any, to: str) -> Any:
    """A schema that stands at `to` in another now, with what it refers to in itself."""
    if isinstance(schema, list):
        return [_moved(one, to) for one in schema]
    if not isinstance(schema, dict):
        return schema
    return {
        key: value
        if key in ("const", "enum")
        else (to + value[1:] if key == "$ref" and isinstance(value, str) and value[:1] == "#" else _moved(value, to))
        for key, value in schema.items()
    }


# for templates that know of no tools


class Verbatim(str):
    """Text of ours in a message: what looks like a reference in it is none."""

    __slots__ = ()


def in_words(
    messages: Sequence[Message], tools: Sequence[Tool], style: Style = HERMES, *, system: bool = True
) -> list[dict[str, Any]]:
    """Return the conversation for a template that supports neither tools nor calls nor answers of tools. `system`:
    whether it supports system messages. If not, and the client sent none, the user's first message describes the
    tools."""
    told = [_told(message, style) for message in messages]
    if not tools:
        return told
    listed = "\n".join(json.dumps(tool.described()) for tool in tools)
    words = (
        "You can call functions. Each is described here as JSON:\n"
        f"<tools>\n{listed}\n</tools>\n"
        "To call one, write its name and its arguments as JSON:\n"
        f'{style.begin}{{"name": <name>, "{style.arguments}": <arguments>}}{style.end}'
    )
    if told and told[0]["role"] == "system":
        content = told[0]["content"]
        before = content if isinstance(content, list) else [content]
        return [{**told[0], "content": [*before, "", Verbatim(words)]}, *told[1:]]
    if system:
        return [{"role": "system", "content": Verbatim(words)}, *told]
    if not told or told[0]["role"] != "user":
        return [{"role": "user", "content": Verbatim(words)}, *told]
    content = told[0]["content"]
    behind = content if isinstance(content, list) else [content]
    return [{**told[0], "content": [Verbatim(words), Verbatim(""), *behind]}, *told[1:]]


def _told(message: Message, style: Style) -> dict[str, Any]:
    if message["role"] == "tool":
        content = message["content"]
        texts = content if isinstance(content, list) else [content]
        return {"role": "user", "content": [Verbatim("<tool_response>"), *texts, Verbatim("</tool_response>")]}
    told = {key: value for key, value in message.items() if key != "tool_calls"}
    if calls := message.get("tool_calls"):
        written = [_written(call["function"], style) for call in calls]
        content = message.get("content") or []
        told["content"] = [*([content] if isinstance(content, str) else content), *written]
    return told


def _written(function: Mapping[str, Any], style: Style) -> Verbatim:
    body = json.dumps({"name": function["name"], style.arguments: function["arguments"]})
    return Verbatim(f"{style.begin}{body}{style.end}")


# what the model writes


@dataclass(frozen=True)
class AnswerText:
    """A piece of ordinary text."""

    text: str


@dataclass(frozen=True)
class CallStart:
    """A call begins: the `index`-th of the answer."""

    index: int
    name: str


@dataclass(frozen=True)
class CallArguments:
    """A piece of a call's arguments, as JSON."""

    index: int
    text: str


Found = AnswerText | CallStart | CallArguments

_HEAD = re.compile(r'\{\s*"name"\s*:\s*("(?:[^"\\]|\\.)*")\s*,\s*"(?:arguments|parameters)"\s*:\s*(?=\S)')
_LONGEST_HEAD = 400
"""Characters; what has no name by then is no call."""
_SLICE = 8_192
"""Number of characters that are searched for calls at a time."""
_OPEN, _CLOSE = "<tool_call>", "</tool_call>"
_MARKS_BEGIN = frozenset(mark[:length] for mark in (_OPEN, _CLOSE) for length in range(len(mark) + 1))
_NAMED = re.compile(r'\{\s*"name"\s*:\s*("(?:[^"\\]|\\.)*")')


def _beginnings(*tails: str) -> re.Pattern[str]:
    """Return a pattern that matches each prefix of a call's head, up to its arguments. `tails`: names of the
    arguments' key."""

    def nested(parts: Sequence[str], inner: str = "") -> str:
        for part in reversed(parts):
            inner = f"(?:{part}{inner})?"
        return inner

    tail = "|".join(nested([*f'"{key}"', r"\s*", ":", r"\s*"]) for key in tails)
    string = r'(?:[^"\\]|\\.)*'
    head = [r"\{", r"\s*", *'"name"', r"\s*", ":", r"\s*", '"', string + r"\\?", '"', r"\s*", ",", r"\s*"]
    return re.compile(nested(head, f"(?:{tail})"))


_HEAD_BEGINS = _beginnings("arguments", "parameters")
"""Pattern of texts that may become a call's head when more text arrives."""


class Reader:
    """Finds calls in an answer as it grows. Text that turns out not to be a call is content; a cut-off call never is.

    `text`: ordinary text, until a mark comes, or JSON at the very beginning. `between`: behind a mark, or a call: JSON
    with a name, or an end. `arguments`: within a call's. `plain`: nothing but text any more.
    """

    def __init__(self, names: Sequence[str], *, forced: bool) -> None:
        """`names`: of the tools that there are. `forced`: the answer is nothing but calls."""
        self._names = frozenset(names)
        self._forced = forced
        self._state = "between" if forced else "text"
        self._marked = False
        """Whether a mark was opened and not closed yet."""
        self._held = ""
        """What came and was not told yet."""
        self._before = ""
        """What stood before it and would be told with it, if it is text after all."""
        self._told = False
        self._behind_call = False
        """Whether nothing was told since a call's end."""
        self._calls = 0
        self._scan = _Json()

    @property
    def calls(self) -> int:
        """Calls found so far."""
        return self._calls

    @property
    def whole(self) -> bool:
        """Whether the arguments of the last call are complete."""
        return self._state != "arguments"

    def push(self, text: str) -> list[Found]:
        """Return what is found now that the text goes on."""
        found: list[Found] = []
        for begin in range(0, len(text), _SLICE):  # each call found copies the rest of the slice
            self._held += text[begin : begin + _SLICE]
            found += self._found(last=False, cut=False)
        return found

    def finish(self, *, cut: bool = False) -> list[Found]:
        """Return what is found at the end of the text. `cut`: whether a token limit ended it, perhaps within a call."""
        found = list(self._found(last=True, cut=cut))
        if self._held or self._before:
            if self._state == "arguments":
                found.append(CallArguments(self._calls - 1, self._held))
            elif not self._hides(cut) and (self._calls == 0 or (self._before + self._held).strip(" \n\t,[]")):
                found.append(AnswerText(self._before + self._held))
        self._held = self._before = ""
        return found

    def _hides(self, cut: bool) -> bool:
        """Return whether text at the end that may be the beginning of a call is hidden from the client."""
        return self._forced or (cut and self._marked)

    def _found(self, *, last: bool, cut: bool) -> Iterator[Found]:
        while self._held:
            before = self._state, self._held
            match self._state:
                case "text":
                    yield from self._text(last=last)
                case "between":
                    yield from self._between(last=last, cut=cut)
                case "arguments":
                    piece, ended = self._scan.take(self._held)
                    self._held = self._held[len(piece) :]
                    if piece:
                        yield CallArguments(self._calls - 1, piece)
                    if ended:
                        self._state = "behind"
                case "behind":
                    self._held = self._held.lstrip()
                    if self._held:
                        self._held = self._held.removeprefix("}")
                        self._state = "between"
                case _:
                    yield AnswerText(self._held)
                    self._held = ""
            if (self._state, self._held) == before:
                return

    def _text(self, *, last: bool) -> Iterator[Found]:
        if not self._told and not self._calls and self._held.lstrip()[:1] in ("{", "["):
            self._state = "between"
            return
        at = self._held.find(_OPEN)
        if at >= 0:
            yield from self._say(self._held[:at].rstrip("\n"))
            self._before, self._held = _OPEN, self._held[at + len(_OPEN) :]
            self._state, self._marked = "between", True
            return
        if not self._told and not self._held.strip() and not last:
            return  # white space before a call is no text
        if self._calls and self._behind_call:
            self._held = self._held.lstrip("\n")
        text = self._held
        if not last or self._forced:  # line ends before a mark belong to it
            text = text[: len(text) - _begun(text, _OPEN)].rstrip("\n")
        self._held = self._held[len(text) :]
        yield from self._say(text)

    def _say(self, text: str) -> Iterator[Found]:
        if text:
            self._told, self._behind_call = True, False
            yield AnswerText(text)

    def _between(self, *, last: bool, cut: bool) -> Iterator[Found]:
        rest = self._held.lstrip(" \n\t,[]" if not self._marked else " \n\t")
        if self._marked and rest.startswith(_CLOSE):
            self._held, self._before = rest[len(_CLOSE) :].lstrip("\n"), ""
            self._state, self._marked, self._behind_call = "text", False, True
            return
        head = _HEAD.match(rest)
        if head is not None and (name := _name(head[1])) in self._names:
            yield CallStart(self._calls, name)
            self._calls += 1
            self._held, self._before = rest[head.end() :], ""
            self._state, self._scan = "arguments", _Json()
            return
        if last and self._hides(cut) and (_HEAD_BEGINS.fullmatch(rest) or rest in _MARKS_BEGIN):
            named = _NAMED.match(rest)
            if named is not None and (name := _name(named[1])) in self._names:
                yield CallStart(self._calls, name)
                self._calls += 1
                self._state = "arguments"
            self._held = self._before = ""
            return
        growing = not rest or rest.startswith("{") or (self._marked and _CLOSE.startswith(rest))
        if head is None and growing and len(rest) < _LONGEST_HEAD and not last:
            return
        if last and not rest:
            return
        behind = self._calls or self._held.lstrip()[:1] == "<"  # not behind a bracket, which is text's beginning
        if behind and not self._marked and rest and _OPEN.startswith(rest[: len(_OPEN)]):
            self._state = "text"
            return
        self._held, self._before = self._before + self._held, ""
        self._state, self._told = "plain", True


def read_calls(reader: Reader, text: str, *, cut: bool = False) -> tuple[str, list[tuple[str, str]]]:
    """Return the ordinary text of a complete answer, and the name and the arguments of each call in it.

    `cut`: whether a token limit ended the answer.
    """
    said, calls = list[str](), list[tuple[str, list[str]]]()
    for found in (*reader.push(text), *reader.finish(cut=cut)):
        match found:
            case AnswerText(piece):
                said.append(piece)
            case CallStart(_, name):
                calls.append((name, []))
            case CallArguments(_, piece):
                calls[-1][1].append(piece)
    return "".join(said), [(name, "".join(arguments)) for name, arguments in calls]


class _Json:
    """Where one JSON value ends."""

    def __init__(self) -> None:
        self._depth = 0
        self._in_string = False
        self._escaped = False
        self._begun = False

    def take(self, text: str) -> tuple[str, bool]:
        """The part of the text that belongs to the value, and whether it ends there."""
        for at, character in enumerate(text):
            if self._in_string:
                if self._escaped:
                    self._escaped = False
                elif character == "\\":
                    self._escaped = True
                elif character == '"':
                    self._in_string = False
                    if not self._depth:
                        return text[: at + 1], True
                continue
            if character == '"':
                self._in_string = self._begun = True
            elif character in "{[":
                self._depth += 1
                self._begun = True
            elif character in "}]":
                if not self._depth:
                    return text[:at], True  # what it stands in ends
                self._depth -= 1
                if not self._depth:
                    return text[: at + 1], True
            elif not self._depth and self._begun and character in ", \n\t":
                return text[:at], True
            elif not character.isspace():
                self._begun = True
        return text, False


def _name(written: str) -> str | None:
    """Return the name that a model wrote as a JSON string; None if it is none: models write what they like."""
    try:
        name = json.loads(written)
    except ValueError:
        return None
    return name if isinstance(name, str) else None


def _begun(text: str, mark: str) -> int:
    """Length of the longest end of the text that is a proper beginning of the mark."""
    for length in range(min(len(text), len(mark) - 1), 0, -1):
        if mark.startswith(text[len(text) - length :]):
            return length
    return 0
