"""Serialize calls as the `choices` of chat completions and completions."""

import dataclasses
import math
import time
from abc import abstractmethod
from collections.abc import Awaitable, Sequence
from itertools import chain, repeat
from operator import neg
from typing import Any, Protocol, TypeVar

import msgspec

from compat.openai import CompletionUsage
from gateway.api.schema_checks import AnswerChecker
from gateway.api.semantic.extension import Scope
from gateway.api.serializers.base import (
    SemanticField,
    Serializer,
    check_done,
    reference_to,
    semantic_field,
    usage_of,
)
from gateway.errors import FailedCall
from gateway.graph.call import Call, Usage
from gateway.graph.variable import Piece
from gateway.http.middleware.errors import as_request_error, error_body
from gateway.http.sse import unnamed_events

_Answer = TypeVar("_Answer", bound=msgspec.Struct)
UsageField = CompletionUsage | None | msgspec.UnsetType
"""The `usage` field of a chunk. None: a later chunk has the token counts. Absent: the client did not request them."""


class UsageOptions(Protocol):
    """The options of a request that decide which chunks have usage."""

    @property
    def includes_usage(self) -> bool:
        """Whether the last chunk has the usage."""

    @property
    def includes_continuous_usage(self) -> bool:
        """Whether each chunk has the usage so far."""


