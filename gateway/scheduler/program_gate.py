"""Gate before upstream servers: new conversations of programs wait here until their KV fits. See `engine.kv.pausing`.

Engines of this project know their cache, and pause prompts themselves (`engine.admission`). Of upstream servers, the
gateway only estimates which KV they have. With a wrong estimate, a program waits although its KV is cached, and
the engine evicts this KV in the meantime. Measured on agents, that cost more than it saved. So a call that extends
another one never waits; the first call of a program, and of each further conversation in it, can wait.
"""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from engine.kv.pausing import MAX_PAUSE_SECONDS, PendingCall
from gateway.engines.protocol import Engine
from gateway.graph.call import Call, ProgramMember
from gateway.scheduler.program_kv import ProgramKv

_CHECK_SECONDS = 0.25
"""Interval at which waiting calls are checked again, in seconds: expected waits change with time."""
MAX_WAIT_SECONDS = 2 * MAX_PAUSE_SECONDS
"""Longest wait of a call for one engine, in seconds, whatever programs of other API keys hold meanwhile."""
_ROW_SECONDS = 0.001
"""Assumed time to compute one prompt token, in seconds, for engines that do not report it."""


@dataclass(eq=False, slots=True)
class _Waiting:
    """Call that waits. `idle`: seconds for which the engine had no call of a program meanwhile."""

    call: Call
    member: ProgramMember
    prompt: int
    since: float
    ended: "asyncio.Future[None]"
    idle: float = 0.0


@dataclass(eq=False, slots=True)
class _Pool:
    """KV cache of one engine, and the calls that wait for it."""

    kv: ProgramKv
    waiting: dict[str, _Waiting] = field(default_factory=dict)
    checked: float = 0.0
    timer: asyncio.TimerHandle | None = None


