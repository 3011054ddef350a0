"""gateway/scheduler/: calls on a fake engine that answers at once, waits or is lost, as the test chooses."""

import asyncio
import dataclasses
from collections.abc import Sequence

import pytest

from engine.sampling_params import SamplingParams
from gateway.engines.protocol import Engine, NoEngine, Urgency
from gateway.graph.call import Call, CallSpec, CallState, Rendering
from gateway.graph.errors import Failure
from gateway.graph.limits import SessionLimits
from gateway.graph.prefix_hash import prefix_keys
from gateway.graph.references import Reference
from gateway.graph.segments import Input, Segment, Slot, Text
from gateway.graph.session import Addition, Session
from gateway.graph.transform import Transform
from gateway.graph.variable import Piece, VariableState
from gateway.scheduler import CostModel, Order, Overloaded, Priorities, Scheduler, Stopping
from gateway.scheduler.placement import place
from gateway.scheduler.prefix_index import PrefixIndex
from tests.fakes.engine import FakeEngine, FakeEngines
from tests.gateway.graph.test_session import session, spec

ANSWER = Slot(None, SamplingParams())
URGENT = Urgency(0.0, interactive=True)


class SchedulerHarness:
    """A scheduler over one fake engine, and a session."""

    def __init__(self, max_calls: int = 100) -> None:
        self.engine = FakeEngine()
        self.ended: list[Call] = []
        self.scheduler = Scheduler(FakeEngines(self.engine), max_calls, self.ended.append)
        self.session: Session = session()

    def run(self, *reads: str, output: str | None = None, deferred: bool = True) -> Call:
        call = self.session.add(spec(*reads, output=output, deferred=deferred))
        self.scheduler.submit(call)
        return call


async def settle() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


async def test_values_pass_from_call_to_call() -> None:
    harness = SchedulerHarness()
    last = harness.run(output="unread")
    first = harness.run(output="a")
    second = harness.run("a", output="b")
    await second.output.wait_final()
    await harness.scheduler.wait_idle()
    assert {harness.scheduler.rank(call) for call in (first, second, last)} == {0.0}, "ended calls have rank 0"
    assert first.output.value == "2", "two tokens of text"
    assert second.output.value == "3", "two, and the one character of the value"
    assert last.state is second.state is CallState.DONE
    assert harness.engine.load == 0, "every context was freed"
    assert len(harness.ended) == 3
    assert second.usage.prompt == 3
    assert second.finish_reason == "stop"


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


async def test_a_failure_reaches_descendants_with_its_root_cause_and_spares_siblings() -> None:
    harness = SchedulerHarness()
    failing = harness.run(output="a")
    child, grandchild = harness.run("a", output="b"), harness.run("b")
    harness.engine.doomed = {1, 2}  # the first tokens of its prompt
    sibling = harness.session.add(dataclasses.replace(spec(deferred=True), segments=[Text([3]), ANSWER]))
    harness.scheduler.submit(sibling)
    await harness.scheduler.wait_idle()
    assert failing.state is CallState.FAILED
    assert failing.output.failure is not None
    assert failing.output.failure.code == "engine_failed"
    for call in (child, grandchild):
        assert call.state is CallState.FAILED
        assert call.failure is not None
        assert call.failure.code == "upstream_failed"
        assert call.failure.call == failing.id
        assert "the fake engine was lost" in call.failure.message
    assert sibling.state is CallState.DONE


async def perform_plain_call(
    harness: SchedulerHarness, before: set["asyncio.Task[None]"]
) -> tuple[Call, "asyncio.Task[None]"]:
    """Start a plain call, and check that the returned task is its only task."""
    call = harness.session.add(spec())
    harness.engine.hold()
    task = asyncio.create_task(harness.scheduler.run_inline(call))
    await settle()
    assert asyncio.all_tasks() - before == {task}
    assert harness.scheduler.unfinished_calls == harness.engine.load == 1
    return call, task


@pytest.mark.parametrize("dies", [False, True])
async def test_a_plain_call_runs_in_the_task_of_its_client(dies: bool) -> None:
    harness = SchedulerHarness()
    call, task = await perform_plain_call(harness, asyncio.all_tasks())
    harness.engine.opened[0].lost = dies
    harness.engine.released.set()
    await task
    assert (call.state, call.output.value) == (CallState.DONE, "2")
    async with asyncio.timeout(5):
        await harness.scheduler.wait_idle()
    assert harness.scheduler.unfinished_calls == harness.engine.load == 0
    assert harness.ended == [call]
    assert len(harness.engine.opened) == 1 + dies
    assert harness.scheduler.rank(call) == 0.0, "ended calls have rank 0"


