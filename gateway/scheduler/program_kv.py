"""KV that programs hold on one engine, as far as the gateway can estimate it. Pure: the caller passes the time.

The engine is not asked, so this works for upstream servers as well. Running calls hold their prompts and answers. The
KV of an ended call stays in the engine's cache until the pool is full. Then the estimate evicts the KV whose next
reader is expected last, as the engine's eviction policy does.
"""

import math
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

from engine.kv.forecast import expected_wait
from engine.kv.pausing import PausePlan, PendingCall, RetainedKv
from gateway.graph.call import ProgramMember

_MAX_ENTRIES = 256
"""Divisor of the pool: KV of an ended call that is smaller than this part of the pool is ignored."""
_PLAN_SECONDS = 0.1
"""Validity of a pause plan, in seconds."""
_MAX_PROGRAMS = 10_000
"""Maximum number of programs whose common beginnings are remembered."""
_MAX_ANCESTORS = 8
"""Maximum number of earlier turns in which the beginning of a prompt is searched."""


@dataclass(slots=True)
class _Kv:
    """KV of a call's context. `tokens`: its size. `parent`: the call whose context is its beginning. `shared`: number
    of its tokens that are counted with another context. `released`: time of its release; None while the call runs.
    `returns`: see `expected_wait`."""

    program: str
    tokens: int
    rank: float
    parent: str | None = None
    shared: int = 0
    released: float | None = None
    returns: Sequence[float] = ()

    @property
    def own(self) -> int:
        """Tokens that count for this context."""
        return max(0, self.tokens - self.shared)


