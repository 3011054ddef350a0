"""Accounts of API keys: decide whether a key may start work now, and count the use of its work."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from typing import Protocol

from gateway.accounts.errors import KeyDisabled, KeyEnded
from gateway.accounts.keys.key_directory import KeyDirectory
from gateway.accounts.keys.virtual_key import KeyRecord, is_key_id
from gateway.accounts.ledger.spend import CallSpend
from gateway.accounts.limits.call_bound import CallBounds
from gateway.accounts.limits.key_limits import KeyLimits, WaitingRule
from gateway.accounts.limits.shared_usage import SharedUsage
from gateway.accounts.prices import Prices
from gateway.graph.call import Call, CallSpec
from gateway.graph.ids import new_id


class SpendTotals(Protocol):
    """Source of what keys have spent before this process started: the ledger."""

    async def totals(self, key_id: str, since: float) -> tuple[int, float]:
        """Return the tokens and the cost of a key's calls that ended since `since`, a time of the Unix clock."""


class Accounts:
    """Owner of the limits of all virtual keys. It implements `gateway.graph.call_gate.CallGate`."""

    def __init__(
        self,
        window_of: Callable[[str], int | None],
        prices: Prices,
        waiting: WaitingRule | None = None,
        usage: SharedUsage | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """`window_of`: see `CallBounds`. `usage`: what all gateways have used, if several share the limits."""
        self.directory = KeyDirectory(clock)
        self.bounds = CallBounds(window_of, prices)
        self.weights: dict[str, float] = {}
        """Weights of tenants, which the fair queue reads."""
        self.on_end: Callable[[str, bool], None] = lambda id, is_deleted: None
        """Function that cancels the work of a key that is disabled or deleted; see `end`."""
        self._waiting = waiting or WaitingRule()
        self._usage = usage
        self._clock = clock
        self._limits: dict[str, KeyLimits] = {}
        """Limits of the keys that have some, by id."""
        self._lifetimes: dict[str, set[asyncio.Timeout]] = {}
        """Time limits of relayed requests, by key. They expire when the key ends."""
        self._exchanges: set[asyncio.Task[None]] = set()

    # keys

    def put(self, record: KeyRecord) -> Sequence[str]:
        """Add a key, or change it. Return the kinds of its budgets whose use so far is unknown."""
        before = self.directory.put(record)
        self.weights[record.id] = record.weight
        limits = self._limits.get(record.id)
        if limits is None and record.has_limits:
            exchange = None if self._usage is None else self.exchange
            limits = self._limits[record.id] = KeyLimits(record.id, self._waiting, exchange, self._clock)
        new = [] if limits is None else limits.apply(record, before)
        if record.disabled:
            self.end(record.id, is_deleted=False)
        return new

    def remove(self, id: str) -> None:
        """Remove a key that was deleted, and cancel its work."""
        if self.directory.remove(id) is not None:
            self.end(id, is_deleted=True)
            self.weights.pop(id, None)
            self._limits.pop(id, None)

    def end(self, id: str, *, is_deleted: bool) -> None:
        """Refuse the requests of a key from now on, and cancel what runs."""
        limits = self._limits.get(id)
        if limits is not None:
            limits.close(lambda: self._end_error(id))
        for lifetime in self._lifetimes.get(id, ()):
            if not lifetime.expired():
                lifetime.reschedule(asyncio.get_running_loop().time())
        self.on_end(id, is_deleted)

    def _end_error(self, id: str) -> KeyEnded:
        """Return the error for the work of a key that has ended."""
        if self.directory.get(id) is None:
            return KeyEnded("this API key was deleted")
        return KeyDisabled("this API key is disabled")

    def limits_of(self, tenant: str) -> KeyLimits | None:
        """Return the limits of a tenant; None if it has none."""
        return self._limits.get(tenant)

    def check_key(self, tenant: str) -> None:
        """Raise RequestError 401 if the tenant is a virtual key that is not accepted now."""
        if is_key_id(tenant):
            self.directory.check(self.directory.get(tenant))

    def is_gone(self, tenant: str) -> bool:
        """Return whether the tenant is a virtual key that was deleted."""
        return is_key_id(tenant) and self.directory.get(tenant) is None

    def tags_of(self, tenant: str) -> Sequence[str]:
        """Return the tags of a tenant's key."""
        record = self.directory.get(tenant)
        return () if record is None else record.tags

    def may_use(self, tenant: str) -> Callable[[str], bool] | None:
        """Return a function that returns whether a tenant may use a model; None if it may use all."""
        record = self.directory.get(tenant)
        return None if record is None or record.models is None else record.may_use

    # calls

    async def make_room(self, tenant: str) -> None:
        """Wait until the tenant may start calls, if requests may wait. Raises LimitReached. Add the calls to their
        session in the same turn of the event loop."""
        limits = self._limits.get(tenant)
        if limits is not None:
            await limits.make_room()

    def check(self, tenant: str, specs: Sequence[CallSpec]) -> None:
        """Raise LimitReached or KeyEnded if these calls may not join a session. See `CallGate.check`."""
        limits = self._limits.get(tenant)
        if limits is None:
            if is_key_id(tenant) and ((record := self.directory.get(tenant)) is None or record.disabled):
                raise self._end_error(tenant)  # the key ended after the request was authenticated
        elif any(spec.model for spec in specs):
            limits.check()

    def reserve(self, call: Call) -> None:
        """Reserve what a call may use. See `CallGate.reserve`."""
        limits = self._limits.get(call.session.tenant)
        if limits is not None and call.spec.model and limits.counts_calls:
            tokens, cost = self.bounds.of_call(call.spec)
            limits.reserve(call.id, tokens, cost)

    def settle(self, tenant: str, call_id: str, spend: CallSpend) -> None:
        """Count what a call has used, in place of its reservation. Call it on the event loop, once for each call that
        ends, also if it was cancelled or never ran."""
        limits = self._limits.get(tenant)
        if limits is not None:
            limits.settle(call_id, spend.tokens, spend.cost)

    @asynccontextmanager
    async def relayed(self, tenant: str, model: str, tokens: int) -> AsyncIterator[str]:
        """Admit a request that no call belongs to, and reserve for it. Yield an id, for `settle`.

        `tokens`: upper bound of its tokens. If the request is not settled within the block, it has used nothing.
        Raises LimitReached, or KeyEnded if the key is deleted or disabled meanwhile.
        """
        id, limits = f"relay_{new_id(16)}", self._limits.get(tenant)
        if limits is not None:
            await limits.make_room()
            limits.reserve(id, *self.bounds.of_prompt(model, tokens))
        try:
            with self._lifetime(tenant) as lifetime:
                try:
                    async with lifetime:
                        yield id
                except TimeoutError:
                    if lifetime.expired():
                        raise self._end_error(tenant) from None
                    raise
        finally:
            if limits is not None and limits.is_reserved(id):
                limits.settle(id, 0, 0.0)

    @contextmanager
    def _lifetime(self, tenant: str) -> Iterator[asyncio.Timeout]:
        """Yield a time limit that expires when the key of the tenant is deleted or disabled."""
        lifetime = asyncio.timeout(None)
        if not is_key_id(tenant):
            yield lifetime
            return
        self._lifetimes.setdefault(tenant, set()).add(lifetime)
        try:
            yield lifetime
        finally:
            lifetimes = self._lifetimes[tenant]
            lifetimes.discard(lifetime)
            if not lifetimes:
                del self._lifetimes[tenant]

    # several gateways

    async def exchange(self, *keys: KeyLimits) -> None:
        """Report what keys have used to the other gateways, and get allotments. Raises KeyStoreError and LeaseLost.

        A disconnect does not interrupt the exchange: if the gateway did not know whether a report arrived, it would
        report twice.
        """
        task = asyncio.get_running_loop().create_task(self._exchange(keys))
        self._exchanges.add(task)
        task.add_done_callback(self._exchange_done)
        await asyncio.shield(task)

    def _exchange_done(self, task: "asyncio.Task[None]") -> None:
        self._exchanges.discard(task)
        if not task.cancelled():
            task.exception()  # `exchange` raises it, unless its client has disconnected; then asyncio would log it

    async def _exchange(self, keys: Sequence[KeyLimits]) -> None:
        assert self._usage is not None, "no other gateway shares the limits"
        async with AsyncExitStack() as stack:
            for limits in sorted(
                keys, key=lambda limits: limits.id
            ):  # in one order, so that no two wait for each other
                await stack.enter_async_context(limits.exchanging)
            now = self._clock()
            meters = [
                (meter, meter.report(limits.id, now, limits.waiting_requests))
                for limits in keys
                for meter in limits.shared_meters
            ]
            if not meters:
                return
            grants = await self._usage.exchange([report for _, report in meters])
            now = self._clock()
            for (meter, report), grant in zip(meters, grants, strict=True):
                meter.apply(report, grant, now)

    def keys_to_exchange(self) -> list[KeyLimits]:
        """Return the limits of keys whose amounts the other gateways do not know."""
        return [
            limits for limits in self._limits.values() if any(meter.needs_exchange for meter in limits.shared_meters)
        ]