async def test_a_failed_plain_call_has_its_failure_in_its_output() -> None:
    harness = SchedulerHarness()
    call, task = await perform_plain_call(harness, asyncio.all_tasks())
    harness.engine.doomed = {1, 2}
    harness.engine.released.set()
    await task
    assert call.state is CallState.FAILED
    assert call.output.failure is not None
    assert call.output.failure.code == "engine_failed"
    async with asyncio.timeout(5):
        await harness.scheduler.wait_idle()


@pytest.mark.parametrize("cause", ["the client disconnects", "the scheduler closes"])
async def test_a_plain_call_is_cancelled_with_its_task(cause: str) -> None:
    harness = SchedulerHarness()
    call, task = await perform_plain_call(harness, asyncio.all_tasks())
    if cause == "the scheduler closes":
        await harness.scheduler.close()
    else:
        task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert (call.state, call.output.state) == (CallState.CANCELLED, VariableState.CANCELLED)
    async with asyncio.timeout(5):
        await harness.scheduler.wait_idle()
    assert harness.scheduler.unfinished_calls == harness.engine.load == 0
    assert harness.ended == [call]


async def test_a_call_that_lost_its_engine_runs_again() -> None:
    harness = SchedulerHarness()
    harness.engine.hold()
    call = harness.run()
    await settle()
    harness.engine.opened[0].lost = True
    harness.engine.released.set()
    await harness.scheduler.wait_idle()
    assert call.state is CallState.DONE
    assert call.output.value == "2"
    assert len(harness.engine.opened) == 2
    assert harness.engine.load == 0


async def test_an_exposed_call_that_lost_its_engine_fails() -> None:
    harness = SchedulerHarness()
    harness.engine.deaths = 1
    call = harness.session.add(dataclasses.replace(spec(deferred=True), segments=[Text([1] * 12), ANSWER]))
    harness.scheduler.submit(call)
    with harness.session.read(call.output) as reader:
        assert [piece.text for piece in await reader.next_pieces()] == ["1"]
    await harness.scheduler.wait_idle()
    assert call.state is CallState.FAILED
    assert len(harness.engine.opened) == 1


async def test_a_second_attempt_discards_the_text_of_the_first() -> None:
    harness = SchedulerHarness()
    harness.engine.deaths = 1
    call = harness.session.add(dataclasses.replace(spec(deferred=True), segments=[Text([1] * 12), ANSWER]))
    harness.scheduler.submit(call)
    await harness.scheduler.wait_idle()
    assert call.output.value == "12"
    assert call.usage.completion == 2
    assert len(harness.engine.opened) == 2


async def test_a_call_that_kills_every_engine_fails_alone() -> None:
    harness = SchedulerHarness()
    harness.engine.doomed = {7}
    harness.engine.doom_spreads = True
    killer = harness.session.add(dataclasses.replace(spec(deferred=True), segments=[Text([7, 7]), ANSWER]))
    others = [harness.session.add(spec(deferred=True)) for _ in range(6)]
    harness.engine.hold()
    for call in (*others[:3], killer, *others[3:]):
        harness.scheduler.submit(call)
    await settle()
    harness.engine.released.set()
    await harness.scheduler.wait_idle()
    assert killer.state is CallState.FAILED
    assert killer.failure is not None
    assert "second attempt" in killer.failure.message
    assert [call.state for call in others] == [CallState.DONE] * 6
    assert len(harness.engine.opened) == 2 * 7, "each call got one more attempt"


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


async def test_unsubscribing_cancels_calls_that_are_not_needed_any_more() -> None:
    harness = SchedulerHarness()
    harness.engine.hold()
    unneeded = harness.run(output="a", deferred=False)
    kept = harness.run(output="k", deferred=True)
    call = harness.run("a", "k", output="b", deferred=False)
    harness.scheduler.subscribe(call.output)
    await settle()
    harness.scheduler.unsubscribe(call.output)
    assert (call.state, unneeded.state, kept.state) == (CallState.CANCELLED, CallState.CANCELLED, CallState.PREFILL)
    assert [context.freed for context in harness.engine.opened] == [True, False, True]
    harness.engine.released.set()
    await harness.scheduler.wait_idle()
    assert kept.state is CallState.DONE


