"""This gateway among others: it says that it lives, and takes over the sessions of those that do not."""

import asyncio
import logging
import time
from collections.abc import Callable, Iterable
from contextlib import suppress

from gateway.graph.session import Session, SessionLimits
from gateway.graph.store import SessionStore
from gateway.journal import Journal, JournalError, LeaseLost, PostgresStorage

log = logging.getLogger("myna.peers")

_AT_ONCE = 20
"""Sessions that are taken over in one go; what is more may go to others."""
_LOOK_SECONDS = 0.5
"""Between two looks, however many ask for one."""


class Membership:
    """Owner of this gateway's place among the others."""

    def __init__(
        self,
        storage: PostgresStorage,
        journal: Journal,
        sessions: SessionStore,
        bounds: SessionLimits,
        resume: Callable[[Session], None],
    ) -> None:
        """`resume` begins the unfinished calls of a session that was taken over."""
        self.others: dict[int, str] = {}
        """Addresses of the other gateways that live, by their numbers."""
        self._storage = storage
        self._journal = journal
        self._sessions = sessions
        self._bounds = bounds
        self._resume = resume
        self._joined = asyncio.Event()
        self._inherits = False
        self._inheriting = asyncio.Lock()
        self._look = asyncio.Event()
        self._gone: dict[int, list[asyncio.Timeout]] = {}
        """What is asked of other gateways, and ends when they do."""
        self._adopted: set[int] = set()
        """Keys of sessions that were another's before."""
        self._unsure = False
        """Whether some may have become ours that are not here."""
        self._since: float | None = None
        """From when on we have been heard of without a gap; by the monotonic clock."""
        self._task: asyncio.Task[None] | None = None

    async def join(self, url: str, host: str) -> int:
        """From here on the others know us, by the number that is returned. Raises JournalError."""
        try:
            await self._storage.join(url, host)
            self.others = await self._storage.beat()
        except self._storage.failures as error:
            raise JournalError(f"the journal at {self._storage.name} cannot be used: {error}") from error
        self._since = time.monotonic()
        self._joined.set()
        self._task = asyncio.create_task(self._live(), name="membership")
        return self._storage.gateway

    def inherit(self, does: bool = True) -> None:
        """From here on sessions of gateways that died are taken over, or are left to others."""
        self._inherits = does
        self.look()

    async def close(self) -> None:
        """Says nothing more. What is asked of others goes on."""
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task

    async def joined(self) -> None:
        """Returns once we have."""
        await self._joined.wait()

    def look(self) -> None:
        """Somebody may have died: sees to it soon."""
        self._look.set()

    async def see(self) -> dict[int, str]:
        """The others, and those among them who have only just joined."""
        with suppress(*self._storage.failures):  # while the database is away nobody joins
            self.others |= await self._storage.others()
        return self.others

    async def settled(self) -> None:
        """Returns when what has just become ours is here."""
        async with self._inheriting:
            pass

    def while_alive(self, gateway: int) -> asyncio.Timeout:
        """A context that ends with TimeoutError when that gateway is taken for dead."""
        limit = asyncio.timeout(None)
        self._gone.setdefault(gateway, []).append(limit)
        return limit

    def no_longer(self, gateway: int, limit: asyncio.Timeout) -> None:
        """To be called when the context has ended."""
        limits = self._gone[gateway]
        limits.remove(limit)
        if not limits:
            del self._gone[gateway]

    async def _live(self) -> None:
        complained = False
        while True:
            try:
                known, self.others = self.others, await self._storage.beat()
                self._end(known.keys() - self.others.keys())
                await self._bury()
                if self._inherits:
                    while await self._take_over():
                        pass
                await self._storage.unclaim(self._sessions.holds)
                if complained:
                    log.warning("the database of the journal answers again")
                complained = False
            except LeaseLost:
                return
            except self._storage.failures as error:
                if not complained:
                    log.error("the other gateways may take this one for dead soon: %s", error)
                complained = True
                self._since = None
            await asyncio.sleep(_LOOK_SECONDS)
            with suppress(TimeoutError):
                async with asyncio.timeout(0.0 if complained else self._storage.lease / 3 - _LOOK_SECONDS):
                    await self._look.wait()
            self._look.clear()

    async def _bury(self) -> None:
        """Whoever's time is up is dead. If it is the database that was away, the others' time is up through no fault of
        theirs; so they have as long as we to be heard of again."""
        now = time.monotonic()
        if self._since is None:
            self._since = now
        if now - self._since >= self._storage.lease:
            dead = await self._storage.bury()
            gone = {gateway for gateway, url in self.others.items() if url in dead}
            self.others = {gateway: url for gateway, url in self.others.items() if gateway not in gone}
            self._end(gone)  # requests must not be forwarded to it any more, whether its sessions are here yet or not
            for url in dead:
                log.warning(
                    "the gateway at %s has not been heard of for %g s; its sessions go to the others",
                    url,
                    self._storage.lease,
                )
                self._look.set()

    def _end(self, gone: Iterable[int]) -> None:
        """Nobody waits for gateways that died."""
        for gateway in gone:
            for limit in self._gone.get(gateway, ()):
                if not limit.expired():
                    limit.reschedule(asyncio.get_running_loop().time())

    async def _take_over(self) -> bool:
        """Some sessions of the dead; whether there may be more."""
        async with self._inheriting:
            unsure, self._unsure = self._unsure, True
            inherited = await self._storage.inherit(_AT_ONCE)
            if unsure:
                inherited = [*await self._storage.inherited(), *inherited]
            for one in inherited:
                if one.key is not None and one.key not in self._adopted:
                    await self._adopt(one.id, one.key)
                    self._adopted.add(one.key)
            self._unsure = False
        return len(inherited) >= _AT_ONCE and not unsure

    async def _adopt(self, id: str, key: int) -> None:
        rows = await self._storage.rows(key)
        try:
            (session,) = self._journal.restore(rows, self._bounds)
        except (JournalError, ValueError) as error:
            log.error("session %s cannot be taken over: %s", id, error)
            return
        self._sessions.adopt(session)
        try:
            self._resume(session)
        except Exception:  # one session's trouble is not to end a gateway, and then the next that takes it over
            log.exception("session %s was taken over, but cannot go on", id)
            return
        log.info("session %s is this gateway's now", id)
