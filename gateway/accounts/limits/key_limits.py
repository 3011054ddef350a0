"""The limits and budgets of one key: admit its requests, reserve for its calls, and let requests wait.

There are two places where a request may be refused or wait. `enter` admits the request: it counts it and takes a
parallel place. `check` admits the calls that the request starts, however many they are: it is called in the same turn
of the event loop as `reserve`, so that no other call comes between. `make_room` goes before it, and waits.
"""

import asyncio
import math
import time
from collections.abc import Awaitable, Callable, Iterator, MutableMapping, Sequence
from dataclasses import dataclass

from gateway.accounts.errors import KeyStoreError, LimitReached, QuotaReached
from gateway.accounts.keys.virtual_key import KeyRecord
from gateway.accounts.limits.known_room import KnownRoom
from gateway.accounts.limits.limit_headers import set_limit_headers
from gateway.accounts.limits.meter import LocalMeter, Meter
from gateway.accounts.limits.shared_meter import SharedMeter

_MAX_WAITING = 256
"""Maximum number of requests of one key that wait."""
_RECHECK_SECONDS = 0.25
"""Longest time until a waiting request looks again whether other gateways have returned allotments, in seconds."""
_OUTAGE_SECONDS = 1.0
"""Time for which a failure of the database holds, in seconds."""
_MAX_RETRY_SECONDS = 3_600.0

CountedMeter = LocalMeter | SharedMeter


_Meters = Sequence[tuple[str, CountedMeter]]
"""Meters with their kinds."""


_Reserved = tuple[_Meters, int, float]
"""Meters of which an unfinished call has reserved, and its tokens and cost."""
_NOTHING_RESERVED: _Reserved = ((), 0, 0.0)


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
        self._room = KnownRoom()
        """Room that the meters have; always none if other gateways share them."""
        self._requests: CountedMeter | None = None
        self._tokens: CountedMeter | None = None
        self._parallel: CountedMeter | None = None
        self.counts_calls = False
        """Whether the key has limits of tokens or budgets."""
        self._reservations: dict[str, _Reserved] = {}
        """Reservations of unfinished calls, by the call's id."""
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
        self._requests, self._tokens, self._parallel = map(self.meters.get, ("requests", "tokens", "parallel"))
        self.counts_calls = bool(self._call_meters)
        self._end = None
        self._room.forget()
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
        self._room.forget()
        self.notify()

    @property
    def _local_meters(self) -> Iterator[tuple[str, LocalMeter]]:
        return ((kind, meter) for kind, meter in self.meters.items() if isinstance(meter, LocalMeter))

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
        if self.waiting_requests:
            return False
        room = self._room
        has_room = room.requests >= 1.0 and room.tokens >= 1.0 and room.cost > 0.0
        return has_room or self._find_refusal(self._entry_meters) is None

    def take_place(self) -> CountedMeter | None:
        """Count a request that may enter, and take a parallel place. See `enter`."""
        self._room.requests -= 1.0
        if (requests := self._requests) is not None:
            requests.settle(0.0, 1.0, self._clock())
        if (parallel := self._parallel) is not None:
            parallel.reserved += 1.0
        return parallel

    def leave(self, parallel: CountedMeter | None) -> None:
        """Release the parallel place of a request that is answered."""
        if parallel is not None:
            parallel.settle(1.0, 0.0, 0.0)  # nothing is used, so the time does not matter
            if self.waiting_requests:
                self.notify()

    def set_headers(self, headers: MutableMapping[str, str]) -> None:
        """Set the headers that describe the limits of a minute."""
        requests, tokens = self._requests, self._tokens
        if not (requests is tokens is None):
            set_limit_headers(headers, requests, tokens, self._clock())

    # calls

    async def make_room(self) -> None:
        """Wait until calls may start, if requests may wait. Raises LimitReached. Call `check` in the same turn of the
        event loop."""
        if not self.can_start():
            await self._wait(self._calls)

    def can_start(self) -> bool:
        """Return whether calls may start now, without a wait. Raises the reason why the key is not accepted any
        more."""
        if self.waiting_requests:
            return False
        room = self._room
        return (room.tokens >= 1.0 and room.cost > 0.0) or self._find_refusal(self._call_meters) is None

    def check(self) -> None:
        """Raise LimitReached if no call may start now."""
        room = self._room
        if room.tokens < 1.0 or room.cost <= 0.0:
            refusal = self._find_refusal(self._call_meters)
            if refusal is not None:
                raise refusal

    def reserve(self, call: str, tokens: int, cost: float) -> None:
        """Reserve what a call may use. `call`: its id."""
        if call in self._reservations:
            return
        room, meters = self._room, self._call_meters
        room.tokens -= tokens
        room.cost -= cost
        for kind, meter in meters:
            meter.reserved += cost if kind == "budget_cost" else tokens
        self._reservations[call] = meters, tokens, cost

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
        meters, reserved_tokens, reserved_cost = self._reservations.pop(call, _NOTHING_RESERVED)
        if tokens > reserved_tokens or cost > reserved_cost:
            self._room.forget()
        if meters is not self._call_meters:  # the limits have changed since the call began
            for kind, meter in meters:
                meter.settle(reserved_cost if kind == "budget_cost" else reserved_tokens, 0.0, now)
            meters, reserved_tokens, reserved_cost = self._call_meters, 0, 0.0
        for kind, meter in meters:
            if kind == "budget_cost":
                meter.settle(reserved_cost, cost, now)
            else:
                meter.settle(reserved_tokens, tokens, now)
        if self.waiting_requests:
            self.notify()

    def count_past_use(self, kind: str, amount: float) -> None:
        """Count what the key has used before this process knew it. `kind`: see `meters`."""
        if (meter := self.meters.get(kind)) is not None:
            meter.settle(0.0, amount, self._clock())
            self._room.forget()

    # waiting

    def _find_refusal(self, meters: _Meters) -> LimitReached | None:
        """Return the error for the first meter without room; None if all have some. Raises the reason why the key is
        not accepted any more."""
        if self._end is not None:
            raise self._end()
        now = self._clock()
        for kind, meter in meters:
            if not meter.has_room(now):
                self._room.forget()
                return _refusal(kind, meter, now)
        if self._exchange is None:
            self._room.measure(self._local_meters, now)
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