async def test_a_call_runs_while_it_has_a_subscriber() -> None:
    harness = SchedulerHarness()
    harness.engine.hold()
    call = harness.run(deferred=False)
    for _ in range(2):
        harness.scheduler.subscribe(call.output)
    await settle()
    harness.scheduler.unsubscribe(call.output)
    assert not call.state.is_final
    harness.engine.released.set()
    await call.output.wait_final()
    harness.scheduler.unsubscribe(call.output)
    assert call.state is CallState.DONE


async def test_calls_with_subscribers_rank_before_calls_without() -> None:
    harness = SchedulerHarness()
    harness.engine.hold()
    early, late = harness.run(output="a"), harness.run(output="b")
    reader = harness.run("b", output="c")
    await settle()
    ranks = [context.urgency.rank for context in harness.engine.opened]
    assert ranks[0] < ranks[1]
    harness.scheduler.subscribe(reader.output)
    await settle()
    ranks = [context.urgency.rank for context in harness.engine.opened]
    assert ranks[1] < ranks[0], "the producers of a subscribed variable go first"
    assert ranks[2] < ranks[0]
    harness.engine.released.set()
    await harness.scheduler.wait_idle()
    assert early.state is late.state is CallState.DONE


async def test_variables_that_a_client_waits_for_together_are_not_interactive() -> None:
    """Only the last of them to end matters: its producers must not pause beside calls that end earlier."""
    harness = SchedulerHarness()
    harness.engine.hold()
    background, one, other = harness.run(), harness.run(), harness.run()
    await settle()
    for call in (one, other):
        harness.scheduler.subscribe(call.output, interactive=False)
    await settle()
    urgencies = [context.urgency for context in harness.engine.opened]
    assert [urgency.interactive for urgency in urgencies] == [False, False, False]
    assert max(urgencies[1].rank, urgencies[2].rank) < urgencies[0].rank, "but they are urgent"
    harness.scheduler.subscribe(other.output)
    await settle()
    assert [context.urgency.interactive for context in harness.engine.opened] == [False, False, True]
    harness.scheduler.unsubscribe(other.output)
    await settle()
    assert [context.urgency.interactive for context in harness.engine.opened] == [False, False, False]
    for call in (one, other):
        harness.scheduler.unsubscribe(call.output, interactive=False)
    harness.engine.released.set()
    await harness.scheduler.wait_idle()
    assert background.state is CallState.DONE


async def test_a_call_can_be_cancelled_before_its_coroutine_first_runs() -> None:
    harness = SchedulerHarness()
    call = harness.run()
    harness.session.close(harness.scheduler.cancel)
    await harness.scheduler.wait_idle()
    assert call.state is CallState.CANCELLED
    assert call.output.state is VariableState.CANCELLED


def large_addition(harness: SchedulerHarness, count: int) -> Addition:
    """Return one addition of a call, `count` calls without consumers, and a call that reads the first one."""
    first, second = spec(output="first", deferred=False), spec("first", output="second", deferred=False)
    return harness.session.add_all([first, *(spec(deferred=True) for _ in range(count)), second])


async def test_other_tasks_get_turns_while_many_calls_are_started() -> None:
    harness, turns = SchedulerHarness(), 0

    async def other() -> None:
        nonlocal turns
        while True:
            await asyncio.sleep(0)
            turns += 1

    harness.engine.hold()
    addition = large_addition(harness, 400)
    counting = asyncio.create_task(other())
    await harness.scheduler.start(harness.session, addition)
    counting.cancel()
    assert turns >= 20
    assert harness.scheduler.unfinished_calls == len(addition.calls), "all calls are submitted when it returns"
    harness.engine.released.set()
    await harness.scheduler.wait_idle()
    assert {call.state for call in addition.calls if call.spec.deferred} == {CallState.DONE}


@pytest.mark.parametrize("leaves", [True, False])
async def test_calls_that_are_cancelled_during_a_large_start_do_not_begin(leaves: bool) -> None:
    harness = SchedulerHarness()
    harness.engine.hold()
    addition = large_addition(harness, 400)
    first, *others, second = addition.calls
    harness.scheduler.subscribe(second.output)
    starting = asyncio.create_task(harness.scheduler.start(harness.session, addition))
    for _ in range(3):
        await asyncio.sleep(0)
    assert 0 < harness.scheduler.unfinished_calls < len(addition.calls)
    if leaves:
        starting.cancel()
        harness.scheduler.unsubscribe(second.output)
    else:
        harness.scheduler.cancel(second, Failure("cancelled", "not needed"))
    await asyncio.wait([starting])
    harness.engine.released.set()
    await harness.scheduler.wait_idle()
    assert first.state is second.state is CallState.CANCELLED, "only the second call needed the first one"
    assert {call.state for call in others} == {CallState.DONE}, "submission is atomic"
    assert harness.engine.load == 0
    harness.scheduler.submit(first)
    assert harness.scheduler.unfinished_calls == 0, "an ended call does not start"


