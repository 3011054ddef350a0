"""Simulated engine from a table of step costs: batching, chunked prefill, prefix cache and memory, without a model."""

import asyncio
import heapq
import itertools
import math
from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import msgspec

from engine.sampling_params import SamplingParams
from engine.step_budget import StepBudget
from engine.step_policy import PrefillRows, background_decoders
from gateway.engines.protocol import EngineLost, EventCallback, PrefillResult, StepTimes, TokenDelta, Urgency
from gateway.graph.segments import PromptContent, tokens_of_content
from gateway.graph.variable import Piece
from gateway.telemetry.engine_status import EngineStatus

_BLOCK = 16
"""Tokens of a block of the KV cache."""
_DECODE_SHARE = 0.65
_STEP_SECONDS = 0.1
_DEFAULT_TOKENS = 64
"""Number of tokens of an answer without `max_tokens`."""


@dataclass(frozen=True)
class Costs:
    """Costs of an engine's steps.

    `rows`: seconds of a step by its number of rows, with linear interpolation. `attention`: additional seconds of a
    decoding row for each token that it attends to. `step_rows`: maximum number of rows in a step. `kv_tokens`: size of
    the KV cache. `window`: maximum number of tokens of a prompt with its answer.
    """

    name: str
    rows: tuple[tuple[int, float], ...]
    attention: float
    step_rows: int
    kv_tokens: int
    window: int = 131_072

    def step(self, rows: int, attended: int) -> float:
        """Return the seconds of a step. `attended`: tokens that all decoding rows together attend to."""
        index = bisect_left(self.rows, (rows, 0.0))
        if index == 0:
            seconds = self.rows[0][1]
        elif index == len(self.rows):
            (low, low_seconds), (high, high_seconds) = self.rows[-2:]
            seconds = high_seconds + (rows - high) * (high_seconds - low_seconds) / (high - low)
        else:
            (low, low_seconds), (high, high_seconds) = self.rows[index - 1 : index + 1]
            seconds = low_seconds + (rows - low) * (high_seconds - low_seconds) / (high - low)
        return seconds + attended * self.attention


class BadTable(Exception):
    """The file is not a table of costs."""


def read_costs(path: Path) -> Costs:
    """Read a table from a JSON file with the fields of `Costs`. Raises BadTable, or OSError."""
    try:
        costs = msgspec.json.decode(path.read_bytes(), type=Costs)
    except msgspec.DecodeError as error:
        raise BadTable(f"{path} is not a table of costs: {error}") from error
    if len(costs.rows) < 2 or any(low >= high for (low, _), (high, _) in pairwise(costs.rows)):
        raise BadTable(f"{path} is not a table of costs: it needs at least two rows, in increasing order")
    return costs


CPU = Costs(
    "cpu",
    ((1, 0.0104), (5, 0.0116), (8, 0.0152), (13, 0.0208), (17, 0.0280), (33, 0.0486), (65, 0.0960), (257, 0.3700)),
    attention=9e-7,
    step_rows=512,
    kv_tokens=256_000,
    window=8_192,
)
"""SmolLM2-135M in bfloat16 on two threads of an AVX512-bf16 server CPU, measured 2026-11-24."""
H100 = Costs(
    "h100",
    ((1, 0.0075), (32, 0.0085), (64, 0.0095), (128, 0.0120), (256, 0.0180), (512, 0.0320), (2048, 0.1150)),
    attention=4.4e-8,
    step_rows=1024,
    kv_tokens=400_000,
)
"""An 8B model in bfloat16 on one H100, from published memory bandwidth and matrix throughput. Not measured."""
TABLES = {costs.name: costs for costs in (CPU, H100)}


@dataclass
class _Step:
    """Plan of a step: prompts with their rows, the rows of long prompts, and whether prompts had to wait."""

    chunks: list[tuple["SimulatedContext", int]] = field(default_factory=list)
    long: float = 0.0
    waiting: bool = False


