"""An engine of our own behind a link, and the contexts open on it; what carries the link is somebody else's business.

`embedded.py` starts a process and speaks to it over a socket; `tcp.py` calls one that listens.
"""

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields, replace

from engine.protocol import Command, EngineInfo, Fill, Free, Generate, Report, Rerank, Step, Update, encode_frame
from engine.protocol import SamplingParams as LinkSampling
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
from gateway.engines.tokenizing import tokens_of
from gateway.graph.call import SamplingParams
from gateway.graph.variable import Piece
from gateway.telemetry import metrics

log = logging.getLogger("myna.engines")

READ_BYTES = 1 << 18
_BACKOFF = (0.5, 30.0)
"""Seconds before the first new attempt, and at most."""
_HEALTHY_SECONDS = 60.0
"""A link that held this long, or over which anybody was answered, is made anew without a grudge."""


class EngineStartFailed(Exception):
    """The engine said why it cannot start; trying again would change nothing."""


@dataclass(frozen=True)
class Heard:
    """The last that an engine said: when, whether it had work then, and how many commands it had taken in."""

    at: float
    working: bool
    commands: int


class EngineClient:
    """Owner of one link and of the contexts open over it.

    `start` makes the link and keeps it up; `close` ends it. Every context open when it breaks raises EngineLost at
    whoever waits for it.
    """

    tokens_per_unit = 1.0
    constrains_after_reasoning = True

    def __init__(
        self, name: str, changed: Callable[[], None], *, hang_seconds: float = 60.0, patience: float = 0.0
    ) -> None:
        """`changed` is called whenever `ready` changes. An engine that has work and is silent for `hang_seconds` is
        given up, see `give_up`. `patience`: seconds for which `start` goes on trying."""
        self.name = name
        self.info: EngineInfo | None = None
        self.restarts = 0
        self.pace: StepTimes | None = None
        """See `Engine.pace`."""
        self._changed = changed
        self._hang_seconds, self._patience = hang_seconds, patience
        self._sent = 0
        self._drafts: tuple[int, int] | None = None
        """Tokens that it had drafted when it was last heard over this link, and those that stood."""
        self._free_tokens: int | None = None
        """Tokens of the KV cache that are free or can be evicted, from the engine's latest report."""
        self._answered = False
        """Whether an answer was finished over the link that is up now."""
        self._heard = Heard(time.monotonic(), working=False, commands=0)
        self._tokenizer: Tokenizer | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._said: list[bytes] = []
        """Frames that are yet to be written."""
        self._contexts: dict[int, EngineClientContext] = {}
        self._next_context = 0
        self._ready = False
        self._supervisor: asyncio.Task[None] | None = None

    @property
    def ready(self) -> bool:
        """Whether it takes work now."""
        return self._ready

    @property
    def load(self) -> int:
        """Contexts open."""
        return len(self._contexts)

    @property
    def tokenizer(self) -> Tokenizer:
        """The checkpoint's; there from the first time the engine was ready."""
        assert self._tokenizer is not None, "the engine has not been ready yet"
        return self._tokenizer

    @property
    def kv_blocks(self) -> int:
        """Number of blocks of the KV cache; 0 while the engine is not ready."""
        return self.info.kv_tokens // self.info.block_size if self.info is not None and self._ready else 0

    @property
    def kv_blocks_in_use(self) -> int:
        """Number of blocks that contexts hold, including contexts of other gateways."""
        if self.info is None or self._free_tokens is None or not self._ready:
            return 0
        return (self.info.kv_tokens - self._free_tokens) // self.info.block_size

    async def begin(self) -> None:
        """Begins what of the start takes time elsewhere, where there is such a thing, so that it goes on while
        others are made ready. `start` or `close` has to follow."""

    async def start(self) -> None:
        """Returns when the engine is ready. Raises EngineStartFailed, in the engine's own words where it has some."""
        first_ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._supervisor = asyncio.create_task(self._supervise(first_ready), name=f"supervise {self.name}")
        await first_ready

    async def close(self) -> None:
        """Ends the link, and what belongs to it."""
        if self._supervisor is not None:
            self._supervisor.cancel()
            with suppress(asyncio.CancelledError):
                await self._supervisor

    def open(self, scope: str, urgency: Urgency) -> "EngineClientContext":
        """See `Engine.open`."""
        if not self._ready:
            raise EngineLost(f"engine {self.name} is not running", suspect=False)
        self._next_context += 1
        context = EngineClientContext(self, self._next_context, scope, urgency)
        self._contexts[self._next_context] = context
        return context

    async def encode(self, text: str) -> list[int]:
        """See `Engine.encode`."""
        return await tokens_of(text, self.tokenizer, None if self.info is None else self.info.window)

    def encode_stable(self, text: str) -> tuple[list[int], int]:
        """See `Engine.encode_stable`."""
        return self.tokenizer.encode_stable(text)

    def send(self, command: Command) -> None:
        """Queues a command. An engine that is gone takes none; its contexts have been told.

        What is said in one turn of the event loop goes in one piece: an engine that has nothing else to do would begin
        a step with the first part of a prompt, and take one more for the rest.
        """
        if self._writer is not None and not self._writer.is_closing():
            if not self._owes:
                self._heard = replace(self._heard, at=time.monotonic())  # from here on an answer is due
            self._sent += 1
            if not self._said:
                asyncio.get_running_loop().call_soon(self._flush)
            self._said.append(encode_frame(command))

    def _flush(self) -> None:
        said, self._said = self._said, []
        if self._writer is not None and said:
            self._writer.write(b"".join(said))

    @property
    def _owes(self) -> bool:
        """Whether the engine has something to say: of work in hand, or of commands it has not taken in."""
        return self._ready and (self._heard.working or self._heard.commands != self._sent)

    def forget(self, context: int) -> None:
        """The context was freed."""
        self._contexts.pop(context, None)

    # the link

    async def run_once(self, first_ready: "asyncio.Future[None]") -> str:
        """Makes the link and serves it until it ends. Returns how it ended. Raises EngineStartFailed."""
        raise NotImplementedError

    def give_up(self) -> None:
        """The engine hangs: ends the link so that whoever reads from it sees its end and does the rest."""
        raise NotImplementedError

    async def _supervise(self, first_ready: "asyncio.Future[None]") -> None:
        """Makes the link again and again, with growing pauses."""
        pause, started = _BACKOFF[0], time.monotonic()
        while True:
            began = time.monotonic()
            try:
                fate = await self.run_once(first_ready)
            except EngineStartFailed as error:
                if not first_ready.done():
                    first_ready.set_exception(error)
                    return
                fate = str(error)
            except asyncio.CancelledError:
                if not first_ready.done():
                    first_ready.cancel()
                raise
            except Exception as error:  # a caller that waits for the start must get the error
                log.exception("the link to engine %s failed", self.name)
                fate = f"{type(error).__name__}: {error}"
            if not first_ready.done() and time.monotonic() - started >= self._patience:
                first_ready.set_exception(EngineStartFailed(f"engine {self.name} did not start: {fate}"))
                return
            if self._answered or time.monotonic() - began > _HEALTHY_SECONDS:
                pause = _BACKOFF[0]
            log.error("engine %s ended (%s); trying again in %.1f s", self.name, fate, pause)
            await asyncio.sleep(pause)
            pause = min(2 * pause, _BACKOFF[1])
            self.restarts += 1

    def linked(self, writer: asyncio.StreamWriter) -> None:
        """A new link is there; nothing was said over it yet."""
        self._writer = writer
        self._answered = False
        self._drafts = self._free_tokens = None
        self._sent, self._heard = 0, Heard(time.monotonic(), working=False, commands=0)

    def unlinked(self) -> None:
        """The link is gone, and everything with it."""
        self._set_ready(False)
        self._writer = None
        self._said.clear()
        contexts, self._contexts = self._contexts, {}
        for context in contexts.values():
            message = f"engine {self.name} was lost while it worked on this request"
            context.lose(EngineLost(message, suspect=context.asked))

    def welcome(self, info: EngineInfo, first_ready: "asyncio.Future[None]") -> None:
        """The engine takes commands."""
        self.info = info
        metrics.watch_kv(self.name, lambda: self.kv_blocks, lambda: self.kv_blocks_in_use)
        self._set_ready(True)
        if not first_ready.done():
            first_ready.set_result(None)

    def hear(self, report: Report) -> None:
        """What the engine says of its steps."""
        assert isinstance(report, Step)
        self.pace = StepTimes(report.row_seconds, report.step_seconds)
        self._free_tokens = report.free_tokens
        self._heard = Heard(time.monotonic(), working=report.running > 0, commands=report.commands)
        before, self._drafts = self._drafts, (report.drafted, report.right)
        if before is not None and before != self._drafts:
            right = report.right - before[1]
            metrics.drafted(self.name, right, report.drafted - before[0] - right)
        for update in report.updates:
            self._answered |= update.finish is not None
            context = self._contexts.get(update.context)
            if context is not None:
                context.receive(update)

    async def watch(self) -> None:
        """Gives up an engine that hangs."""
        while True:
            await asyncio.sleep(self._hang_seconds / 4)
            silent = time.monotonic() - self._heard.at
            if self._owes and silent > self._hang_seconds:
                log.error("engine %s has work and has been silent for %.0f s; giving it up", self.name, silent)
                self.give_up()
                return

    def _set_ready(self, ready: bool) -> None:
        if ready != self._ready:
            self._ready = ready
            self._changed()


