"""The policy of myna: programs by arrival, progress and service, pauses of calls, and forecasts of returns.

It is made of the parts that gateway and engine use: `gateway.programs.tool_times`, `gateway.programs.service`,
`engine.kv.pausing` and `engine.kv.forecast`. It knows which agent a call belongs to, how an answer ends, and how
long earlier gaps between an answer and the next request took; nothing of the future.
"""

import math
from collections.abc import Mapping, Sequence

from engine.kv.forecast import eviction_score, expected_wait
from engine.kv.pausing import PausePlan, PendingCall, RetainedKv, is_mostly_cached
from gateway.programs.service import IDLE_SECONDS, ProgramService
from gateway.programs.tool_times import ToolTimes
from gateway.simulator.agents.call import AgentCall
from gateway.simulator.agents.kv_pool import Extent, KvPool
from gateway.simulator.agents.policy import AgentPolicy, EngineFacts

PARTS = ("eviction", "priority", "pausing", "forecast")
"""Parts of the policy that can be turned off. `eviction`: then least recently used. `priority`: then calls first come,
first served. `pausing`: then each call that fits is admitted. `forecast`: then a gap is expected to last as long again
as it has lasted."""
_TOKENS = 256.0
"""Assumed number of tokens of an answer until one was observed."""
_SMOOTHING = 0.02
"""Weight of a new observation in the average length of answers."""
_AGES_PER_FACTOR = 8
"""Number of ages between one age and e times as much for which an expected wait is computed once."""
_OBSERVATIONS = 16
"""Number of observations after which expected waits are computed again."""
_TENANT = ""


