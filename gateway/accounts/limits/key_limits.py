"""The limits and budgets of one key: admit its requests, reserve for its calls, and let requests wait.

There are two places where a request may be refused or wait. `enter` admits the request: it counts it and takes a
parallel place. `check` admits the calls that the request starts, however many they are: it is called in the same turn
of the event loop as `reserve`, so that no other call comes between. `make_room` goes before it, and waits.
"""

import asyncio
import math
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from gateway.accounts.errors import KeyStoreError, LimitReached, QuotaReached
from gateway.accounts.keys.virtual_key import KeyRecord
from gateway.accounts.limits.limit_headers import limit_headers
from gateway.accounts.limits.meter import LocalMeter, Meter
from gateway.accounts.limits.shared_meter import SharedMeter

_MAX_WAITING = 256
"""Maximum number of requests of one key that wait."""
_RECHECK_SECONDS = 0.25
"""Longest time until a waiting request looks again whether other gateways have returned allotments, in seconds."""
_OUTAGE_SECONDS = 1.0
"""Time for which a failure of the database holds, in seconds."""
_MAX_RETRY_SECONDS = 3_600.0
_NO_HEADERS: Mapping[str, str] = {}

CountedMeter = LocalMeter | SharedMeter


_Meters = Sequence[tuple[str, CountedMeter]]
"""Meters with their kinds."""


class _Reserved(NamedTuple):
    """Amounts that an unfinished call has reserved of some meters."""

    meters: _Meters
    tokens: int
    cost: float


@dataclass(frozen=True)
class WaitingRule:
    """Rule for requests over a limit. `seconds`: longest wait; 0: requests are refused."""

    seconds: float = 0.0


