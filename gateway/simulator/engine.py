"""An engine as a table of what its steps cost: batching, chunked prefill, prefix cache and memory, no tokens."""

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

from engine.scheduler import TOGETHER_SECONDS
from engine.step_budget import StepBudget
from gateway.engines.protocol import EngineLost, EventCallback, PrefillResult, StepTimes, TokenDelta, Urgency
from gateway.graph.call import SamplingParams
from gateway.graph.variable import Piece

_BLOCK = 16
_DECODE_SHARE = 0.65
_STEP_SECONDS = 0.1
_OTHER_TOKENS = 64
"""Of an answer without `max_tokens`."""


@dataclass(frozen=True)
class Costs:
    """Seconds of a step by its rows, in between by straight lines; what each decoding row costs more for every token
    that it attends to; the most rows of a step; and KV tokens that fit."""

    name: str
    rows: tuple[tuple[int, float], ...]
    attention: float
    step_rows: int
    kv_tokens: int

    def step(self, rows: int, attended: int) -> float:
        """Seconds of a step of so many rows, in which those who decode attend to so many tokens together."""
        at = bisect_left(self.rows, (rows, 0.0))
        if at == 0:
            seconds = self.rows[0][1]
        elif at == len(self.rows):
            (low, cheap), (high, dear) = self.rows[-2:]
            seconds = dear + (rows - high) * (dear - cheap) / (high - low)
        else:
            (low, cheap), (high, dear) = self.rows[at - 1 : at + 1]
            seconds = cheap + (rows - low) * (dear - cheap) / (high - low)
        return seconds + attended * self.attention


class BadTable(Exception):
    """The file is no table of costs."""


def read_costs(path: Path) -> Costs:
    """A table from a file of JSON with the fields of `Costs`. Raises BadTable, or OSError."""
    try:
        costs = msgspec.json.decode(path.read_bytes(), type=Costs)
    except msgspec.DecodeError as error:
        raise BadTable(f"{path} is no table of costs: {error}") from error
    if len(costs.rows) < 2 or any(low >= high for (low, _), (high, _) in pairwise(costs.rows)):
        raise BadTable(f"{path} is no table of costs: rows have to grow, and be two at least")
    return costs


CPU = Costs(
    "cpu",
    ((1, 0.0104), (5, 0.0116), (8, 0.0152), (13, 0.0208), (17, 0.0280), (33, 0.0486), (65, 0.0960), (257, 0.3700)),
    attention=9e-7,
    step_rows=512,
    kv_tokens=256_000,
)
"""SmolLM2-135M in bfloat16 on two threads of an AVX512-bf16 server CPU, measured 2026-11-24."""
H100 = Costs(
    "h100",
    ((1, 0.0075), (32, 0.0085), (64, 0.0095), (128, 0.0120), (256, 0.0180), (512, 0.0320), (2048, 0.1150)),
    attention=4.4e-8,
    step_rows=1024,
    kv_tokens=400_000,
)
"""An 8B model in bfloat16 on one H100, from bandwidth and matrix rate as others have published them. Not measured."""
TABLES = {costs.name: costs for costs in (CPU, H100)}


@dataclass
class _Step:
    """Prompts and how many rows of each; rows of long ones; whether some had to wait."""

    chunks: list[tuple["SimulatedContext", int]] = field(default_factory=list)
    long: int = 0
    waiting: bool = False