class EngineClientContext:
    """See `EngineContext`."""

    def __init__(self, engine: EngineClient, id: int, scope: str, urgency: Urgency) -> None:
        self._engine = engine
        self._id = id
        self._scope = scope
        self._urgency = urgency
        self._lost: EngineLost | None = None
        self._refused: ContextRefused | None = None
        self._tell: EventCallback | None = None
        self._end: asyncio.Future[None] | None = None
        """Of what is generated; there once something was."""
        self._filled = 0
        self._cached = 0
        self._held = 0.0
        self._starved = 0.0
        self._missed: Counter[str] = Counter()
        self._freed = False
        self.asked = False
        """Whether the engine got a command for this context: only then can the context have killed the engine."""

    def fill(self, tokens: Sequence[int]) -> None:
        """See `EngineContext.fill`. It raises the error of a context whose process died, or that the engine refused,
        for example because its prompt is too long."""
        for error in (self._lost, self._refused):
            if error is not None:
                raise error
        rank, interactive = self._urgency.rank, self._urgency.interactive
        self.asked = True
        self._engine.send(Fill(self._id, list(tokens), rank=rank, scope=self._scope, interactive=interactive))

    async def generate(self, sampling: SamplingParams, tell: EventCallback) -> None:
        """See `EngineContext.generate`."""
        for error in (self._lost, self._refused):
            if error is not None:
                raise error
        self.asked = True
        self._engine.send(Generate(self._id, _engine_params(sampling)))
        self._tell = tell
        self._end = asyncio.get_running_loop().create_future()
        try:
            await self._end
        finally:
            self._tell = None

    def rerank(self, urgency: Urgency) -> None:
        """See `EngineContext.rerank`."""
        if urgency != self._urgency and self._lost is None:
            self._urgency = urgency
            self._engine.send(Rerank([self._id], urgency.rank, urgency.interactive))

    def free(self) -> None:
        """See `EngineContext.free`."""
        if self._lost is None and not self._freed:
            self._freed = True
            self._engine.forget(self._id)
            self._engine.send(Free(self._id))

    def receive(self, update: Update) -> None:
        """The engine says something of this context."""
        if update.filled is not None:
            self._filled = update.filled
            self._cached += update.cached
            self._held += update.held
            self._starved += update.starved
            self._missed.update(update.missed)
        if update.error is not None:
            self._refused = ContextRefused(*update.error)
        if self._tell is None or self._end is None or self._end.done():
            return
        if self._refused is not None:
            self._end.set_exception(self._refused)
            return
        try:
            if update.tokens:
                if self._filled:
                    self._tell(PrefillResult(self._filled, self._cached, self._held, self._starved, dict(self._missed)))
                    self._filled = 0
                piece = Piece(update.text, len(update.tokens), tuple(update.logprobs))
                self._tell(TokenDelta(piece, update.finish, update.accepted, update.rejected))
        except Exception as error:  # it must not end the link, which is everybody's
            self._end.set_exception(error)
            return
        if update.finish is not None:
            self._end.set_result(None)

    def lose(self, error: EngineLost) -> None:
        """The engine is gone."""
        self._lost = error
        if self._end is not None and not self._end.done():
            self._end.set_exception(error)


_FIELDS = tuple(field.name for field in fields(SamplingParams) if field.name != "given")
"""All but what a server elsewhere is told: there is one idea here of what is usual."""


def _engine_params(sampling: SamplingParams) -> LinkSampling:
    sampling = sampling.plain
    return LinkSampling(**{name: getattr(sampling, name) for name in _FIELDS})