class KeyLimits:
    """Owner of the meters of one key, and of the requests that wait for them."""

    def __init__(
        self,
        id: str,
        waiting: WaitingRule,
        exchange: Callable[["KeyLimits"], Awaitable[None]] | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """`exchange` gets allotments from the database, if other gateways share the limits."""
        self.id = id
        self.meters: dict[str, CountedMeter] = {}
        """Meters by their kind: parallel, requests, tokens, budget_tokens, budget_cost."""
        self.waiting_requests = 0
        self._end: Callable[[], Exception] | None = None
        """Function that returns the reason why the key is not accepted any more, once that is the case."""
        self._waiting = waiting
        self._exchange = exchange
        self._clock = clock
        self._entry_meters: _Meters = ()
        self._call_meters: _Meters = ()
        """Meters with room for a request to enter, and for calls to start."""
        self._reservations: dict[str, _Reserved] = {}
        """Reservations of unfinished calls, by the call's id."""
        self._is_checked = False
        """Whether `make_room` has just found room; see `take_check`."""
        self._entry = asyncio.Lock()
        self._calls = asyncio.Lock()
        """Locks that requests hold while they are the next to enter, and to start calls. Others wait in order."""
        self.exchanging = asyncio.Lock()
        """Lock that is held while the amounts are exchanged with the database."""
        self._outage: tuple[float, str] | None = None
        """Time until which the database is not asked again because it has failed, and the error."""
        self._changed: asyncio.Future[None] | None = None
        """Future that the requests wait for which are next; it ends when there may be room."""

    # the limits

    def apply(self, record: KeyRecord, before: KeyRecord | None) -> list[str]:
        """Set the limits of the record. Return the kinds of budgets that are new or have another period: what they have
        used so far is unknown."""
        period = record.budget_period
        period_changed = before is not None and before.budget_period != period
        self._set("parallel", record.parallel)
        self._set("requests", record.rpm, per_minute=True)
        self._set("tokens", record.tpm, per_minute=True)
        new = []
        for kind, limit, unit in (
            ("budget_tokens", record.budget_tokens, 1.0),
            ("budget_cost", record.budget_cost, 0.0),
        ):
            if period_changed:
                self.meters.pop(kind, None)
            if limit is not None and kind not in self.meters:
                new.append(kind)
            self._set(kind, limit, period=period, unit=unit)
        self._entry_meters = [(kind, self.meters[kind]) for kind in _ENTRY if kind in self.meters]
        self._call_meters = [(kind, self.meters[kind]) for kind in _CALLS if kind in self.meters]
        self._end = None
        self.notify()
        return new

    def _set(
        self, kind: str, limit: float | None, *, per_minute: bool = False, period: str | None = None, unit: float = 1.0
    ) -> None:
        if limit is None:
            self.meters.pop(kind, None)
        elif kind in self.meters:
            self.meters[kind].set_limit(limit)
        elif self._exchange is None:
            self.meters[kind] = LocalMeter(limit, per_minute=per_minute, period=period, unit=unit)
        else:
            self.meters[kind] = SharedMeter(kind, limit, per_minute=per_minute, period=period, unit=unit)

    def notify(self) -> None:
        """Let the requests that wait look again."""
        changed, self._changed = self._changed, None
        if changed is not None and not changed.done():
            changed.set_result(None)

    def close(self, end: Callable[[], Exception]) -> None:
        """Refuse all requests from now on, also those that wait, with the error that `end` returns."""
        self._end = end
        self.notify()

    @property
    def shared_meters(self) -> list[SharedMeter]:
        """Meters whose limits other gateways share."""
        return [meter for meter in self.meters.values() if isinstance(meter, SharedMeter)]

    # requests

    async def enter(self) -> CountedMeter | None:
        """Admit a request: count it, and take a parallel place. Return the meter of the place, for `leave`.

        Raises LimitReached, or the reason why the key is not accepted any more.
        """
        if not self.can_enter():
            await self._wait(self._entry)
        return self.take_place()

    def can_enter(self) -> bool:
        """Return whether a request may enter now, without a wait. Raises the reason why the key is not accepted any
        more."""
        return not self.waiting_requests and self._find_refusal(self._entry_meters) is None

    def take_place(self) -> CountedMeter | None:
        """Count a request that may enter, and take a parallel place. See `enter`."""
        if (requests := self.meters.get("requests")) is not None:
            requests.settle(0.0, 1.0, self._clock())
        if (parallel := self.meters.get("parallel")) is not None:
            parallel.reserve(1.0)
        return parallel

    def leave(self, parallel: CountedMeter | None) -> None:
        """Release the parallel place of a request that is answered."""
        if parallel is not None:
            parallel.settle(1.0, 0.0, self._clock())
            if self.waiting_requests:
                self.notify()

    def headers(self) -> Mapping[str, str]:
        """Return the headers that describe the limits of a minute."""
        requests, tokens = self.meters.get("requests"), self.meters.get("tokens")
        return _NO_HEADERS if requests is tokens is None else limit_headers(requests, tokens, self._clock())

    # calls

    async def make_room(self) -> None:
        """Wait until calls may start, if requests may wait. Raises LimitReached. Call `check` in the same turn of the
        event loop."""
        if self.waiting_requests or self._find_refusal(self._call_meters) is not None:
            await self._wait(self._calls)
        self._is_checked = True

    def take_check(self) -> bool:
        """Return whether `make_room` has just found room, so that `check` need not look again. It is so only once."""
        is_checked, self._is_checked = self._is_checked, False
        return is_checked

    @property
    def counts_calls(self) -> bool:
        """Whether the key has limits of tokens or budgets."""
        return bool(self._call_meters)

    def check(self) -> None:
        """Raise LimitReached if no call may start now."""
        refusal = self._find_refusal(self._call_meters)
        if refusal is not None:
            raise refusal

    def reserve(self, call: str, tokens: int, cost: float) -> None:
        """Reserve what a call may use. `call`: its id."""
        if call in self._reservations:
            return
        for kind, meter in self._call_meters:
            if kind != "budget_cost":
                meter.reserve(tokens)
            elif cost:
                meter.reserve(cost)
        self._reservations[call] = _Reserved(self._call_meters, tokens, cost)

    def is_reserved(self, call: str) -> bool:
        """Return whether a call has a reservation."""
        return call in self._reservations

    @property
    def reservations(self) -> int:
        """Number of calls that have reservations."""
        return len(self._reservations)

    def settle(self, call: str, tokens: int, cost: float) -> None:
        """Count what a call has used, in place of its reservation."""
        now = self._clock()
        reserved = self._reservations.pop(call, None)
        if reserved is not None and reserved.meters is self._call_meters:
            for kind, meter in reserved.meters:
                if kind == "budget_cost":
                    meter.settle(reserved.cost, cost, now)
                else:
                    meter.settle(reserved.tokens, tokens, now)
        else:  # the limits have changed since the call began
            if reserved is not None:
                for kind, meter in reserved.meters:
                    meter.settle(reserved.cost if kind == "budget_cost" else reserved.tokens, 0.0, now)
            for kind, meter in self._call_meters:
                meter.settle(0.0, cost if kind == "budget_cost" else tokens, now)
        if self.waiting_requests:
            self.notify()

    # waiting

    def _find_refusal(self, meters: _Meters) -> LimitReached | None:
        """Return the error for the first meter without room; None if all have some. Raises the reason why the key is
        not accepted any more."""
        if self._end is not None:
            raise self._end()
        now = self._clock()
        for kind, meter in meters:
            if not meter.has_room(now):
                return _refusal(kind, meter, now)
        return None

    def _needed(self, turn: asyncio.Lock) -> _Meters:
        """Return the meters that need room for the request that has this turn. The limits may change while it waits."""
        return self._entry_meters if turn is self._entry else self._call_meters

    async def _wait(self, turn: asyncio.Lock) -> None:
        """Wait in order until there is room. The caller uses it in the same turn of the event loop.

        Raises LimitReached if there is no room in time, or requests do not wait.
        """
        if self._exchange is None and not self._waiting.seconds:
            refusal = self._find_refusal(self._needed(turn))
            if refusal is not None:
                raise refusal
            return
        if self._waiting.seconds and self.waiting_requests >= _MAX_WAITING:
            refusal = self._find_refusal(self._needed(turn))
            if refusal is not None or turn is self._entry:
                raise refusal or LimitReached("too many requests of this API key wait for its limits", retry_after=1.0)
            return
        deadline = self._clock() + self._waiting.seconds
        self.waiting_requests += 1
        try:
            async with turn:
                await self._wait_for_room(turn, deadline)
        finally:
            self.waiting_requests -= 1

    async def _wait_for_room(self, turn: asyncio.Lock, deadline: float) -> None:
        while (refusal := self._find_refusal(self._needed(turn))) is not None:
            if self._exchange is not None and self._may_ask(self._needed(turn)):
                await self._ask(self._exchange)
                refusal = self._find_refusal(self._needed(turn))
                if refusal is None:
                    return
            now = self._clock()
            if isinstance(refusal, QuotaReached) or now >= deadline:
                raise refusal
            pause = min(deadline - now, math.inf if refusal.retry_after is None else refusal.retry_after)
            if self._exchange is not None:
                pause = min(pause, _RECHECK_SECONDS)
            await self._wait_for_change(max(0.001, pause))

    async def _ask(self, exchange: Callable[["KeyLimits"], Awaitable[None]]) -> None:
        """Exchange amounts with the database. Raises KeyStoreError, also for a while after a failure: otherwise each of
        the requests that wait would wait for a database that does not answer, one after another."""
        if self._outage is not None and self._clock() < self._outage[0]:
            raise KeyStoreError(self._outage[1])
        try:
            await exchange(self)
        except KeyStoreError as error:
            self._outage = self._clock() + _OUTAGE_SECONDS, str(error)
            raise
        self._outage = None

    def _may_ask(self, meters: _Meters) -> bool:
        """Return whether the database may grant what a request needs."""
        now = self._clock()
        return all(
            meter.may_ask(now) for _, meter in meters if isinstance(meter, SharedMeter) and not meter.has_room(now)
        )

    async def _wait_for_change(self, seconds: float) -> None:
        """Wait until there may be room, for at most `seconds`."""
        if self._changed is None:
            self._changed = asyncio.get_running_loop().create_future()
        await asyncio.wait([self._changed], timeout=seconds)


_CALLS = ("budget_cost", "budget_tokens", "tokens")
_ENTRY = (*_CALLS, "requests", "parallel")
_NAMES = {
    "parallel": "parallel requests",
    "requests": "requests per minute",
    "tokens": "tokens per minute",
    "budget_tokens": "tokens",
    "budget_cost": "in cost",
}


def _refusal(kind: str, meter: Meter, now: float) -> LimitReached:
    """Return the error for a limit without room."""
    limit = f"{meter.limit:,.10g} {_NAMES[kind]}"
    seconds = meter.seconds_to_room(now)
    retry_after = min(seconds, _MAX_RETRY_SECONDS) if seconds < math.inf else None
    if kind not in ("budget_tokens", "budget_cost"):
        return LimitReached(
            f"Rate limit reached for this API key: {limit}. Please try again later.", retry_after=retry_after
        )
    if meter.is_used_up(now):
        message = f"You exceeded your current quota: this API key has used its budget of {limit}"
        return QuotaReached(f"{message}.", retry_after=None if seconds == math.inf else seconds)
    message = f"requests in progress have reserved the rest of this API key's budget of {limit}"
    return LimitReached(f"{message}; please try again later.", retry_after=retry_after)
