"""Pauses: decide which calls wait, so that calls of programs do not evict KV that is read soon. Pure.

The engine decides for its own cache (`engine.admission`), and the gateway for the caches of upstream servers
(`gateway.scheduler.program_gate`). Both use the functions below; only the gateway and the simulator use `PausePlan`.

While the tools of a program run or a person reads, its KV occupies the pool. Retaining it pays if its forecast is short
enough. The *forecast* is the expected number of seconds in the pool for each hit (`engine.kv.forecast.expected_wait`).
Let the KV have `tokens` of a pool of `capacity`, and let `wait` be its forecast. Retaining the KV costs `tokens * wait`
token-seconds of the pool. Evicting it costs `tokens * row_seconds` seconds of the engine, and `tokens * tokens *
row_seconds` token-seconds of the pool while it is computed again. The returning program then evicts another one, at the
same cost, so an eviction costs `DISPLACEMENTS` prefills. Let one second of the engine be worth `capacity`
token-seconds. Then retaining is cheaper up to

    wait = DISPLACEMENTS * (tokens + capacity) * row_seconds

KV with at most this forecast is *protected*. A call with at least half of its prompt cached is admitted. Other calls
wait until they fit beside the protected KV. The engine's eviction policy evicts all blocks that a freed context leaves
before it evicts those of the next one. So after a gap, most calls find either all of their KV or none of it.

A small call is admitted as well: it displaces little, whatever the pool holds. And while an engine has no work, a wait
saves at most the time to compute the displaced KV again. The engine then admits the first waiting prompt immediately.
The gateway admits a call once the server has run no call of a program for longer, in total, than it needs to compute
the call's own tokens. This rule of the gateway costs at most twice as much as a decision that knows the future (the ski
rental problem).

After `MAX_PAUSE_SECONDS`, the engine admits a call; then the call may still wait for free blocks. In the gateway, such
a call waits only for running calls and for the KV of programs with the same or a lower program rank, until
`MAX_WAIT_SECONDS` of `gateway.scheduler.program_gate`. The time counts from the beginning of a wait for one engine. It
begins again if that engine fails or the call moves. The simulator counts it from the call's arrival, and has no second
limit.
"""

from collections.abc import Iterable
from typing import NamedTuple

_SMALL_DIVISOR = 32
"""A call is small if it needs at most the pool's capacity divided by this number."""
DISPLACEMENTS = 2
"""Number of prefills that one eviction costs: the prefill of the evicted KV, and the prefill of the KV that it
displaces when it returns. On recorded agents in the simulator, 1 was 8% slower, and 3 and 4 were within 1%."""
MAX_PAUSE_SECONDS = 300.0
"""Maximum duration of a pause in the engine, in seconds. In the gateway, a call that has waited longer ignores the KV
of programs with a higher program rank. Programs of equal ranks still wait for each other, so that programs that arrive
together do not evict each other."""


class RetainedKv(NamedTuple):
    """KV of a program in a gap, or of a call that waits. `tokens`: tokens of the pool that its eviction would free.
    `wait`: its forecast, in seconds; see `engine.kv.forecast.expected_wait`. `rank`: rank of the program; the lowest
    goes first."""

    program: str
    tokens: int
    wait: float
    rank: float


class PendingCall(NamedTuple):
    """Call that waits. `prompt`: tokens of its prompt. `cached`: number of its first tokens that are cached. `needed`:
    tokens of the pool that it would occupy anew, with its expected answer: without those that running calls hold, or in
    the gateway, without the beginning that other programs have as well. `waited`: seconds since it began to wait for
    this engine. `rank`: rank of its program. `idle`: seconds of `waited` in which the server ran no call of a program;
    0 in the simulator."""

    program: str
    prompt: int
    cached: int
    needed: int
    waited: float
    rank: float
    idle: float = 0.0


def max_protected_wait(tokens: int, capacity: int, row_seconds: float) -> float:
    """Return the longest forecast, in seconds, with which KV is protected.

    `tokens`: its size. `capacity`: tokens of the pool. `row_seconds`: time to compute one prompt token.
    """
    return DISPLACEMENTS * (tokens + capacity) * row_seconds


def is_mostly_cached(prompt: int, cached: int) -> bool:
    """Return whether at least half of a prompt is cached. `prompt`: its tokens. `cached`: those that are cached."""
    return 2 * cached >= prompt


def is_small(needed: int, capacity: int) -> bool:
    """Return whether a call displaces little. `needed`: tokens of the pool that it would occupy. `capacity`: tokens of
    the pool."""
    return needed * _SMALL_DIVISOR <= capacity


class PausePlan:
    """Snapshot of the protected KV, which decides whether a call must wait for it."""

    def __init__(self, retained: Iterable[RetainedKv], *, capacity: int, row_seconds: float) -> None:
        """`capacity`: tokens of the pool. `row_seconds`: time to compute one prompt token."""
        self._capacity = capacity
        self._row_seconds = row_seconds
        self._protected = [kv for kv in retained if kv.wait <= max_protected_wait(kv.tokens, capacity, row_seconds)]
        self._total = sum(kv.tokens for kv in self._protected)
        self._of_program: dict[str, int] = {}
        for kv in self._protected:
            self._of_program[kv.program] = self._of_program.get(kv.program, 0) + kv.tokens

    def must_pause(self, call: PendingCall, available: int) -> bool:
        """Return whether a call must wait. `available`: tokens that no running call holds."""
        if is_mostly_cached(call.prompt, call.cached) or is_small(call.needed, self._capacity):
            return False
        if call.idle > call.needed * self._row_seconds:
            return False
        if call.waited < MAX_PAUSE_SECONDS:
            protected = self._total - self._of_program.get(call.program, 0)
        else:
            protected = sum(kv.tokens for kv in self._protected if kv.rank <= call.rank and kv.program != call.program)
        return call.needed > available - protected
