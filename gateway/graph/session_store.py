"""Store of the sessions that this process holds, by tenant and id."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from gateway.graph.budget import FREE, Budget, Limits, TokenPrice
from gateway.graph.call import Call
from gateway.graph.call_gate import CallGate
from gateway.graph.errors import Failure, GraphError, TooLarge
from gateway.graph.events import FactSink, NullSink
from gateway.graph.ids import new_id
from gateway.graph.limits import SessionLimits, SharedLimit, SharedLimits
from gateway.graph.session import Session

_REMEMBERED = 10_000
"""Maximum number of expired ids that are remembered, to answer 410 instead of 404."""


class SessionNotFound(GraphError):
    """There is no such session, or it belongs to another tenant."""

    code = "session_not_found"


class SessionExpired(GraphError):
    """The session existed and has expired."""

    code = "session_expired"


@dataclass
class SessionStore:
    """Owner of all sessions. `cancel` stops a call and marks the call and its outputs as cancelled."""

    cancel: Callable[[Call, Failure], None]
    limits: SessionLimits
    ttl: float
    max_sessions: int
    max_sessions_per_tenant: int
    sink: FactSink = field(default_factory=NullSink)
    max_bytes: int = 4 << 30
    """Maximum size of the values and prompts of all sessions together, in bytes."""
    max_waiters: int = 40_000
    """Maximum number of waiting requests, over all sessions."""
    price_of: Callable[[str], TokenPrice] = lambda model: FREE
    """Returns the price of a model."""
    fail_calls: Callable[[Session, Failure], None] = lambda session, failure: None
    """Ends the unfinished calls of a session, soon."""
    several_tenants: bool = False
    """Whether there can be more than one tenant. If so, no tenant alone can use all of a limit."""
    call_gate: CallGate | None = None
    """Gate that the calls of all sessions pass."""
    _sessions: dict[tuple[str, str], Session] = field(default_factory=dict)
    _expired: dict[tuple[str, str], None] = field(default_factory=dict)
    _leaving: list[Session] = field(default_factory=list)
    """Sessions that have ended and may still have readers."""
    _left: list[Session] = field(default_factory=list)
    """Sessions that had ended when `dissolve_ended` ran last."""

    _timed: dict[Session, None] = field(default_factory=dict)
    """Sessions whose calls have a limited time."""
    _evicted: list[Session] = field(default_factory=list)
    """Sessions that were ended to make room for others since `expire` ran last."""

    def __post_init__(self) -> None:
        several = self.several_tenants
        self._counts = SharedLimit(self.max_sessions, several=several, own=self.max_sessions_per_tenant)
        self._shared = SharedLimits(
            SharedLimit(self.max_bytes, several=several), SharedLimit(self.max_waiters, several=several)
        )

    def create(
        self,
        tenant: str,
        id: str | None = None,
        *,
        metadata: dict[str, str] | None = None,
        ttl: float | None = None,
        sink: FactSink | None = None,
        limits: Limits | None = None,
    ) -> Session:
        """Create a session whose facts go to `sink`, by default the store's own. `limits`: its budget. Raises
        SessionExists if the id is taken, TooLarge if the tenant has the maximum number of sessions."""
        sink = self.sink if sink is None else sink
        sink.check()
        if not self._counts.has_room(tenant):
            held = self._counts.amount(tenant)
            raise TooLarge(f"this key has {held} sessions, the current maximum; delete some or wait")
        id = id or f"sess_{new_id(24)}"
        if (tenant, id) in self._sessions:
            raise SessionExists(f"there is a session {id!r} already", "id")
        if self._counts.is_full:
            self._make_room()
        session = self.build(tenant, id, metadata=metadata, ttl=ttl, sink=sink)
        if limits is not None:
            session.budget = Budget(f"session {session.id!r}", limits, self.price_of)
        self.add(session)
        sink.open_session(session)
        return session

    def add(self, session: Session) -> None:
        """Add a session that was restored from the journal or handed over by another process."""
        key = (session.tenant, session.id)
        session.price_of = self.price_of
        self._expired.pop(key, None)
        self._sessions[key] = session
        self._counts.add(session.tenant)
        session.resources.join(self._shared)
        if session.budget is not None:
            self._connect_budget(session, session.budget)
            if session.budget.limits.seconds is not None:
                self._timed[session] = None
        if self.call_gate is not None and session.call_gate is None:
            session.call_gate = self.call_gate
            for call in session.calls.values():
                if not call.state.is_final:
                    self.call_gate.reserve(call)

    def _connect_budget(self, session: Session, budget: Budget) -> None:
        """Count what the session's calls have used, and end them once the budget is exhausted."""
        budget.price_of = self.price_of
        budget.on_exhausted = lambda: self.fail_calls(session, budget.failure())
        for call in session.calls.values():
            budget.charge(call)

    def _make_room(self) -> None:
        """End the session that was idle longest, of the tenant with the most sessions. Do nothing if none is idle."""
        tenant = self._counts.largest_holder
        idle = [session for session in self.of_tenant(tenant) if not session.is_in_use] if tenant is not None else []
        if idle:
            oldest = min(idle, key=lambda session: session.last_used)
            self.delete(oldest, expired=True)
            self._evicted.append(oldest)

    def fail(self, session: Session, error: GraphError) -> None:
        """End a session that the log cannot store, because of `error`."""
        session.event_log.error = error
        self.delete(session)

    def build(
        self,
        tenant: str,
        id: str = "",
        *,
        metadata: dict[str, str] | None = None,
        ttl: float | None = None,
        sink: FactSink | None = None,
    ) -> Session:
        """Return a session outside the store, for a request without a session."""
        session = Session(
            id=id,
            tenant=tenant,
            created=time.time(),
            ttl=self.ttl if ttl is None else ttl,
            metadata=metadata or {},
            limits=self.limits,
            sink=self.sink if sink is None else sink,
        )
        session.call_gate = self.call_gate
        return session

    def holds(self, tenant: str, id: str) -> bool:
        """Return whether the tenant has such a session in this process."""
        return (tenant, id) in self._sessions

    def get(self, tenant: str, id: str) -> Session:
        """Return the tenant's session and restart its time to live. Raises SessionNotFound or SessionExpired."""
        session = self._sessions.get((tenant, id))
        if session is None:
            if (tenant, id) in self._expired:
                raise SessionExpired(f"session {id!r} has expired")
            raise SessionNotFound(f"there is no session {id!r}")
        session.last_used = time.monotonic()
        return session

    def get_or_create(self, tenant: str, id: str) -> Session:
        """Return the tenant's session; create it if there is none. For ids that clients choose."""
        return self.get(tenant, id) if (tenant, id) in self._sessions else self.create(tenant, id)

    def of_tenant(self, tenant: str) -> Iterator[Session]:
        """Iterate over the tenant's sessions, oldest first."""
        return (session for (owner, _), session in self._sessions.items() if owner == tenant)

    def delete_all_of(self, tenant: str) -> list[Session]:
        """End all sessions of a tenant, and return them."""
        sessions = list(self.of_tenant(tenant))
        for session in sessions:
            self.delete(session)
        return sessions

    def all(self) -> list[Session]:
        """Return every session, oldest first."""
        return list(self._sessions.values())

    def delete(self, session: Session, *, expired: bool = False) -> None:
        """End a session. Its calls are cancelled and its id becomes free."""
        if self._sessions.pop((session.tenant, session.id), None) is None:
            return
        self._counts.remove(session.tenant)
        session.close(self.cancel, expired=expired)
        self._leaving.append(session)
        if expired:
            self.remember(session.tenant, session.id)

    def remember(self, tenant: str, id: str) -> None:
        """Remember that the session has expired, so that requests for it get SessionExpired."""
        self._expired[tenant, id] = None
        if len(self._expired) > _REMEMBERED:
            self._expired.pop(next(iter(self._expired)))

    def expire(self, now: float) -> list[Session]:
        """End sessions that were idle for their time to live. `now` is of the monotonic clock.

        Return them, and the sessions that were ended to make room since this method ran last.

        A session whose calls all wait for variables that no client sets is idle, even if requests wait for it.
        """
        late = [session for session in self._sessions.values() if now - session.last_used > session.ttl]
        old = [session for session in late if not session.is_in_use or session.is_blocked]
        for session in old:
            self.delete(session, expired=True)
        evicted, self._evicted = self._evicted, []
        return evicted + old

    def end_late(self, now: float) -> None:
        """End the calls of sessions whose time is over. `now` is of the sessions' clock. Run it about once a second."""
        for session in list(self._timed):
            budget = session.budget
            if session.is_closed or budget is None or budget.limits.seconds is None:
                del self._timed[session]
            elif now - session.created >= budget.limits.seconds:
                del self._timed[session]
                budget.end_time()

    def dissolve_ended(self) -> None:
        """Dissolve ended sessions that no client reads; see `Session.dissolve`. Run it about once a second.

        Sessions that ended since it ran last are left for the next time. Without this method, ended sessions fill the
        memory until the cycle collector finds them.
        """
        self._left, self._leaving = [s for s in self._left if not s.dissolve()] + self._leaving, []


class SessionExists(GraphError):
    """The id of a new session is taken."""

    code = "session_exists"