async def test_a_stopping_server_waits_for_a_start_in_progress() -> None:
    for turns in range(10):
        harness = SchedulerHarness()
        harness.run()  # it ends at some time during the start
        for _ in range(turns):
            await asyncio.sleep(0)
        addition = large_addition(harness, 100)
        starting = asyncio.create_task(harness.scheduler.start(harness.session, addition))
        await asyncio.sleep(0)
        await harness.scheduler.wait_idle()
        assert all(call.state.is_final for call in addition.calls)
        await starting


async def test_calls_without_an_engine_fail_with_engine_unavailable() -> None:
    harness = SchedulerHarness()
    harness.engine.is_ready = False
    call = harness.run()
    await call.output.wait_final()
    assert call.failure is not None
    assert call.failure.code == "engine_unavailable"


async def test_admission_is_limited_but_running_graphs_continue() -> None:
    harness = SchedulerHarness(max_calls=1)
    harness.engine.hold()
    harness.scheduler.admit("", continues=False)
    harness.run()
    with pytest.raises(Overloaded):
        harness.scheduler.admit("", continues=False)
    harness.scheduler.admit("", continues=True)
    harness.scheduler.stop_admitting()
    with pytest.raises(Stopping):
        harness.scheduler.admit("", continues=True)
    await harness.scheduler.close()
    assert harness.scheduler.unfinished_calls == 0


async def test_placement_chooses_the_idlest_engine_or_the_one_that_holds_the_prompt() -> None:
    one, two = FakeEngine(name="one"), FakeEngine(name="two")
    graph = session()
    source = graph.add(spec(output="a"))
    source.engine = "two"
    call = graph.add(spec("a"))
    assert place(call, [one, two], {}) is two
    two.open("", URGENT)
    assert place(call, [one, two], {}) is one
    assert place(call, [one, two], {two: 100}) is two, "it holds the prompt's beginning and is hardly busier"
    for _ in range(20):
        two.open("", URGENT)
    assert place(call, [one, two], {two: 100}) is one


def test_the_prefix_index_knows_beginnings_within_texts() -> None:
    def call(*segments: Segment) -> Call:
        return graph.add(CallSpec(model="m", segments=[*segments, ANSWER], deferred=True))

    graph = session()
    source = graph.add(spec(output="a"))
    system, value = [*range(300)], Input(Reference("a"), "m")
    first = call(Text([*system, 7]), value, Text([8]))
    same_start = call(Text([*system, 9]))
    same_value = call(Text([*system, 7]), value, Text([9]))
    prefix_index, one, two = PrefixIndex(), FakeEngine(name="one"), FakeEngine(name="two")
    assert prefix_index.covered_tokens(prefix_keys(first), 1) == 0
    prefix_index.add(prefix_keys(first), 1)
    prefix_index.record_placement(prefix_keys(first), one)
    assert prefix_index.covered_tokens(prefix_keys(same_start), 1) == 256, (
        "two chunks of 128, which the first call prefills"
    )
    assert prefix_index.covered_tokens(prefix_keys(same_value), 1) == 301 + 64
    assert prefix_index.covered_tokens(prefix_keys(same_value), 2) == 0, (
        "no engine has prefilled it yet, so another session may have to"
    )
    prefix_index.mark_prefilled(prefix_keys(first))
    assert prefix_index.covered_tokens(prefix_keys(same_value), 2) == 301 + 64
    assert prefix_index.tokens_by_engine(prefix_keys(same_start)) == {one: 256}
    prefix_index.record_placement(prefix_keys(same_start), two)
    assert prefix_index.tokens_by_engine(prefix_keys(same_value)) == {one: 365, two: 256}
    other = Session(id="s2", tenant="other", created=0.0, ttl=1.0, limits=SessionLimits()).add(
        CallSpec(model="m", segments=[Text(system), ANSWER], deferred=True)
    )
    assert prefix_index.covered_tokens(prefix_keys(other), 1) == 0, "tenants share no prefix keys"
    assert source.output.value is None


