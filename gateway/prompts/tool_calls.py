"""Describe tools to a model, constrain its calls, and find calls in its answer.

Model families write calls in different formats. The chat template shows which one a model uses. If the template does
not support tools, a message describes them, and asks for the most common format.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from llguidance import StructTag

Message = Mapping[str, Any]


@dataclass(frozen=True)
class CallFormat:
    """A format of calls: JSON with a `name` and with the arguments under a key of the family's, between two marks.

    `listed`: calls are in a list, even a single one.
    """

    name: str
    begin: str
    end: str
    arguments: str = "arguments"
    listed: bool = False


HERMES = CallFormat("hermes", "<tool_call>\n", "\n</tool_call>")
"""Format of Hermes, Qwen, SmolLM3 and many others."""
LLAMA = CallFormat("llama", "", "", "parameters")
MISTRAL = CallFormat("mistral", "[TOOL_CALLS] ", "", listed=True)
UPSTREAM_FORMAT = CallFormat("passed on", "", "")
"""Format of upstream servers, which write and find calls themselves. Calls come back in the Hermes format."""


def call_format_of(template: str) -> CallFormat:
    """Return the format that a chat template shows."""
    if "[TOOL_CALLS]" in template:
        return MISTRAL
    if "<tool_call>" not in template and '"parameters"' in template and "ipython" in template:
        return LLAMA
    return HERMES


@dataclass(frozen=True)
class Tool:
    """A function that the client can run for the model.

    `schema`: schema of the arguments that the model reads. `held`: schema that constrains the arguments. `strict`:
    whether it constrains calls that the model is free to make as well.
    """

    name: str
    description: str = ""
    schema: Mapping[str, Any] = field(default_factory=lambda: {"type": "object"})
    strict: bool = False
    held: Mapping[str, Any] = field(default_factory=lambda: {"type": "object"})

    def as_openai(self) -> dict[str, Any]:
        """Return the tool in OpenAI's format, which chat templates expect."""
        function = {"name": self.name, "description": self.description, "parameters": dict(self.schema)}
        return {"type": "function", "function": function}

    def as_upstream(self) -> dict[str, Any]:
        """Return the tool for an upstream server, which may constrain calls by `strict`."""
        described = self.as_openai()
        if self.strict:
            described["function"]["strict"] = True
        return described


Choice = Literal["none", "auto", "forced"]


