"""An engine that answers at once, for measuring and testing what stands before it."""

import asyncio
from collections.abc import Sequence

from engine.tokenizer import Tokenizer
from gateway.engines.protocol import (
    ContextRefused,
    EngineLost,
    EventCallback,
    PrefillResult,
    StepTimes,
    TokenDelta,
    Urgency,
)
from gateway.graph.sampling import SamplingParams
from gateway.graph.variable import Piece


class StubEngine:
    """Answers every prompt with its own length in tokens, one digit a token, as fast as it is asked.

    `hold` makes contexts wait before they answer; `lose` ends all of them as a dying process would.
    """

    def __init__(self, tokenizer: Tokenizer | None = None, name: str = "stub") -> None:
        self.name = name
        self.tokens_per_unit = 1.0
        self.constrains_after_reasoning = True
        self.is_ready = True
        self.load = 0
        self.step_times = StepTimes(row_seconds=0.001, step_seconds=0.01)
        self.opened: list[StubContext] = []
        self.released = asyncio.Event()
        self.released.set()
        self.doomed: set[int] | None = None
        """Token that kills the engine: a prompt that begins with it loses the engine."""
        self.doom_spreads = False
        """Whether everybody who is at work then loses it too."""
        self.deaths = 0
        """So many answers lose the engine behind their first token."""
        self._tokenizer = tokenizer

    async def start(self) -> None:
        """There is nothing to start."""

    async def close(self) -> None:
        """There is nothing to end."""

    async def encode(self, text: str) -> Sequence[int]:
        """Tokens of the model's tokenizer, or one a character."""
        return [ord(c) for c in text] if self._tokenizer is None else self._tokenizer.encode(text)

    def encode_stable(self, text: str) -> tuple[Sequence[int], int]:
        """See `Engine.encode_stable`."""
        if self._tokenizer is not None:
            return self._tokenizer.encode_stable(text)
        return [ord(c) for c in text], len(text)

    def open(self, scope: str, urgency: Urgency) -> "StubContext":
        """See `Engine.open`."""
        if not self.is_ready:
            raise EngineLost("the stub is not running")
        context = StubContext(self, scope, urgency)
        self.opened.append(context)
        self.load += 1
        return context

    def hold(self) -> None:
        """Contexts wait from here on, until `released` is set."""
        self.released.clear()

    def lose(self) -> None:
        """Lose every open context."""
        for context in self.opened:
            if not context.freed:
                context.lost = True
        self.released.set()


class StubContext:
    """See `EngineContext`. Remembers what was asked of it."""

    def __init__(self, engine: StubEngine, scope: str, urgency: Urgency) -> None:
        self.scope = scope
        self.urgency = urgency
        self.tokens: list[int] = []
        self.generates = 0
        self.freed = False
        self.lost = False
        self._engine = engine

    def fill(self, tokens: Sequence[int]) -> None:
        """See `EngineContext.fill`."""
        if self.lost:
            raise EngineLost("the stub was lost")
        self.tokens.extend(tokens)

    async def generate(self, sampling: SamplingParams, tell: EventCallback) -> None:
        """See `EngineContext.generate`."""
        self.generates += 1
        await self._engine.released.wait()
        if self.lost:
            raise EngineLost("the stub was lost")
        if self._engine.doomed and self.tokens and self.tokens[0] in self._engine.doomed:
            if self._engine.doom_spreads:
                self._engine.lose()
            raise EngineLost("the stub was lost")
        await asyncio.sleep(0)
        if self.lost:
            raise EngineLost("the stub was lost")
        if not self.tokens:
            raise ContextRefused("empty_context", "nothing was filled")
        tell(PrefillResult(len(self.tokens), 0))
        digits = str(len(self.tokens))[: sampling.max_tokens]
        for index, digit in enumerate(digits):
            if index == 1 and self._engine.deaths:
                self._engine.deaths -= 1
                for _ in range(5):  # whoever reads what came so far gets it
                    await asyncio.sleep(0)
                raise EngineLost("the stub was lost")
            self.tokens.append(ord(digit))
            tell(TokenDelta(Piece(digit, 1), "stop" if index + 1 == len(digits) else None))

    def rerank(self, urgency: Urgency) -> None:
        """See `EngineContext.rerank`."""
        self.urgency = urgency

    def free(self) -> None:
        """See `EngineContext.free`."""
        self._engine.load -= not self.freed
        self.freed = True