def slot(name: str, **transform: object) -> Slot:
    return Slot(name, SamplingParams(), Transform(**transform) if transform else None)  # type: ignore[arg-type]


def submit(harness: SchedulerHarness, call_spec: CallSpec) -> Call:
    addition = harness.session.add_all([call_spec])
    for call in addition.calls:
        harness.scheduler.submit(call)
    harness.session.set_values(addition)
    return addition.calls[0]


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


async def test_a_finished_slot_is_not_generated_again_by_another_attempt() -> None:
    harness = SchedulerHarness()
    segments = [Text([1, 2]), slot("a"), Text([9] * 20), ANSWER]
    harness.engine.deaths = 1
    call = submit(harness, CallSpec(model="m", segments=segments, output="out", deferred=True))
    await harness.scheduler.wait_idle()
    assert (harness.session.variable("a").value, call.output.value) == ("2", "23")
    assert [context.generates for context in harness.engine.opened] == [2, 1]


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


async def test_a_template_is_rendered_once_its_inputs_exist() -> None:
    harness = SchedulerHarness()
    harness.session.add_variable("joke")
    parts = ["Joke:\n", Input(Reference("joke"), "template"), "!"]
    addition = harness.session.add_variable("shown", template=parts)
    await harness.scheduler.start(harness.session, addition)
    reader = harness.run("shown")
    await settle()
    assert harness.session.variable("shown").state is VariableState.PENDING
    producer = harness.run(output="joke")
    await harness.scheduler.wait_idle()
    assert producer.output.value == "2"
    assert harness.session.variable("shown").value == "Joke:\n2!"
    assert reader.output.value == "10"


GREEDY = Slot(None, SamplingParams(temperature=0.0))


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


async def test_deleting_a_variable_fails_its_consumers_and_cancels_its_producer() -> None:
    harness = SchedulerHarness()
    harness.engine.hold()
    harness.session.add_variable("never")
    waiting = harness.run("never")
    running = harness.run(output="a")
    await settle()
    for name in ("never", "a"):
        harness.scheduler.release(harness.session.delete(name))
    await settle()
    assert running.state is CallState.CANCELLED
    assert waiting.failure is not None
    assert waiting.failure.code == "upstream_failed"
    harness.session.add_variable("a")


async def test_without_fill_ahead_a_prompt_is_filled_once_all_values_exist() -> None:
    harness = SchedulerHarness()
    harness.scheduler = Scheduler(FakeEngines(harness.engine), 10, fill_ahead=False)
    harness.session.add_variable("later")
    call = harness.run("later")
    await settle()
    assert (call.state, harness.engine.opened) == (CallState.WAITING, [])
    harness.session.set_values(harness.session.add_variable("later", "xyz"))
    await call.output.wait_final()
    assert call.output.value == "5"


async def test_in_order_of_arrival_no_call_overtakes() -> None:
    harness = SchedulerHarness()
    harness.scheduler = Scheduler(FakeEngines(harness.engine), 10, priorities=Priorities(CostModel(), Order.ARRIVAL))
    harness.engine.hold()
    harness.run(output="a")
    subscribed = harness.run(output="b")
    harness.scheduler.subscribe(subscribed.output)
    await settle()
    urgencies = [context.urgency for context in harness.engine.opened]
    assert urgencies[0].rank < urgencies[1].rank
    assert all(urgency.interactive for urgency in urgencies)
    harness.engine.released.set()
    await harness.scheduler.wait_idle()


async def test_engines_are_informed_which_calls_are_interactive() -> None:
    harness = SchedulerHarness()
    harness.engine.hold()
    harness.run(output="a")
    last = harness.run("a", output="b")
    await settle()
    assert [context.urgency.interactive for context in harness.engine.opened] == [False, False]
    harness.scheduler.subscribe(last.output)
    await settle()
    assert [context.urgency.interactive for context in harness.engine.opened] == [False, True]
    harness.scheduler.unsubscribe(last.output)
    await settle()
    assert [context.urgency.interactive for context in harness.engine.opened] == [False, False]
    harness.engine.released.set()
    await harness.scheduler.wait_idle()


