"""The engine: it fills sequences, runs one step after another, and returns updates."""

import logging
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import torch

from engine.config import EngineConfig
from engine.errors import ContextError
from engine.factory import build_parts
from engine.generation import Generation, SampledToken
from engine.grammar import Grammars, Matcher
from engine.healing import PrefixMatcher, TokenTable
from engine.kernels.base import PendingSample
from engine.kv.cache import LastBlock
from engine.pending_generations import PendingGenerations, Start
from engine.pooling import Pooling
from engine.protocol import Update
from engine.sampler import BadLogits, Sampler, collect
from engine.sampling_params import SamplingParams
from engine.scheduler import Chunk, Plan
from engine.sequence import TokenSequence

log = logging.getLogger("myna.engine")

_MAX_TOKEN_CHARACTERS = 16
"""Upper bound of a token's average length, in characters. Only so much of a prediction is tokenised, since all requests
wait for that."""

_UNKNOWN_GAP = (0.0,)
"""Durations that stand in for those of earlier gaps until `Retain` arrives, in seconds. With them, `expected_wait`
returns the time since the free: the gap is expected to last as long again."""
_RETAIN_SECONDS = 2.0
"""Maximum time for which the engine expects a reader of a freed context without `Retain`, in seconds."""


@dataclass(frozen=True)
class _RunningStep:
    """A step in flight.

    `filled`: updates of the fills that it finishes, by context. `sampling`, `generations`, `positions`: the chunks that
    get tokens, their generations, and the index of the first new token in each sequence. `row_generations`: the
    generation of each row of logits; a chunk with a draft has several rows. `pending`: the sampled tokens, once the
    device has them. `began`: start time, in seconds.
    """

    plan: Plan
    filled: dict[int, Update]
    sampling: list[Chunk]
    generations: list[Generation]
    row_generations: list[Generation]
    positions: list[int]
    pending: PendingSample | None
    began: float

    @property
    def is_history_free(self) -> bool:
        """Whether the engine can prepare the next step without the tokens of this one."""
        return not self.plan.drafted_rows and all(generation.is_history_free for generation in self.generations)


