"""Membership of this gateway in the cluster: it renews its lease, and takes over sessions of dead gateways."""

import asyncio
import logging
import time
from collections.abc import Callable, Iterable
from contextlib import suppress

from gateway.graph.limits import SessionLimits
from gateway.graph.session import Session
from gateway.graph.session_store import SessionStore
from gateway.journal import Journal, JournalError, LeaseLost, PostgresStorage

log = logging.getLogger("myna.peers")

_BATCH = 20
"""Number of sessions that are taken over at a time. Other gateways can take over the rest."""
_MIN_PAUSE_SECONDS = 0.5
"""Shortest pause between two rounds of lease renewal and search for dead gateways, in seconds, however often a round is
requested."""


class Membership:
    """Owner of this gateway's membership."""

    def __init__(
        self,
        storage: PostgresStorage,
        journal: Journal,
        sessions: SessionStore,
        limits: SessionLimits,
        resume: Callable[[Session], None],
    ) -> None:
        """`resume` submits the unfinished calls of a session that was taken over."""
        self.others: dict[int, str] = {}
        """Addresses of the other living gateways, by their numbers."""
        self._storage = storage
        self._journal = journal
        self._sessions = sessions
        self._limits = limits
        self._resume = resume
        self._has_joined = asyncio.Event()
        self._takes_over = False
        self._takeover_lock = asyncio.Lock()
        self._wake = asyncio.Event()
        self._lifetimes: dict[int, list[asyncio.Timeout]] = {}
        """Time limits of requests to other gateways. They expire when the gateway dies."""
        self._adopted: set[int] = set()
        """Keys of sessions that were taken over."""
        self._is_uncertain = False
        """Whether this gateway may own sessions that it has not restored, because the last takeover failed."""
        self._renewed_since: float | None = None
        """Time of the monotonic clock since which every renewal of the lease succeeded."""
        self._task: asyncio.Task[None] | None = None

    async def join(self, url: str, host: str) -> int:
        """Join the cluster, and return this gateway's number. Raises JournalError."""
        try:
            await self._storage.join(url, host)
            self.others = await self._storage.renew_lease()
        except self._storage.failures as error:
            raise JournalError(f"the journal at {self._storage.name} cannot be used: {error}") from error
        self._renewed_since = time.monotonic()
        self._has_joined.set()
        self._task = asyncio.create_task(self._run(), name="membership")
        return self._storage.gateway

    def set_takeover(self, enabled: bool) -> None:
        """Take over sessions of dead gateways from now on if `enabled`; otherwise leave them to other gateways."""
        self._takes_over = enabled
        self.request_check()

    async def close(self) -> None:
        """Stop renewing the lease. Requests to other gateways continue."""
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task

    async def wait_joined(self) -> None:
        """Wait until this gateway has joined."""
        await self._has_joined.wait()

    def request_check(self) -> None:
        """Check the other gateways soon, because one may have died."""
        self._wake.set()

    async def refresh_others(self) -> dict[int, str]:
        """Return the addresses of the other gateways, including those that have just joined."""
        with suppress(*self._storage.failures):  # without the database no gateway can join
            self.others |= await self._storage.other_gateways()
        return self.others

    async def wait_for_takeover(self) -> None:
        """Wait until a takeover in progress has finished."""
        async with self._takeover_lock:
            pass

    def lifetime_of(self, gateway: int) -> asyncio.Timeout:
        """Return a time limit that expires when the gateway is marked as dead. Pair it with `release_lifetime`."""
        limit = asyncio.timeout(None)
        self._lifetimes.setdefault(gateway, []).append(limit)
        return limit

    def release_lifetime(self, gateway: int, limit: asyncio.Timeout) -> None:
        """Release a time limit of `lifetime_of`."""
        limits = self._lifetimes[gateway]
        limits.remove(limit)
        if not limits:
            del self._lifetimes[gateway]

    async def _run(self) -> None:
        is_failing = False
        while True:
            try:
                known, self.others = self.others, await self._storage.renew_lease()
                self._end_lifetimes(known.keys() - self.others.keys())
                await self._mark_dead_gateways()
                if self._takes_over:
                    while await self._take_over():
                        pass
                await self._storage.release_unused_claims(self._sessions.holds)
                if is_failing:
                    log.warning("the database of the journal is available again")
                is_failing = False
            except LeaseLost:
                return
            except self._storage.failures as error:
                if not is_failing:
                    log.error("the lease cannot be renewed; other gateways may soon mark this one as dead: %s", error)
                is_failing = True
                self._renewed_since = None
            await asyncio.sleep(_MIN_PAUSE_SECONDS)
            with suppress(TimeoutError):
                async with asyncio.timeout(0.0 if is_failing else self._storage.lease / 3 - _MIN_PAUSE_SECONDS):
                    await self._wake.wait()
            self._wake.clear()

    async def _mark_dead_gateways(self) -> None:
        """Mark gateways as dead whose leases have expired.

        If the database was unavailable, the others could not renew their leases either. So they get as much time as
        this gateway has been able to renew its own.
        """
        now = time.monotonic()
        if self._renewed_since is None:
            self._renewed_since = now
        if now - self._renewed_since >= self._storage.lease:
            dead = await self._storage.mark_dead_gateways()
            dead_ids = {gateway for gateway, url in self.others.items() if url in dead}
            self.others = {gateway: url for gateway, url in self.others.items() if gateway not in dead_ids}
            self._end_lifetimes(dead_ids)  # even before its sessions are taken over, no request may be forwarded to it
            for url in dead:
                log.warning(
                    "the gateway at %s has not renewed its lease of %g s; other gateways take over its sessions",
                    url,
                    self._storage.lease,
                )
                self._wake.set()

    def _end_lifetimes(self, dead_ids: Iterable[int]) -> None:
        """End the requests to gateways that died."""
        for gateway in dead_ids:
            for limit in self._lifetimes.get(gateway, ()):
                if not limit.expired():
                    limit.reschedule(asyncio.get_running_loop().time())

    async def _take_over(self) -> bool:
        """Take over some sessions of dead gateways. Return whether there may be more."""
        async with self._takeover_lock:
            was_uncertain, self._is_uncertain = self._is_uncertain, True
            inherited = await self._storage.take_over(_BATCH)
            if was_uncertain:
                inherited = [*await self._storage.list_taken_over(), *inherited]
            for inherited_session in inherited:
                if inherited_session.key is not None and inherited_session.key not in self._adopted:
                    await self._adopt(inherited_session.id, inherited_session.key)
                    self._adopted.add(inherited_session.key)
            self._is_uncertain = False
        return len(inherited) >= _BATCH and not was_uncertain

    async def _adopt(self, id: str, key: int) -> None:
        rows = await self._storage.rows(key)
        try:
            (session,) = self._journal.restore(rows, self._limits)
        except (JournalError, ValueError) as error:
            log.error("session %s cannot be taken over: %s", id, error)
            return
        self._sessions.add(session)
        try:
            self._resume(session)
        except Exception:  # an error in one session must not end this gateway, and then each one that takes it over
            log.exception("session %s was taken over, but cannot be resumed", id)
            return
        log.info("session %s was taken over", id)
