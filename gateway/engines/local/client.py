"""Client of an engine of this project: one connection, and the contexts that are open on it.

Subclasses make the connection: `subprocess.py` starts a process and uses a socket pair, `tcp.py` connects to a
listening engine.
"""

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

from engine.protocol import (
    Command,
    Embed,
    EngineInfo,
    Fill,
    Free,
    Generate,
    Report,
    Rerank,
    Retain,
    StepReport,
    TokenLogprob,
    Update,
    encode_frame,
)
from engine.sampling_params import SamplingParams
from engine.tokenizer import Tokenizer
from gateway.engines.protocol import (
    ContextRefused,
    EngineLost,
    EventCallback,
    Logprob,
    PrefillResult,
    StepTimes,
    TokenDelta,
    Urgency,
)
from gateway.engines.tokenizing import TokenRun
from gateway.graph.segments import PromptContent, tokens_of_content
from gateway.graph.variable import Piece
from gateway.runtime.backoff import Backoff
from gateway.telemetry import metrics
from gateway.telemetry.engine_status import EngineStatus

log = logging.getLogger("myna.engines")

READ_BYTES = 1 << 18
"""Maximum size of one read from a connection, in bytes."""
_HEALTHY_SECONDS = 60.0
"""Lifetime of a connection after which the pauses start over, in seconds. A finished generation has the same effect."""


class EngineStartFailed(Exception):
    """The engine reported why it cannot start. Another attempt would not help."""


@dataclass(frozen=True)
class EngineHeartbeat:
    """Last report of an engine: its time, whether the engine had work, and how many commands it had received."""

    time: float
    has_work: bool
    commands: int