class Engine:
    """Owner of all sequences and of the KV pool. Not thread-safe: one loop calls it.

    `fill`, `generate` and `rerank` only record the command; `step` does the work and returns updates. `free_context`
    and `retain` take effect immediately. Invalid commands raise ContextError and change nothing.
    """

    def __init__(self, config: EngineConfig, on_resolved: Callable[[Path], None] = lambda folder: None) -> None:
        """Fetch, convert and load the model. `on_resolved` is called with its folder as soon as that is on disk.

        Raises CheckpointError if the model cannot be loaded, EngineError if the requested kernels cannot run here.
        """
        parts = build_parts(config, on_resolved)
        self.config = config
        self.info = parts.info
        self.tokenizer = parts.tokenizer
        self.decoder = parts.decoder
        self.cache = parts.cache
        self._step_budget = parts.step_budget
        self._speculator = parts.speculator
        self._scheduler = parts.scheduler
        self._input_batch = parts.input_batch
        self._overlaps = parts.overlaps
        self._sampler = Sampler(parts.decoder.kernels)
        self._pending_generations = PendingGenerations(Grammars(parts.tokenizer))
        self._token_table = TokenTable(parts.tokenizer)
        self._sequences: dict[int, TokenSequence] = {}
        self._unreported: dict[LastBlock, float] = {}
        """Last blocks of freed contexts of programs without `Retain`, each with the time of its free in seconds, the
        oldest first."""
        self._retry_alone: deque[int] = deque()
        self._running: _RunningStep | None = None
        """Step whose results are not read yet."""
        self._last_read_time = 0.0
        self._arrivals = 0

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
        start: int | None = None,
        pausable: bool = False,
    ) -> None:
        """Append tokens to a context; the first fill creates it. See `Fill`.

        A context with a `parent` continues it: they share blocks until one writes. With `start`, the tokens replace
        those from that position on.
        """
        known = self._sequences.get(context)
        if known is not None and parent is not None:
            raise ContextError("context_exists", f"context {context} exists already; fork into a new context")
        if known is not None and (known.generation is not None or context in self._pending_generations):
            raise ContextError("context_busy", f"context {context} is generating; fill it after that has ended")
        bad = next((token for token in tokens if not 0 <= token < self.info.vocabulary), None)
        if bad is not None:
            raise ContextError("bad_token", f"token {bad} is outside the vocabulary of {self.info.vocabulary}")
        before = len(known.tokens) if known else self._get(parent).known_tokens if parent is not None else 0
        if start is not None:
            if known is None or start > before:
                raise ContextError("bad_start", f"context {context} has {before} tokens, so none begin at {start}")
            before = start + _common_length(known.tokens, start, tokens)
            tokens = tokens[before - start :]
        length = before + len(tokens)
        if length > min(self.info.window, self.info.kv_tokens):
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
            target = TokenSequence(context, self.cache, scope, rank, self._arrivals)
            target.is_pausable, target.is_admitted = pausable, not pausable
            if parent is not None:
                target.fork_from(self._get(parent))
            self._sequences[context] = target
        target.rank, target.is_interactive = rank, interactive
        if before < len(target.tokens):
            target.truncate(before)
        target.tokens.extend(tokens)
        target.pending_fills.append(len(target.tokens))
        target.fill_tokens += len(tokens)

    def generate(
        self, context: int, sampling: SamplingParams, *, rank: float | None = None, heals: bool = False
    ) -> None:
        """Sample after the context's last token; see `Generate`."""
        target = self._get(context)
        if target.generation is not None or context in self._pending_generations:
            raise ContextError("context_busy", f"context {context} is already generating")
        if not target.tokens:
            raise ContextError("empty_context", f"context {context} has no tokens")
        if self.info.embedding:
            raise ContextError("unsupported_by_engine", f"{self.info.model} computes embeddings and generates no text")
        vocabulary = self.info.vocabulary
        for name, ids in (("logit_bias", sampling.logit_bias), ("stop_token_ids", sampling.stop_token_ids)):
            bad = next((id for id in ids if not 0 <= id < vocabulary), None)
            if bad is not None:
                raise ContextError(
                    "bad_token", f"{name} contains token {bad}, which is outside the vocabulary of {vocabulary}"
                )
        # the last token's KV is never needed
        room = min(self.info.window, self.info.kv_tokens + 1) - len(target.tokens)
        if room <= 0:
            raise ContextError(
                "context_length_exceeded",
                f"the prompt's {len(target.tokens)} tokens leave no room in the window of {self.info.window}",
            )
        limit = room if sampling.max_tokens is None else min(room, sampling.max_tokens)
        taken, prefix = self._token_table.take_back(target.tokens) if heals else (0, b"")
        if taken:
            target.truncate(len(target.tokens) - taken)
        start = Start(sampling, limit, room + taken, prefix)
        if sampling.is_constrained:
            self._pending_generations.add(target, start)
        else:
            matcher = PrefixMatcher(self._token_table, self.tokenizer, prefix) if prefix else None
            self._start_generation(target, start, matcher)
        if rank is not None:
            target.rank = rank

    def _start_generation(self, target: TokenSequence, start: Start, matcher: Matcher | PrefixMatcher | None) -> None:
        sampling, limit = start.sampling, start.limit
        text = sampling.prediction[: limit * _MAX_TOKEN_CHARACTERS] if self._speculator is not None else ""
        prediction = self.tokenizer.encode(text) if text else []
        target.generation = Generation(
            sampling, self.tokenizer, target.tokens, limit, matcher, prediction, start.prefix, start.room
        )

    def _start_compiled(self) -> list[Update]:
        """Begin the generations whose grammars are compiled. Wait for one if there is no other work."""
        if not self._pending_generations:
            return []
        is_idle = self._running is None and not any(sequence.has_work for sequence in self._sequences.values())
        failed = []
        for pending in self._pending_generations.take_compiled(is_idle=is_idle):
            sequence = pending.sequence
            try:
                self._start_generation(sequence, pending.start, pending.matcher.result())
            except ContextError as error:
                failed.append(self._fail(sequence, error.code, str(error)))
            except Exception as error:
                log.exception("compiling a grammar failed")
                failed.append(self._fail(sequence, "internal_error", f"internal error: {error!r}"))
        return failed

    def embed(
        self, context: int, tokens: list[int], *, rank: float = 0.0, scope: str = "", interactive: bool = False
    ) -> None:
        """Compute the embedding of a text in a new context; see `Embed`."""
        pooling = self.decoder.spec.pooling
        if pooling is None:
            raise ContextError("unsupported_by_engine", f"{self.info.model} generates text and computes no embeddings")
        if context in self._sequences:
            raise ContextError("context_exists", f"context {context} exists already")
        if not tokens:
            raise ContextError("empty_context", "a text without tokens has no embedding")
        self.fill(context, tokens, rank=rank, scope=scope, interactive=interactive)
        self._sequences[context].pooling = Pooling(pooling)

    def free_context(self, context: int) -> LastBlock | None:
        """Delete the context and release its blocks. Unknown ids are ignored.

        Return the record of its last cached block, for `retain`; None if there is none.

        If the context is pausable and has no work left, its call has ended, and `Retain` follows, sometimes several
        steps later. A waiting prompt could evict the KV meanwhile. So the engine expects a reader until then, for
        `_RETAIN_SECONDS` at most.
        """
        target = self._sequences.pop(context, None)
        is_complete = context not in self._pending_generations
        self._pending_generations.cancel(context)
        if target is None:
            return None
        belongs_to_program = target.is_pausable and is_complete and not target.has_work
        last_block = target.free()
        if last_block is not None and belongs_to_program:
            self.cache.expect_reader(last_block, _UNKNOWN_GAP)
            self._unreported[last_block] = time.monotonic()
        return last_block

    def _expire_unreported(self) -> None:
        """End the expectation of a reader for freed contexts for which no `Retain` came in time, for example because
        the call failed in the gateway after its last token."""
        while self._unreported:
            last_block, freed = next(iter(self._unreported.items()))
            if time.monotonic() - freed < _RETAIN_SECONDS:
                return
            self.retain(last_block, ())

    def retain(self, last_block: LastBlock, returns: Sequence[float]) -> None:
        """Replace the expected reader of a freed context; without `returns`, remove it. See `Retain`, and
        `KVCache.expect_reader`."""
        self._unreported.pop(last_block, None)
        self.cache.expect_reader(last_block, returns)

    def rerank(self, contexts: Iterable[int], rank: float, *, interactive: bool = True) -> None:
        """Set the rank of those contexts that exist; see `Rerank`."""
        for context in contexts:
            if context in self._sequences:
                self._sequences[context].rank = rank
                self._sequences[context].is_interactive = interactive

    def _get(self, context: int) -> TokenSequence:
        if context not in self._sequences:
            raise ContextError("unknown_context", f"context {context} does not exist")
        return self._sequences[context]

    # the step

    @property
    def has_work(self) -> bool:
        """Whether a step would make progress."""
        waits = self._running is not None or len(self._pending_generations) > 0
        return waits or any(sequence.has_work for sequence in self._sequences.values())

    @property
    def active_contexts(self) -> int:
        """Number of contexts with work left."""
        pending = self._pending_generations
        return sum(sequence.has_work or sequence.id in pending for sequence in self._sequences.values())

    @property
    def free_tokens(self) -> int:
        """Number of KV tokens that are free or evictable."""
        return self.cache.available * self.config.block_size

    @property
    def step_times(self) -> tuple[float, float]:
        """Duration of one prefill row, and of one token while one or two contexts decode, in seconds."""
        gain = self._speculator.gain if self._speculator is not None else 1.0
        return self._step_budget.row_seconds, self._step_budget.stand_alone_seconds / gain

    @property
    def draft_counts(self) -> tuple[int, int]:
        """Number of drafted tokens since the start, and how many of them were accepted."""
        return (0, 0) if self._speculator is None else (self._speculator.drafted_count, self._speculator.accepted_count)

    def step(self) -> list[Update]:
        """Schedule a batch, run it, sample, and return the updates. If steps overlap, start it and return the updates
        of the step before it.

        If a step over several sequences raises, the next steps run each of them alone: only a sequence that raises
        again fails.
        """
        self._expire_unreported()
        failed = self._start_compiled()
        before = self._running
        if before is not None and (self._retry_alone or not before.is_history_free):
            return failed + self._finish()
        if self._retry_alone:
            sequence = self._sequences.get(self._retry_alone.popleft())
            if sequence is None or not sequence.has_work:
                return failed
            updates = failed + self._launch(self._scheduler.plan([sequence], list(self._sequences.values())))
            return updates + self._finish()
        updates = failed + self._launch(self._scheduler.plan(self._sequences.values()))
        if before is not None:
            updates = self._read(before) + updates
        return updates if self._overlaps else updates + self._finish()

    def _launch(self, plan: Plan) -> list[Update]:
        """Start a step, which `_read` reads later. If it raises, no step runs; return the updates that this causes."""
        self._running = None
        swaps = self.cache.host_offload.take_swaps()
        if swaps.outs or swaps.ins:  # whether or not the step goes well: the cache counts on it
            self.decoder.swap(swaps)
        if not plan.chunks:
            return []
        began = time.perf_counter()
        if self.info.embedding:
            return self._pool(plan, began)
        sampling = [chunk for chunk in plan.chunks if chunk.samples]
        generations = [chunk.sequence.generation for chunk in sampling if chunk.sequence.generation is not None]
        row_generations = generations
        if plan.drafted_rows:
            row_generations = [
                generation
                for chunk, generation in zip(sampling, generations, strict=True)
                for _ in (None, *chunk.draft)
            ]
        try:
            logits = self._forward(plan)
            pending = self._sampler.start(logits, row_generations) if row_generations else None
        except Exception as error:
            return self._recover(plan, error)
        filled: dict[int, Update] = {}
        for chunk in plan.chunks:
            sequence = chunk.sequence
            if not chunk.is_stored:
                sequence.commit(chunk.end - len(chunk.draft))
            if sequence.pending_fills:
                _report_fills(sequence, filled.setdefault(sequence.id, Update(sequence.id)))
        positions, row = [], 0
        for chunk, generation in zip(sampling, generations, strict=True):
            positions.append(len(chunk.sequence.tokens))
            chunk.sequence.tokens.append(-1 - row)  # see `Kernels.stage`
            generation.pending += 1
            row += 1 + len(chunk.draft)
        self._running = _RunningStep(plan, filled, sampling, generations, row_generations, positions, pending, began)
        return []

    def _pool(self, plan: Plan, began: float) -> list[Update]:
        """Run a step of a model that computes embeddings, and return its updates. Such steps do not overlap."""
        try:
            hidden = self._forward(plan).cpu()
        except Exception as error:
            return self._recover(plan, error)
        pooling = self.decoder.spec.pooling
        reads_all = pooling is not None and pooling.method == "mean"
        updates: list[Update] = []
        row = 0
        for chunk in plan.chunks:
            sequence, rows = chunk.sequence, chunk.end - chunk.start
            read = rows if reads_all else min(rows, int(chunk.samples))
            states, row = hidden[row : row + read], row + read
            if not chunk.is_stored:
                sequence.commit(chunk.end)
            update = Update(sequence.id)
            if sequence.pending_fills:
                _report_fills(sequence, update)
            if sequence.pooling is not None:
                sequence.pooling.add(states, chunk.end - read)
                if chunk.samples:
                    vector, sequence.pooling = sequence.pooling.result(), None
                    if not torch.isfinite(vector).all():
                        update = self._fail(sequence, "bad_logits", "the embedding is not finite")
                    else:
                        update.embedding, update.finish = vector.numpy().astype("<f4").tobytes(), "stop"
            if update.finish or update.error or update.filled is not None:
                updates.append(update)
        self._observe(plan, began)
        return updates

    def _finish(self) -> list[Update]:
        """Return the updates of the running step, if there is one."""
        running, self._running = self._running, None
        return [] if running is None else self._read(running)

    def _read(self, running: "_RunningStep") -> list[Update]:
        """Wait for a step and return its updates. A context that ended meanwhile gets none."""
        sampled = [] if running.pending is None else collect(running.pending, running.row_generations)
        updates = {id: update for id, update in running.filled.items() if id in self._sequences}
        row = 0
        for chunk, generation, position in zip(running.sampling, running.generations, running.positions, strict=True):
            sequence, samples = chunk.sequence, sampled[row : row + 1 + len(chunk.draft)]
            row += len(samples)
            generation.pending -= 1
            if self._sequences.get(sequence.id) is not sequence or sequence.generation is not generation:
                continue
            checked = _accepted_samples(samples, chunk.draft)
            accepted = rejected = 0
            if self._speculator is not None and sequence.id not in running.filled:
                accepted, rejected = self._speculator.record(sequence, len(chunk.draft), len(checked) - 1)
            if isinstance(bad := checked[-1], BadLogits):
                updates[sequence.id] = self._fail(sequence, *(generation.failure or ("bad_logits", str(bad))))
                continue
            tokens = [sample for sample in checked if isinstance(sample, SampledToken)]
            update = updates.setdefault(sequence.id, Update(sequence.id))
            update.accepted, update.rejected = accepted, rejected
            _apply_tokens(chunk, tokens, position, update)
            if generation.failure is not None and update.finish != "length":
                updates[sequence.id] = self._fail(sequence, *generation.failure)
        self._observe(running.plan, running.began)
        return [
            update
            for update in updates.values()
            if update.tokens or update.finish or update.error or update.filled is not None
        ]

    def _observe(self, plan: Plan, began: float) -> None:
        """Record the duration of a step that has just ended."""
        now = time.perf_counter()
        seconds, self._last_read_time = now - max(began, self._last_read_time), now
        for sequence in plan.over_budget:
            sequence.budget_wait += seconds
        for sequence in plan.out_of_memory:
            sequence.memory_wait += seconds
        self._step_budget.observe(
            decoding=plan.decoding,
            interactive=plan.interactive,
            prefill=plan.prefill_cost,
            drafted=plan.drafted_rows,
            long=plan.long,
            waiting=plan.has_waiting_prompts,
            seconds=seconds,
        )

    def _recover(self, plan: Plan, error: Exception) -> list[Update]:
        """Undo a step that raised, and queue its sequences to run alone; a single one fails."""
        log.exception("a step over %d sequences failed", len(plan.chunks))
        for chunk in reversed(plan.chunks):
            chunk.sequence.abort()
            chunk.sequence.drop_blocks()  # the step may not have made its block copies
        if len(plan.chunks) == 1:
            return [self._fail(plan.chunks[0].sequence, "step_failed", repr(error))]
        self._retry_alone.extend(chunk.sequence.id for chunk in plan.chunks)
        return []

    def _fail(self, sequence: TokenSequence, code: str, message: str) -> Update:
        self.free_context(sequence.id)
        return Update(sequence.id, error=(code, message))

    def _forward(self, plan: Plan) -> torch.Tensor:
        """Return logits (rows that get logits, vocabulary) of the plan's rows."""
        if plan.copies:
            self.decoder.copy_blocks(plan.copies)
        if not plan.rows:
            return torch.empty(0, self.info.embedding or self.info.vocabulary)
        return self.decoder.forward(*self._input_batch.gather(plan))

    def check_integrity(self) -> None:
        """Recount the cache from all sequences. Raises AssertionError on any difference."""
        self.cache.check_integrity([sequence.blocks for sequence in self._sequences.values()])

    # use without a gateway

    def stream(self, prompt: str | list[int], sampling: SamplingParams) -> Iterator[Update]:
        """Yield the updates of one prompt until its end. Raises ContextError if it is rejected or fails."""
        tokens = self.tokenizer.encode_template(prompt) if isinstance(prompt, str) else prompt
        context = 1 + max(self._sequences, default=0)
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


