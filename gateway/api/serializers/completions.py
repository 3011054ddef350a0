"""Serialize calls as completions."""

import codecs
from collections.abc import Sequence
from typing import Any

import msgspec

from compat.openai import CompletionChoice, CompletionLogprobs, CompletionRequest, CompletionUsage, TextCompletion
from gateway.api.openai.logprobs import finite
from gateway.api.schema_checks import AnswerChecker
from gateway.api.semantic.extension import Scope
from gateway.api.serializers.base import SemanticField
from gateway.api.serializers.choices import ChoicesSerializer, UsageField
from gateway.graph.ids import new_id
from gateway.graph.variable import Piece
from gateway.prompts.served_models import ServedModel


class CompletionSerializer(ChoicesSerializer):
    """Serializer of calls as one completion. Whole answers and chunks have the same shape."""

    def __init__(
        self, body: CompletionRequest, model: ServedModel, scope: Scope, checker: AnswerChecker | None
    ) -> None:
        super().__init__(
            body,
            scope,
            model.id,
            f"cmpl-{new_id(24)}",
            per_prompt=body.candidate_count,
            returned=body.choice_count,
            checker=checker,
        )
        self._model = model
        self._includes_logprobs = body.logprobs is not None
        self._offsets: dict[int, TextOffsets] = {}
        """Text offsets of each answer, by index."""
        self._skips_special = body.skip_special_tokens is not False
        self._echoed: list[str] = []
        """Text before the answers to each prompt."""
        self._answers_per_prompt = body.choice_count
        if body.echo:
            self._echoed = [
                prompt if isinstance(prompt, str) else model.known_tokenizer.decode(prompt) for prompt in body.prompts
            ]

    def _choice(self, index: int, text: str, finish: str, pieces: Sequence[Piece]) -> CompletionChoice:
        return CompletionChoice(self._echo(index) + text, finish, index, self._logprobs(index, pieces))

    def _body(self, choices: Sequence[CompletionChoice], usage: CompletionUsage, semantic: SemanticField) -> Any:
        return self._chunk(choices, usage, semantic)

    def _opening(self, index: int) -> CompletionChoice | None:
        echo = self._echo(index)
        return CompletionChoice(echo, None, index) if echo else None

    def _parts(self, index: int, text: str, pieces: Sequence[Piece]) -> list[CompletionChoice]:
        logprobs = self._logprobs(index, pieces)
        return [CompletionChoice(text, None, index, logprobs)] if text or logprobs else []

    def _closing(self, index: int, finish: str) -> list[CompletionChoice]:
        return [CompletionChoice("", finish, index)]

    def _chunk(
        self, choices: Sequence[CompletionChoice], usage: UsageField, semantic: SemanticField = msgspec.UNSET
    ) -> TextCompletion:
        return self._build(TextCompletion, choices, usage, semantic)

    def _echo(self, index: int) -> str:
        return self._echoed[index // self._answers_per_prompt] if self._echoed else ""

    def _logprobs(self, index: int, pieces: Sequence[Piece]) -> CompletionLogprobs | None:
        """Return the log probabilities of the pieces' tokens, if the client wants them."""
        if not self._includes_logprobs:
            return None
        entries: list[Any] = [entry for piece in pieces for entry in piece.logprobs]
        offsets = self._offsets.setdefault(index, TextOffsets(len(self._echo(index))))
        return CompletionLogprobs(
            [self._text(entry.token) for entry in entries],
            [finite(entry.logprob) for entry in entries],
            [{self._text(token): finite(logprob) for token, logprob in entry.top} for entry in entries],
            [offsets.push(self._bytes(entry.token)) for entry in entries],
        )

    def _bytes(self, token: int | bytes) -> bytes:
        """Return the bytes that a token adds to the text."""
        if self._skips_special and isinstance(token, int) and not self._model.known_tokenizer.decode([token]):
            return b""
        return self._model.token_bytes(token)

    def _text(self, token: int | bytes) -> str:
        return self._model.token_bytes(token).decode(errors="replace")


class TextOffsets:
    """Counter of the positions of tokens in a text, in characters. Parts of one character have its position."""

    def __init__(self, before: int) -> None:
        """`before`: number of characters before the first token."""
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._length = before
        """Number of complete characters so far."""

    def push(self, token: bytes) -> int:
        """Add the next token and return its position."""
        offset = self._length
        self._length += len(self._decoder.decode(token))
        return offset
