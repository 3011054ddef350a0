"""Pauses: decide which calls wait, so that programs do not evict each other's KV. Pure.

The engine decides for its own cache (`engine.admission`), and the gateway for the caches of upstream servers
(`gateway.scheduler.program_gate`). Both use the functions below; only the gateway and the simulator use `PausePlan`.

While the tools of a program run or a person reads, its KV occupies the pool. It is worth its memory if the next call
arrives soon enough. Let the KV have `tokens` of a pool of `capacity`, and let the next call arrive after `wait`
seconds. Retaining the KV costs `tokens * wait` token-seconds of the pool. Evicting it costs `tokens * row_seconds`
seconds of the engine, and `tokens * tokens * row_seconds` token-seconds of the pool while it is computed again. The
returning program then evicts another one, at the same cost, so an eviction costs `DISPLACEMENTS` prefills. Let one
second of the engine be worth `capacity` token-seconds. Then retaining is cheaper up to

    wait = DISPLACEMENTS * (tokens + capacity) * row_seconds

KV with at most this wait is *protected*. A call with at least half of its prompt cached is admitted. Other calls wait
until they fit beside the protected KV. The eviction policy evicts the KV of one program as a whole before a part of the
next, so after a gap most calls find all of their KV and do not wait.

Two more kinds of calls are admitted. A small call displaces little, whatever the pool holds. And while an engine has no
work, a wait saves at most the time to compute the displaced KV again. The engine then admits the first waiting prompt
immediately. The gateway admits a call once the server has run no call of a program for longer than it needs to compute
the call's own tokens. This costs at most twice as much as a decision that knows the future (the ski rental problem).
The simulator leaves `idle` at 0.

After `MAX_PAUSE_SECONDS`, the engine admits a call. In the gateway, such a call waits only for running calls and for
the KV of programs with the same or a lower program rank, until `MAX_WAIT_SECONDS` of `gateway.scheduler.program_gate`.
The time counts from the beginning of a wait for one engine. It begins again if that engine fails or the call moves.
"""

from collections.abc import Iterable
from typing import NamedTuple

_SMALL_SHARE = 32
"""Share of the pool, as a divisor, up to which a call is small."""
DISPLACEMENTS = 2
"""Number of prefills that one eviction costs: that of the evicted KV, and that of the KV which this one displaces. On
recorded agents in the simulator, 1 was 8% slower, and 3 and 4 were within 1%."""
MAX_PAUSE_SECONDS = 300.0
"""Maximum duration of a pause in the engine, in seconds. In the gateway, after this time KV of programs that go after
the call is no reason to wait. Programs of equal ranks still wait for each other, so that programs that arrive together
do not evict each other."""


class RetainedKv(NamedTuple):
    """KV of a program in a gap. `tokens`: its size. `wait`: forecast of its next call, in seconds; see
    `engine.kv.forecast.expected_wait`. `rank`: rank of the program; the lowest goes first."""

    program: str
    tokens: int
    wait: float
    rank: float


class PendingCall(NamedTuple):
    """Call that waits. `prompt`: its tokens, `cached`: the first of them that are cached. `needed`: tokens of the pool
    that it would occupy beyond those that running calls hold. `waited`: seconds since its arrival, and `idle`:
    those of them in which the engine ran no call of a program."""

    program: str
    prompt: int
    cached: int
    needed: int
    waited: float
    rank: float
    idle: float = 0.0


def longest_wait(tokens: int, capacity: int, row_seconds: float) -> float:
    """Return the longest wait, in seconds, for which KV is protected: worth its memory.

    `tokens`: its size. `capacity`: tokens of the pool. `row_seconds`: time to compute one prompt token.
    """
    return DISPLACEMENTS * (tokens + capacity) * row_seconds


def is_active(prompt: int, cached: int) -> bool:
    """Return whether a call continues a program whose KV is mostly cached: at least half of its prompt is cached."""
    return 2 * cached >= prompt


def is_small(needed: int, capacity: int) -> bool:
    """Return whether a call displaces little. `needed`: tokens of the pool that it would occupy. `capacity`: tokens of
    the pool."""
    return needed * _SMALL_SHARE <= capacity


class PausePlan:
    """Protected KV at one time, and whether a call fits beside it."""

    def __init__(self, retained: Iterable[RetainedKv], *, capacity: int, row_seconds: float) -> None:
        """`capacity`: tokens of the pool. `row_seconds`: time to compute one prompt token."""
        self._capacity = capacity
        self._row_seconds = row_seconds
        self._kept = [kv for kv in retained if kv.wait <= longest_wait(kv.tokens, capacity, row_seconds)]
        self._total = sum(kv.tokens for kv in self._kept)
        self._of_program: dict[str, int] = {}
        for kv in self._kept:
            self._of_program[kv.program] = self._of_program.get(kv.program, 0) + kv.tokens

    def must_pause(self, call: PendingCall, available: int) -> bool:
        """Return whether a call must wait. `available`: tokens that no running call holds."""
        if is_active(call.prompt, call.cached) or is_small(call.needed, self._capacity):
            return False
        if call.idle > call.needed * self._row_seconds:
            return False
        if call.waited < MAX_PAUSE_SECONDS:
            kept = self._total - self._of_program.get(call.program, 0)
        else:
            kept = sum(kv.tokens for kv in self._kept if kv.rank <= call.rank and kv.program != call.program)
        return call.needed > available - kept
