"""A model whose answer is a function of the prompt, and an engine that emits it when a test says so."""

import asyncio
import json
from collections.abc import Mapping, Sequence
from hashlib import blake2b
from random import Random
from typing import Any

from engine.sampling_params import SamplingParams
from gateway.engines.protocol import (
    ContextRefused,
    Engine,
    EngineLost,
    EventCallback,
    PrefillResult,
    StepTimes,
    TokenDelta,
    Urgency,
)
from gateway.engines.tokenizing import CharacterRun
from gateway.graph.segments import Messages, PromptContent
from gateway.graph.variable import Piece
from gateway.prompts.message_join import join_messages

_TEXTS = ["<<a>>", "<|im_end|>", '"quoted" \\ back', "näh ✂", "{{x}}", "]"]
"""Texts with a meaning elsewhere. In an answer they are data."""


class CallRefused(Exception):
    """The model refuses the prompt."""


def prompt_of(messages: Sequence[Mapping[str, Any]]) -> str:
    """Return the messages of a request as one text."""
    return "\n".join(f"{message['role']}: {message['content']}" for message in messages)


def answer(prompt: str) -> str:
    """Return the model's answer. The first word of the prompt says its kind. Raises CallRefused."""
    digest = blake2b(prompt.encode(), digest_size=16).digest()
    text = digest[:3].hex()
    number = digest[4]
    match prompt.removeprefix("user: ").partition(" ")[0]:
        case "list":
            return _list(text, number)
        case "verdict":
            return "no" if number % 3 else " yes\n"
        case "number":
            return str(number % 8)
        case "frail" if number % 3 == 0:
            raise CallRefused(f"the prompt {text} is refused")
    return text if number % 4 else f"{text} {_TEXTS[number // 4 % len(_TEXTS)]}"


def _list(text: str, number: int) -> str:
    """Return a JSON list of up to three elements of different kinds, alone or in an object; sometimes it is broken."""
    elements: list[Any] = [
        {"k": text, "l": [text[:2], number]},
        _TEXTS[number % len(_TEXTS)],
        {"k": {"deep": number}, "l": []},
        number,
    ]
    elements = elements[number % 2 :][: number // 8 % 4]
    if number > 240 and number % 3:
        return json.dumps(elements)[:-1]
    return json.dumps(elements if number % 3 else {"other": [1], "l": elements}, ensure_ascii=number % 5 == 0)


class PuppetEngine:
    """An engine that emits the next piece of an answer in `step`, and else does nothing."""

    def __init__(self) -> None:
        self.name = "puppets"
        self.tokens_per_unit = 1.0
        self.kv_tokens = 0
        self.constrains_after_reasoning = True
        self.pauses_prompts = False
        self.is_ready = True
        self.step_times = StepTimes(row_seconds=0.001, step_seconds=0.01)
        self.contexts: list[PuppetContext] = []

    @property
    def load(self) -> int:
        """Number of open contexts."""
        return len(self.contexts)

    async def find_ready(self, model: str, *, wait: bool = True) -> Sequence[Engine]:
        """Return this engine."""
        return [self]  # type: ignore[list-item]

    def open_text(self, *, adds_space: bool) -> CharacterRun:
        """See `Engine.open_text`."""
        return CharacterRun()

    def open(self, scope: str, urgency: Urgency) -> "PuppetContext":
        """See `Engine.open`."""
        context = PuppetContext(self)
        self.contexts.append(context)
        return context

    @property
    def generating(self) -> "list[PuppetContext]":
        """Contexts that have a piece to emit."""
        return [context for context in self.contexts if context.pieces is not None]

    def step(self, random: Random) -> None:
        """Emit the next piece of one of the answers."""
        random.choice(self.generating).emit(random)


class PuppetContext:
    """See `EngineContext`."""

    def __init__(self, engine: PuppetEngine) -> None:
        self.pieces: str | None = None
        """Text that is not emitted yet; None while nothing is generated."""
        self.losses = 0
        self._engine = engine
        self._content: list[str | Messages] = []
        self._on_event: EventCallback | None = None
        self._end: asyncio.Future[None] | None = None

    def fill(self, content: PromptContent, *, start: int | None = None) -> None:
        """See `EngineContext.fill`."""
        assert start is None, "this engine accepts text"
        assert isinstance(content, str | Messages)
        self._content.append(content)

    async def generate(self, sampling: SamplingParams, on_event: EventCallback, *, heals: bool = False) -> None:
        """See `EngineContext.generate`."""
        try:
            text = answer(prompt_of(join_messages(self._content).messages))
        except CallRefused as error:
            raise ContextRefused("step_failed", str(error)) from error
        self.pieces, self._on_event = text, on_event
        self._end = asyncio.get_running_loop().create_future()
        on_event(PrefillResult(1, 0))
        try:
            await self._end
        finally:
            self.pieces = None
        self._content.append(text)

    def emit(self, random: Random) -> None:
        """Emit the next piece, which ends the answer if nothing is left."""
        assert self.pieces is not None
        assert self._on_event is not None
        assert self._end is not None
        size = random.randint(1, 12)
        piece, self.pieces = self.pieces[:size], self.pieces[size:]
        is_last = not self.pieces
        self._on_event(TokenDelta(Piece(piece, 1), "stop" if is_last else None))
        if is_last:
            self.pieces = None
            if not self._end.done():
                self._end.set_result(None)

    def lose(self) -> None:
        """Lose the context, as the end of an engine does."""
        assert self._end is not None
        self.pieces = None
        if not self._end.done():
            self._end.set_exception(EngineLost("the engine was lost", suspect=False))

    def rerank(self, urgency: Urgency) -> None:
        """Do nothing: the order is random here."""

    def retain(self, returns: Sequence[float]) -> None:
        """Do nothing: there is no cache here."""

    def free(self) -> None:
        """See `EngineContext.free`."""
        self.pieces = None
        if self in self._engine.contexts:
            self._engine.contexts.remove(self)
