"""Tests of gateway/graph/resources.py: limits of one session, and limits that all sessions share."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.graph.call_size import VARIABLE_BYTES
from gateway.graph.errors import GraphError, TooLarge, TooManyWaiters
from gateway.graph.limits import SessionLimits, SharedLimit, SharedLimits
from gateway.graph.resources import SessionResources
from gateway.graph.session import Session
from tests.gateway.graph.test_session import put, session, spec


@pytest.mark.parametrize(
    ("limits", "make"),
    [
        ({"calls": 2}, lambda graph: graph.add(spec())),
        ({"variables": 2}, lambda graph: put(graph, f"v{len(graph.variables)}", "x")),
    ],
)
def test_a_limit_admits_its_value_and_rejects_one_more(limits: dict[str, int], make: Any) -> None:
    graph = session(**limits)
    make(graph)
    make(graph)
    with pytest.raises(TooLarge, match="the maximum is"):
        make(graph)


def test_values_are_counted_in_bytes() -> None:
    graph = session(value_bytes=4)
    put(graph, "a", "éé")
    with pytest.raises(TooLarge, match="5 bytes"):
        put(graph, "b", "ééx")


@pytest.mark.parametrize(
    ("limits", "make"),
    [
        ({"depth": 3}, lambda graph, index: graph.add(spec(*([f"v{index - 1}"] if index else []), output=f"v{index}"))),
        ({"bytes": 3 * (100 + VARIABLE_BYTES)}, lambda graph, index: put(graph, f"v{index}", "ä" * 50)),
        ({"value_bytes": 3}, lambda graph, index: put(graph, f"v{index}", "x" * (index + 1))),
        ({"waiters": 3}, lambda graph, index: graph.add_waiter()),
    ],
)
def test_a_limit_of_three_rejects_the_fourth(limits: dict[str, int], make: Any) -> None:
    graph = session(**limits)
    for index in range(3):
        make(graph, index)
    calls, variables = len(graph.calls), len(graph.variables)
    with pytest.raises(GraphError) as refusal:
        make(graph, 3)
    assert refusal.value.code == ("overloaded" if "waiters" in limits else "too_large")
    assert (len(graph.calls), len(graph.variables)) == (calls, variables), "nothing was changed"


def test_values_of_all_kinds_count_and_are_limited() -> None:
    graph = session(value_bytes=100, bytes=10_000)
    put(graph, "a", "x" * 100)
    call = graph.add(spec(output="b"))
    for size in (101, 1000):
        with pytest.raises(TooLarge):
            graph.record_value(call.output, "y" * size)
        with pytest.raises(TooLarge):
            graph.record_slot_text(call, "slot", "y" * size)
    before = graph.resources.bytes
    graph.record_value(call.output, "é" * 50)
    assert graph.resources.bytes == before + 100
    with pytest.raises(TooLarge, match="the maximum is"):
        graph.add_variable("t", template=["z" * 2000])
    assert graph.resources.bytes < 10_000


def test_shared_limits_of_bytes_and_waiters() -> None:
    shared = SharedLimits(SharedLimit(4_000), SharedLimit(4))
    mine, yours = session(), Session(id="y", tenant="you", created=0.0, ttl=60.0)
    for graph in (mine, yours):
        graph.resources.join(shared)
    put(mine, "a", "x" * 2_000)
    with pytest.raises(TooLarge, match="the sessions of this key hold 2500 bytes"):
        mine.add_variable("b", "x" * 100)
    put(yours, "a", "x" * 1_500)
    for _ in range(3):
        mine.add_waiter()
    with pytest.raises(TooManyWaiters):
        mine.add_waiter()
    yours.add_waiter()
    mine.remove_waiter()
    mine.close(lambda call, failure: None)
    assert (shared.bytes.amount("t"), shared.bytes.amount("you")) == (0, 2_000)
    assert (shared.waiters.amount("t"), shared.waiters.amount("you")) == (2, 1)


def test_the_number_of_inputs_of_all_calls_is_limited() -> None:
    graph = session(edges=3)
    put(graph, "a", "x")
    put(graph, "b", "x")
    graph.add(spec("a", "b"))
    with pytest.raises(TooLarge, match="read 4 inputs; the maximum is 3"):
        graph.add(spec("a", "b"))
    graph.add(spec("a"))


def held(resources: SessionResources, shared: SharedLimits) -> tuple[int, ...]:
    return resources.bytes, resources.waiters, shared.bytes.amount("t"), shared.waiters.amount("t")


@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("bytes"), st.integers(0, 40)),
            st.tuples(st.sampled_from(["free", "wait", "end wait", "join", "leave"]), st.just(0)),
        ),
        max_size=40,
    )
)
def test_counters_never_exceed_the_limits_and_return_to_zero(steps: list[tuple[str, int]]) -> None:
    resources = SessionResources("s", "t", SessionLimits(bytes=100, waiters=3))
    shared = SharedLimits(SharedLimit(80, several=False), SharedLimit(2, several=False))
    sizes: list[int] = []
    waits = 0
    joined = left = False
    for step, size in steps:
        before = held(resources, shared)
        try:
            match step:
                case "bytes":
                    resources.check_bytes(size)
                    resources.add_bytes(size)
                    sizes.append(size)
                case "free" if sizes:
                    resources.add_bytes(-sizes.pop())
                case "wait":
                    resources.add_waiter()
                    waits += 1
                case "end wait" if waits and joined:  # requests find a session only once it has joined
                    resources.remove_waiter()
                    waits -= 1
                case "join" if not joined and not waits and resources.bytes <= 80:
                    resources.join(shared)
                    joined = True
                case "leave" if joined and not left:
                    resources.leave()
                    left = True
        except GraphError:
            assert held(resources, shared) == before, "a check that raises an error counts nothing"
        assert (resources.bytes, resources.waiters) == (sum(sizes), waits)
        assert resources.bytes <= 100
        assert resources.waiters <= 3
        assert shared.bytes.amount("t") == (sum(sizes) if joined and not left else 0)
        assert shared.bytes.amount("t") <= 80
        assert shared.waiters.amount("t") == (waits if joined else 0)
        assert shared.waiters.amount("t") <= 2
    while sizes:
        resources.add_bytes(-sizes.pop())
    for _ in range(waits):
        if joined:
            resources.remove_waiter()
    if joined:
        assert held(resources, shared) == (0, 0, 0, 0)


@pytest.mark.parametrize(
    ("limits", "grown", "message"),
    [
        ({"calls": 2}, {"calls": 3}, "session s has 0 calls; the maximum is 2"),
        ({"variables": 2}, {"variables": 3}, "session s has had 0 variables; the maximum is 2"),
        ({"edges": 2}, {"edges": 3}, "the calls of session s read 3 inputs; the maximum is 2"),
        ({"bytes": 2}, {"size": 3}, "session s holds 0 bytes; the maximum is 2"),
    ],
)
def test_each_limit_has_a_message_of_its_own(limits: dict[str, int], grown: dict[str, int], message: str) -> None:
    resources = SessionResources("s", "t", SessionLimits(**limits))
    resources.check(**{name: number - 1 for name, number in grown.items()})
    with pytest.raises(TooLarge, match=message):
        resources.check(**grown)


def test_a_value_that_is_too_large_by_itself_names_its_field() -> None:
    resources = SessionResources("s", "t", SessionLimits(value_bytes=3))
    resources.check_value("a", 3)
    with pytest.raises(TooLarge, match="the value of 'a' has 4 bytes; the maximum is 3") as refusal:
        resources.check_value("a", 4, "value")
    assert refusal.value.where == "value"


def test_a_session_counts_what_it_held_before_it_joined() -> None:
    shared = SharedLimits(SharedLimit(100), SharedLimit(4))
    resources = SessionResources("s", "t", SessionLimits())
    resources.add_bytes(30)
    resources.join(shared)
    resources.add_bytes(5)
    assert shared.bytes.amount("t") == 35
    resources.add_waiter()
    for _ in range(2):
        resources.leave()
    resources.add_bytes(1)
    assert (shared.bytes.amount("t"), shared.waiters.amount("t")) == (0, 1), "its waiters stay until they leave"
    resources.remove_waiter()
    assert shared.waiters.amount("t") == 0
