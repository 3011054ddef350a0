"""gateway/graph/session_store.py"""

from collections.abc import Sequence

import pytest

from gateway.graph.call import Call, CallSpec, CallState
from gateway.graph.errors import GraphError, TooLarge
from gateway.graph.limits import SessionLimits
from gateway.graph.session_store import SessionExists, SessionExpired, SessionNotFound, SessionStore
from gateway.graph.variable import VariableState
from tests.gateway.graph.test_session import spec


def store(**options: float) -> SessionStore:
    return SessionStore(
        cancel=lambda call, failure: call.set_state(CallState.CANCELLED),
        limits=SessionLimits(),
        ttl=options.get("ttl", 60.0),
        max_sessions=int(options.get("max_sessions", 3)),
        max_sessions_per_tenant=int(options.get("per_tenant", 100)),
        several_tenants=bool(options.get("several", False)),
    )


def test_a_session_is_visible_to_its_tenant_only() -> None:
    sessions = store()
    mine = sessions.create("me", "run")
    assert sessions.get("me", "run") is mine
    with pytest.raises(SessionNotFound):
        sessions.get("you", "run")
    assert sessions.get_or_create("you", "run") is not mine
    assert [list(sessions.of_tenant(tenant)) for tenant in ("me", "nobody")] == [[mine], []]


class Gate:
    """A gate that records, and refuses if it is closed."""

    def __init__(self) -> None:
        self.is_closed = False
        self.reserved: list[str] = []

    def check(self, tenant: str, specs: Sequence[CallSpec]) -> None:
        if self.is_closed:
            raise TooLarge(f"{tenant} has no room for {len(specs)} calls")

    def reserve(self, call: Call) -> None:
        self.reserved.append(call.id)


def test_calls_of_all_sessions_pass_the_gate() -> None:
    sessions, gate = store(), Gate()
    sessions.call_gate = gate
    session = sessions.create("me", "run")
    plain = sessions.build("me")
    ids = [each.add(spec()).id for each in (session, plain)]
    assert gate.reserved == ids
    gate.is_closed = True
    for each in (session, plain):
        with pytest.raises(TooLarge, match="me has no room for 1 calls"):
            each.add(spec())
        assert len(each.calls) == 1


def test_unfinished_calls_of_a_restored_session_reserve() -> None:
    sessions, gate = store(), Gate()
    restored = sessions.build("me", "run")
    unfinished, ended = restored.add(spec()), restored.add(spec())
    ended.set_state(CallState.DONE)
    sessions.call_gate = gate
    sessions.add(restored)
    assert gate.reserved == [unfinished.id]


def test_all_sessions_of_a_tenant_can_be_deleted() -> None:
    sessions = store()
    mine = [sessions.create("me", name) for name in "ab"]
    other = sessions.create("you", "a")
    assert sessions.delete_all_of("me") == mine
    assert all(session.is_closed for session in mine)
    assert sessions.all() == [other]


def test_an_id_in_use_is_rejected() -> None:
    sessions = store()
    sessions.create("me", "run")
    with pytest.raises(SessionExists):
        sessions.create("me", "run")
    assert sessions.create("me").id != sessions.create("me").id


def test_the_number_of_sessions_is_limited() -> None:
    sessions = store(max_sessions=1)
    sessions.create("me")
    with pytest.raises(TooLarge):
        sessions.create("me")


def test_idle_sessions_expire_and_busy_ones_do_not() -> None:
    sessions = store(ttl=10.0)
    idle, busy = sessions.create("me", "idle"), sessions.create("me", "busy")
    call = busy.add(spec())
    assert sessions.expire(idle.last_used + 9.0) == []
    assert sessions.expire(idle.last_used + 11.0) == [idle]
    with pytest.raises(SessionExpired):
        sessions.get("me", "idle")
    assert sessions.get("me", "busy") is busy
    assert sessions.create("me", "idle") is not idle, "the name is free again"
    call.set_state(CallState.DONE)
    assert len(sessions.expire(busy.last_used + 11.0)) == 2


def test_a_session_with_a_waiting_request_does_not_expire() -> None:
    sessions = store(ttl=10.0)
    session = sessions.create("me", "run")
    session.add_waiter()
    assert sessions.expire(session.last_used + 11.0) == []
    session.remove_waiter()
    assert sessions.expire(session.last_used + 11.0) == [session]


def test_deleting_a_session_cancels_its_calls() -> None:
    sessions = store()
    session = sessions.create("me", "run")
    call = session.add(spec())
    sessions.delete(session)
    assert call.state is CallState.CANCELLED
    with pytest.raises(SessionNotFound):
        sessions.get("me", "run")


def test_an_ended_session_is_dissolved_once_it_has_no_subscribers() -> None:
    sessions = store()
    session = sessions.create("me", "run")
    call = session.add(spec())
    call.output.subscribers += 1
    sessions.delete(session)
    for _ in range(3):
        sessions.dissolve_ended()
        assert session.calls, "a subscriber still has to get the result"
    call.output.subscribers -= 1
    sessions.dissolve_ended()
    assert not session.calls
    other = sessions.create("me", "other")
    other.add(spec())
    sessions.delete(other)
    sessions.dissolve_ended()
    assert other.calls, "a request that has just found the session can still read it"
    sessions.dissolve_ended()
    assert not other.calls
    assert call.output.producer is None


def test_the_number_of_sessions_of_a_tenant_is_limited() -> None:
    sessions = store(max_sessions=10, per_tenant=2)
    first = sessions.create("me")
    sessions.create("me")
    with pytest.raises(TooLarge, match="this key has 2 sessions"):
        sessions.create("me")
    sessions.create("you")
    sessions.delete(first)
    sessions.create("me")


def test_a_blocked_session_expires_even_if_a_request_waits_for_it() -> None:
    sessions = store(ttl=10.0)
    blocked = sessions.create("me", "blocked")
    blocked.add_variable("declared")
    call = blocked.add(spec("declared"))
    blocked.add_waiter()
    assert sessions.expire(blocked.last_used + 9.0) == []
    assert sessions.expire(blocked.last_used + 11.0) == [blocked]
    assert call.state is CallState.CANCELLED
    assert blocked.variable("declared").state is VariableState.CANCELLED


def test_the_longest_idle_session_of_the_largest_tenant_makes_room() -> None:
    sessions = store(max_sessions=8, several=True)
    for number in range(6):
        sessions.create("greedy", f"s{number}")
    with pytest.raises(TooLarge, match="this key has 6 sessions"):
        sessions.create("greedy")
    sessions.get("greedy", "s0").add(spec())
    sessions.get("greedy", "s1").last_used += 5
    for number in range(3):
        sessions.create("modest", f"m{number}")
    with pytest.raises(SessionExpired):
        sessions.get("greedy", "s2")
    assert {session.id for session in sessions.of_tenant("greedy")} == {"s0", "s1", "s3", "s4", "s5"}
    assert [session.id for session in sessions.expire(0.0)] == ["s2"], "the caller deletes what belongs to the session"
    assert sessions.expire(0.0) == []


def test_a_session_that_cannot_be_stored_ends_with_the_reason() -> None:
    sessions = store()
    session = sessions.create("me", "s")
    session.add_variable("declared")
    sessions.fail(session, GraphError("the disk refused"))
    failure = session.variable("declared").failure
    assert failure is not None
    assert failure.message == "the disk refused"
    with pytest.raises(GraphError, match="the disk refused"):
        session.add_variable("more", "x")
    with pytest.raises(SessionNotFound):
        sessions.get("me", "s")