@dataclass(frozen=True)
class Tools:
    """The tools of a request. With `forced`, the answer is one call of `callable`, or several if `parallel`."""

    known: Sequence[Tool]
    choice: Choice = "auto"
    callable: Sequence[Tool] = ()
    parallel: bool = False
    parallel_told: bool | None = None
    """Value of `parallel_tool_calls` in the request."""

    def request(self) -> dict[str, Any]:
        """Return the fields of a request in OpenAI's format."""
        if self.choice == "none":
            return {}
        fields: dict[str, Any] = {"tools": [tool.as_upstream() for tool in self.known]}
        if self.choice == "forced":
            (only, *others) = self.callable
            named = len(self.known) > 1 and not others
            fields["tool_choice"] = {"type": "function", "function": {"name": only.name}} if named else "required"
        if self.parallel_told is not None:
            fields["parallel_tool_calls"] = self.parallel_told
        return fields

    def call_schema(self, style: CallFormat) -> dict[str, Any]:
        """Return the schema of a forced answer."""
        definitions: dict[str, Any] = {}
        calls = [_call(tool, style, definitions) for tool in self.callable]
        answer = {"anyOf": calls} if len(calls) > 1 else calls[0]
        if self.parallel or style.listed:
            answer = {"type": "array", "items": answer, "minItems": 1, "maxItems": _MAX_CALLS if self.parallel else 1}
        return {**answer, "$defs": definitions} if definitions else answer

    def grammar(self, style: CallFormat, control: Mapping[str, int]) -> str | None:
        """Return a grammar for an answer that may call strict tools: any text, with calls in it that are valid.

        Return None if the choice is not `auto` or no tool is strict. `control`: the model's control tokens; the mark
        before a call may be one of them.
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
            before, after = (
                style.begin + ("[" if style.listed else ""),
                "}" + ("]" if style.listed else "") + style.end,
            )
            tags = [
                StructTag(trigger=mark, begin=before + begin, grammar={**_COMPACT_JSON, **schema}, end=after)
                for begin, schema in calls
            ]
            return StructTag.to_grammar(tags, assume_special=False)
        rules = [f'call_{index}: {json.dumps(begin)} args_{index} "}}"' for index, (begin, _) in enumerate(calls)]
        rules += [
            f"args_{index}: %json {json.dumps({**_COMPACT_JSON, **schema})}" for index, (_, schema) in enumerate(calls)
        ]
        any_call = " | ".join(f"call_{index}" for index in range(len(calls)))
        if not mark:  # a call is the whole answer, and text does not begin like one
            free = r'/(?s:.*)/ & ~/\s*\{\s*"name"(?s:.*)/'
            return "\n".join(["start: FREE | call", f"FREE: {free}", f"call: {any_call}", *rules])
        listed = '"[" call (", " call)* "]"' if style.listed else "call"
        space, end = json.dumps(style.begin.removeprefix(mark)), json.dumps(style.end)
        start = f"start: FREE (<[{control[mark]}]> {space} {listed} {end})?"
        return "\n".join([start.replace(' ""', ""), "FREE: /(?s:.*)/", f"call: {any_call}", *rules])


_MAX_CALLS = 16
"""Maximum number of calls in an answer that may have several."""
_COMPACT_JSON = {"x-guidance": {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}}
"""Options of llguidance for JSON: no free white space, in which a small model could ramble."""


def _call(tool: Tool, style: CallFormat, definitions: dict[str, Any]) -> dict[str, Any]:
    """Return the schema of a call. If the schema of the arguments has references, it is added to `definitions`."""
    arguments: dict[str, Any] = dict(tool.held)
    if '"$ref"' in json.dumps(arguments):
        definitions[tool.name] = _rebase(arguments, f"#/$defs/{tool.name}")
        arguments = {"$ref": f"#/$defs/{tool.name}"}
    return {
        "type": "object",
        "properties": {"name": {"const": tool.name}, style.arguments: arguments},
        "required": ["name", style.arguments],
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


# for templates without support for tools


class Verbatim(str):
    """Text of the server in a message. References in it are not resolved."""

    __slots__ = ()


def describe_in_text(
    messages: Sequence[Message], tools: Sequence[Tool], style: CallFormat = HERMES, *, system: bool = True
) -> list[dict[str, Any]]:
    """Return the conversation for a template that does not support tools: tools, calls and results become texts.

    `system`: whether the template supports system messages. If not, and the client sent none, the user's first message
    describes the tools.
    """
    converted = [_convert(message, style) for message in messages]
    if not tools:
        return converted
    listed = "\n".join(json.dumps(tool.as_openai()) for tool in tools)
    description = (
        "You can call functions. Each is described here as JSON:\n"
        f"<tools>\n{listed}\n</tools>\n"
        "To call one, write its name and its arguments as JSON:\n"
        f'{style.begin}{{"name": <name>, "{style.arguments}": <arguments>}}{style.end}'
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


def _convert(message: Message, style: CallFormat) -> dict[str, Any]:
    if message["role"] == "tool":
        content = message["content"]
        texts = content if isinstance(content, list) else [content]
        return {"role": "user", "content": [Verbatim("<tool_response>"), *texts, Verbatim("</tool_response>")]}
    converted = {key: value for key, value in message.items() if key != "tool_calls"}
    if calls := message.get("tool_calls"):
        call_texts = [_call_text(call["function"], style) for call in calls]
        content = message.get("content") or []
        converted["content"] = [*([content] if isinstance(content, str) else content), *call_texts]
    return converted


def _call_text(function: Mapping[str, Any], style: CallFormat) -> Verbatim:
    body = json.dumps({"name": function["name"], style.arguments: function["arguments"]})
    return Verbatim(f"{style.begin}{body}{style.end}")


# calls in what the model writes


@dataclass(frozen=True)
class AnswerText:
    """A piece of ordinary text."""

    text: str


@dataclass(frozen=True)
class CallStart:
    """The beginning of a call. `index`: its position among the calls of the answer."""

    index: int
    name: str


@dataclass(frozen=True)
class CallArguments:
    """A piece of a call's arguments, as JSON."""

    index: int
    text: str