def _common_length(known: Sequence[int], start: int, tokens: Sequence[int]) -> int:
    """Return how many of the tokens equal the known ones from `start` on."""
    count = 0
    for token in tokens:
        if start + count == len(known) or known[start + count] != token:
            break
        count += 1
    return count


def _report_fills(sequence: TokenSequence, update: Update) -> None:
    update.filled = sequence.finish_fills()
    if update.filled is not None and not sequence.pending_fills:
        update.missed = sequence.take_misses()
        update.cached, sequence.cached_tokens = sequence.cached_tokens, 0
        update.held, sequence.budget_wait = sequence.budget_wait, 0.0
        update.starved, sequence.memory_wait = sequence.memory_wait, 0.0


def _accepted_samples(samples: list[SampledToken | BadLogits], draft: Sequence[int]) -> list[SampledToken | BadLogits]:
    """Return the sampled tokens up to and including the first that differs from its draft."""
    for index, token in enumerate(draft):
        sample = samples[index]
        if isinstance(sample, BadLogits) or sample.token != token:
            return samples[: index + 1]
    return samples


def _apply_tokens(chunk: Chunk, samples: list[SampledToken], position: int, update: Update) -> None:
    """Replace the unknown token of a chunk by its sampled tokens, until the generation ends, and add them to the
    update."""
    sequence, generation = chunk.sequence, chunk.sequence.generation
    assert generation is not None
    tokens: list[int] = []
    in_prompt = -generation.prefix_count
    for sample in samples:
        before = generation.prefix_count
        forced, progress = generation.push(sample.token)
        tokens += sample.token, *forced
        update.text += progress.text
        ends = progress.finish == "stop" and sample.token in generation.stop_tokens
        if sample.logprob is not None and not ends and generation.prefix_count == before:
            # neither an end token nor one that repeats the prompt is part of the answer
            cut = generation.token_cut
            update.logprobs.append(msgspec.structs.replace(sample.logprob, cut=cut) if cut else sample.logprob)
        if progress.finish is not None:
            break
    in_prompt += generation.prefix_count
    update.tokens, update.finish = tokens[in_prompt:], progress.finish
    if generation.pending:  # the next step is running, so no grammar forces tokens
        sequence.tokens[position] = tokens[0]
    else:
        sequence.tokens[position:] = tokens
    if chunk.draft:
        sequence.accept(position + len(tokens) - 1)
    if progress.finish is not None:
        sequence.generation = None
        sequence.truncate(position + len(tokens))  # discards the tokens that the next step samples after it
        if progress.finish == "stop":
            update.stop_string = generation.stop_string
            length, rest = generation.emitted_tokens(sequence.tokens)
            sequence.truncate(length)
            sequence.tokens += rest