class ProgramKv:
    """Estimate of the KV of programs on one engine."""

    def __init__(self, capacity: int) -> None:
        """`capacity`: size of the engine's KV cache, in tokens."""
        self.capacity = capacity
        self.row_seconds = 0.0
        """Time to compute one prompt token, in seconds."""
        self._running: dict[str, _Kv] = {}
        """KV of running calls, by the call's id."""
        self._retained: dict[str, _Kv] = {}
        """KV of calls that have ended, by the call's id."""
        self._beginnings: dict[str, list[int]] = {}
        """Contexts that are the beginnings of others: their tokens, and the number of the others."""
        self._common: OrderedDict[str, int] = OrderedDict()
        """Tokens at the beginning of a program's prompts that other programs have as well, such as tools and
        instructions. The program that was seen last is the last one."""
        self._running_tokens = 0
        self._retained_tokens = 0
        self._plan: tuple[float, PausePlan] | None = None

    def __len__(self) -> int:
        return len(self._running) + len(self._retained)

    @property
    def is_idle(self) -> bool:
        """Whether no call of a program runs."""
        return not self._running

    def common(self, program: str) -> int:
        """Return the tokens of a program's prompts that are in the cache because other programs have them as well."""
        return self._common.get(program, 0)

    def observe_common(self, program: str, tokens: int) -> None:
        """Record the tokens that were cached of the first prompt of a program."""
        self._common[program] = tokens
        self._common.move_to_end(program)
        if len(self._common) > _MAX_PROGRAMS:
            self._common.popitem(last=False)

    def cached(self, member: ProgramMember) -> tuple[str | None, int]:
        """Return the id and the tokens of the nearest earlier turn whose KV is estimated to be cached; None and 0 if
        there is none."""
        turn, steps = member.parent, 0
        while turn is not None and steps < _MAX_ANCESTORS:
            for contexts in (self._retained, self._running):
                if (kv := contexts.get(turn.id)) is not None:
                    return turn.id, kv.tokens
            if (beginning := self._beginnings.get(turn.id)) is not None:
                return turn.id, beginning[0]
            turn, steps = turn.parent, steps + 1
        return None, 0

    def must_pause(self, call: PendingCall, now: float) -> bool:
        """Return whether a call must wait. See `PausePlan`. A call that is larger than the pool needs all of it."""
        call = call._replace(needed=min(call.needed, self.capacity))
        if self._running_tokens + self._retained_tokens + call.needed <= self.capacity:
            return False
        if self._plan is None or now - self._plan[0] > _PLAN_SECONDS:
            retained = [RetainedKv(kv.program, kv.own, _wait(kv, now), kv.rank) for kv in self._retained.values()]
            self._plan = now, PausePlan(retained, capacity=self.capacity, row_seconds=self.row_seconds)
        return self._plan[1].must_pause(call, self.capacity - self._running_tokens)

    def enter(self, member: ProgramMember, tokens: int, rank: float, now: float) -> None:
        """Record that a call runs. `tokens`: size of its prompt and its answer, estimated."""
        self.leave(member.id, 0, now)
        self._remove(member.id)  # of an earlier attempt
        parent, parent_tokens = self.cached(member)
        kv = self._running[member.id] = _Kv(member.program_id, tokens, rank, parent, self.common(member.program_id))
        if parent is not None:
            if parent in self._beginnings or parent in self._running:
                kv.shared = max(kv.shared, parent_tokens)
            self._remove(parent)  # the call holds it from now on
            beginning = self._beginnings.setdefault(parent, [parent_tokens, 0])
            beginning[1] += 1
        self._running_tokens += kv.own
        self._shrink(now)
        self._plan = None

    def leave(self, id: str, tokens: int, now: float) -> None:
        """Record that a call has ended, with so many tokens in its context. Do nothing for calls that do not run."""
        kv = self._running.pop(id, None)
        if kv is None:
            return
        self._running_tokens -= kv.own
        kv.tokens, kv.released = tokens, now
        if tokens * _MAX_ENTRIES >= self.capacity:
            self._retained[id] = kv
            self._retained_tokens += kv.own
            if len(self._retained) > _MAX_ENTRIES:
                self._remove(next(iter(self._retained)))
        else:
            self._forget_beginning(kv)
        self._plan = None

    def expect(self, id: str, returns: Sequence[float]) -> None:
        """Record when the next reader of an ended call's context is expected. See `expected_wait`."""
        if (kv := self._retained.get(id)) is not None:
            kv.returns = returns
            self._plan = None

    def _remove(self, id: str) -> None:
        if (kv := self._retained.pop(id, None)) is not None:
            self._retained_tokens -= kv.own
            self._forget_beginning(kv)

    def _forget_beginning(self, kv: _Kv) -> None:
        if kv.parent is not None:
            beginning = self._beginnings[kv.parent]
            beginning[1] -= 1
            if not beginning[1]:
                del self._beginnings[kv.parent]

    def _shrink(self, now: float) -> None:
        """Remove retained KV that does not fit beside the running calls."""
        excess = self._running_tokens + self._retained_tokens - self.capacity
        if excess <= 0:
            return
        last_first = sorted(self._retained, key=lambda id: _wait(self._retained[id], now), reverse=True)
        for id in last_first:
            if excess <= 0:
                return
            excess -= self._retained[id].own
            self._remove(id)

    def check_integrity(self) -> None:
        """Compute the sums again. Raises AssertionError on any difference."""
        assert self._running_tokens == sum(kv.own for kv in self._running.values())
        assert self._retained_tokens == sum(kv.own for kv in self._retained.values())
        parents = [kv.parent for kv in (*self._running.values(), *self._retained.values()) if kv.parent is not None]
        assert {id: beginning[1] for id, beginning in self._beginnings.items()} == {
            id: parents.count(id) for id in parents
        }
        assert all(kv.tokens * _MAX_ENTRIES >= self.capacity for kv in self._retained.values())


def _wait(kv: _Kv, now: float) -> float:
    """Return the seconds until the next reader; infinite if none is expected."""
    if not kv.returns or kv.released is None:
        return math.inf
    return expected_wait(kv.returns, now - kv.released)