class EngineClient:
    """Owner of one connection and of the contexts on it.

    `start` connects, and connects again after each loss; `close` ends that. When the connection is lost, all open
    contexts raise EngineLost.
    """

    tokens_per_unit = 1.0
    constrains_after_reasoning = True
    pauses_prompts = True

    def __init__(
        self, name: str, on_change: Callable[[], None], *, hang_seconds: float = 60.0, start_timeout: float = 0.0
    ) -> None:
        """`on_change` is called whenever `is_ready` changes. An engine that has work and is silent for `hang_seconds`
        is aborted, see `abort_engine`. `start_timeout`: seconds for which `start` keeps trying."""
        self.name = name
        self.info: EngineInfo | None = None
        self.restarts = 0
        self.step_times: StepTimes | None = None
        """See `Engine.step_times`."""
        self._on_change = on_change
        self._hang_seconds, self._start_timeout = hang_seconds, start_timeout
        self._sent = 0
        self._drafts: tuple[int, int] | None = None
        """Drafted and accepted tokens in the last report over this connection."""
        self._free_tokens: int | None = None
        """Tokens of the KV cache that are free or can be evicted, from the engine's latest report."""
        self._has_generated = False
        """Whether a generation finished over the current connection."""
        self._heartbeat = EngineHeartbeat(time.monotonic(), has_work=False, commands=0)
        self._tokenizer: Tokenizer | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._frames: list[bytes] = []
        """Frames that are not written yet."""
        self._contexts: dict[int, EngineClientContext] = {}
        self._next_context = 0
        self.connection_number = 0
        """Number of connections so far, this one included."""
        self._ready = False
        self._problem: str | None = "is starting"
        """Why the engine accepts no work; None while it is ready."""
        self._supervisor: asyncio.Task[None] | None = None

    @property
    def is_ready(self) -> bool:
        """Whether the engine accepts work now."""
        return self._ready

    @property
    def load(self) -> int:
        """Number of open contexts."""
        return len(self._contexts)

    @property
    def tokenizer(self) -> Tokenizer:
        """Tokenizer of the checkpoint. It exists once the engine has been ready."""
        assert self._tokenizer is not None, "the engine has not been ready yet"
        return self._tokenizer

    @property
    def kv_tokens(self) -> int:
        """Size of the KV cache, in tokens; 0 until the engine was ready."""
        return 0 if self.info is None else self.info.kv_tokens

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

    def describe(self) -> EngineStatus:
        """Return the engine's state. See `Engine.describe`."""
        return EngineStatus(
            self.name,
            self._ready,
            self.load,
            self.kv_blocks,
            self.kv_blocks_in_use,
            self.restarts,
            None if self.step_times is None else self.step_times.step_seconds,
            self._problem,
        )

    async def launch(self) -> None:
        """Run a slow part of the start before `start`, if the engine has one. Call `start` or `close` after it."""

    async def start(self) -> None:
        """Wait until the engine is ready. Raises EngineStartFailed, with the engine's own message if there is one."""
        first_ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._supervisor = asyncio.create_task(self._supervise(first_ready), name=f"supervise {self.name}")
        await first_ready

    async def close(self) -> None:
        """Stop the supervisor and close the connection. The process of an embedded engine ends then."""
        if self._supervisor is not None:
            self._supervisor.cancel()
            with suppress(asyncio.CancelledError):
                await self._supervisor

    def open(self, scope: str, urgency: Urgency, traceparent: str = "") -> "EngineClientContext":
        """Open a context. See `Engine.open`."""
        if not self._ready:
            raise EngineLost(f"engine {self.name} is not running", suspect=False)
        self._next_context += 1
        context = EngineClientContext(self, self._next_context, scope, urgency)
        self._contexts[self._next_context] = context
        return context

    def open_text(self, *, adds_space: bool) -> TokenRun:
        """Return an empty run of text. See `Engine.open_text`."""
        return TokenRun(self.tokenizer, None if self.info is None else self.info.window, adds_space=adds_space)

    def send(self, command: Command) -> None:
        """Queue a command. Without a connection it is dropped; the contexts have failed already.

        Commands of one turn of the event loop are written together. Otherwise an idle engine would begin a step with
        the first part of a prompt, and need another step for the rest.
        """
        if self._writer is not None and not self._writer.is_closing():
            if not self._owes_report:
                self._heartbeat = replace(self._heartbeat, time=time.monotonic())  # a report is due from now on
            self._sent += 1
            if not self._frames:
                asyncio.get_running_loop().call_soon(self._flush)
            self._frames.append(encode_frame(command))

    def _flush(self) -> None:
        frames, self._frames = self._frames, []
        if self._writer is not None and frames:
            self._writer.write(b"".join(frames))

    @property
    def _owes_report(self) -> bool:
        """Whether the engine has to report something: it has work, or it has not confirmed all commands."""
        return self._ready and (self._heartbeat.has_work or self._heartbeat.commands != self._sent)

    def remove(self, context: int) -> None:
        """Remove a freed context."""
        self._contexts.pop(context, None)

    # connection

    async def run_once(self, first_ready: "asyncio.Future[None]") -> str:
        """Connect and serve the connection until it ends. Return why it ended. Raises EngineStartFailed."""
        raise NotImplementedError

    def abort_engine(self) -> None:
        """Close the connection to an engine that hangs, so that the reading task ends and cleans up."""
        raise NotImplementedError

    async def _supervise(self, first_ready: "asyncio.Future[None]") -> None:
        """Connect again after each loss, with growing pauses."""
        backoff, started = Backoff(), time.monotonic()
        while True:
            began = time.monotonic()
            try:
                reason = await self.run_once(first_ready)
            except EngineStartFailed as error:
                if not first_ready.done():
                    first_ready.set_exception(error)
                    return
                reason = str(error)
            except asyncio.CancelledError:
                if not first_ready.done():
                    first_ready.cancel()
                raise
            except Exception as error:  # a caller that waits for the start must get the error
                log.exception("the connection to engine %s failed", self.name)
                reason = f"{type(error).__name__}: {error}"
            if not first_ready.done() and time.monotonic() - started >= self._start_timeout:
                first_ready.set_exception(EngineStartFailed(f"engine {self.name} did not start: {reason}"))
                return
            if self._has_generated or time.monotonic() - began > _HEALTHY_SECONDS:
                backoff.reset()
            self._problem = f"ended: {reason}"
            log.error("engine %s ended (%s); trying again in %.1f s", self.name, reason, backoff.seconds)
            await asyncio.sleep(backoff.seconds)
            backoff.grow()
            self.restarts += 1

    def on_connected(self, writer: asyncio.StreamWriter) -> None:
        """Reset the state of the connection for a new one."""
        self._writer = writer
        self.connection_number += 1
        self._has_generated = False
        self._drafts = self._free_tokens = None
        self._sent, self._heartbeat = 0, EngineHeartbeat(time.monotonic(), has_work=False, commands=0)

    def on_disconnected(self) -> None:
        """Fail all contexts of a lost connection."""
        self._set_ready(False)
        self._writer = None
        self._frames.clear()
        contexts, self._contexts = self._contexts, {}
        for context in contexts.values():
            message = f"engine {self.name} was lost while it worked on this request"
            context.fail(EngineLost(message, suspect=context.has_commands))

    def on_ready(self, info: EngineInfo, first_ready: "asyncio.Future[None]") -> None:
        """Mark the engine as ready for commands."""
        self.info = info
        metrics.watch_kv(self.name, lambda: self.kv_blocks, lambda: self.kv_blocks_in_use)
        self._problem = None
        self._set_ready(True)
        if not first_ready.done():
            first_ready.set_result(None)

    def on_step(self, report: Report) -> None:
        """Handle a report of the engine about a step."""
        assert isinstance(report, StepReport)
        self.step_times = StepTimes(report.row_seconds, report.step_seconds)
        self._free_tokens = report.free_tokens
        self._heartbeat = EngineHeartbeat(time.monotonic(), has_work=report.running > 0, commands=report.commands)
        before, self._drafts = self._drafts, (report.drafted, report.right)
        if before is not None and before != self._drafts:
            accepted = report.right - before[1]
            metrics.count_drafts(self.name, accepted, report.drafted - before[0] - accepted)
        for update in report.updates:
            self._has_generated |= update.finish is not None
            context = self._contexts.get(update.context)
            if context is not None:
                context.receive(update)

    async def watch(self) -> None:
        """Abort the engine if it hangs."""
        while True:
            await asyncio.sleep(self._hang_seconds / 4)
            silent = time.monotonic() - self._heartbeat.time
            if self._owes_report and silent > self._hang_seconds:
                log.error("engine %s has work and has been silent for %.0f s; aborting it", self.name, silent)
                self.abort_engine()
                return

    def _set_ready(self, ready: bool) -> None:
        if ready != self._ready:
            self._ready = ready
            self._on_change()