class SimulatedEngine:
    """Owner of its contexts and its prefix cache. See `gateway.engines.protocol.Engine`.

    A text has as many tokens as characters. A context emits its whole text at its end; each step generates one token,
    as without speculation.
    """

    is_ready = True

    def __init__(self, name: str, costs: Costs) -> None:
        self.name = name
        self.tokens_per_unit = 1.0
        self.kv_tokens = costs.kv_tokens
        self.constrains_after_reasoning = True
        self.pauses_prompts = False
        self.busy = 0.0
        """Seconds spent in steps."""
        self._costs = costs
        self._contexts = 0
        self._decoding: list[SimulatedContext] = []
        self._waiting: dict[tuple[bool, bool], list[tuple[float, int, int, SimulatedContext]]] = {
            (False, False): [],
            (False, True): [],
            (True, False): [],
            (True, True): [],
        }
        """Queues of prompts, by whether other inputs are still missing and whether they are interactive.

        Entries are rank, arrival, ticket and context, the most urgent first. An entry is valid if its ticket is the
        context's latest one.
        """
        self._prefilling = {True: 0, False: 0}
        """Numbers of interactive and of other contexts that have prompts to prefill."""
        self._cache: OrderedDict[int, None] = OrderedDict()
        """Blocks by the hash of their tokens and all tokens before them, the most recently used last."""
        self._numbers = itertools.count()
        self._step_budget = StepBudget(decode_share=_DECODE_SHARE, max_step_seconds=_STEP_SECONDS)
        self._step_budget.calibrate(64, costs.step(64, 0))
        self._step_budget.calibrate(1, costs.step(1, 0))
        self._running: asyncio.Task[None] | None = None

    @property
    def load(self) -> int:
        """Number of open contexts."""
        return self._contexts

    def describe(self) -> EngineStatus:
        """Return the engine's state. See `Engine.describe`."""
        return EngineStatus(self.name, self.is_ready, self.load)

    @property
    def working(self) -> bool:
        """Whether it runs a step, or is about to."""
        return self._running is not None

    @property
    def step_times(self) -> StepTimes:
        """Durations of its steps. See `Engine.step_times`."""
        return StepTimes(self._step_budget.row_seconds, self._step_budget.stand_alone_seconds)

    def open_text(self, *, adds_space: bool) -> "SimulatedRun":
        """Return an empty run of text. See `Engine.open_text`."""
        return SimulatedRun()

    def open(self, scope: str, urgency: Urgency, traceparent: str = "") -> "SimulatedContext":
        """Open a context. See `Engine.open`."""
        self._contexts += 1
        return SimulatedContext(self, scope, urgency, next(self._numbers))

    def remove(self, context: "SimulatedContext") -> None:
        """Remove a freed context."""
        self._contexts -= 1
        self._count(context, None)
        if context in self._decoding:
            self._decoding.remove(context)

    def _count(self, context: "SimulatedContext", interactive: bool | None) -> None:
        """Count the context among those with a prompt to prefill, or with None remove it from the count."""
        if context.counted_as is not None:
            self._prefilling[context.counted_as] -= 1
        if interactive is not None:
            self._prefilling[interactive] += 1
        context.counted_as = interactive

    def enqueue(self, context: "SimulatedContext") -> None:
        """Queue a context that has tokens to prefill, or another rank than before."""
        context.ticket = next(self._numbers)
        self._count(context, context.urgency.interactive)
        waiting = self._waiting[context.sampling is None, context.urgency.interactive]
        heapq.heappush(waiting, (context.urgency.rank, context.arrival, context.ticket, context))
        if self._running is None:
            self._running = asyncio.get_running_loop().create_task(self._steps())

    async def _steps(self) -> None:
        while any(self._waiting.values()) or self._decoding:
            decoding = self._decoding_rows()[: self._costs.step_rows]
            step = self._plan(decoding)
            prefill = sum(rows for _, rows in step.chunks)
            if not decoding and not prefill:
                continue
            interactive = sum(decoder.urgency.interactive for decoder in decoding)
            seconds = self._costs.step(len(decoding) + prefill, sum(decoder.length for decoder in decoding))
            self.busy += seconds
            await asyncio.sleep(seconds)
            self._step_budget.observe(
                decoding=len(decoding),
                interactive=interactive,
                prefill=prefill,
                long=step.long,
                waiting=step.waiting,
                seconds=seconds,
            )
            for context, count in step.chunks:
                context.add_computed(count)
                if not context.needed_rows:
                    self._count(context, None)
                if not context.needed_rows and context.sampling is not None and not context.freed:
                    self._decoding.append(context)
            for context in decoding:
                context.made += 1
                if context.made >= context.tokens and not context.freed:
                    self._decoding.remove(context)
                    context.finish()
        self._running = None

    def _decoding_rows(self) -> "list[SimulatedContext]":
        """Return the contexts that decode in the next step."""
        interactive = sum(context.urgency.interactive for context in self._decoding)
        background = len(self._decoding) - interactive
        decoding = background_decoders(
            interactive,
            background,
            has_interactive_prompts=self._prefilling[True] > 0,
            step_budget=self._step_budget,
        )
        if decoding == background:
            return self._decoding
        by_urgency = sorted(self._decoding, key=lambda context: (not context.urgency.interactive, context.urgency.rank))
        return by_urgency[: interactive + decoding]

    def _plan(self, decoding: Sequence["SimulatedContext"]) -> "_Step":
        """Plan the prefill rows of the next step with the engine's own policy."""
        step = _Step()
        interactive = sum(context.urgency.interactive for context in decoding)
        mixed = self._prefilling[True] > 0 and self._prefilling[False] > 0
        prefill_rows = PrefillRows(
            self._step_budget.allow_rows(len(decoding), interactive=interactive, mixed=mixed),
            step_rows=self._costs.step_rows - len(decoding),
            interactive=interactive,
            first_rank=min((context.urgency.rank for context in decoding), default=math.inf),
        )
        again = []
        announced: set[int] = set()
        while True:
            allowed = [
                waiting
                for (is_prefetch, is_interactive), waiting in self._waiting.items()
                if waiting and prefill_rows.has_room_for(is_interactive=is_interactive, is_prefetch=is_prefetch)
            ]
            if not allowed:
                break
            waiting = min(allowed)
            rank, _, ticket, context = waiting[0]
            if not prefill_rows.has_room(rank):
                break  # all other prompts are even less urgent
            heapq.heappop(waiting)
            if context.freed or ticket != context.ticket:
                continue
            if not context.needed_rows:
                self._count(context, None)
                if context.sampling is not None:
                    self._decoding.append(context)
                continue
            self._reuse_cache(context)
            context.prompt = context.prompt or context.needed_rows
            if context.hashes and context.hashes[0] in announced:
                again.append(context)  # another context computes this block in the same step
                continue
            kind = prefill_rows.kind_of(
                rank=rank,
                is_interactive=context.urgency.interactive,
                is_prefetch=context.sampling is None,
                prompt_tokens=context.prompt,
            )
            rows = min(context.needed_rows, int(prefill_rows.allowed(kind)), prefill_rows.step_rows)
            if rows < context.needed_rows:
                step.waiting = True
                again.append(context)
            if rows <= 0:
                continue
            prefill_rows.take(kind, rows, rows)
            step.chunks.append((context, rows))
            announced.update(context.hashes[: (context.length + rows) // _BLOCK - context.length // _BLOCK])
        step.long = prefill_rows.long_taken
        step.waiting = step.waiting or any(self._waiting.values())
        for context in again:
            self.enqueue(context)
        return step

    def _reuse_cache(self, context: "SimulatedContext") -> None:
        """Reuse cached blocks of a prompt that is about to be prefilled, except for its last token."""
        last = _BLOCK if context.sampling is not None else 0  # the logits of the last token are needed
        while context.hashes and context.length % _BLOCK == 0 and context.unread > last:
            if context.hashes[0] not in self._cache:
                return
            self._cache.move_to_end(context.hashes.pop(0))
            context.add_cached(_BLOCK)

    def add_to_cache(self, hashes: Sequence[int]) -> None:
        """Add computed blocks to the cache. The least recently used ones are evicted."""
        for hash in hashes:
            self._cache[hash] = None
            self._cache.move_to_end(hash)
        while len(self._cache) * _BLOCK > self._costs.kv_tokens:
            self._cache.popitem(last=False)


class SimulatedRun:
    """Run of text with one token for each character. See `TextRun`. Values are filled as a whole."""

    is_rewritten = False

    async def push(self, text: str) -> list[int]:
        """Return the tokens of the text. See `TextRun.push`."""
        return [ord(character) for character in text]

    async def rest(self) -> list[int]:
        """Return nothing: `push` returns all tokens. See `TextRun.rest`."""
        return []

    def resume(self, text: str) -> None:
        """Do nothing: the context has the generated text. See `TextRun.resume`."""

    async def finish(self) -> list[int]:
        """Return nothing: `push` returns all tokens. See `TextRun.finish`."""
        return []


class SimulatedContext:
    """Context on a simulated engine. See `EngineContext`."""

    def __init__(self, engine: SimulatedEngine, scope: str, urgency: Urgency, arrival: int) -> None:
        self.arrival = arrival
        self.urgency = urgency
        self.sampling: SamplingParams | None = None
        self.length = 0
        self.unread = 0
        self.made = 0
        self.tokens = 0
        self.cached = 0
        self.prompt = 0
        """Number of tokens to prefill when the prefill began; 0 between prefills."""
        self.ticket = -1
        self.counted_as: bool | None = None
        """Whether it counts as interactive while it has a prompt to prefill; None if it has none."""
        self.freed = False
        self.hashes: list[int] = []
        """Hashes of the full blocks that are not prefilled yet."""
        self._scope = hash(scope)
        self._tail: list[int] = []
        self._engine = engine
        self._done: asyncio.Future[None] | None = None

    @property
    def needed_rows(self) -> int:
        """Number of rows to prefill now: only full blocks, unless text is generated after them."""
        return self.unread if self.sampling is not None else self.unread - len(self._tail)

    def fill(self, content: PromptContent, *, start: int | None = None) -> None:
        """Append tokens. See `EngineContext.fill`."""
        tokens = tokens_of_content(content)
        self._tail.extend(tokens)
        self.unread += len(tokens)
        while len(self._tail) >= _BLOCK:
            self._scope = hash((self._scope, *self._tail[:_BLOCK]))
            self.hashes.append(self._scope)
            del self._tail[:_BLOCK]
        self._engine.enqueue(self)

    async def generate(self, sampling: SamplingParams, on_event: EventCallback, *, heals: bool = False) -> None:
        """Generate text. See `EngineContext.generate`."""
        if self.freed:
            raise EngineLost("the context was freed")
        self.sampling = sampling
        self.tokens = sampling.max_tokens or _DEFAULT_TOKENS
        self.made = 0
        self._done = asyncio.get_running_loop().create_future()
        self._engine.enqueue(self)
        await self._done
        on_event(PrefillResult(self.length, self.cached))
        on_event(TokenDelta(Piece("x" * self.tokens, self.tokens), "length"))
        self.length += self.tokens
        self.sampling = None

    def add_computed(self, rows: int) -> None:
        """Record computed tokens."""
        before = self.length
        self.length += rows
        self.unread -= rows
        blocks = self.length // _BLOCK - before // _BLOCK
        self._engine.add_to_cache(self.hashes[:blocks])
        del self.hashes[:blocks]
        if not self.needed_rows:
            self.prompt = 0

    def add_cached(self, rows: int) -> None:
        """Record cached tokens."""
        self.length += rows
        self.unread -= rows
        self.cached += rows

    def finish(self) -> None:
        """End the generation."""
        if self._done is not None and not self._done.done():
            self._done.set_result(None)

    def rerank(self, urgency: Urgency) -> None:
        """Change the urgency. See `EngineContext.rerank`."""
        changed = urgency != self.urgency
        self.urgency = urgency
        if changed and self.unread and not self.freed:
            self._engine.enqueue(self)

    def retain(self, returns: Sequence[float]) -> None:
        """Do nothing: the simulated cache evicts the least recently used block."""

    def free(self) -> None:
        """Free the context. See `EngineContext.free`."""
        if not self.freed:
            self.freed = True
            self._engine.remove(self)
