"""Compile and render a model's chat template, and find out which features the template supports.

Templates are written for `apply_chat_template` of transformers, so names, tags and filters are the same here.
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any

import jinja2
import jinja2.meta
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

Messages = Sequence[Mapping[str, Any]]
_PROBE = "e2c1f0a9"
"""Text that no template contains itself."""
_ID_LENGTH = 9


class TemplateRefused(Exception):
    """The template cannot be compiled, or cannot render these messages; the text says why."""


class _Generation(Extension):
    """Jinja extension for `{% generation %}`, which marks an assistant's text for training. It renders its content."""

    tags = frozenset({"generation"})  # type: ignore[assignment]

    def parse(self, parser: Parser) -> nodes.Node:
        """Parse the tag up to `{% endgeneration %}`. The content has its own scope, as in transformers."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_inside"), [], [], body).set_lineno(line)

    def _inside(self, caller: Callable[[], str]) -> str:
        return caller()


class ChatTemplate:
    """A compiled chat template. Immutable; safe to use from several threads."""

    def __init__(self, source: str, tokens: Mapping[str, str]) -> None:
        """`tokens`: texts of the special tokens by their names, such as `bos_token`. Raises TemplateRefused if the
        source cannot be compiled."""
        environment = _environment()
        try:
            self._template = environment.from_string(source)
            undeclared = jinja2.meta.find_undeclared_variables(environment.parse(source))
        except jinja2.TemplateError as error:
            line = getattr(error, "lineno", None)
            raise TemplateRefused(f"{error}" + (f" (line {line})" if line else "")) from error
        self._tokens = dict(tokens)
        self.reserved = frozenset({*environment.globals, *tokens, "messages", "tools", "add_generation_prompt", "self"})
        """Names that a client cannot set."""
        self.short_ids = False
        """Whether the template requires tool call ids of nine characters, as Mistral's templates do."""
        self.knows_tools = "tools" in undeclared
        """Whether the template describes tools to the model."""
        question, answer = {"role": "user", "content": "?"}, {"role": "assistant", "content": "!"}
        works = self._accepts([question])
        system = {"role": "system", "content": _PROBE}
        self.takes_system = not works or _PROBE in self._render_or_empty([system, question])
        """Whether the template renders system messages."""
        late = [[question, system], [question, answer, question, system]]
        self.takes_late_system = self.takes_system and all(
            _PROBE in self._render_or_empty(messages) for messages in late
        )
        """Whether the template renders a system message after a user's message."""
        self.alternates = (
            works and not self._accepts([question, question]) and self._accepts([question, answer, question])
        )
        """Whether the template refuses two consecutive user messages."""
        long, short = (self._accepts(_conversation_with_call(id)) for id in ("call_" + 24 * "0", _ID_LENGTH * "0"))
        self.short_ids = self.knows_tools and short and not long

    def render(
        self,
        messages: Messages,
        *,
        add_generation_prompt: bool,
        tools: Sequence[Mapping[str, Any]] | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> str:
        """Return the text of the messages. Raises TemplateRefused if the template raises an error.

        `add_generation_prompt`: whether to add the beginning of an answer. `options`: the client's
        `chat_template_kwargs`.
        """
        if self.short_ids:
            messages = [_with_short_ids(message) for message in messages]
        variables = {
            "documents": None,
            **(options or {}),
            **self._tokens,
            "messages": [_with_thinking(message) for message in messages],
            "tools": list(tools) if tools else None,
            "add_generation_prompt": add_generation_prompt,
        }
        try:
            return self._template.render(variables)
        except jinja2.TemplateError as error:
            raise TemplateRefused(str(error)) from error
        except Exception as error:  # a template is a program that runs on a client's data: it may raise anything
            raise TemplateRefused(f"{type(error).__name__}: {error}") from error

    def _render_or_empty(self, messages: Messages) -> str:
        try:
            return self.render(messages, add_generation_prompt=True)
        except TemplateRefused:
            return ""

    def _accepts(self, messages: Messages) -> bool:
        try:
            self.render(messages, add_generation_prompt=True)
        except TemplateRefused:
            return False
        return True


def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = lambda pattern: datetime.now().strftime(pattern)
    return environment


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


def _with_thinking(message: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the message with its reasoning also under `thinking`, the other name that templates use."""
    reasoning = message.get("reasoning_content")
    return message if reasoning is None else {"thinking": reasoning, **message}


def _with_short_ids(message: Mapping[str, Any]) -> Mapping[str, Any]:
    if calls := message.get("tool_calls"):
        message = {**message, "tool_calls": [{**call, "id": _short(call.get("id"))} for call in calls]}
    if "tool_call_id" in message:
        message = {**message, "tool_call_id": _short(message["tool_call_id"])}
    return message


def _short(id: Any) -> str:
    text = str(id)
    if len(text) == _ID_LENGTH and text.isalnum():
        return text
    return hashlib.blake2b(text.encode(errors="surrogatepass")).hexdigest()[:_ID_LENGTH]


def _conversation_with_call(id: str) -> list[dict[str, Any]]:
    """Return a conversation with a tool call of that id and its result."""
    call = {"id": id, "type": "function", "function": {"name": "f", "arguments": {}}}
    return [
        {"role": "user", "content": "?"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "name": "f", "tool_call_id": id, "content": "!"},
    ]