class EngineClientContext:
    """Context on an engine of this project. See `EngineContext`."""

    def __init__(self, engine: EngineClient, id: int, scope: str, urgency: Urgency) -> None:
        self._engine = engine
        self._id = id
        self._scope = scope
        self._urgency = urgency
        self._loss: EngineLost | None = None
        self._refusal: ContextRefused | None = None
        self._on_event: EventCallback | None = None
        self._end_future: asyncio.Future[None] | None = None
        """End of the current or last generation; None before the first one."""
        self._filled = 0
        self._cached = 0
        self._held = 0.0
        self._starved = 0.0
        self._missed: Counter[str] = Counter()
        self._embedding = b""
        self._freed = False
        self._connection = engine.connection_number
        self.has_commands = False
        """Whether the engine got a command for this context: only then can the context have killed the engine."""

    def fill(self, content: PromptContent, *, start: int | None = None) -> None:
        """Append tokens. See `EngineContext.fill`.

        Raises EngineLost if the engine was lost since the context was opened, ContextRefused if the engine has refused
        the context, for example because its prompt is too long.
        """
        for error in (self._loss, self._refusal):
            if error is not None:
                raise error
        rank, interactive, pausable = self._urgency
        self.has_commands = True
        self._engine.send(
            Fill(
                self._id,
                list(tokens_of_content(content)),
                rank=rank,
                scope=self._scope,
                interactive=interactive,
                start=start,
                pausable=pausable,
            )
        )

    async def generate(self, sampling: SamplingParams, on_event: EventCallback, *, heals: bool = False) -> None:
        """Generate text. See `EngineContext.generate`."""
        for error in (self._loss, self._refusal):
            if error is not None:
                raise error
        self.has_commands = True
        self._engine.send(Generate(self._id, sampling.with_positive_top_p, heals=heals))
        self._on_event = on_event
        self._end_future = asyncio.get_running_loop().create_future()
        try:
            await self._end_future
        finally:
            self._on_event = None

    async def embed(self, tokens: Sequence[int]) -> bytes:
        """Return the embedding of a text, in float32. The context must be new. Raises EngineLost and ContextRefused."""
        for error in (self._loss, self._refusal):
            if error is not None:
                raise error
        self.has_commands = True
        rank, interactive = self._urgency.rank, self._urgency.interactive
        self._engine.send(Embed(self._id, list(tokens), rank=rank, scope=self._scope, interactive=interactive))
        self._end_future = asyncio.get_running_loop().create_future()
        await self._end_future
        return self._embedding

    def rerank(self, urgency: Urgency) -> None:
        """Change the urgency. See `EngineContext.rerank`."""
        if urgency != self._urgency and self._loss is None:
            self._urgency = urgency
            self._engine.send(Rerank([self._id], urgency.rank, urgency.interactive))

    def free(self) -> None:
        """Free the context. See `EngineContext.free`."""
        if self._loss is None and not self._freed:
            self._freed = True
            self._engine.remove(self._id)
            self._engine.send(Free(self._id))

    def retain(self, returns: Sequence[float]) -> None:
        """Expect that a later context continues this one. See `EngineContext.retain`.

        Nothing is sent if the engine does not know the context: it got no command for it, refused it, or was connected
        anew since.
        """
        is_known = self.has_commands and self._refusal is None and self._loss is None
        if self._freed and is_known and self._connection == self._engine.connection_number:
            self._engine.send(Retain(self._id, list(returns)))

    def receive(self, update: Update) -> None:
        """Handle an update of the engine about this context."""
        if update.filled is not None:
            self._filled = update.filled
            self._cached += update.cached
            self._held += update.held
            self._starved += update.starved
            self._missed.update(update.missed)
        if update.error is not None:
            self._refusal = ContextRefused(*update.error)
        if self._end_future is None or self._end_future.done():
            return
        if self._refusal is not None:
            self._end_future.set_exception(self._refusal)
            return
        if self._on_event is None:
            if update.embedding:
                self._embedding = update.embedding
                self._end_future.set_result(None)
            return
        try:
            if update.tokens or update.finish is not None:
                if self._filled:
                    self._on_event(
                        PrefillResult(self._filled, self._cached, self._held, self._starved, dict(self._missed))
                    )
                    self._filled = 0
                piece = Piece(update.text, len(update.tokens), self._answer_logprobs(update.logprobs))
                self._on_event(TokenDelta(piece, update.finish, update.accepted, update.rejected, update.stop_string))
        except Exception as error:  # it must not end the connection, which other contexts share
            self._end_future.set_exception(error)
            return
        if update.finish is not None:
            self._end_future.set_result(None)

    def _answer_logprobs(self, entries: Sequence[TokenLogprob]) -> tuple[TokenLogprob | Logprob, ...]:
        """Return the log probabilities of an answer, without the text that its first token repeats from the prompt."""
        if not entries or not entries[0].cut:
            return tuple(entries)
        first, text = entries[0], self._engine.tokenizer.token_bytes
        repeated = text(first.token)[: first.cut]
        top = [(text(token).removeprefix(repeated), logprob) for token, logprob in first.top]
        return Logprob(text(first.token)[first.cut :], first.logprob, top), *entries[1:]

    def fail(self, error: EngineLost) -> None:
        """Fail the context, because its engine was lost."""
        self._loss = error
        if self._end_future is not None and not self._end_future.done():
            self._end_future.set_exception(error)
