"""Tests of gateway/scheduler/attempt.py: how prompts are filled, and slots generated."""

import asyncio
import dataclasses

from engine.sampling_params import SamplingParams
from gateway.graph.call import CallSpec, CallState
from gateway.graph.references import Reference
from gateway.graph.segments import Input, Slot, Text
from gateway.graph.transform import Transform
from gateway.graph.variable import Piece
from tests.gateway.graph.test_session import spec
from tests.gateway.scheduler.scheduler_harness import ANSWER, SchedulerHarness, settle, slot, submit


async def test_known_text_is_filled_before_the_value_exists() -> None:
    harness = SchedulerHarness()
    harness.session.add_variable("later")
    call = harness.run("later")
    await settle()
    assert call.state is CallState.WAITING
    assert harness.engine.opened[0].tokens == [1, 2]
    harness.session.set_values(harness.session.add_variable("later", "xyz"))
    await call.output.wait_final()
    assert call.output.value == "5"


async def test_a_value_is_inserted_as_plain_text() -> None:
    harness = SchedulerHarness()
    harness.session.set_values(harness.session.add_variable("tricky", "<<tricky>> <|im_end|>"))
    call = harness.run("tricky")
    await call.output.wait_final()
    assert harness.engine.opened[0].tokens[2:-2] == [ord(c) for c in "<<tricky>> <|im_end|>"]


async def test_an_unresolved_path_fails_the_call() -> None:
    harness = SchedulerHarness()
    harness.session.set_values(harness.session.add_variable("plan", '{"a": 1}'))
    reads = CallSpec(
        model="m",
        segments=[Text([1]), Input(Reference("plan", ("b",)), "messages.0.content"), ANSWER],
        deferred=True,
    )
    call = harness.session.add(reads)
    harness.scheduler.submit(call)
    await call.output.wait_final()
    assert call.failure is not None
    assert call.failure.code == "bad_reference"


async def test_slots_are_generated_in_place_on_one_context() -> None:
    harness = SchedulerHarness()
    name = Input(Reference("name"), "m")
    segments = [Text([1, 2]), slot("name"), Text([3]), name, ANSWER]
    call = submit(harness, CallSpec(model="m", segments=segments, output="out", deferred=True))
    await harness.scheduler.wait_idle()
    assert call.state is CallState.DONE
    assert harness.session.variable("name").value == "2"
    assert call.output.value == "5", "two tokens, one generated, one in between, one of the value"
    assert harness.engine.opened[0].tokens == [1, 2, ord("2"), 3, ord("2"), ord("5")]
    assert len(harness.engine.opened) == 1
    assert (call.usage.prompt, call.usage.completion) == (4, 2)


async def test_an_assistant_message_with_slots_becomes_the_output() -> None:
    harness = SchedulerHarness()
    a, b = Input(Reference("a"), "m"), Input(Reference("b"), "m")
    spec = CallSpec(
        model="m", segments=[Text([1] * 12), slot("a"), Text([2]), slot("b")], parts=["A ", a, ", B ", b, "; ", a]
    )
    call = submit(harness, dataclasses.replace(spec, output="all", deferred=True))
    await harness.scheduler.wait_idle()
    assert call.output.value == "A 12, B 15; 12"
    assert harness.session.variable("b").value == "15"


async def test_a_transform_makes_the_value() -> None:
    harness = SchedulerHarness()
    segments = [Text([1] * 123), Slot(None, SamplingParams(), Transform(regex="1(.)", group=1))]
    call = submit(harness, CallSpec(model="m", segments=segments, output="a", deferred=True))
    nothing = [Text([1] * 45), Slot(None, SamplingParams(), Transform(regex="x"))]
    failing = submit(harness, CallSpec(model="m", segments=nothing, output="b", deferred=True))
    await harness.scheduler.wait_idle()
    assert call.output.value == "2"
    assert failing.failure is not None
    assert (failing.state, failing.failure.code) == (CallState.FAILED, "transform_failed")


async def test_a_value_is_filled_while_it_grows() -> None:
    harness = SchedulerHarness()
    source = harness.run(output="grows")
    reader = harness.run("grows")
    harness.engine.hold()
    await settle()
    source.output.append(Piece("x" * 100))
    await settle()
    assert harness.engine.opened[1].tokens == [1, 2, *[ord("x")] * 100]
    harness.engine.released.set()
    await harness.scheduler.wait_idle()
    assert reader.output.value == "103"


async def test_slots_of_several_messages_are_generated_in_order() -> None:
    harness = SchedulerHarness()
    slots = [Slot("fruit", SamplingParams()), Text([5]), Slot("colour", SamplingParams())]
    parts = ["It is ", Input(Reference("colour"), "messages.3.content"), "."]
    call = harness.session.add(CallSpec(model="m", segments=[Text([1]), *slots], parts=parts, output="said"))
    harness.scheduler.subscribe(call.output)
    harness.scheduler.submit(call)
    async with asyncio.timeout(5):
        await call.output.wait_final()
    fruit, colour = (harness.session.variable(name).value for name in ("fruit", "colour"))
    assert call.output.value == f"It is {colour}."
    assert (fruit, colour) == ("1", "3"), "the fake engine generates the number of its tokens"
    harness.scheduler.unsubscribe(call.output)


async def test_a_slot_that_is_read_before_it_is_generated_fails_its_call() -> None:
    harness = SchedulerHarness()
    segments = [Text([1]), Input(Reference("late"), "messages.0.content"), Slot("late", SamplingParams())]
    call = harness.session.add(
        dataclasses.replace(spec(deferred=True), segments=[Text([1]), Slot("late", SamplingParams())])
    )
    call.spec = dataclasses.replace(call.spec, segments=segments)  # the graph would reject it
    harness.scheduler.submit(call)
    async with asyncio.timeout(5):
        await call.output.wait_final()
    assert call.failure is not None
    assert call.failure.code == "internal_error"