class SimulatedEngine:
    """Owner of its contexts and its prefix cache. See `gateway.engines.protocol.Engine`.

    A text is as many tokens as it has characters. What a context generates comes in one piece, at its end; a token a
    step, as without speculation.
    """

    ready = True

    def __init__(self, name: str, costs: Costs) -> None:
        self.name = name
        self.tokens_per_unit = 1.0
        self.constrains_after_reasoning = True
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
        """Prompts to be read, by whether something in them is still missing and whether they are watched; the most
        urgent first: rank, arrival, ticket, context. A ticket that is not the context's last one is void."""
        self._reading = {True: 0, False: 0}
        """How many contexts have prompts to be read, of those that are watched and of the others."""
        self._cache: OrderedDict[int, None] = OrderedDict()
        """Blocks by what they and all before them hold; those used last are last."""
        self._numbers = itertools.count()
        self._pacer = StepBudget(decode_share=_DECODE_SHARE, gap=_STEP_SECONDS)
        self._pacer.learn(64, costs.step(64, 0))
        self._pacer.learn(1, costs.step(1, 0))
        self._running: asyncio.Task[None] | None = None

    @property
    def load(self) -> int:
        """Contexts open."""
        return self._contexts

    @property
    def working(self) -> bool:
        """Whether it is in a step, or about to be."""
        return self._running is not None

    @property
    def pace(self) -> StepTimes:
        """See `Engine.pace`."""
        return StepTimes(self._pacer.row_seconds, self._pacer.alone_seconds)

    async def encode(self, text: str) -> Sequence[int]:
        """One token a character."""
        return [ord(c) for c in text]

    def encode_stable(self, text: str) -> tuple[Sequence[int], int]:
        """Values come whole."""
        return [], 0

    def open(self, scope: str, urgency: Urgency) -> "SimulatedContext":
        """See `Engine.open`."""
        self._contexts += 1
        return SimulatedContext(self, scope, urgency, next(self._numbers))

    def closed(self, context: "SimulatedContext") -> None:
        """A context was freed."""
        self._contexts -= 1
        self._count(context, None)
        if context in self._decoding:
            self._decoding.remove(context)

    def _count(self, context: "SimulatedContext", interactive: bool | None) -> None:
        """Counts it as one that has a prompt to be read, or as none."""
        if context.counted is not None:
            self._reading[context.counted] -= 1
        if interactive is not None:
            self._reading[interactive] += 1
        context.counted = interactive

    def wants(self, context: "SimulatedContext") -> None:
        """A context has tokens to be read, or another rank than before."""
        context.ticket = next(self._numbers)
        self._count(context, context.urgency.interactive)
        waiting = self._waiting[context.sampling is None, context.urgency.interactive]
        heapq.heappush(waiting, (context.urgency.rank, context.arrival, context.ticket, context))
        if self._running is None:
            self._running = asyncio.get_running_loop().create_task(self._steps())

    async def _steps(self) -> None:
        while any(self._waiting.values()) or self._decoding:
            decoding = self._urgent()[: self._costs.step_rows]
            step = self._plan(decoding)
            prefill = sum(rows for _, rows in step.chunks)
            if not decoding and not prefill:
                continue
            interactive = sum(one.urgency.interactive for one in decoding)
            seconds = self._costs.step(len(decoding) + prefill, sum(one.length for one in decoding))
            self.busy += seconds
            await asyncio.sleep(seconds)
            self._pacer.observe(
                decoding=len(decoding),
                interactive=interactive,
                prefill=prefill,
                long=step.long,
                waiting=step.waiting,
                seconds=seconds,
            )
            for context, count in step.chunks:
                context.read(count)
                if not context.wanted:
                    self._count(context, None)
                if not context.wanted and context.sampling is not None and not context.freed:
                    self._decoding.append(context)
            for context in decoding:
                context.made += 1
                if context.made >= context.tokens and not context.freed:
                    self._decoding.remove(context)
                    context.finish()
        self._running = None

    def _urgent(self) -> "list[SimulatedContext]":
        """Those who decode in the next step: as `engine.scheduler` has it."""
        interactive = sum(one.urgency.interactive for one in self._decoding)
        if interactive == len(self._decoding) or not (interactive or self._reading[True]):
            return self._decoding
        most = interactive + self._pacer.unwatched(interactive)
        if len(self._decoding) <= most:
            return self._decoding
        return sorted(self._decoding, key=lambda one: (not one.urgency.interactive, one.urgency.rank))[:most]

    def _plan(self, decoding: Sequence["SimulatedContext"]) -> "_Step":
        """What goes into the next step beside those who decode: as `engine.scheduler` has it."""
        step = _Step()
        interactive = sum(context.urgency.interactive for context in decoding)
        mixed = self._reading[True] > 0 and self._reading[False] > 0
        most, long, behind, ahead = self._pacer.rows(len(decoding), interactive=interactive, mixed=mixed)
        first = min((context.urgency.rank for context in decoding), default=math.inf) + TOGETHER_SECONDS
        budget = min(self._costs.step_rows - len(decoding), most)
        again = []
        announced: set[int] = set()
        while budget > 0:
            # of each kind all wait, once nothing more is left for that kind
            allowed = [
                waiting
                for (waits, seen), waiting in self._waiting.items()
                if waiting and (ahead > 0 or not waits) and (long > 0 or seen or not interactive)
            ]
            if not allowed:
                break
            waiting = min(allowed)
            rank, _, ticket, context = waiting[0]
            if rank > first and behind <= 0:
                break  # nor can any other
            heapq.heappop(waiting)
            if context.freed or ticket != context.ticket:
                continue
            if not context.wanted:
                self._count(context, None)
                if context.sampling is not None:
                    self._decoding.append(context)
                continue
            self._find(context)
            context.prompt = context.prompt or context.wanted
            if context.hashes and context.hashes[0] in announced:
                again.append(context)  # somebody computes it in this step
                continue
            is_long = interactive > 0 and (context.prompt > most or not context.urgency.interactive)
            waits = context.sampling is None
            follows = rank > first
            rows = min(
                context.wanted,
                budget,
                long if is_long else budget,
                behind if follows else budget,
                ahead if waits else budget,
            )
            if rows < context.wanted:
                step.waiting = True
                again.append(context)
            if rows <= 0:
                continue
            budget -= rows
            behind -= rows if follows else 0
            ahead -= rows if waits else 0
            if is_long:
                long -= rows
                step.long += rows
            step.chunks.append((context, rows))
            announced.update(context.hashes[: (context.length + rows) // _BLOCK - context.length // _BLOCK])
        step.waiting = step.waiting or any(self._waiting.values())
        for context in again:
            self.wants(context)
        return step

    def _find(self, context: "SimulatedContext") -> None:
        """Takes what is in the cache of a prompt that is about to be read, and leaves the last token to be computed."""
        last = _BLOCK if context.sampling is not None else 0  # its logits are needed
        while context.hashes and context.length % _BLOCK == 0 and context.unread > last:
            if context.hashes[0] not in self._cache:
                return
            self._cache.move_to_end(context.hashes.pop(0))
            context.found(_BLOCK)

    def keep(self, hashes: Sequence[int]) -> None:
        """Blocks that have been computed."""
        for hash in hashes:
            self._cache[hash] = None
            self._cache.move_to_end(hash)
        while len(self._cache) * _BLOCK > self._costs.kv_tokens:
            self._cache.popitem(last=False)


class SimulatedContext:
    """See `EngineContext`."""

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
        """Tokens that were to be read when that began; 0 in between."""
        self.ticket = -1
        self.counted: bool | None = None
        """Watched or not, while it has a prompt to be read."""
        self.freed = False
        self.hashes: list[int] = []
        """Of the full blocks that are still to be read."""
        self._scope = hash(scope)
        self._tail: list[int] = []
        self._engine = engine
        self._done: asyncio.Future[None] | None = None

    @property
    def wanted(self) -> int:
        """Rows to be read now: full blocks only, as long as nothing is generated behind them."""
        return self.unread if self.sampling is not None else self.unread - len(self._tail)

    def fill(self, tokens: Sequence[int]) -> None:
        """See `EngineContext.fill`."""
        self._tail.extend(tokens)
        self.unread += len(tokens)
        while len(self._tail) >= _BLOCK:
            self._scope = hash((self._scope, *self._tail[:_BLOCK]))
            self.hashes.append(self._scope)
            del self._tail[:_BLOCK]
        self._engine.wants(self)

    async def generate(self, sampling: SamplingParams, tell: EventCallback) -> None:
        """See `EngineContext.generate`."""
        if self.freed:
            raise EngineLost("the context was freed")
        self.sampling = sampling
        self.tokens = sampling.max_tokens or _OTHER_TOKENS
        self.made = 0
        self._done = asyncio.get_running_loop().create_future()
        self._engine.wants(self)
        await self._done
        tell(PrefillResult(self.length, self.cached))
        tell(TokenDelta(Piece("x" * self.tokens, self.tokens), "length"))
        self.length += self.tokens
        self.sampling = None

    def read(self, rows: int) -> None:
        """So many tokens were computed."""
        before = self.length
        self.length += rows
        self.unread -= rows
        blocks = self.length // _BLOCK - before // _BLOCK
        self._engine.keep(self.hashes[:blocks])
        del self.hashes[:blocks]
        if not self.wanted:
            self.prompt = 0

    def found(self, rows: int) -> None:
        """So many tokens were in the cache."""
        self.length += rows
        self.unread -= rows
        self.cached += rows

    def finish(self) -> None:
        """All is made."""
        if self._done is not None and not self._done.done():
            self._done.set_result(None)

    def rerank(self, urgency: Urgency) -> None:
        """See `EngineContext.rerank`."""
        changed = urgency != self.urgency
        self.urgency = urgency
        if changed and self.unread and not self.freed:
            self._engine.wants(self)

    def free(self) -> None:
        """See `EngineContext.free`."""
        if not self.freed:
            self.freed = True
            self._engine.closed(self)
