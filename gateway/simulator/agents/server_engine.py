"""The server's own code in virtual time: the engine's step scheduler, cache and admission, with the gateway's ranks.

The other policies run on a modelled engine with a modelled cache. Here the parts of the real engine run, and only the
duration of a step comes from a table of costs. So the result includes effects of single blocks and steps. The gateway's
own queue is left out. A replay takes longer, because the engine's code plans each step.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import count
from typing import Literal

from engine.admission import PromptAdmission
from engine.generation import Generation
from engine.kv.cache import KVCache
from engine.kv.eviction import EvictionPolicy
from engine.scheduler import StepScheduler
from engine.sequence import TokenSequence
from engine.step_budget import StepBudget
from gateway.programs.service import MAX_DELAY, ProgramService
from gateway.programs.tool_times import ToolTimes
from gateway.scheduler.priority import deadline_extension
from gateway.simulator.agents.call import AgentCall
from gateway.simulator.agents.modelled_engine import (
    CALIBRATION_ROWS,
    DECODE_SHARE,
    MAX_RUNNING,
    STEP_SECONDS,
    facts_of,
)
from gateway.simulator.engine import Costs

_BLOCK = 16
_TOKENS = 256.0
"""Initial value of the average length of answers, in tokens."""
_SMOOTHING = 0.02
"""Weight of a new observation in the average length of answers."""


@dataclass(frozen=True, slots=True)
class ServerSettings:
    """Options of a simulated server. `order`: order of calls. `programs`: by their deadlines minus the lead of their
    programs. `deadlines`: by their deadlines, later if their program has attained much service. `arrival`: by arrival.
    `learns`: eviction learns from gaps, otherwise the least recently used KV goes. `pauses`: prompts wait so that
    others keep their KV. `is_interactive`: decoding keeps a steady pace while prompts prefill, as it does for clients
    that wait. `keys`: number of API keys, which the sessions get in turn."""

    order: Literal["programs", "deadlines", "arrival"] = "programs"
    learns: bool = True
    pauses: bool = True
    is_interactive: bool = False
    keys: int = 1


class _Answer(Generation):
    """Answer of a recorded length, without text."""

    def __init__(self, length: int) -> None:
        self.length = length
        self.count = 0
        self.pending = self.forced_count = 0

    @property
    def has_started(self) -> bool:
        """Whether a token was sampled."""
        return self.count > 0

    @property
    def is_exhausted(self) -> bool:
        """Whether the answer has its length."""
        return self.count >= self.length


class ServerEngine:
    """Owner of the sequences of one engine. See `SimulatedAgentEngine`."""

    def __init__(self, costs: Costs, capacity: int, settings: ServerSettings | None = None) -> None:
        """`capacity`: tokens of the KV pool, rounded up to whole blocks."""
        blocks = -(-capacity // _BLOCK)
        self.now = 0.0
        self.busy = 0.0
        self.preemptions = 0
        self.prompt = self.hits = 0
        self._costs = costs
        self._settings = settings = settings or ServerSettings()
        self._facts = facts_of(costs, capacity)
        budget = StepBudget(decode_share=DECODE_SHARE, max_step_seconds=STEP_SECONDS)
        budget.calibrate(CALIBRATION_ROWS, costs.step(CALIBRATION_ROWS, 0))
        budget.calibrate(1, costs.step(1, 0))
        self._budget = budget
        eviction_policy = EvictionPolicy(blocks, learns=settings.learns, now=lambda: self.now)
        self._cache = KVCache(blocks + 1, _BLOCK, eviction_policy=eviction_policy)
        admission = None
        if settings.pauses:
            admission = PromptAdmission(self._cache, lambda: budget.row_seconds, lambda: self.now)
        self._scheduler = StepScheduler(self._cache, costs.step_rows, MAX_RUNNING, budget, None, admission)
        self._calls: dict[TokenSequence, AgentCall] = {}
        self._uncounted: set[TokenSequence] = set()
        """Sequences whose hits are not counted yet."""
        self._prompts: dict[int, dict[int, list[int]]] = {}
        """Tokens of the prompts of each session, by the request's index."""
        self._tokens = count(1)
        self._numbers = count(1)
        self._answer_tokens = _TOKENS
        self._service = ProgramService()
        self._tool_times = ToolTimes()
        self._gaps: dict[tuple[int, str], tuple[float, str]] = {}
        """For each agent in a gap: end of its latest answer, in seconds, and the `stop` of that answer."""

    @property
    def has_work(self) -> bool:
        """Whether a call waits or runs."""
        return bool(self._calls)

    def _tenant(self, call: AgentCall) -> str:
        """Return the API key of a call's session."""
        return str(call.session % self._settings.keys)

    def submit(self, call: AgentCall) -> None:
        """Add a call to the queue. Raises ValueError if its prompt and answer exceed the pool."""
        if call.recorded.prompt + call.recorded.output > self._cache.capacity:
            raise ValueError("a call is larger than the KV pool")
        number = next(self._numbers)
        sequence = TokenSequence(number, self._cache, self._tenant(call), self._rank(call), number)
        sequence.is_interactive = self._settings.is_interactive
        sequence.is_admitted = not self._settings.pauses
        sequence.tokens = list(self._prompt(call))
        sequence.fill_tokens = len(sequence.tokens)
        sequence.pending_fills.append(len(sequence.tokens))
        sequence.generation = _Answer(call.recorded.output)
        self._calls[sequence] = call
        self._uncounted.add(sequence)
        if (gap := self._gaps.pop(call.chain, None)) is not None:
            self._tool_times.observe(self._tenant(call), gap[1], call.issued - gap[0], call.issued)

    def _prompt(self, call: AgentCall) -> list[int]:
        """Return the tokens of a prompt: the beginning that it shares with an earlier one, then tokens of its own."""
        recorded, prompts = call.recorded, self._prompts.setdefault(call.session, {})
        shared = prompts[recorded.source][: recorded.shared] if recorded.source in prompts else []
        prompt = shared + [next(self._tokens) for _ in range(recorded.prompt - len(shared))]
        prompts[call.index] = prompt
        return prompt

    def _rank(self, call: AgentCall) -> float:
        """Return the rank of a call, as `gateway.scheduler.priority` computes it for a plain request."""
        facts, recorded, program = self._facts, call.recorded, str(call.session)
        step = facts.token_seconds + facts.key_seconds * recorded.prompt
        rows = facts.row_seconds * (recorded.prompt - recorded.shared)
        work = rows + self._answer_tokens * math.sqrt(facts.row_seconds * step)
        tenant = self._tenant(call)
        filled = recorded.prompt / facts.window
        self._service.begin(program, tenant, call.issued, filled, extends=recorded.extends)
        if self._settings.order == "arrival":
            return call.issued
        if self._settings.order == "programs":
            lead = self._service.lead(program, tenant, call.issued)
        else:
            lead = -min(MAX_DELAY, self._service.delay(program, call.issued))
        return call.issued - lead + rows + self._answer_tokens * step + deadline_extension(work)

    def advance(self, until: float) -> list[AgentCall]:
        """Run steps until one ends after `until` or calls end. Return these calls."""
        ended: list[AgentCall] = []
        while not ended:
            ended = self._step()
            if self.now >= until:
                break
        return ended

    def _step(self) -> list[AgentCall]:
        plan = self._scheduler.plan(self._calls)
        self.preemptions += len(plan.preempted)
        seconds = self._costs.step(max(1, plan.rows), sum(chunk.start for chunk in plan.chunks))
        self.now += seconds
        self.busy += seconds
        shares: Mapping[TokenSequence, int] = {chunk.sequence: chunk.end - chunk.start for chunk in plan.chunks}
        done = []
        for chunk in plan.chunks:
            sequence, answer = chunk.sequence, chunk.sequence.generation
            self._calls[sequence].service += seconds * shares[sequence] / max(1, plan.rows)
            if not chunk.is_stored:
                sequence.commit(chunk.end)
            if sequence.finish_fills() is not None and sequence in self._uncounted:
                self._uncounted.discard(sequence)
                self.prompt += self._calls[sequence].recorded.prompt
                self.hits += sequence.cached_tokens
            if chunk.samples and isinstance(answer, _Answer):
                sequence.tokens.append(next(self._tokens))
                answer.count += 1
                if answer.is_exhausted:
                    done.append(sequence)
        self._budget.observe(
            decoding=plan.decoding,
            interactive=plan.interactive,
            prefill=plan.prefill_cost,
            long=plan.long,
            waiting=plan.has_waiting_prompts,
            seconds=seconds,
        )
        return [self._end(sequence) for sequence in done]

    def _end(self, sequence: TokenSequence) -> AgentCall:
        call = self._calls.pop(sequence)
        stop = call.recorded.stop
        last_block = sequence.free()
        if last_block is not None:
            self._cache.expect_reader(last_block, self._tool_times.forecast(self._tenant(call), stop))
        self._answer_tokens += _SMOOTHING * (call.recorded.output - self._answer_tokens)
        self._service.charge(str(call.session), call.service, self.now)
        self._gaps[call.chain] = self.now, stop
        return call

    def leave(self, session: int) -> None:
        """Forget the tokens of a session that has ended."""
        self._prompts.pop(session, None)