async def test_a_call_that_lost_its_engine_runs_on_another_one() -> None:
    lost, healthy = FakeEngine(name="ill"), FakeEngine(name="well")
    scheduler = Scheduler(FakeEngines(lost, healthy), 10)
    call = session().add(spec(output="out"))
    lost.doomed = {call.spec.segments[0].tokens[0]} if isinstance(call.spec.segments[0], Text) else set()
    scheduler.submit(call)
    await call.output.wait_final()
    assert (call.state, call.engine) == (CallState.DONE, "well")
    assert len(lost.opened) == 1, "the lost engine is not used again while another one is ready"
    await scheduler.close()


async def test_fallback_models_are_tried_in_order() -> None:
    class FirstModelDown(FakeEngines):
        async def find_ready(self, model: str, *, wait: bool = True) -> Sequence[Engine]:
            requested.append((model, wait))
            if model == "first":
                raise NoEngine("it is down")
            return self.engines

    requested: list[tuple[str, bool]] = []
    engine = FakeEngine()
    scheduler = Scheduler(FirstModelDown(engine), 10)
    segments: list[Segment] = [Text([1] * 12), ANSWER]
    graph = session()
    call = graph.add(
        CallSpec(
            model="first",
            segments=[Text([1, 2]), ANSWER],
            output="out",
            deferred=True,
            fallbacks=(Rendering("second", segments), Rendering("third", segments)),
        )
    )
    scheduler.submit(call)
    await call.output.wait_final()
    assert (call.state, call.output.value, call.model) == (CallState.DONE, "12", "second")
    assert requested == [("first", False), ("second", False)], "the scheduler waits only for the last model"
    await scheduler.close()


async def test_one_tenant_cannot_fill_the_queue_alone() -> None:
    engine = FakeEngine()
    scheduler = Scheduler(FakeEngines(engine), 8, several_tenants=True)
    sessions = {tenant: Session(id=tenant, tenant=tenant, created=0.0, ttl=60.0) for tenant in ("a", "b")}

    def wait(tenant: str, count: int) -> None:
        session = sessions[tenant]
        if "never" not in session.variables:
            session.add_variable("never")
        for _ in range(count):
            scheduler.submit(session.add(spec("never", deferred=True)))

    wait("a", 6)
    with pytest.raises(Overloaded, match="6 calls of this key are unfinished"):
        scheduler.admit("a", continues=False)
    scheduler.admit("b", continues=False)
    wait("a", 9)
    scheduler.admit("b", continues=False)
    scheduler.admit("a", continues=True)
    wait("a", 1)
    with pytest.raises(Overloaded):
        scheduler.admit("a", continues=True)
    wait("b", 4)
    with pytest.raises(Overloaded):
        scheduler.admit("b", continues=False)
    await scheduler.close()
    scheduler.admit("a", continues=False)


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


async def test_stuck_calls_fail_and_are_logged(caplog: pytest.LogCaptureFixture) -> None:
    harness = SchedulerHarness()
    harness.session.add_variable("declared")
    waits = harness.run("declared", output="a")
    reader = harness.run("a", output="b")
    await settle()
    assert harness.scheduler.end_stuck([harness.session]) == [], "a client may set the variable"
    other = harness.session.add(spec(deferred=True))  # as if the scheduler had never started it
    assert harness.scheduler.end_stuck([harness.session]) == [], "it may be about to start"
    assert harness.scheduler.end_stuck([harness.session]) == [other]
    waits.inputs["declared"].producer = reader  # as if the graph had accepted a cycle
    waits.awaits = waits.inputs["declared"]
    (first, *_) = harness.scheduler.end_stuck([harness.session])
    assert first in (waits, reader)
    await harness.scheduler.wait_idle()
    for call in (waits, reader, other):
        assert call.state is CallState.FAILED
        assert call.failure is not None
        assert call.failure.code in ("internal_error", "upstream_failed")
    assert "waits for 'declared', which gets no value" in caplog.text
    assert "has no coroutine" in caplog.text


async def test_calls_that_are_about_to_be_submitted_are_not_stuck() -> None:
    harness = SchedulerHarness()
    harness.session.add_variable("declared")
    addition = harness.session.add_all([spec("declared", deferred=True) for _ in range(200)])
    starting = asyncio.create_task(harness.scheduler.start(harness.session, addition))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert 0 < harness.scheduler.unfinished_calls < 200, "submitted in slices"
    for _ in range(3):
        assert harness.scheduler.end_stuck([harness.session]) == []
    await starting
    assert harness.scheduler.end_stuck([harness.session]) == []
    await harness.scheduler.close()