CallEvent = AnswerText | CallStart | CallArguments

_HEAD = re.compile(r'\{\s*"name"\s*:\s*("(?:[^"\\]|\\.)*")\s*,\s*"(?:arguments|parameters)"\s*:\s*(?=\S)')
_MAX_HEAD = 400
"""Length in characters after which a text without a complete head is not a call."""
_SLICE = 8_192
"""Number of characters that are searched for calls at a time."""
_OPEN, _CLOSE = "<tool_call>", "</tool_call>"
_MARKS_BEGIN = frozenset(mark[:length] for mark in (_OPEN, _CLOSE) for length in range(len(mark) + 1))
_NAMED = re.compile(r'\{\s*"name"\s*:\s*("(?:[^"\\]|\\.)*")')


def _head_prefixes(*tails: str) -> re.Pattern[str]:
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


_HEAD_BEGINS = _head_prefixes("arguments", "parameters")
"""Pattern of texts that may become a call's head when more text arrives."""


class CallParser:
    """Finder of calls in an answer that grows. Text that turns out not to be a call becomes content, but a call that is
    cut off does not.

    States: `text` is ordinary text, until a mark, or until JSON at the beginning of the answer. `between` follows a
    mark or a call: JSON with a name, or a closing mark, is expected. `arguments` is inside a call's arguments. `behind`
    follows the arguments. `plain` has no more calls.
    """

    def __init__(self, names: Sequence[str], *, forced: bool) -> None:
        """`names`: names of the tools. `forced`: whether the answer consists of calls only."""
        self._names = frozenset(names)
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
        """Whether no text was emitted since the end of a call."""
        self._calls = 0
        self._scan = _Json()

    @property
    def calls(self) -> int:
        """Return the number of calls found so far."""
        return self._calls

    @property
    def whole(self) -> bool:
        """Return whether the arguments of the last call are complete."""
        return self._state != "arguments"

    def push(self, text: str) -> list[CallEvent]:
        """Add text, and return what is found in it."""
        found: list[CallEvent] = []
        for begin in range(0, len(text), _SLICE):  # each call found copies the rest of the slice
            self._buffer += text[begin : begin + _SLICE]
            found += self._find(last=False, cut=False)
        return found

    def finish(self, *, cut: bool = False) -> list[CallEvent]:
        """Return what is found at the end of the text. `cut`: whether a token limit ended it, perhaps within a call."""
        found = list(self._find(last=True, cut=cut))
        if self._buffer or self._pending_mark:
            if self._state == "arguments":
                found.append(CallArguments(self._calls - 1, self._buffer))
            elif not self._hides(cut) and (self._calls == 0 or (self._pending_mark + self._buffer).strip(" \n\t,[]")):
                found.append(AnswerText(self._pending_mark + self._buffer))
        self._buffer = self._pending_mark = ""
        return found

    def _hides(self, cut: bool) -> bool:
        """Return whether text at the end that may be the beginning of a call is hidden from the client."""
        return self._forced or (cut and self._marked)

    def _find(self, *, last: bool, cut: bool) -> Iterator[CallEvent]:
        while self._buffer:
            before = self._state, self._buffer
            match self._state:
                case "text":
                    yield from self._text(last=last)
                case "between":
                    yield from self._between(last=last, cut=cut)
                case "arguments":
                    piece, ended = self._scan.take(self._buffer)
                    self._buffer = self._buffer[len(piece) :]
                    if piece:
                        yield CallArguments(self._calls - 1, piece)
                    if ended:
                        self._state = "behind"
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

    def _text(self, *, last: bool) -> Iterator[CallEvent]:
        if not self._text_emitted and not self._calls and self._buffer.lstrip()[:1] in ("{", "["):
            self._state = "between"
            return
        position = self._buffer.find(_OPEN)
        if position >= 0:
            yield from self._emit(self._buffer[:position].rstrip("\n"))
            self._pending_mark, self._buffer = _OPEN, self._buffer[position + len(_OPEN) :]
            self._state, self._marked = "between", True
            return
        if not self._text_emitted and not self._buffer.strip() and not last:
            return  # white space before a call is no text
        if self._calls and self._after_call:
            self._buffer = self._buffer.lstrip("\n")
        text = self._buffer
        if not last or self._forced:  # line breaks before a mark are part of it
            text = text[: len(text) - _partial_mark(text, _OPEN)].rstrip("\n")
        self._buffer = self._buffer[len(text) :]
        yield from self._emit(text)

    def _emit(self, text: str) -> Iterator[CallEvent]:
        if text:
            self._text_emitted, self._after_call = True, False
            yield AnswerText(text)

    def _between(self, *, last: bool, cut: bool) -> Iterator[CallEvent]:
        rest = self._buffer.lstrip(" \n\t,[]" if not self._marked else " \n\t")
        if self._marked and rest.startswith(_CLOSE):
            self._buffer, self._pending_mark = rest[len(_CLOSE) :].lstrip("\n"), ""
            self._state, self._marked, self._after_call = "text", False, True
            return
        head = _HEAD.match(rest)
        if head is not None and (name := _name(head[1])) in self._names:
            yield CallStart(self._calls, name)
            self._calls += 1
            self._buffer, self._pending_mark = rest[head.end() :], ""
            self._state, self._scan = "arguments", _Json()
            return
        if last and self._hides(cut) and (_HEAD_BEGINS.fullmatch(rest) or rest in _MARKS_BEGIN):
            named = _NAMED.match(rest)
            if named is not None and (name := _name(named[1])) in self._names:
                yield CallStart(self._calls, name)
                self._calls += 1
                self._state = "arguments"
            self._buffer = self._pending_mark = ""
            return
        growing = not rest or rest.startswith("{") or (self._marked and _CLOSE.startswith(rest))
        if head is None and growing and len(rest) < _MAX_HEAD and not last:
            return
        if last and not rest:
            return
        after_call = self._calls or self._buffer.lstrip()[:1] == "<"  # a bracket at the beginning starts a text
        if after_call and not self._marked and rest and _OPEN.startswith(rest[: len(_OPEN)]):
            self._state = "text"
            return
        self._buffer, self._pending_mark = self._pending_mark + self._buffer, ""
        self._state, self._text_emitted = "plain", True