class ProgramGate:
    """Owner of the estimates of the programs' KV, and of the calls that wait.

    Only plain requests wait here, whose prompts are complete. A call of a named session may wait for the value of
    another call, so it must not wait for KV. Calls do not wait for engines that pause prompts themselves, and for those
    whose KV cache has an unknown size.
    """

    def __init__(
        self, rank_of: Callable[[Call], float], answer_tokens: Callable[[Call], float], now: Callable[[], float]
    ) -> None:
        """`rank_of` returns the rank of a call's program; the lowest goes first. `answer_tokens` returns the expected
        number of tokens of a call's answer. `now`: clock, in seconds."""
        self._rank_of = rank_of
        self._answer_tokens = answer_tokens
        self._now = now
        self._pools: dict[str, _Pool] = {}
        """Pools by the engine's name."""
        self._entered: dict[str, _Pool] = {}
        """Pools of the calls that run, by the call's id."""
        self._last: dict[str, _Pool] = {}
        """Pools of calls that have ended and whose gap has not begun, by the call's id."""

    @property
    def waiting_calls(self) -> int:
        """Number of calls that wait."""
        return sum(len(pool.waiting) for pool in self._pools.values())

    def try_enter(self, call: Call, engine: Engine) -> bool:
        """Return whether a call may run on the engine now. If so, pair it with `leave`; else call `wait`, and then ask
        again. Asking again changes nothing if the call has entered."""
        member = call.program
        if member is None or call.session.id:
            return True
        pool = self._pool_of(engine)
        if self._entered.get(call.id) is pool:
            return True
        self.leave(call)
        if pool is None:
            return True
        prompt = _prompt_tokens(call, engine)
        now = self._now()
        if self._must_pause(pool, call, member, prompt, now, waited=0.0, idle=0.0):
            return False
        self._enter(pool, call, member, prompt, now)
        return True

    async def wait(self, call: Call, engine: Engine) -> None:
        """Wait until a call may run on the engine, or until the engine is not ready. Then ask `try_enter` again.

        The time of the call's pause begins again with each wait.
        """
        pool, member = self._pool_of(engine), call.program
        if pool is None or member is None:
            return
        now, loop = self._now(), asyncio.get_running_loop()
        waiting = _Waiting(call, member, _prompt_tokens(call, engine), now, loop.create_future())
        if not pool.waiting:
            pool.checked = now
        pool.waiting[call.id] = waiting
        self._check_later(pool)
        try:
            while not waiting.ended.done() and engine.is_ready:
                await asyncio.wait([waiting.ended], timeout=4 * _CHECK_SECONDS)
        finally:
            pool.waiting.pop(call.id, None)

    def leave(self, call: Call) -> None:
        """Record that a call does not run any more. Do nothing if it has not entered."""
        pool = self._entered.pop(call.id, None)
        if pool is None or call.program is None:
            return
        usage, now = call.usage, self._now()
        if call.program.parent is None and usage.prompt:
            pool.kv.observe_common(call.program.program_id, usage.cached)
        pool.kv.leave(call.program.id, usage.prompt + usage.completion, now)
        self._last[call.id] = pool
        while len(self._last) > 1_000:
            del self._last[next(iter(self._last))]
        if pool.waiting:
            self._check_later(pool, soon=True)

    def expect(self, call: Call, returns: Sequence[float]) -> None:
        """Record when the program of an ended call is expected to return, see `gateway.programs.tool_gaps`."""
        pool = self._last.pop(call.id, None)
        if pool is not None and call.program is not None:
            pool.kv.expect(call.program.id, list(returns))

    def _pool_of(self, engine: Engine) -> _Pool | None:
        """Return the pool of an engine; None if its size is unknown, or if the engine pauses prompts itself."""
        tokens = engine.kv_tokens
        if not tokens or engine.pauses_prompts:
            return None
        pool = self._pools.get(engine.name)
        if pool is None or pool.kv.capacity != tokens:
            pool = self._pools[engine.name] = _Pool(ProgramKv(tokens))
        times = engine.step_times
        pool.kv.row_seconds = _ROW_SECONDS if times is None else times.row_seconds
        return pool

    def _must_pause(
        self, pool: _Pool, call: Call, member: ProgramMember, prompt: int, now: float, *, waited: float, idle: float
    ) -> bool:
        if member.parent is not None:
            return False
        _, cached = pool.kv.cached(member)
        common = pool.kv.common(member.program_id)
        cached = max(cached, common)
        needed = max(0, prompt + round(self._answer_tokens(call)) - common)
        pending = PendingCall(member.program_id, prompt, cached, needed, waited, self._rank_of(call), idle)
        return pool.kv.must_pause(pending, now)

    def _enter(self, pool: _Pool, call: Call, member: ProgramMember, prompt: int, now: float) -> None:
        pool.kv.enter(member, prompt + round(self._answer_tokens(call)), self._rank_of(call), now)
        self._entered[call.id] = pool

    def _check_later(self, pool: _Pool, *, soon: bool = False) -> None:
        """Look at the waiting calls after the usual interval, or `soon`: in the next turn of the event loop."""
        if pool.timer is not None:
            if not soon:
                return
            pool.timer.cancel()
        loop = asyncio.get_running_loop()
        pool.timer = loop.call_later(0.0 if soon else _CHECK_SECONDS, self._check, pool)

    def _check(self, pool: _Pool) -> None:
        """Let the waiting calls enter that fit, in the order of their ranks."""
        pool.timer = None
        now = self._now()
        idle = now - pool.checked if pool.kv.is_idle else 0.0
        pool.checked = now
        try:
            for waiting in sorted(pool.waiting.values(), key=lambda waiting: self._rank_of(waiting.call)):
                waiting.idle += idle
                call, member, waited = waiting.call, waiting.member, now - waiting.since
                if waited >= MAX_WAIT_SECONDS or not self._must_pause(
                    pool, call, member, waiting.prompt, now, waited=waited, idle=waiting.idle
                ):
                    self._enter(pool, call, member, waiting.prompt, now)
                    del pool.waiting[call.id]
                    if not waiting.ended.done():
                        waiting.ended.set_result(None)
        finally:
            if pool.waiting:
                self._check_later(pool)


def _prompt_tokens(call: Call, engine: Engine) -> int:
    """Return the approximate number of tokens of the known part of a call's prompt."""
    units = sum([getattr(segment, "length", 0) for segment in call.spec.segments])
    return int(units * engine.tokens_per_unit)
