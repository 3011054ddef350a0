"""The engine: contexts in, one step after another, updates out."""

import logging
import math
import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass
from pathlib import Path

import torch

from engine.config import EngineConfig
from engine.device import check_weights, choose_device, kv_tokens_on, room_on
from engine.errors import CheckpointError, ContextError, EngineError
from engine.generation import Generation, Sampled
from engine.grammar import Grammars, Matcher, is_constrained
from engine.input_batch import InputBatch
from engine.kernels import AttentionBatch, Limits, select_kernels
from engine.kernels.base import PendingChoices
from engine.kv.cache import SCRATCH, KVCache
from engine.kv.eviction import EvictionPolicy
from engine.kv.host_offload import HostOffload
from engine.kv.sizing import affordable_tokens, free_memory
from engine.models.checkpoint import open_weights, weights_size
from engine.models.decoder import Decoder
from engine.models.fetch import checkpoint_folder, model_name
from engine.models.spec import read_spec
from engine.protocol import EngineInfo, SamplingParams, Update
from engine.sampler import BadLogits, Sampler, any_token, sampled
from engine.scheduler import Chunk, Plan, StepScheduler
from engine.sequence import Context
from engine.speculative import Speculator
from engine.step_budget import FEW_ROWS, StepBudget
from engine.tokenizer import Tokenizer

log = logging.getLogger("myna.engine")

_STEP_TOKENS = {"cpu": 512, "cuda": 4096}
"""Token budget of a step where nobody said one: so many rows that their products are worth reading the weights for."""
_TRIAL_ROWS = 64
_CHARACTERS = 16
"""Of a token, on average at most: of a prediction no more is read than the answer may have, since all wait for that."""
_HOST_SHARE = 0.2
"""Part of the host's free memory for KV that left a GPU."""


_COMPILE_POLL_SECONDS = 0.02
"""Longest wait for a grammar if there is no other work, in seconds. New commands wait that long too."""
_FRESH_SECONDS = 0.003
"""Longest wait for grammars that have just arrived, in seconds. Most are compiled by then, which saves a step."""


@dataclass(frozen=True)
class _Compiling:
    """A `generate` whose grammar a thread compiles. Its context has no generation until that is done."""

    context: Context
    sampling: SamplingParams
    limit: int
    matcher: Future[Matcher]


@dataclass(frozen=True)
class _Running:
    """A step that was begun. sampling, generations, places: those that get tokens, and where among the context's
    tokens the first goes; choices: the tokens when they are there, one for each of `asked`, and several for whom some
    were drafted. filled: what fills it brought to an end, by context."""

    plan: Plan
    filled: dict[int, Update]
    sampling: list[Chunk]
    generations: list[Generation]
    asked: list[Generation]
    places: list[int]
    choices: PendingChoices | None
    began: float

    @property
    def blind(self) -> bool:
        """Whether the next step can be prepared without knowing what this one chooses."""
        return not self.plan.drafted and all(generation.blind for generation in self.generations)


