"""Tests of gateway/scheduler/attempt.py: how prompts are filled, and slots generated."""

import asyncio
import dataclasses
from itertools import count, pairwise
from typing import Any

import pytest

from engine.sampling_params import SamplingParams
from engine.tokenizer import Tokenizer
from gateway.engines.protocol import EventCallback, Urgency
from gateway.graph.call import CallSpec, CallState, Rendering
from gateway.graph.limits import SessionLimits
from gateway.graph.references import Reference
from gateway.graph.segments import Characters, Input, Slot, Text, Trim
from gateway.graph.session import Session
from gateway.graph.transform import Transform
from gateway.graph.variable import Piece
from gateway.runtime.fair_gate import FairGate
from gateway.scheduler import Scheduler
from gateway.scheduler.attempt import CallAttempt
from gateway.scheduler.input_reader import InputReader
from tests.fakes.engine import FakeContext, FakeEngine, FakeEngines
from tests.gateway.graph.test_session import session, spec
from tests.gateway.scheduler.scheduler_harness import ANSWER, GREEDY, SchedulerHarness, settle, slot, submit


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


@pytest.mark.parametrize("cuts", [[101, 303, 336], [1, 2, 3], [96], []])
async def test_a_growing_value_has_the_tokens_of_the_whole_text(tokenizer: Tokenizer, cuts: list[int]) -> None:
    engine, graph = FakeEngine(tokenizer), session()
    scheduler = Scheduler(FakeEngines(engine), 10)
    graph.add_variable("grows")
    producer = graph.add(spec(output="grows"))
    segments = [Text([1]), Characters("Write about this: "), Input(Reference("grows"), "m"), Characters("s."), GREEDY]
    reader = graph.add(CallSpec(model="m", segments=segments, deferred=True))
    scheduler.submit(reader)
    value = "the quick brown fox jumps over the lazy dog. It's 12345 " * 6 + " animal"
    for begin, end in pairwise([0, *cuts, len(value)]):
        producer.output.append(Piece(value[begin:end]))
        await settle()
    filled = len(engine.opened[-1].tokens)
    assert filled > 1 or len(cuts) == 3, "stable tokens are filled before the value is complete"
    producer.set_state(CallState.DONE)
    producer.output.complete()
    async with asyncio.timeout(5):
        await scheduler.wait_idle()
    whole = tokenizer.encode(f"Write about this: {value}s.")
    assert engine.opened[-1].tokens[: 1 + len(whole)] == [1, *whole]
    assert len(engine.opened) == 1
    assert reader.state is CallState.DONE
    assert reader.usage.prompt == 1 + len(whole)


@pytest.mark.parametrize(
    ("one", "other", "are_equal"),
    [
        ({}, {}, True),
        ({}, {"segments": [Text([1]), Text([1]), GREEDY]}, True),  # divided elsewhere
        ({}, {"output": "named"}, True),
        ({}, {"segments": [Text([1, 2]), GREEDY]}, False),
        ({}, {"segments": [Text([1, 1]), Slot(None, SamplingParams(temperature=0.0, max_tokens=3))]}, False),
        ({}, {"segments": [Text([1, 1]), Slot(None, GREEDY.sampling, Transform(strip=True))]}, False),
        ({}, {"salt": "x"}, False),
        ({}, {"model": "n"}, False),
        (
            {"segments": [Text([1]), Slot("a", GREEDY.sampling), Text([2]), GREEDY]},
            {"segments": [Text([1]), Slot("b", GREEDY.sampling), Text([2]), GREEDY]},
            True,
        ),
        (
            {"segments": [Text([1]), Slot("a", GREEDY.sampling), Text([2]), GREEDY]},
            {"segments": [Text([1]), Slot("b", GREEDY.sampling), Text([3]), GREEDY]},
            False,
        ),
        (
            {"segments": [Text([1]), Slot("c", GREEDY.sampling), Input(Reference("c"), "m"), GREEDY]},
            {"segments": [Text([1]), Slot("d", GREEDY.sampling), Input(Reference("d"), "m"), GREEDY]},
            True,
        ),
    ],
)
async def test_calls_that_do_the_same_have_one_digest(
    one: dict[str, Any], other: dict[str, Any], are_equal: bool
) -> None:
    graph = session()
    digests = [await digest(graph, more) for more in (one, other)]
    assert None not in digests
    assert (digests[0] == digests[1]) is are_equal


