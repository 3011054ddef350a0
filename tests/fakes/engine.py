"""An engine without a model, for tests and benchmarks of the gateway."""

import asyncio
from collections.abc import Sequence

from engine.sampling_params import SamplingParams
from engine.tokenizer import Tokenizer
from gateway.engines.protocol import (
    ContextRefused,
    Engine,
    EngineLost,
    EventCallback,
    NoEngine,
    PrefillResult,
    StepTimes,
    TextRun,
    TokenDelta,
    Urgency,
)
from gateway.engines.tokenizing import TokenRun
from gateway.graph.segments import PromptContent, tokens_of_content
from gateway.graph.variable import Piece
from gateway.telemetry.engine_status import EngineStatus


class FakeEngine:
    """Answers every prompt immediately with its length in tokens, one digit a token.

    `hold` makes contexts wait before they answer. `lose` ends all of them, as the death of a process does.
    """

    def __init__(self, tokenizer: Tokenizer | None = None, name: str = "fake") -> None:
        self.name = name
        self.tokens_per_unit = 1.0
        self.kv_tokens = 0
        self.constrains_after_reasoning = True
        self.pauses_prompts = False
        self.is_ready = True
        self.load = 0
        self.step_times = StepTimes(row_seconds=0.001, step_seconds=0.01)
        self.opened: list[FakeContext] = []
        self.released = asyncio.Event()
        self.released.set()
        self.doomed: set[int] | None = None
        """Tokens that kill the engine: a prompt that begins with one of them loses the engine."""
        self.doom_spreads = False
        """Whether the other open contexts lose the engine as well."""
        self.deaths = 0
        """Number of next answers that lose the engine after their first token."""
        self._tokenizer = tokenizer

    async def start(self) -> None:
        """Do nothing."""

    async def close(self) -> None:
        """Do nothing."""

    def open_text(self, *, adds_space: bool) -> TextRun:
        """See `Engine.open_text`. Without a tokenizer, each character is a token."""
        return CodePointRun() if self._tokenizer is None else TokenRun(self._tokenizer, None, adds_space=adds_space)

    def describe(self) -> EngineStatus:
        """See `Engine.describe`."""
        return EngineStatus(self.name, self.is_ready, self.load)

    def open(self, scope: str, urgency: Urgency, traceparent: str = "") -> "FakeContext":
        """See `Engine.open`."""
        if not self.is_ready:
            raise EngineLost("the fake engine is not running")
        context = FakeContext(self, scope, urgency)
        self.opened.append(context)
        self.load += 1
        return context

    def hold(self) -> None:
        """Make contexts wait until `released` is set."""
        self.released.clear()

    def lose(self) -> None:
        """Lose every open context."""
        for context in self.opened:
            if not context.freed:
                context.lost = True
        self.released.set()


class CodePointRun:
    """See `TextRun`. Each character is a token."""

    is_rewritten = True

    def __init__(self) -> None:
        self._generated: list[int] = []

    async def push(self, text: str) -> list[int]:
        """See `TextRun.push`."""
        tokens, self._generated = [*self._generated, *map(ord, text)], []
        return tokens

    async def rest(self) -> list[int]:
        """See `TextRun.rest`."""
        return list(self._generated)

    def resume(self, text: str) -> None:
        """See `TextRun.resume`."""
        self._generated += map(ord, text)

    async def finish(self) -> list[int]:
        """See `TextRun.finish`."""
        return await self.push("")


class FakeContext:
    """See `EngineContext`. Records its commands."""

    def __init__(self, engine: FakeEngine, scope: str, urgency: Urgency) -> None:
        self.scope = scope
        self.urgency = urgency
        self.tokens: list[int] = []
        self.generates = 0
        self.freed = False
        self.lost = False
        self.retained: list[list[float]] = []
        """Durations of each `retain`."""
        self._engine = engine

    def fill(self, content: PromptContent, *, start: int | None = None) -> None:
        """See `EngineContext.fill`."""
        if self.lost:
            raise EngineLost("the fake engine was lost")
        if start is not None:
            del self.tokens[start:]
        self.tokens.extend(tokens_of_content(content))

    async def generate(self, sampling: SamplingParams, on_event: EventCallback, *, heals: bool = False) -> None:
        """See `EngineContext.generate`."""
        self.generates += 1
        await self._engine.released.wait()
        if self.lost:
            raise EngineLost("the fake engine was lost")
        if self._engine.doomed and self.tokens and self.tokens[0] in self._engine.doomed:
            if self._engine.doom_spreads:
                self._engine.lose()
            raise EngineLost("the fake engine was lost")
        await asyncio.sleep(0)
        if self.lost:
            raise EngineLost("the fake engine was lost")
        if not self.tokens:
            raise ContextRefused("empty_context", "nothing was filled")
        on_event(PrefillResult(len(self.tokens), 0))
        digits = str(len(self.tokens))[: sampling.max_tokens]
        for index, digit in enumerate(digits):
            if index == 1 and self._engine.deaths:
                self._engine.deaths -= 1
                for _ in range(5):  # readers receive the token before the loss
                    await asyncio.sleep(0)
                raise EngineLost("the fake engine was lost")
            self.tokens.append(ord(digit))
            on_event(TokenDelta(Piece(digit, 1), "stop" if index + 1 == len(digits) else None))

    def rerank(self, urgency: Urgency) -> None:
        """See `EngineContext.rerank`."""
        self.urgency = urgency

    def free(self) -> None:
        """See `EngineContext.free`."""
        self._engine.load -= not self.freed
        self.freed = True

    def retain(self, returns: Sequence[float]) -> None:
        """See `EngineContext.retain`."""
        self.retained.append(list(returns))


class FakeEngines:
    """Engines of one model. Each can be ready or not."""

    def __init__(self, *engines: FakeEngine) -> None:
        self.engines = engines

    async def find_ready(self, model: str, *, wait: bool = True) -> Sequence[Engine]:
        """Return the engines that are ready. Raises NoEngine."""
        ready = [engine for engine in self.engines if engine.is_ready]
        if not ready:
            raise NoEngine("no engine")
        return ready
