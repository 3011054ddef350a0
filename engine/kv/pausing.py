"""Pauses: which calls wait, so that programs do not evict each other's KV. Pure.

The engine decides by these rules for its own cache (`engine.admission`), and the gateway for those of upstream servers
(`gateway.scheduler.program_gate`). The gateway's simulator uses them as well.

KV of a program in a tool is worth its memory if the next call comes soon enough. Keeping it saves the time to compute
it again, and keeps others out meanwhile. Let a program hold `tokens` of a pool of `capacity`, and let it return after
`wait`. Keeping it occupies `tokens * wait` of the pool. Evicting it costs `tokens * row_seconds` of the engine, and
occupies `tokens * tokens * row_seconds` of the pool while it is computed again. If the whole pool is worth as much as
the whole engine, keeping it is better up to

    wait = (tokens + capacity) * row_seconds

A call whose prompt is cached to at least a half continues a program that is active, and is admitted. Other calls wait
until they fit next to the KV that is worth its memory. Of the calls that follow a tool's run, few wait: only calls
whose KV was evicted, and the policy evicts all KV of one program before it evicts a part of the next.

Two more kinds of calls are admitted. A small call displaces little, whatever the pool holds. And while the engine runs
no call of a program, a wait saves only the time in which the engine could compute the displaced KV again. So a call is
admitted once it has waited for that long beside such an engine. Its wait costs at most twice what the best decision
would cost, as in the ski rental problem. (The simulator does not count this time.)

After `MAX_PAUSE_SECONDS`, the engine admits a call. In the gateway, such a call waits only for running calls and for
the KV of programs that go before it; see `gateway.programs.service` for how long that can be. The time counts from the
beginning of a wait for one engine. It begins anew if the engine fails or the call is moved to another engine.
"""

from collections.abc import Iterable
from typing import NamedTuple

_SMALL_SHARE = 32
"""Share of the pool, as a divisor, up to which a call is small."""
MAX_PAUSE_SECONDS = 300.0
"""Duration of a pause, in seconds, after which KV of programs of higher rank is no reason to wait. Programs of equal
ranks wait for each other, so that programs that arrive together do not evict each other."""


class RetainedKv(NamedTuple):
    """KV of a program in a tool. `tokens`: its size. `wait`: seconds until its next call; see
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
    """Return the longest wait, in seconds, for which KV is worth its memory.

    `tokens`: its size. `capacity`: tokens of the pool. `row_seconds`: time to compute one prompt token.
    """
    return (tokens + capacity) * row_seconds


def is_active(prompt: int, cached: int) -> bool:
    """Return whether a call continues a program that is active: at least half of its prompt is cached."""
    return 2 * cached >= prompt


def is_small(needed: int, capacity: int) -> bool:
    """Return whether a call displaces little. `needed`: tokens of the pool that it would occupy. `capacity`: tokens of
    the pool."""
    return needed * _SMALL_SHARE <= capacity


class PausePlan:
    """KV that is worth its memory at one time, and whether a call fits next to it."""

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