async def digest(graph: Session, more: dict[str, Any]) -> bytes | None:
    """Return the digest of a call, by default of two tokens and a greedy slot."""
    fields: dict[str, Any] = {"model": "m", "segments": [Text([1, 1]), GREEDY]} | more
    call, engine = graph.add(CallSpec(**fields)), FakeEngine()
    context = engine.open("", Urgency(0.0, interactive=False))
    rendering = Rendering(call.spec.model, call.spec.segments)
    return await CallAttempt(call, rendering, engine, context, InputReader(call, FairGate())).prepare()


async def test_random_calls_and_those_of_one_request_have_no_digest() -> None:
    assert await digest(session(), {"segments": [Text([1]), ANSWER]}) is None
    assert await digest(Session("", "t", 0.0, 60.0), {}) is None


async def test_values_are_part_of_the_digest() -> None:
    graph = session()
    for name, value in (("a", "x"), ("b", "x"), ("c", "y")):
        graph.set_values(graph.add_variable(name, value))

    def reads(name: str, *path: str) -> dict[str, Any]:
        place = Input(Reference(name, path), "m")
        return {"segments": [Text([1]), Slot(f"s{name}{len(path)}", GREEDY.sampling), place, GREEDY]}

    a, b, c = [await digest(graph, reads(name)) for name in "abc"]
    assert a == b, "equal values, whatever their names"
    assert a != c
    assert await digest(graph, reads("a", "0")) != a


async def test_defaults_of_variables_without_a_value_are_part_of_the_digest() -> None:
    graph = session()
    graph.add_variable("late")
    digests = []
    for number, defaults in enumerate([{}, {"late": ""}, {"late": "x"}, {"late": "x"}, {"late": "y"}]):
        reads = [Text([1]), Slot(f"s{number}", GREEDY.sampling), Input(Reference("late"), "m"), GREEDY]
        digests.append(await digest(graph, {"segments": reads, "defaults": defaults}))
    assert digests[2] == digests[3]
    assert len(set(digests)) == 4


async def test_a_digest_reads_a_default_once() -> None:
    """Refer to a default many times: it may have megabytes."""
    graph = session()
    graph.add_variable("late")
    default = CountedConversions("x")
    reads = [Text([1]), Slot("s", GREEDY.sampling), *[Input(Reference("late"), "m")] * 50, GREEDY]
    assert await digest(graph, {"segments": reads, "defaults": {"late": default}}) is not None
    assert default.reads == 1


class CountedConversions(str):
    """A text that counts how often it is converted."""

    reads = 0

    def __repr__(self) -> str:
        self.reads += 1
        return super().__repr__()

    def encode(self, encoding: str = "utf-8", errors: str = "strict") -> bytes:
        self.reads += 1
        return super().encode(encoding, errors)


async def test_a_name_that_is_used_again_changes_the_digest() -> None:
    graph = session()
    digests = set()
    for number in range(2):
        graph.add_variable("late")
        reads = [Text([1]), Slot(f"s{number}", GREEDY.sampling), Input(Reference("late"), "m"), GREEDY]
        digests.add(await digest(graph, {"segments": reads}))
        graph.delete("late")
    assert len(digests) == 2


async def test_a_call_by_hand_and_one_by_reference_have_one_digest() -> None:
    graph = session()
    graph.set_values(graph.add_variable("a", "red"))
    graph.set_values(graph.add_variable("blank", " "))
    graph.add_variable("late")
    a, blank, late = (Input(Reference(name), "m") for name in ("a", "blank", "late"))
    numbers = count()

    async def after_slot(*segments: Any, **more: Any) -> bytes | None:
        slot = Slot(f"s{next(numbers)}", GREEDY.sampling)
        return await digest(graph, {"segments": [Text([1]), slot, *segments, GREEDY], **more})

    by_hand = await after_slot(Characters("It is red."))
    assert await after_slot(Characters("It is "), a, Characters(".")) == by_hand
    assert await after_slot(Characters("It is "), a, blank, Characters(".")) != by_hand
    assert await after_slot(Characters("It is ")) != await after_slot(Characters("It is "), late)
    assert await after_slot(Trim(right=True), a, blank, Trim(), Text([2])) == await after_slot(
        Characters("red"), Text([2])
    )
    assert await after_slot(Characters("x"), parts=["x", a]) == await after_slot(Characters("x"), parts=["xred"])


