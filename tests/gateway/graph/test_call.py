"""gateway/graph/call.py: what a call needs, what it waits for, and how it ends."""

from typing import Any

import pytest

from engine.sampling_params import SamplingParams
from gateway.graph.call import CallSpec, CallState, Input, Slot
from gateway.graph.errors import Failure
from gateway.graph.references import Reference
from gateway.graph.segments import Text
from gateway.graph.variable import VariableState
from tests.gateway.graph.test_session import session, spec


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({}, {}),
        ({"temperature": 1.0}, {}),
        ({"temperature": 1.0, "given": ("temperature",)}, {"temperature": 1.0}),
        ({"temperature": 0.5, "stop": ("a",)}, {"temperature": 0.5, "stop": ("a",)}),
    ],
)
def test_defaults_are_sent_only_if_the_client_specified_them(fields: dict[str, Any], told: dict[str, Any]) -> None:
    parameters = dict(SamplingParams(**fields).specified)
    assert {name: value for name, value in parameters.items() if name != "given"} == told


@pytest.mark.parametrize(
    ("fields", "deterministic"),
    [({}, False), ({"temperature": 0.0}, True), ({"top_p": 0.0}, True), ({"seed": 0}, True), ({"top_k": 1}, False)],
)
def test_which_sampling_repeats_its_text(fields: dict[str, Any], deterministic: bool) -> None:
    sampling = SamplingParams(**fields)
    assert sampling.is_deterministic is deterministic
    assert CallSpec(model="m", segments=[Slot(None, sampling)]).is_deterministic is deterministic


def test_top_p_zero_is_greedy_for_engines_without_it() -> None:
    plain = SamplingParams(top_p=0.0, temperature=1.5).with_positive_top_p
    assert (plain.top_p, plain.temperature) == (1.0, 0.0)
    unchanged = SamplingParams(top_p=0.5)
    assert unchanged.with_positive_top_p is unchanged


def test_slots_and_references_are_those_of_segments_and_parts() -> None:
    read, joined = Input(Reference("a"), "x"), Input(Reference("b"), "y")
    whole = CallSpec(model="m", segments=[Text([1]), read, Slot("s", SamplingParams())], parts=["and ", joined])
    assert [slot.name for slot in whole.slots] == ["s"]
    assert whole.references == [read, joined]
    assert (whole.field_path("model"), CallSpec(model="m", where="calls.3").field_path("model")) == (
        "model",
        "calls.3.model",
    )


def test_the_weight_of_a_text_replaces_its_length() -> None:
    assert (Text([1, 2]).length, Text([1, 2], 700).length) == (2, 700)


def test_a_call_is_needed_by_clients_calls_and_a_promise() -> None:
    graph = session()
    call = graph.add(spec(output="a"))
    assert not call.is_needed
    reader = graph.add(spec("a", output="b"))
    assert call.is_needed
    reader.set_state(CallState.DONE)
    reader.conclude()
    assert not call.is_needed
    assert graph.add(spec(output="c", deferred=True)).is_needed


@pytest.mark.parametrize(
    ("state", "failure", "expected"),
    [
        (CallState.FAILED, Failure("engine_failed", "it broke"), VariableState.FAILED),
        (CallState.CANCELLED, Failure("cancelled", "no reader"), VariableState.CANCELLED),
        (CallState.CANCELLED, None, VariableState.CANCELLED),
    ],
)
def test_outputs_end_as_their_call_ends(state: CallState, failure: Failure | None, expected: VariableState) -> None:
    call = session().add(spec(output="a"))
    call.failure = failure
    call.set_state(state)
    call.conclude()
    assert [variable.state for variable in call.outputs] == [expected]
    assert call.waiting_on == []


def test_a_follower_keeps_its_leader_needed_until_it_runs_itself() -> None:
    graph = session()
    leader, follower = graph.add(spec(output="a")), graph.add(spec(output="b"))
    follower.follow(leader)
    assert (leader.is_needed, leader.followers) == (True, [follower])
    follower.stop_following()
    assert (leader.is_needed, leader.followers, follower.leader) == (False, [], None)
    follower.stop_following()


def test_a_call_is_stuck_if_no_value_can_come() -> None:
    graph = session()
    graph.set_values(graph.add_variable("declared"))
    call = graph.add(spec("declared", output="a"))
    assert not call.is_stuck, "it waits for nothing"
    call.awaits = call.inputs["declared"]
    assert not call.is_stuck, "a client may set the value"
    graph.remove_name(call.inputs["declared"])  # as while a session is restored
    assert call.is_stuck
    first, second = graph.add(spec(output="x")), graph.add(spec("x", output="y"))
    second.awaits, first.awaits = first.output, second.output
    assert first.is_stuck
    assert second.is_stuck, "they wait for each other"


async def test_a_coroutine_says_what_it_waits_for() -> None:
    graph = session()
    graph.set_values(graph.add_variable("declared"))
    call = graph.add(spec("declared", output="a"))
    waiting = call.until_final(call.inputs["declared"])
    waiting.send(None)
    assert call.awaits is call.inputs["declared"]
    waiting.close()
    assert call.awaits is None


def test_the_scope_of_the_cache_is_the_tenant_and_the_salt() -> None:
    graph = session()
    assert graph.add(spec(output="a")).scope == "t"
    assert graph.add(spec(output="b", salt="x")).scope == "t\0x"


@pytest.mark.parametrize(
    ("state", "cause"),
    [
        (CallState.WAITING, "inputs"),
        (CallState.QUEUED, "queue"),
        (CallState.PREFILL, "prompt"),
        (CallState.DECODE, "answer"),
        (CallState.DONE, None),
        (CallState.FAILED, None),
        (CallState.CANCELLED, None),
    ],
)
def test_the_cause_of_a_wait_follows_from_the_state(state: CallState, cause: str | None) -> None:
    call = session().add(spec())
    call.set_state(state)
    assert call.waits_for == cause


def test_a_call_that_waits_for_a_client_waits_for_a_tool() -> None:
    graph = session()
    graph.add_variable("result")
    first = graph.add(spec("result", output="a"))
    second = graph.add(spec("a"))
    first.awaits, second.awaits = graph.variable("result"), graph.variable("a")
    assert (first.waits_for, second.waits_for) == ("tool", "inputs")