class Engine:
    """Owner of all contexts and of the KV pool. Not thread-safe: one loop calls it.

    `fill`, `generate`, `free_context` and `rerank` only note what is wanted; `step` does the work and
    returns what it brought. Commands that do not fit raise ContextError and change nothing.
    """

    def __init__(self, config: EngineConfig, resolved: Callable[[Path], None] = lambda folder: None) -> None:
        """Fetches, converts and loads the model. `resolved` is told the folder as soon as it is on disk.

        Raises CheckpointError if the model cannot be had, EngineError if the wanted kernels cannot run here.
        """
        began = time.monotonic()
        self.config = config
        dtype = getattr(torch, config.dtype)
        assert isinstance(dtype, torch.dtype)
        device = choose_device("cpu" if config.kernels in ("cpu", "torch") else config.device)
        threads = config.threads or max(1, len(os.sched_getaffinity(0)) // config.peers)
        torch.set_num_threads(threads)
        cache = Path(config.cache).expanduser()
        folder = checkpoint_folder(config.model, cache, dtype)
        spec = read_spec(folder)
        resolved(folder)
        self.tokenizer = Tokenizer(folder)
        step_tokens = config.step_tokens or _STEP_TOKENS[device.type]
        kernels = select_kernels(
            config.kernels,
            spec.shape,
            dtype,
            config.block_size,
            cache,
            quantize=config.quantize,
            kv_dtype=config.kv_dtype,
            device=device,
            limits=Limits(max(step_tokens, _TRIAL_ROWS), config.max_batch, 1 + spec.window // config.block_size),
        )
        if device.type == "cuda":
            check_weights(room_on(device), weights_size(folder, dtype))
        weights = open_weights(folder)
        try:
            self.decoder = Decoder(spec, weights, kernels, dtype)
        except CheckpointError as error:
            raise CheckpointError(f"{folder}: {error}") from error
        tokens = self._kv_tokens(device)
        blocks = 1 + math.ceil(tokens / config.block_size)
        self.decoder.allocate_kv(blocks)
        retention = EvictionPolicy(blocks - 1, learns=config.retention == "learned")
        shelf = HostOffload(self._host_tokens(device, tokens) // config.block_size)
        if shelf.slots:
            self.decoder.make_slots(shelf.slots)
        self.cache = KVCache(blocks, config.block_size, sharing=config.prefix_sharing, retention=retention, shelf=shelf)
        self._pacer = StepBudget(decode_share=config.decode_share, gap=config.step_seconds)
        speculates = config.speculation == "on"
        if speculates and config.overlap == "on":
            raise EngineError("what may come next is not known before a step is read: leave out overlap or speculation")
        self._overlap = config.overlap == "on" or (
            config.overlap == "auto" and device.type == "cuda" and not speculates
        )
        if config.speculation == "auto":
            speculates = kernels.batch_invariant and not self._overlap
        self._speculation = Speculator(self._pacer) if speculates else None
        self._planner = StepScheduler(self.cache, step_tokens, config.max_batch, self._pacer, self._speculation)
        self._sampler = Sampler(kernels)
        self._grammars = Grammars(self.tokenizer)
        self._arrays = InputBatch(step_tokens, config.max_batch, config.block_size)
        self._contexts: dict[int, Context] = {}
        self._compiling: dict[int, _Compiling] = {}
        self._fresh = False
        """Whether a grammar arrived since the last step."""
        self._suspects: deque[int] = deque()
        self._running: _Running | None = None
        """The step whose results were not read yet."""
        self._read_at = 0.0
        self._arrivals = 0
        self.info = EngineInfo(
            model=model_name(config.model),
            folder=str(folder),
            architecture=spec.architecture,
            parameters=self.decoder.parameters,
            dtype=config.dtype,
            device=str(device),
            kernels=kernels.name,
            threads=threads,
            window=spec.window,
            vocabulary=spec.vocabulary,
            kv_tokens=self.cache.capacity,
            block_size=config.block_size,
            load_seconds=time.monotonic() - began,
        )
        self._warm_up()

    def _kv_tokens(self, device: torch.device) -> int:
        """How many the KV pool is to hold, where the weights are there already."""
        config, token_bytes = self.config, self.decoder.kv_bytes_per_token
        if device.type == "cuda":
            shape = self.decoder.spec.shape
            return kv_tokens_on(
                room_on(device),
                config.kv_tokens,
                token_bytes,
                config.block_size,
                config.peers,
                layer_numbers=shape.kv_heads * shape.head_size,
            )
        return config.kv_tokens or affordable_tokens(token_bytes, self.decoder.spec.window, config.peers)

    def _host_tokens(self, device: torch.device, pool: int) -> int:
        """KV to keep in the host's memory when it leaves a pool of so many tokens."""
        if self.config.host_kv_tokens >= 0:
            return self.config.host_kv_tokens
        if device.type == "cpu":
            return 0
        free = free_memory() * _HOST_SHARE / self.config.peers
        return min(pool, int(free / self.decoder.kv_bytes_per_token))

    # commands

    def fill(
        self,
        context: int,
        tokens: list[int],
        *,
        parent: int | None = None,
        rank: float = 0.0,
        scope: str = "",
        interactive: bool = True,
    ) -> None:
        """Appends tokens to a context, which its first fill makes; see `Fill`."""
        known = self._contexts.get(context)
        if known is not None and parent is not None:
            raise ContextError("context_exists", f"context {context} exists and cannot be forked into")
        if known is not None and (known.generation is not None or context in self._compiling):
            raise ContextError("context_busy", f"context {context} is generating; fill it when that has ended")
        bad = next((token for token in tokens if not 0 <= token < self.info.vocabulary), None)
        if bad is not None:
            raise ContextError("bad_token", f"token {bad} is outside the vocabulary of {self.info.vocabulary}")
        before = len(known.tokens) if known else self._get(parent).known if parent is not None else 0
        length, most = before + len(tokens), min(self.info.window, self.info.kv_tokens)
        if length > most:
            raise ContextError(
                "context_length_exceeded",
                f"{length} tokens do not fit: the model's window is {self.info.window} tokens and the KV pool "
                f"holds {self.info.kv_tokens}",
            )
        target = known
        if target is None:
            if parent is not None:
                scope = self._get(parent).scope
            self._arrivals += 1
            target = Context(context, self.cache, scope, rank, self._arrivals)
            if parent is not None:
                target.fork_from(self._get(parent))
            self._contexts[context] = target
        target.rank, target.interactive = rank, interactive
        target.tokens.extend(tokens)
        target.fills.append(len(target.tokens))
        target.filled += len(tokens)

    def fork(self, context: int, parent: int, *, rank: float = 0.0) -> None:
        """A new context that goes on from where `parent` is; blocks are shared until written."""
        self.fill(context, [], parent=parent, rank=rank)

    def generate(self, context: int, sampling: SamplingParams, *, rank: float | None = None) -> None:
        """Samples behind the context's last token; see `Generate`."""
        target = self._get(context)
        if target.generation is not None or context in self._compiling:
            raise ContextError("context_busy", f"context {context} is generating already")
        if not target.tokens:
            raise ContextError("empty_context", f"context {context} holds no tokens to go on from")
        vocabulary = self.info.vocabulary
        for what, ids in (("logit_bias", sampling.logit_bias), ("stop_token_ids", sampling.stop_token_ids)):
            bad = next((id for id in ids if not 0 <= id < vocabulary), None)
            if bad is not None:
                raise ContextError("bad_token", f"{what} names token {bad}; the vocabulary has {vocabulary}")
        # the last token's KV is never needed
        room = min(self.info.window, self.info.kv_tokens + 1) - len(target.tokens)
        if room <= 0:
            raise ContextError(
                "context_length_exceeded",
                f"the prompt's {len(target.tokens)} tokens leave no room in the window of {self.info.window}",
            )
        limit = room if sampling.max_tokens is None else min(room, sampling.max_tokens)
        if is_constrained(sampling):
            self._fresh = True
            self._compiling[context] = _Compiling(
                target, sampling, limit, self._grammars.compile(sampling, target.scope)
            )
        else:
            self._begin(target, sampling, limit, None)
        if rank is not None:
            target.rank = rank

    def _begin(self, target: Context, sampling: SamplingParams, limit: int, matcher: Matcher | None) -> None:
        told = sampling.prediction[: limit * _CHARACTERS] if self._speculation is not None else ""
        prediction = self.tokenizer.encode(told) if told else []
        target.generation = Generation(sampling, self.tokenizer, target.tokens, limit, matcher, prediction)

    def _begin_compiled(self) -> list[Update]:
        """Begin the generations whose grammars are compiled. Wait for one if there is no other work."""
        if not self._compiling:
            return []
        futures = [one.matcher for one in self._compiling.values()]
        if self._running is None and not any(context.has_work for context in self._contexts.values()):
            wait(futures, _COMPILE_POLL_SECONDS, FIRST_COMPLETED)
        elif self._fresh:
            wait(futures, _FRESH_SECONDS)
        self._fresh = False
        failed = []
        for number, one in list(self._compiling.items()):
            if not one.matcher.done():
                continue
            del self._compiling[number]
            try:
                self._begin(one.context, one.sampling, one.limit, one.matcher.result())
            except ContextError as error:
                failed.append(self._fail(one.context, error.code, str(error)))
            except Exception as error:
                log.exception("compiling a grammar failed")
                failed.append(self._fail(one.context, "internal_error", f"internal error: {error!r}"))
        return failed

    def free_context(self, context: int) -> None:
        """Forgets the context and gives its blocks back. Unknown ids are ignored."""
        target = self._contexts.pop(context, None)
        compiling = self._compiling.pop(context, None)
        if compiling is not None:
            compiling.matcher.cancel()
        if target is not None:
            target.free()

    def rerank(self, contexts: Iterable[int], rank: float, *, interactive: bool = True) -> None:
        """New rank for those of the contexts that exist; see `Rerank`."""
        for context in contexts:
            if context in self._contexts:
                self._contexts[context].rank = rank
                self._contexts[context].interactive = interactive

    def _get(self, context: int) -> Context:
        if context not in self._contexts:
            raise ContextError("unknown_context", f"there is no context {context}")
        return self._contexts[context]

    # the step

    @property
    def has_work(self) -> bool:
        """Whether a step would bring anything forward."""
        waits = self._running is not None or bool(self._compiling)
        return waits or any(context.has_work for context in self._contexts.values())

    @property
    def running(self) -> int:
        """Contexts with work left."""
        return sum(context.has_work or context.id in self._compiling for context in self._contexts.values())

    @property
    def free_tokens(self) -> int:
        """KV tokens that are free or can be freed at once."""
        return self.cache.available * self.config.block_size

    @property
    def pace(self) -> tuple[float, float]:
        """Seconds that a row of a prompt takes, and a token where one or two contexts decode."""
        gain = self._speculation.gain if self._speculation is not None else 1.0
        return self._pacer.row_seconds, self._pacer.alone_seconds / gain

    @property
    def drafts(self) -> tuple[int, int]:
        """Tokens that were drafted since the start, and how many of them stood."""
        return (0, 0) if self._speculation is None else (self._speculation.drafted, self._speculation.right)

    def step(self) -> list[Update]:
        """Plans one batch, runs it, samples, and says what changed for whom; where steps overlap, begins it, and says
        what the one before it changed.

        If a step over several contexts raises, each of them is tried alone: who raises again fails, and only it.
        """
        refused = self._begin_compiled()
        before = self._running
        if before is not None and (self._suspects or not before.blind):
            return refused + self._finish()
        if self._suspects:
            context = self._contexts.get(self._suspects.popleft())
            if context is None or not context.has_work:
                return refused
            updates = refused + self._launch(self._planner.plan([context], list(self._contexts.values())))
            return updates + self._finish()
        updates = refused + self._launch(self._planner.plan(self._contexts.values()))
        if before is not None:
            updates = self._read(before) + updates
        return updates if self._overlap else updates + self._finish()

    def _launch(self, plan: Plan) -> list[Update]:
        """Begins a step, which is the running one then, for `_read` to read. If it raises, none is running, and what
        that means for a context is returned."""
        self._running = None
        swaps = self.cache.shelf.take()
        if swaps.outs or swaps.ins:  # whether or not the step goes well: the cache counts on it
            self.decoder.swap(swaps)
        if not plan.chunks:
            return []
        began = time.perf_counter()
        sampling = [chunk for chunk in plan.chunks if chunk.samples]
        generations = [chunk.context.generation for chunk in sampling if chunk.context.generation is not None]
        asked = generations
        if plan.drafted:
            asked = [one for chunk, one in zip(sampling, generations, strict=True) for _ in (None, *chunk.drafted)]
        try:
            logits = self._forward(plan)
            choices = self._sampler.ask(logits, asked) if asked else None
        except Exception as error:
            return self._recover(plan, error)
        filled: dict[int, Update] = {}
        for chunk in plan.chunks:
            context = chunk.context
            if not chunk.stored:
                context.commit(chunk.end - len(chunk.drafted))
            if context.fills:
                _report_fills(context, filled.setdefault(context.id, Update(context.id)))
        places, row = [], 0
        for chunk, generation in zip(sampling, generations, strict=True):
            places.append(len(chunk.context.tokens))
            chunk.context.tokens.append(-1 - row)  # see `Kernels.stage`
            generation.pending += 1
            row += 1 + len(chunk.drafted)
        self._running = _Running(plan, filled, sampling, generations, asked, places, choices, began)
        return []

    def _finish(self) -> list[Update]:
        """What the running step brings, if there is one."""
        running, self._running = self._running, None
        return [] if running is None else self._read(running)

    def _read(self, running: "_Running") -> list[Update]:
        """Waits for a step, and says what it changed for whom. A context that ended meanwhile has nothing to do with it
        any more."""
        chosen = [] if running.choices is None else sampled(running.choices, running.asked)
        updates = {id: update for id, update in running.filled.items() if id in self._contexts}
        row = 0
        for chunk, generation, place in zip(running.sampling, running.generations, running.places, strict=True):
            context, choices = chunk.context, chosen[row : row + 1 + len(chunk.drafted)]
            row += len(choices)
            generation.pending -= 1
            if self._contexts.get(context.id) is not context or context.generation is not generation:
                continue
            standing = _standing(choices, chunk.drafted)
            accepted = rejected = 0
            if self._speculation is not None and context.id not in running.filled:
                accepted, rejected = self._speculation.tell(context, len(chunk.drafted), len(standing) - 1)
            if isinstance(bad := standing[-1], BadLogits):
                updates[context.id] = self._fail(context, *(generation.failure or ("bad_logits", str(bad))))
                continue
            tokens = [choice for choice in standing if isinstance(choice, Sampled)]
            update = updates.setdefault(context.id, Update(context.id))
            update.accepted, update.rejected = accepted, rejected
            _take_tokens(chunk, tokens, place, update)
            if generation.failure is not None and update.finish != "length":
                updates[context.id] = self._fail(context, *generation.failure)
        plan, now = running.plan, time.perf_counter()
        seconds, self._read_at = now - max(running.began, self._read_at), now
        for context in plan.held:
            context.held += seconds
        for context in plan.starved:
            context.starved += seconds
        self._pacer.observe(
            decoding=plan.decoding,
            interactive=plan.interactive,
            prefill=plan.rows - plan.decoding - plan.drafted,
            drafted=plan.drafted,
            long=plan.long,
            waiting=plan.waiting,
            seconds=seconds,
        )
        return [update for update in updates.values() if update.tokens or update.error or update.filled is not None]

    def _recover(self, plan: Plan, error: Exception) -> list[Update]:
        """After a step that raised: its KV is as if it had not been, and whoever is to blame is found."""
        log.exception("a step over %d contexts failed", len(plan.chunks))
        for chunk in reversed(plan.chunks):
            chunk.context.abort()
            chunk.context.drop_blocks()  # copies it was to make may not have been made
        if len(plan.chunks) == 1:
            return [self._fail(plan.chunks[0].context, "step_failed", repr(error))]
        self._suspects.extend(chunk.context.id for chunk in plan.chunks)
        return []

    def _fail(self, context: Context, code: str, message: str) -> Update:
        self.free_context(context.id)
        return Update(context.id, error=(code, message))

    def _forward(self, plan: Plan) -> torch.Tensor:
        """Logits (sampling chunks, vocabulary) of the plan's rows."""
        if plan.copies:
            self.decoder.copy_blocks(plan.copies)
        if not plan.rows:
            return torch.empty(0, self.info.vocabulary)
        return self.decoder.forward(*self._arrays.gather(plan))

    def _warm_up(self) -> None:
        """Runs steps on the scratch block, so that the first request meets no first time, and the pacer knows what a
        row costs."""
        for size in self.decoder.kernels.recorded:
            self._try([1] * size)
        trials = {_TRIAL_ROWS: [_TRIAL_ROWS], 1: [1]}
        if self._speculation is not None:
            few = min(FEW_ROWS, self.config.max_batch)
            trials[few] = [1] * few
        taken = dict.fromkeys(trials, math.inf)
        for rows, each in list(trials.items()) * 2:
            began = time.perf_counter()
            self._try(each)
            taken[rows] = min(taken[rows], time.perf_counter() - began)
        for rows, seconds in taken.items():
            self._pacer.learn(rows, seconds)

    def _try(self, rows: list[int]) -> None:
        """A step of sequences of so many rows each, which choose nothing."""
        ends = torch.tensor(rows).cumsum(0)
        blocks = -(-max(rows) // self.config.block_size)
        batch = AttentionBatch(
            positions=torch.cat([torch.arange(count) for count in rows]).clamp(max=self.info.window - 1),
            slots=torch.zeros(sum(rows), dtype=torch.int64),
            query_starts=torch.cat((torch.zeros(1, dtype=torch.int64), ends)).int(),
            lengths=torch.tensor(rows, dtype=torch.int32),
            block_tables=torch.full((len(rows), blocks), SCRATCH, dtype=torch.int32),
        )
        logits = self.decoder.forward(torch.zeros(sum(rows), dtype=torch.int64), batch, ends - 1)
        self.decoder.kernels.choose(logits, any_token(len(rows))).result()

    def check_integrity(self) -> None:
        """Recounts the cache from all contexts. Raises AssertionError on any difference."""
        self.cache.check_integrity([context.blocks for context in self._contexts.values()])

    # alone, without a gateway

    def stream(self, prompt: str | list[int], sampling: SamplingParams) -> Iterator[Update]:
        """Runs one prompt to its end. Raises ContextError if it is refused or fails."""
        tokens = self.tokenizer.encode_template(prompt) if isinstance(prompt, str) else prompt
        context = 1 + max(self._contexts, default=0)
        self.fill(context, tokens)
        try:
            self.generate(context, sampling)
            while True:
                for update in self.step():
                    if update.context != context:
                        continue
                    if update.error is not None:
                        raise ContextError(*update.error)
                    yield update
                    if update.finish is not None:
                        return
        finally:
            self.free_context(context)


def _report_fills(context: Context, update: Update) -> None:
    update.filled = context.settle_fills()
    if update.filled is not None and not context.fills:
        update.missed = context.settle_missed()
        update.cached, context.cached = context.cached, 0
        update.held, context.held = context.held, 0.0
        update.starved, context.starved = context.starved, 0.0


def _standing(choices: list[Sampled | BadLogits], drafted: Sequence[int]) -> list[Sampled | BadLogits]:
    """Of what was chosen behind the last token and behind each drafted one: that which stands, since all before it is
    as it was drafted."""
    for at, draft in enumerate(drafted):
        choice = choices[at]
        if isinstance(choice, BadLogits) or choice.token != draft:
            return choices[: at + 1]
    return choices


def _take_tokens(chunk: Chunk, choices: list[Sampled], place: int, update: Update) -> None:
    """Puts the tokens chosen behind a chunk where a stand-in is, until the generation ends, and tells of them."""
    context, generation = chunk.context, chunk.context.generation
    assert generation is not None
    tokens: list[int] = []
    for choice in choices:
        forced, progress = generation.push(choice.token)
        tokens += choice.token, *forced
        update.text += progress.text
        ends = progress.finish == "stop" and choice.token in generation.stop_tokens
        if choice.logprob is not None and not ends:  # an end token is no part of the answer
            update.logprobs.append(choice.logprob)
        if progress.finish is not None:
            break
    update.tokens, update.finish = tokens, progress.finish
    if generation.pending:  # it was blind, so nothing was forced
        context.tokens[place] = tokens[0]
    else:
        context.tokens[place:] = tokens
    if chunk.drafted:
        context.accept(place + len(tokens) - 1)
    if progress.finish is not None:
        context.generation = None
        context.truncate(place + len(tokens))  # nothing comes of what was chosen behind it meanwhile
        if progress.finish == "stop":
            kept, rest = generation.kept(context.tokens)
            context.truncate(kept)
            context.tokens += rest