async def test_calls_whose_text_is_trimmed_by_an_unknown_value_have_different_digests() -> None:
    graph = session()
    graph.set_values(graph.add_variable("o", '{"x": "y"}'))
    graph.add_variable("late")
    numbers = count()
    for trim, different in ((Trim(right=True), 5), (Trim(left=True), 3), (Trim(left=True, right=True), 3)):
        for reference in (Reference("late"), Reference("o", ("x",))):
            found = set()
            for before, after in (("", ""), (" ", ""), ("\n\n", ""), ("", " rest"), ("", "rest")):
                segments = [
                    *(Text([1]), Slot(f"s{next(numbers)}", GREEDY.sampling), trim, Characters(before)),
                    *(Input(reference, "m"), Characters(after), Trim(), GREEDY),
                ]
                found.add(await digest(graph, {"segments": segments}))
            assert len(found) == different, "a blank makes no difference only where it is removed"


async def test_a_call_with_much_text_after_a_slot_is_not_shared() -> None:
    """Use more text than can be compared without blocking the event loop."""
    graph = session()
    graph.set_values(graph.add_variable("large", "x" * 600_000))
    large = Input(Reference("large"), "m")
    for references, is_shared in ((1, True), (2, False)):
        slot = Slot(f"s{references}", GREEDY.sampling)
        assert (await digest(graph, {"segments": [Text([1]), slot, *[large] * references, GREEDY]}) is not None) is (
            is_shared
        )


async def test_another_attempt_fills_the_same_prompt() -> None:
    """Use a blank before the slot, which a template would trim if the slot's text were not visible."""
    contexts = []
    for is_repeated in (False, True):
        graph, engine = session(), FakeEngine()
        graph.set_values(graph.add_variable("blank", " "))
        slot = Slot("made", GREEDY.sampling, heals=True)
        segments = [Text([1]), Trim(left=True, right=True), Input(Reference("blank"), "m"), slot, Characters(" x")]
        call = graph.add(CallSpec(model="m", segments=[*segments, Trim(), Text([2]), GREEDY]))
        if is_repeated:
            call.slot_texts["made"] = "1"
        rendering = Rendering(call.spec.model, call.spec.segments)
        context = engine.open("", Urgency(0.0, interactive=False))
        attempt = CallAttempt(call, rendering, engine, context, InputReader(call, FairGate()))
        await attempt.prepare()
        await attempt.generate()
        contexts.append(context.tokens)
    assert contexts[0] == contexts[1] == [1, *map(ord, "1 x"), 2, ord("5")]


async def test_text_cannot_imitate_the_marks_of_a_digest() -> None:
    graph = session()
    graph.add_variable("late")
    late, numbers = Input(Reference("late"), "m"), count()
    for text in ("\xffvlate()\xff", "\udcffvlate()\udcff"):
        found = [
            await digest(graph, {"segments": [Text([1]), Slot(f"s{next(numbers)}", GREEDY.sampling), segment, GREEDY]})
            for segment in (Characters(text), late)
        ]
        assert found[0] != found[1]


@pytest.mark.parametrize(
    ("thinks", "constrains_later", "sent", "starts_inside"),
    [("perhaps", True, "perhaps", False), ("begun", True, "begun", True), ("begun", False, None, False)],
)
async def test_a_constraint_leaves_room_for_reasoning_where_the_engine_can(
    thinks: Any, constrains_later: bool, sent: Any, starts_inside: bool
) -> None:
    harness = SchedulerHarness()
    harness.engine.constrains_after_reasoning = constrains_later
    constrained = Slot(None, SamplingParams(regex="[0-9]+"), thinks=thinks)
    received: list[SamplingParams] = []
    call = harness.session.add(CallSpec(model="m", segments=[Text([1] * 12), constrained], deferred=True))
    generate = FakeContext.generate

    async def recording(
        self: FakeContext, sampling: SamplingParams, on_event: EventCallback, *, heals: bool = False
    ) -> None:
        received.append(sampling)
        await generate(self, sampling, on_event)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FakeContext, "generate", recording)
        harness.scheduler.submit(call)
        await harness.scheduler.wait_idle()
    assert [sampling.thinks for sampling in received] == [sent]
    assert call.output.value == ("" if starts_inside else "12")
    assert (call.usage.reasoning == call.usage.completion) is starts_inside


async def test_a_prompt_may_not_be_larger_than_its_session() -> None:
    harness = SchedulerHarness()
    harness.session.set_values(harness.session.add_variable("a", "x" * 600))
    call = harness.session.add(spec(*["a"] * 4, deferred=True))
    harness.session.resources.limits = SessionLimits(bytes=4 * 2_000)
    harness.scheduler.submit(call)
    await harness.scheduler.wait_idle()
    assert call.failure is not None
    assert (call.failure.code, call.failure.message) == (
        "too_large",
        "the prompt has more than 2000 tokens or characters, the maximum of a session",
    )
