"""Messages to segments: the chat template's text as tokens, with places for variables' values.

Everything a client sends is data. A control token's text inside a message is taken out before the template is
rendered and put back as ordinary text afterwards, so that only the template itself can write control tokens.
"""

import json
import re
import secrets
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import jinja2
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

from engine.tokenizer import Place, Tokenizer
from gateway.errors import RequestError
from gateway.graph.call import Input, Segment, Text
from gateway.graph.references import Reference, parse

_NONCE = secrets.token_hex(8)
"""Makes marks that nobody can forge: it leaves the process never, not even as tokens."""
_MARK = re.compile(f"\ue000{_NONCE}-(\\d+)\ue001")


class PromptBuilder:
    """Renders one model's prompts. Immutable; safe to use from several threads."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._template = None if tokenizer.chat_template is None else _compile(tokenizer.chat_template)

    def chat(self, messages: Sequence[Mapping[str, Any]], *, references: bool) -> list[Segment]:
        """The prompt of a conversation, ready for the assistant's answer.

        `messages`: as in the request, contents as strings. `references`: whether `<<name>>` is one. Raises
        RequestError if the model has no template or the template refuses the messages.
        """
        if self._template is None:
            raise RequestError(400, "this model has no chat template, so it cannot chat", code="no_chat_template")
        held = _Held(self._tokenizer, references)
        safe = [held.take_out(message, f"messages.{index}") for index, message in enumerate(messages)]
        try:
            text = self._template.render(
                messages=safe,
                add_generation_prompt=True,
                bos_token=self._tokenizer.bos_text,
                eos_token=self._tokenizer.eos_text,
            )
        except jinja2.TemplateError as error:
            raise RequestError(
                400, f"the model's chat template refuses these messages: {error}", param="messages"
            ) from error
        return held.segments(text)


class _Held:
    """What was taken out of the messages of one request, and where it was."""

    def __init__(self, tokenizer: Tokenizer, references: bool) -> None:
        self._tokenizer = tokenizer
        self._references = references
        self._pieces: list[str | Input] = []

    def take_out(self, value: Any, where: str) -> Any:
        """The value with references and control tokens in its strings replaced by marks."""
        if isinstance(value, str):
            # roles and names are no prompt text, but templates write them
            if not self._references or not where.endswith("content"):
                return self._neutral(value)
            return "".join(
                self._keep(Input(piece, where)) if isinstance(piece, Reference) else self._neutral(piece)
                for piece in parse(value)
            )
        if isinstance(value, Mapping):
            return {key: self.take_out(item, f"{where}.{key}") for key, item in value.items()}
        if isinstance(value, list):
            return [self.take_out(item, f"{where}.{index}") for index, item in enumerate(value)]
        return value

    def _neutral(self, text: str) -> str:
        pattern = self._tokenizer.control_pattern
        return text if pattern is None else pattern.sub(lambda match: self._keep(match.group()), text)

    def _keep(self, piece: str | Input) -> str:
        self._pieces.append(piece)
        return f"\ue000{_NONCE}-{len(self._pieces) - 1}\ue001"

    def segments(self, rendered: str) -> list[Segment]:
        """The rendered template, cut at references and tokenised between them."""
        segments: list[Segment] = []
        tokens: list[int] = []
        run = ""  # ordinary text is tokenised in runs as long as possible, as in any other server
        before: Place = "nothing"
        pattern = self._tokenizer.control_pattern
        for index, part in enumerate([rendered] if pattern is None else pattern.split(rendered)):
            if index % 2:
                tokens += self._tokenizer.encode(run, after=before) if run else []
                run, before = "", "control"
                tokens.append(self._tokenizer.control[part])
                continue
            for place, piece in enumerate(_MARK.split(part)):
                held = self._pieces[int(piece)] if place % 2 else piece
                if isinstance(held, str):
                    run += held
                    continue
                tokens += self._tokenizer.encode(run, after=before) if run else []
                run, before = "", "text"
                if tokens:
                    segments.append(Text(tokens))
                tokens = []
                segments.append(held)
        tokens += self._tokenizer.encode(run, after=before) if run else []
        if tokens:
            segments.append(Text(tokens))
        return segments


def _compile(template: str) -> jinja2.Template:
    """The template in the sandbox and with the helpers that Hugging Face's templates expect."""
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = lambda pattern: datetime.now().strftime(pattern)
    return environment.from_string(template)


def _tojson(value: Any, ensure_ascii: bool = False, indent: int | None = None, **_: Any) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent)


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)