class ChoicesSerializer(Serializer):
    """Serializer of calls as `choices`, one for each call. The methods at its end differ between the endpoints."""

    def __init__(
        self,
        options: UsageOptions,
        scope: Scope,
        model: str,
        id: str,
        *,
        per_prompt: int = 1,
        returned: int = 1,
        checker: AnswerChecker | None = None,
    ) -> None:
        """`model`, `id`: name and id in the answer. `per_prompt`: number of consecutive calls that have the same
        prompt, which counts once; `returned`: how many of these are in the answer, those with the highest log
        probability. `checker`: checks the answers against the request's schema."""
        self._id = id
        self._created = int(time.time())
        self._model_name = model
        self._scope = scope
        self._per_prompt = per_prompt
        self._returned = returned
        self._checker = checker
        self._includes_usage = options.includes_usage
        self._includes_continuous_usage = options.includes_continuous_usage
        self._counted: dict[int, tuple[int, ...]] = {}
        """Usage of each call at its latest chunk, by index."""
        self._usage_so_far: tuple[int, ...] = (0,) * 6
        """Sum of `_counted` over all calls."""
        self._opened: set[int] = set()
        """Indexes of streamed answers whose first chunk is written."""
        self._ended = 0
        """Number of streamed answers that have ended."""

    # whole answers

    async def whole_response(self) -> Any:
        """Return the JSON object of the finished calls."""
        self._model_name = self.calls[0].model or self._model_name  # a fallback has its own name
        returned = self.calls if self._returned == self._per_prompt else self._likeliest(self._returned)
        choices = [
            self._choice(index, call.output.value or "", call.finish_reason or "stop", call.output.pieces)
            for index, call in enumerate(returned)
        ]
        if self._checker is not None:
            for index, call in enumerate(returned):
                if (checking := self._checker.start(index, call)) is not None:
                    await checking
                choices[index] = self._with_violation(index, choices[index])
        return self._body(choices, self._usage, self._semantic)

    def reference_response(self) -> Any:
        """Return the JSON object of deferred calls."""
        choices = [self._choice(index, reference_to(call), "stop", ()) for index, call in enumerate(self.calls)]
        return self._body(choices, self._usage, self._semantic)

    def _likeliest(self, count: int) -> list[Call]:
        """Return the calls of each prompt with the highest mean log probability of their tokens."""
        likeliest: list[Call] = []
        for start in range(0, len(self.calls), self._per_prompt):
            candidates = self.calls[start : start + self._per_prompt]
            likeliest += sorted(candidates, key=_mean_logprob, reverse=True)[:count]
        return likeliest

    def _with_violation(self, index: int, choice: Any) -> Any:
        """Return the last part of an answer, with the violation of its schema if there is one."""
        violation = None if self._checker is None else self._checker.violation(index)
        return choice if violation is None else msgspec.structs.replace(choice, schema_violation=violation)

    @property
    def _semantic(self) -> SemanticField:
        return semantic_field(self._scope, self.calls)

    @property
    def _usage(self) -> CompletionUsage:
        """Token counts of all calls together; zero if the calls are deferred."""
        if self.calls[0].spec.deferred:
            return usage_of([])
        usages = [call.usage for call in self.calls]
        if self._per_prompt > 1:
            first = {id(usage) for usage in usages[:: self._per_prompt]}
            usages = [
                usage if id(usage) in first else dataclasses.replace(usage, prompt=0, cached=0) for usage in usages
            ]
        usage = usage_of(usages)
        return usage if self.cost_of is None else msgspec.structs.replace(usage, cost=self.cost)

    # streams

    def reference_events(self) -> bytes:
        """Return the whole stream of deferred calls."""
        parts: list[Any] = []
        for index, call in enumerate(self.calls):
            parts += [self._opening(index), *self._parts(index, reference_to(call), ())]
        fields = chain([self._semantic], repeat(msgspec.UNSET))
        present = [part for part in parts if part is not None]
        chunks = [self._chunk([part], self._later_usage, field) for part, field in zip(present, fields, strict=False)]
        closings = [part for index in range(len(self.calls)) for part in self._closing(index, "stop")]
        return unnamed_events(*chunks, *self._last_chunks(closings, self._later_usage))

    def piece_events(self, index: int, pieces: Sequence[Piece]) -> bytes:
        """Return the chunks for new pieces of an answer."""
        self._model_name = self.calls[index].model or self._model_name
        parts = self._parts(index, "".join([piece.text for piece in pieces]), pieces)
        if not parts:
            return b""
        usage = self._usage_with(index)
        return unnamed_events(*self._first_chunks(index, usage), *[self._chunk([part], usage) for part in parts])

    def prepare_end(self, index: int) -> Awaitable[None] | None:
        """Begin the check of an answer against its schema."""
        return None if self._checker is None else self._checker.start(index, self.calls[index])

    def end_events(self, index: int) -> bytes:
        """Return the last chunks of an answer. Raises FailedCall unless the call is done."""
        call = self.calls[index]
        self._model_name = call.model or self._model_name
        check_done(call)
        self._ended += 1
        *before, last = self._closing(index, call.finish_reason or "stop")
        closings = [*before, self._with_violation(index, last)]
        usage = self._usage_with(index)
        if self._ended == len(self.calls):
            chunks = self._last_chunks(closings, usage)
        else:
            chunks = [self._chunk([part], usage) for part in closings]
        return unnamed_events(*self._first_chunks(index, usage), *chunks)

    def error_events(self, error: FailedCall) -> bytes:
        """Return the event of an error."""
        return unnamed_events(error_body(as_request_error(error)))

    def _first_chunks(self, index: int, usage: UsageField) -> list[Any]:
        if index in self._opened:
            return []
        part = self._opening(index)
        field = msgspec.UNSET if self._opened else self._semantic
        self._opened.add(index)
        return [] if part is None else [self._chunk([part], usage, field)]

    def _last_chunks(self, closings: Sequence[Any], usage: UsageField) -> list[Any]:
        *before, last = closings
        chunks = [self._chunk([closing], usage) for closing in before]
        chunks.append(self._chunk([last], usage, self._semantic))
        return [*chunks, self._chunk([], self._usage, self._semantic)] if self._includes_usage else chunks

    @property
    def _later_usage(self) -> UsageField:
        """The `usage` field of a chunk without token counts.

        It is None if the last chunk has the token counts, and absent if the client did not request them.
        """
        return None if self._includes_usage else msgspec.UNSET

    def _usage_with(self, index: int) -> UsageField:
        """Return the `usage` field of a chunk with parts of an answer: the usage so far, if the client requested it.

        It takes constant time. A sum over all calls for each chunk would be quadratic in the number of calls.
        """
        if not self._includes_continuous_usage:
            return self._later_usage
        usage = self.calls[index].usage
        if index % self._per_prompt:
            usage = dataclasses.replace(usage, prompt=0, cached=0)
        new = (usage.prompt, usage.cached, usage.completion, usage.accepted, usage.rejected, usage.reasoning)
        old = self._counted.get(index, (0,) * len(new))
        self._counted[index] = new
        self._usage_so_far = tuple(map(sum, zip(self._usage_so_far, new, map(neg, old), strict=True)))
        prompt, cached, completion, accepted, rejected, reasoning = self._usage_so_far
        return usage_of([Usage(prompt, cached, completion, {}, accepted, rejected, reasoning)])

    def _build(
        self, kind: type[_Answer], choices: Sequence[Any], usage: UsageField, semantic: SemanticField
    ) -> _Answer:
        """Return an answer or a chunk, with the fields that answers and chunks have in common."""
        return kind(
            id=self._id,
            created=self._created,
            model=self._model_name,
            choices=list(choices),
            usage=usage,
            semantic=semantic,
        )

    # the wire shapes of an endpoint

    @abstractmethod
    def _choice(self, index: int, text: str, finish: str, pieces: Sequence[Piece]) -> Any:
        """Return a whole answer as a choice. `finish`: the reason why it ended."""

    @abstractmethod
    def _body(self, choices: Sequence[Any], usage: CompletionUsage, semantic: SemanticField) -> Any:
        """Return the JSON object with all choices."""

    @abstractmethod
    def _opening(self, index: int) -> Any | None:
        """Return the first part of an answer's stream, if it has one of its own."""

    @abstractmethod
    def _parts(self, index: int, text: str, pieces: Sequence[Piece]) -> Sequence[Any]:
        """Return new parts of an answer, one for each chunk. `text`: that of the pieces."""

    @abstractmethod
    def _closing(self, index: int, finish: str) -> Sequence[Any]:
        """Return the last parts of an answer. The very last one has the finish reason."""

    @abstractmethod
    def _chunk(self, choices: Sequence[Any], usage: UsageField, semantic: SemanticField = msgspec.UNSET) -> Any:
        """Return a chunk with parts of answers; without parts, the chunk with the usage."""


def _mean_logprob(call: Call) -> float:
    entries: list[Any] = [entry for piece in call.output.pieces for entry in piece.logprobs]
    logprobs = [entry.logprob for entry in entries]
    return sum(logprobs) / len(logprobs) if logprobs else -math.inf
