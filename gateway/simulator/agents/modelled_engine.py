"""Modelled engine: continuous batching, chunked prefill and a bounded KV pool, in runs of equal steps."""

import math
from collections.abc import Sequence

from engine.step_budget import StepBudget
from engine.step_policy import PrefillRows
from gateway.simulator.agents.call import AgentCall
from gateway.simulator.agents.kv_pool import KvPool
from gateway.simulator.agents.policy import AgentPolicy, EngineFacts
from gateway.simulator.engine import Costs

MAX_RUNNING = 256
"""Maximum number of calls that run at a time, as in vLLM."""
DECODE_SHARE = 0.65
STEP_SECONDS = 0.1
_MAX_EQUAL_STEPS = 16
"""Maximum number of steps in a run with a prompt that is less urgent than a decoding call: the step policy changes its
answer after as many."""
_OBSERVATIONS = 8
"""Number of observations of a run after which the averages of a step budget have followed."""
CALIBRATION_ROWS = 64
_ADMISSION_SECONDS = 1.0
"""Interval, in seconds, after which a policy whose answer changes with time is asked again."""


def facts_of(costs: Costs, capacity: int) -> EngineFacts:
    """Return what a policy may know about an engine."""
    rows = costs.step_rows
    return EngineFacts(
        (costs.step(rows, 0) - costs.step(rows // 2, 0)) / (rows - rows // 2),
        (costs.step(8, 0) - costs.step(1, 0)) / 7,
        costs.attention,
        capacity,
        costs.window,
    )


class ModelledEngine:
    """Owner of calls, KV pool and time of one engine.

    A step computes one token of each decoding call, and rows of prompts as the step policy of the real engine allows
    them. No call is interactive: a session's completion counts, not the gaps between tokens. A chunk of a prompt reads
    the keys before it once, as a decoding row does. Steps with the same calls and rows form a run, whose time is the
    sum of an arithmetic series. The step budget observes the mean step of a run.

    Calls get the memory of their whole prompt when they are admitted, and that of their answers as these grow. If the
    pool is full, cached extents are evicted, then the last call in the order of the policy is preempted. What it
    computed stays cached until it is evicted.
    """

    def __init__(self, costs: Costs, capacity: int, policy: AgentPolicy) -> None:
        self.now = 0.0
        self.busy = 0.0
        """Seconds spent in steps."""
        self.preemptions = 0
        self.prompt = self.hits = 0
        """Tokens of prompts, and those of them that were cached when their calls were first admitted."""
        self.computed = self.generated = 0
        """Computed rows of prompts and generated tokens."""
        self.waiting: dict[AgentCall, None] = {}
        self.running: list[AgentCall] = []
        self.policy = policy
        self.pool = KvPool(capacity, lambda candidates: policy.select(candidates, self.now))
        self._costs = costs
        self._arrivals = 0
        self._row_seconds = facts_of(costs, capacity).row_seconds
        self._last_admission = 0.0
        self._is_changed = False
        """Whether an admission may have become possible."""
        self._step_budget = StepBudget(decode_share=DECODE_SHARE, max_step_seconds=STEP_SECONDS)
        self._step_budget.calibrate(CALIBRATION_ROWS, costs.step(CALIBRATION_ROWS, 0))
        self._step_budget.calibrate(1, costs.step(1, 0))

    def submit(self, call: AgentCall) -> None:
        """Let a call wait. Its prompt and answer must fit the pool."""
        if call.recorded.prompt + call.recorded.output > self.pool.capacity:
            raise ValueError("a call is larger than the KV pool")
        call.number = self._arrivals
        self._arrivals += 1
        self.waiting[call] = None
        self.policy.arrive(call, self.now)
        self._is_changed = True

    @property
    def has_work(self) -> bool:
        """Whether a call waits or runs."""
        return bool(self.waiting or self.running)

    def advance(self, until: float) -> list[AgentCall]:
        """Run equal steps, the last of which may end after `until`. Return the calls that ended."""
        self._admit()
        while True:
            decoding = [call for call in self.running if not call.rows]
            chunks, is_less_urgent = self._plan(decoding)
            rows = len(decoding) + sum(count for _, count in chunks)
            attended = sum(call.context for call in decoding) + sum(call.context for call, _ in chunks)
            first = self._costs.step(rows, attended)
            steps = int(max(0.0, until - self.now) / first) + 1 if until < math.inf else 1 << 30
            for call in decoding:
                steps = min(steps, call.recorded.output - call.made)
            for call, count in chunks:
                steps = min(steps, max(1, call.rows // count))
            if is_less_urgent:
                steps = min(steps, _MAX_EQUAL_STEPS)
            if not decoding:
                break
            steps = min(steps, self.pool.available // len(decoding))
            if steps > 0:
                break
            self._preempt()
        return self._run(decoding, chunks, rows, steps, first)

    def _run(
        self, decoding: list[AgentCall], chunks: list[tuple[AgentCall, int]], rows: int, steps: int, first: float
    ) -> list[AgentCall]:
        """Run `steps` steps, the first of which takes `first` seconds. Return the calls that ended."""
        seconds = steps * first + self._costs.attention * rows * steps * (steps - 1) / 2
        self.now += seconds
        self.busy += seconds
        self.pool.grow(len(decoding) * steps)
        attention = self._costs.attention
        shares = [(call, self._row_seconds + attention * call.context) for call in decoding]
        shares += [(call, self._row_seconds * count + attention * call.context) for call, count in chunks]
        scale = seconds / sum(share for _, share in shares)
        for call, share in shares:
            call.service += scale * share
        for call, count in chunks:
            done = min(call.rows, count * steps)
            call.rows -= done
            call.computed += done
            self.computed += done
            self.pool.mark_computed(call.path, call.computed)
        ended = []
        self.generated += len(decoding) * steps
        for call in decoding:
            call.made += steps
            call.grown += steps
            if call.made >= call.recorded.output:
                ended.append(call)
        prefill = rows - len(decoding)
        for _ in range(min(steps, _OBSERVATIONS)):
            self._step_budget.observe(
                decoding=len(decoding),
                interactive=0,
                prefill=prefill,
                long=0.0,
                waiting=bool(self.waiting),
                seconds=seconds / steps,
            )
        for call in ended:
            self._end(call)
        return ended

    def _end(self, call: AgentCall) -> None:
        self.running.remove(call)
        self.pool.free(call.grown)
        self.pool.release(call.path, call.chain, self.now)
        for extent in reversed(call.answers):
            self.pool.drop(extent)
        self.policy.end(call, self.now)
        self._is_changed = True

    def _plan(self, decoding: Sequence[AgentCall]) -> tuple[list[tuple[AgentCall, int]], bool]:
        """Return the prompts of the next step with their rows, and whether one is less urgent than a decoding call."""
        prompts = [call for call in self.running if call.rows]
        chunks: list[tuple[AgentCall, int]] = []
        is_less_urgent = False
        if not prompts:
            return chunks, is_less_urgent
        rank = self.policy.rank
        prefill_rows = PrefillRows(
            self._step_budget.allow_rows(len(decoding), interactive=0),
            step_rows=self._costs.step_rows - len(decoding),
            interactive=0,
            first_rank=min((rank(call) for call in decoding), default=math.inf),
        )
        for call_rank, _, call in sorted((rank(call), call.number, call) for call in prompts):
            if not prefill_rows.has_room(call_rank):
                is_less_urgent = True
                break
            kind = prefill_rows.kind_of(
                rank=call_rank, is_interactive=False, is_prefetch=False, prompt_tokens=call.prompt_rows
            )
            rows = min(call.rows, int(prefill_rows.allowed(kind)), prefill_rows.step_rows)
            is_less_urgent = is_less_urgent or kind.is_less_urgent
            if rows > 0:
                prefill_rows.take(kind, rows, rows)
                chunks.append((call, rows))
        return chunks, is_less_urgent

    def _admit(self) -> None:
        is_due = self._is_changed or (self.policy.is_timed and self.now >= self._last_admission + _ADMISSION_SECONDS)
        if not self.waiting or not (is_due or not self.running):
            return
        self._is_changed = False
        self._last_admission = self.now
        policy, pool, now = self.policy, self.pool, self.now
        waiting = sorted(self.waiting, key=lambda call: policy.order(call, pool, now))
        for call in waiting:
            if len(self.running) >= MAX_RUNNING:
                return
            if pool.unpinned(call.path) >= pool.available:
                if policy.skips:
                    continue
                break
            if policy.admits(call, waiting, pool, now):
                self._start(call)
        if not self.running:
            self._start(waiting[0])

    def _start(self, call: AgentCall) -> None:
        del self.waiting[call]
        cached = min(self.pool.cached(call.path), call.length - 1)  # the logits of the last token are needed
        self.pool.acquire(call.path)
        call.computed = cached
        call.rows = call.prompt_rows = call.length - cached
        call.grown = 0
        if call.started < 0:
            call.started = self.now
            call.hits = cached
            self.prompt += call.length
            self.hits += cached
        self.running.append(call)
        self.policy.admit(call, self.now)

    def _preempt(self) -> None:
        if len(self.running) == 1:
            raise RuntimeError("a single call does not fit the KV pool")
        call = max(self.running, key=lambda call: self.policy.order(call, self.pool, self.now))
        self.preemptions += 1
        self.running.remove(call)
        if call.grown:
            extent = self.pool.adopt(call.path[-1], call.grown, call.chain, self.now)
            call.answers.append(extent)
        self.pool.release(call.path, call.chain, self.now)
        if call.grown:
            call.path = (*call.path, call.answers[-1])
            call.grown = 0
        self.waiting[call] = None
        self.policy.preempt(call, self.now)