def parse_calls(reader: CallParser, text: str, *, cut: bool = False) -> tuple[str, list[tuple[str, str]]]:
    """Return the ordinary text of a complete answer, and the name and the arguments of each call in it.

    `cut`: whether a token limit ended the answer.
    """
    texts, calls = list[str](), list[tuple[str, list[str]]]()
    for found in (*reader.push(text), *reader.finish(cut=cut)):
        match found:
            case AnswerText(piece):
                texts.append(piece)
            case CallStart(_, name):
                calls.append((name, []))
            case CallArguments(_, piece):
                calls[-1][1].append(piece)
    return "".join(texts), [(name, "".join(arguments)) for name, arguments in calls]


class _Json:
    """Scanner that finds the end of one JSON value."""

    def __init__(self) -> None:
        self._depth = 0
        self._in_string = False
        self._escaped = False
        self._begun = False

    def take(self, text: str) -> tuple[str, bool]:
        """Return the part of the text that belongs to the value, and whether the value ends there."""
        for index, character in enumerate(text):
            if self._in_string:
                if self._escaped:
                    self._escaped = False
                elif character == "\\":
                    self._escaped = True
                elif character == '"':
                    self._in_string = False
                    if not self._depth:
                        return text[: index + 1], True
                continue
            if character == '"':
                self._in_string = self._begun = True
            elif character in "{[":
                self._depth += 1
                self._begun = True
            elif character in "}]":
                if not self._depth:
                    return text[:index], True  # the end of the object or list around the value
                self._depth -= 1
                if not self._depth:
                    return text[: index + 1], True
            elif not self._depth and self._begun and character in ", \n\t":
                return text[:index], True
            elif not character.isspace():
                self._begun = True
        return text, False


def _name(text: str) -> str | None:
    """Return the name in a JSON string that a model wrote; None if it is not valid."""
    try:
        name = json.loads(text)
    except ValueError:
        return None
    return name if isinstance(name, str) else None


def _partial_mark(text: str, mark: str) -> int:
    """Return the length of the longest suffix of the text that is a proper prefix of the mark."""
    for length in range(min(len(text), len(mark) - 1), 0, -1):
        if mark.startswith(text[len(text) - length :]):
            return length
    return 0
