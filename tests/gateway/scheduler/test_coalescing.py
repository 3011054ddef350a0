"""Tests of gateway/scheduler/coalescing.py: identical calls run once."""

import asyncio
import dataclasses
from typing import Any

import pytest

from gateway.graph.call import Call, CallSpec, CallState, Usage
from gateway.graph.errors import Failure
from gateway.graph.segments import Text
from gateway.graph.session import Session
from gateway.graph.variable import Piece
from gateway.scheduler.coalescing import copy_outputs, find_leader
from gateway.scheduler.input_reader import CallFailed
from tests.gateway.graph.test_session import session
from tests.gateway.scheduler.scheduler_harness import GREEDY, SchedulerHarness, settle, slot, submit


async def test_identical_calls_run_once_and_live_while_one_has_a_subscriber() -> None:
    harness = SchedulerHarness()
    harness.engine.hold()
    greedy = CallSpec(model="m", segments=[Text([1] * 33), GREEDY])
    first, second = submit(harness, greedy), submit(harness, greedy)
    interactive = submit(harness, dataclasses.replace(greedy, share=False, deferred=True))
    other = submit(harness, dataclasses.replace(greedy, segments=[Text([2] * 33), GREEDY], deferred=True))
    for call in (first, second):
        harness.scheduler.subscribe(call.output)
    await settle()
    assert second.leader is first
    harness.scheduler.unsubscribe(first.output)
    assert not first.state.is_final, "it serves the second call"
    harness.engine.released.set()
    await harness.scheduler.wait_idle()
    late = submit(harness, dataclasses.replace(greedy, deferred=True))
    await harness.scheduler.wait_idle()
    assert [call.output.value for call in (first, second, interactive, other, late)] == ["33"] * 5
    assert sum(context.generates for context in harness.engine.opened) == 3
    assert harness.session.usage()["calls_shared"] == 2
    assert harness.session.usage()["calls_run"] == 3


async def test_a_shared_call_is_cancelled_with_its_last_subscriber() -> None:
    harness = SchedulerHarness()
    harness.engine.hold()
    greedy = CallSpec(model="m", segments=[Text([1] * 33), GREEDY])
    first, second = submit(harness, greedy), submit(harness, greedy)
    for call in (first, second):
        harness.scheduler.subscribe(call.output)
    await settle()
    harness.scheduler.unsubscribe(first.output)
    harness.scheduler.unsubscribe(second.output)
    await harness.scheduler.wait_idle()
    assert first.state is second.state is CallState.CANCELLED
    assert harness.engine.load == 0


def greedy(graph: Session, output: str | None = None, **more: Any) -> Call:
    return graph.add(CallSpec(model="m", segments=[Text([1]), GREEDY], output=output, **more))


def test_the_first_call_of_an_identity_leads_the_others() -> None:
    graph = session()
    first, second, third = greedy(graph), greedy(graph), greedy(graph)
    assert find_leader(first, b"x") is None
    assert first.identity == b"x"
    assert find_leader(first, b"x") is None, "another attempt does not follow itself"
    assert find_leader(second, b"x") is first
    assert find_leader(third, b"y") is None
    first.set_state(CallState.DONE)
    assert find_leader(greedy(graph), b"x") is first, "its outputs stay"


@pytest.mark.parametrize("state", [CallState.FAILED, CallState.CANCELLED])
def test_a_call_that_ended_without_outputs_leads_no_more(state: CallState) -> None:
    graph = session()
    first, second = greedy(graph), greedy(graph)
    find_leader(first, b"x")
    first.set_state(state)
    assert find_leader(second, b"x") is None
    assert find_leader(greedy(graph), b"x") is second


def test_some_calls_run_for_themselves() -> None:
    graph = session()
    first, own = greedy(graph), greedy(graph, share=False)
    assert find_leader(first, None) is None
    assert graph.reusable_calls == {}
    find_leader(first, b"x")
    assert find_leader(own, b"x") is None
    assert find_leader(greedy(graph), b"x") is first, "the call that asked for a run of its own leads no other"
    anonymous = Session("", "t", 0.0, 60.0)
    assert find_leader(greedy(anonymous), b"x") is None
    assert anonymous.reusable_calls == {}


async def test_outputs_are_copied_as_they_grow() -> None:
    graph = session()
    leader, follower = greedy(graph, "a"), greedy(graph, "b")
    leader.engine, leader.model = "one", "m"
    leader.usage, leader.finish_reason = Usage(30, 10, 2, reasoning=1), "stop"
    leader.stop_string = "."
    copying = asyncio.create_task(copy_outputs(follower, leader))
    await settle()
    assert (follower.state, follower.output.text) == (CallState.WAITING, "")
    leader.output.append(Piece("on", 1))
    await settle()
    assert (follower.state, follower.output.text) == (CallState.DECODE, "on")
    leader.output.append(Piece("ce", 1, reasoning="hm"))
    leader.output.complete()
    async with asyncio.timeout(5):
        await copying
    assert follower.output.pieces == [Piece("on", 1), Piece("ce", 1, reasoning="hm")]
    assert not follower.output.state.is_final, "the executor stores the value first"
    assert follower.usage == Usage(30, 30, 2, reasoning=1), "the whole prompt was served from the leader's run"
    assert (follower.engine, follower.model, follower.finish_reason) == ("one", "m", "stop")
    assert follower.stop_string == "."


async def test_slots_are_complete_as_soon_as_the_leaders_are() -> None:
    graph = session()
    leader, follower = (
        graph.add(CallSpec(model="m", segments=[Text([1]), slot(f"{name}s"), GREEDY], output=name)) for name in "ab"
    )
    copying = asyncio.create_task(copy_outputs(follower, leader))
    leader.slots["as"].append(Piece("done", 1))
    leader.slots["as"].complete()
    await settle()
    assert follower.slots["bs"].value == "done"
    assert not copying.done()
    copying.cancel()


@pytest.mark.parametrize(
    ("end", "code"),
    [
        (lambda variable: variable.fail(Failure("engine_failed", "lost", "call_1")), "engine_failed"),
        (lambda variable: variable.cancel(Failure("cancelled", "not needed", "call_1")), "cancelled"),
    ],
)
async def test_a_follower_fails_for_the_reason_of_its_leader(end: Any, code: str) -> None:
    graph = session()
    leader, follower = greedy(graph, "a"), greedy(graph, "b")
    copying = asyncio.create_task(copy_outputs(follower, leader))
    leader.output.append(Piece("x", 1))
    await settle()
    end(leader.output)
    with pytest.raises(CallFailed) as raised:
        await copying
    assert (raised.value.failure.code, raised.value.failure.call) == (code, "call_1")


async def test_a_follower_whose_leader_starts_again_starts_again_itself() -> None:
    harness = SchedulerHarness()
    harness.engine.hold()
    shared = CallSpec(model="m", segments=[Text([1] * 12), GREEDY])
    first, second = submit(harness, shared), submit(harness, shared)
    for call in (first, second):
        harness.scheduler.subscribe(call.output)
    await settle()
    assert second.leader is first
    harness.engine.deaths = 1  # after the first token, which the follower has copied by then
    harness.engine.released.set()
    async with asyncio.timeout(5):
        await harness.scheduler.wait_idle()
    assert [call.output.value for call in (first, second)] == ["12", "12"]
    assert [call.state for call in (first, second)] == [CallState.DONE] * 2
    assert harness.engine.load == 0