class MynaPolicy(AgentPolicy):
    """Programs by arrival, progress and service, with pauses and forecasts. See `AgentPolicy`."""

    name = "myna"
    is_timed = True
    skips = True

    def __init__(self, facts: EngineFacts, without: frozenset[str] = frozenset()) -> None:
        """`without`: those of the `PARTS` that are turned off."""
        super().__init__(facts)
        self._without = without
        self._service = ProgramService()
        self._tool_times = ToolTimes()
        self._gaps: dict[tuple[int, str], tuple[float, str]] = {}
        """Time and stop of the latest answer of each agent in a gap."""
        self._waiting: dict[tuple[int, str], AgentCall] = {}
        """Call that waits, by agent."""
        self._charged: dict[AgentCall, float] = {}
        """Service of running calls that is charged to their programs."""
        self._tokens = _TOKENS
        self._waits: dict[tuple[str, int], float] = {}
        self._observations = 0
        self._plan: tuple[tuple[float, int, int], PausePlan] | None = None

    def __len__(self) -> int:
        """Return the number of agents in a gap that are remembered."""
        return len(self._gaps)

    def arrive(self, call: AgentCall, now: float) -> None:
        """Learn how long the pause before the call took. See `AgentPolicy.arrive`."""
        filled = call.length / self.facts.window
        self._service.begin(str(call.session), _TENANT, now, filled, extends=call.recorded.extends)
        self._waiting[call.chain] = call
        self._forget(now)
        if (gap := self._gaps.pop(call.chain, None)) is not None:
            self._learn(gap[1], now - gap[0], now)

    def _learn(self, stop: str, seconds: float, now: float) -> None:
        self._tool_times.observe(_TENANT, stop, seconds, now)
        self._observations += 1
        if self._observations % _OBSERVATIONS == 0:
            self._waits.clear()

    def _forget(self, now: float) -> None:
        """Forget agents by age: clients do not say that they have ended. Their last pause counts as one of that age, so
        that forecasts include those that never return."""
        while self._gaps:
            chain, (since, stop) = next(iter(self._gaps.items()))
            if now - since <= IDLE_SECONDS:
                return
            del self._gaps[chain]
            self._learn(stop, IDLE_SECONDS, now)

    def admit(self, call: AgentCall, now: float) -> None:
        """Record that the call waits no longer. See `AgentPolicy.admit`."""
        self._waiting.pop(call.chain, None)

    def preempt(self, call: AgentCall, now: float) -> None:
        """Record that the call waits again. See `AgentPolicy.preempt`."""
        self._waiting[call.chain] = call
        self._charge(call, now)

    def end(self, call: AgentCall, now: float) -> None:
        """Begin a pause. See `AgentPolicy.end`."""
        self._charge(call, now)
        self._charged.pop(call, None)
        self._tokens += _SMOOTHING * (call.made - self._tokens)
        self._gaps.pop(call.chain, None)  # so that the gaps stay in the order of their times
        self._gaps[call.chain] = now, call.recorded.stop

    def _charge(self, call: AgentCall, now: float) -> None:
        """Charge the service that the call received since it was charged last."""
        self._service.charge(str(call.session), call.service - self._charged.get(call, 0.0), now)
        self._charged[call] = call.service

    def order(self, call: AgentCall, pool: KvPool, now: float) -> tuple[float, ...]:
        """Return when the call is due because of its program, then the order of arrival. See `AgentPolicy.order`."""
        if "priority" in self._without:
            return (call.number,)
        return self._due(call, now), call.number

    def _due(self, call: AgentCall, now: float) -> float:
        return self._service.due(str(call.session), call.issued, now)

    def admits(self, call: AgentCall, waiting: Sequence[AgentCall], pool: KvPool, now: float) -> bool:
        """Return whether the call may run now. See `AgentPolicy.admits`."""
        needed = pool.unpinned(call.path) + round(self._tokens)
        if needed > pool.available:
            return False
        if "pausing" in self._without:
            return True
        program = str(call.session)
        pending = PendingCall(
            program,
            call.length,
            pool.cached(call.path),
            needed,
            now - call.issued,
            self._service.rank(program, now),
        )
        return not self._pause_plan(pool, now).must_pause(pending, pool.available)

    def _pause_plan(self, pool: KvPool, now: float) -> PausePlan:
        key = (now, pool.used, pool.pinned)
        if self._plan is None or self._plan[0] != key:
            plan = PausePlan(
                self._retained(pool, now), capacity=self.facts.capacity, row_seconds=self.facts.row_seconds
            )
            self._plan = key, plan
        return self._plan[1]

    def _retained(self, pool: KvPool, now: float) -> list[RetainedKv]:
        """Return the cached KV of agents in gaps and of agents whose calls wait.

        If several agents read an extent, it counts once: for the agent with the shortest expected wait. Extents that
        running calls hold do not count.
        """
        waits = [(self._expected_wait(extent, now), extent) for extent in pool.candidates]
        waits.sort(key=lambda pair: pair[0])
        retained = []
        counted: set[Extent] = set()
        for wait, candidate in waits:
            if wait == math.inf:
                break
            tokens = 0
            extent: Extent | None = candidate
            while extent is not None and not extent.pins and extent not in counted:
                counted.add(extent)
                tokens += extent.resident
                extent = extent.parent
            program = str(candidate.chain[0])
            retained.append(RetainedKv(program, tokens, wait, self._service.rank(program, now)))
        return retained

    def _expected_wait(self, extent: Extent, now: float) -> float:
        """Return the seconds until a call is expected to read the extent again; see `expected_wait`.

        A waiting call that continues an active program runs as soon as there is room. One whose KV was mostly evicted
        pauses, and is expected to pause for as long again as it has: the rest of its KV may serve others meanwhile.
        """
        chain = extent.chain
        if (call := self._waiting.get(chain)) is not None:
            return 0.0 if is_mostly_cached(call.length, extent.start + extent.resident) else now - call.issued
        gap = self._gaps.get(chain)
        if gap is None or extent.released < gap[0]:
            return math.inf  # the agent is forgotten, or its latest call did not read the extent
        since, stop = gap
        age = now - since
        if "forecast" in self._without:
            return age
        key = stop, round(_AGES_PER_FACTOR * math.log1p(age))
        wait = self._waits.get(key)
        if wait is None:
            wait = self._waits[key] = expected_wait(self._tool_times.forecast(_TENANT, stop), age)
        return wait

    def select(self, candidates: Mapping[Extent, None], now: float) -> Extent:
        """Return the extent with the highest eviction score. See `AgentPolicy.select`.

        Extents of waiting calls that continue a program go last, those of the last one in the order first.
        """
        if "eviction" in self._without:
            return super().select(candidates, now)
        return max(candidates, key=lambda extent: self._eviction_key(extent, now))

    def _eviction_key(self, extent: Extent, now: float) -> tuple[float, float, int]:
        wait = self._expected_wait(extent, now)
        if not wait:
            call = self._waiting.get(extent.chain)
            return 0.0, 0.0 if call is None else self._due(call, now), extent.start
        seconds = extent.resident * self.facts.row_seconds
        return eviction_score(wait, extent.resident, seconds), now - extent.released, extent.start
