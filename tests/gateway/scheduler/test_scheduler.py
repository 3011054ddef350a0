"""gateway/scheduler/: calls run over an engine that answers at once, held and lost at will."""

import asyncio
import dataclasses
from collections.abc import Sequence

import pytest

from gateway.engines.protocol import Engine, NoEngine, Urgency
from gateway.graph.call import (
    Call,
    CallSpec,
    CallState,
    Input,
    Rendering,
    SamplingParams,
    Segment,
    Slot,
    Text,
    Transform,
)
from gateway.graph.errors import Failure
from gateway.graph.prefix_hash import prefix_keys
from gateway.graph.references import Reference
from gateway.graph.session import Addition, Session, SessionLimits
from gateway.graph.variable import Piece, VariableState
from gateway.scheduler import CostModel, Order, Overloaded, Priorities, Scheduler, Stopping
from gateway.scheduler.placement import place
from gateway.scheduler.prefix_index import PrefixIndex
from tests.fakes.engine import StubEngine
from tests.gateway.graph.test_session import session, spec

ANSWER = Slot(None, SamplingParams())
SOON = Urgency(0.0, interactive=True)


class Stubs:
    """Engines that are there, or not."""

    def __init__(self, *engines: StubEngine) -> None:
        self.engines = engines

    async def serving(self, model: str, *, wait: bool = True) -> Sequence[Engine]:
        ready = [engine for engine in self.engines if engine.ready]
        if not ready:
            raise NoEngine("no engine")
        return ready


class Stage:
    """A scheduler over one stub, and a session."""

    def __init__(self, max_calls: int = 100) -> None:
        self.engine = StubEngine()
        self.ended: list[Call] = []
        self.scheduler = Scheduler(Stubs(self.engine), max_calls, self.ended.append)
        self.session: Session = session()

    def run(self, *reads: str, output: str | None = None, deferred: bool = True) -> Call:
        call = self.session.add(spec(*reads, output=output, deferred=deferred))
        self.scheduler.submit(call)
        return call


async def settle() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


async def test_values_flow_from_call_to_call() -> None:
    stage = Stage()
    last = stage.run(output="unread")
    first = stage.run(output="a")
    second = stage.run("a", output="b")
    await second.output.wait_final()
    await stage.scheduler.drained()
    assert {stage.scheduler.rank(call) for call in (first, second, last)} == {0.0}, "they have none any more"
    assert first.output.value == "2", "two tokens of text"
    assert second.output.value == "3", "two, and the one character of the value"
    assert last.state is second.state is CallState.DONE
    assert stage.engine.load == 0, "every context was freed"
    assert len(stage.ended) == 3
    assert second.usage.prompt == 3
    assert second.finish_reason == "stop"


async def test_what_is_known_is_filled_before_the_value_is_there() -> None:
    stage = Stage()
    stage.session.put("later")
    call = stage.run("later")
    await settle()
    assert call.state is CallState.WAITING
    assert stage.engine.opened[0].tokens == [1, 2]
    stage.session.settle(stage.session.put("later", "xyz"))
    await call.output.wait_final()
    assert call.output.value == "5"


async def test_a_value_is_data() -> None:
    stage = Stage()
    stage.session.settle(stage.session.put("tricky", "<<tricky>> <|im_end|>"))
    call = stage.run("tricky")
    await call.output.wait_final()
    assert stage.engine.opened[0].tokens[2:-2] == [ord(c) for c in "<<tricky>> <|im_end|>"]


async def test_a_failure_reaches_descendants_with_its_root_and_spares_siblings() -> None:
    stage = Stage()
    failing = stage.run(output="a")
    child, grandchild = stage.run("a", output="b"), stage.run("b")
    stage.engine.doomed = {1, 2}  # its own first tokens
    sibling = stage.session.add(dataclasses.replace(spec(deferred=True), segments=[Text([3]), ANSWER]))
    stage.scheduler.submit(sibling)
    await stage.scheduler.drained()
    assert failing.state is CallState.FAILED
    assert failing.output.failure is not None
    assert failing.output.failure.code == "engine_failed"
    for call in (child, grandchild):
        assert call.state is CallState.FAILED
        assert call.failure is not None
        assert call.failure.code == "upstream_failed"
        assert call.failure.call == failing.id
        assert "the stub was lost" in call.failure.message
    assert sibling.state is CallState.DONE


async def performing(stage: Stage, before: set["asyncio.Task[None]"]) -> tuple[Call, "asyncio.Task[None]"]:
    """A plain call that waits for its answer, in no task but the one that is returned."""
    call = stage.session.add(spec())
    stage.engine.hold()
    task = asyncio.create_task(stage.scheduler.perform(call))
    await settle()
    assert asyncio.all_tasks() - before == {task}
    assert stage.scheduler.unfinished == stage.engine.load == 1
    return call, task


@pytest.mark.parametrize("dies", [False, True])
async def test_a_plain_call_is_run_by_whoever_waits_for_it(dies: bool) -> None:
    stage = Stage()
    call, task = await performing(stage, asyncio.all_tasks())
    stage.engine.opened[0].lost = dies
    stage.engine.released.set()
    await task
    assert (call.state, call.output.value) == (CallState.DONE, "2")
    async with asyncio.timeout(5):
        await stage.scheduler.drained()
    assert stage.scheduler.unfinished == stage.engine.load == 0
    assert stage.ended == [call]
    assert len(stage.engine.opened) == 1 + dies
    assert stage.scheduler.rank(call) == 0.0, "it has none any more"


async def test_a_plain_call_that_fails_says_so_in_what_it_makes() -> None:
    stage = Stage()
    call, task = await performing(stage, asyncio.all_tasks())
    stage.engine.doomed = {1, 2}
    stage.engine.released.set()
    await task
    assert call.state is CallState.FAILED
    assert call.output.failure is not None
    assert call.output.failure.code == "engine_failed"
    async with asyncio.timeout(5):
        await stage.scheduler.drained()


@pytest.mark.parametrize("by", ["its client, who leaves", "the end"])
async def test_a_plain_call_ends_with_whoever_waits_for_it(by: str) -> None:
    stage = Stage()
    call, task = await performing(stage, asyncio.all_tasks())
    if by == "the end":
        await stage.scheduler.close()
    else:
        task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert (call.state, call.output.state) == (CallState.CANCELLED, VariableState.CANCELLED)
    async with asyncio.timeout(5):
        await stage.scheduler.drained()
    assert stage.scheduler.unfinished == stage.engine.load == 0
    assert stage.ended == [call]


async def test_a_call_whose_engine_dies_is_run_again() -> None:
    stage = Stage()
    stage.engine.hold()
    call = stage.run()
    await settle()
    stage.engine.opened[0].lost = True
    stage.engine.released.set()
    await stage.scheduler.drained()
    assert call.state is CallState.DONE
    assert call.output.value == "2"
    assert len(stage.engine.opened) == 2
    assert stage.engine.load == 0


async def test_not_if_somebody_was_shown_a_token() -> None:
    stage = Stage()
    stage.engine.deaths = 1
    call = stage.session.add(dataclasses.replace(spec(deferred=True), segments=[Text([1] * 12), ANSWER]))
    stage.scheduler.submit(call)
    with stage.session.read(call.output) as reader:
        assert [piece.text for piece in await reader.more()] == ["1"]
    await stage.scheduler.drained()
    assert call.state is CallState.FAILED
    assert len(stage.engine.opened) == 1


async def test_what_nobody_was_shown_is_made_anew_and_not_twice() -> None:
    stage = Stage()
    stage.engine.deaths = 1
    call = stage.session.add(dataclasses.replace(spec(deferred=True), segments=[Text([1] * 12), ANSWER]))
    stage.scheduler.submit(call)
    await stage.scheduler.drained()
    assert call.output.value == "12"
    assert call.usage.completion == 2
    assert len(stage.engine.opened) == 2


async def test_a_call_that_kills_every_engine_fails_and_takes_nobody_with_it() -> None:
    stage = Stage()
    stage.engine.doomed = {7}
    stage.engine.doom_spreads = True
    killer = stage.session.add(dataclasses.replace(spec(deferred=True), segments=[Text([7, 7]), ANSWER]))
    others = [stage.session.add(spec(deferred=True)) for _ in range(6)]
    stage.engine.hold()
    for call in (*others[:3], killer, *others[3:]):
        stage.scheduler.submit(call)
    await settle()
    stage.engine.released.set()
    await stage.scheduler.drained()
    assert killer.state is CallState.FAILED
    assert killer.failure is not None
    assert "second attempt" in killer.failure.message
    assert [call.state for call in others] == [CallState.DONE] * 6
    assert len(stage.engine.opened) == 2 * 7, "each of them was tried again once"


async def test_a_path_into_a_value_that_lacks_it_fails_the_call() -> None:
    stage = Stage()
    stage.session.settle(stage.session.put("plan", '{"a": 1}'))
    reads = CallSpec(
        model="m",
        segments=[Text([1]), Input(Reference("plan", ("b",)), "messages.0.content"), ANSWER],
        deferred=True,
    )
    call = stage.session.add(reads)
    stage.scheduler.submit(call)
    await call.output.wait_final()
    assert call.failure is not None
    assert call.failure.code == "bad_reference"


async def test_a_reader_that_leaves_takes_with_it_what_only_it_needed() -> None:
    stage = Stage()
    stage.engine.hold()
    only_its = stage.run(output="a", deferred=False)
    kept = stage.run(output="k", deferred=True)
    call = stage.run("a", "k", output="b", deferred=False)
    stage.scheduler.subscribe(call.output)
    await settle()
    stage.scheduler.unsubscribe(call.output)
    assert (call.state, only_its.state, kept.state) == (CallState.CANCELLED, CallState.CANCELLED, CallState.PREFILL)
    assert [context.freed for context in stage.engine.opened] == [True, False, True]
    stage.engine.released.set()
    await stage.scheduler.drained()
    assert kept.state is CallState.DONE


async def test_a_call_lives_while_one_reader_does() -> None:
    stage = Stage()
    stage.engine.hold()
    call = stage.run(deferred=False)
    for _ in range(2):
        stage.scheduler.subscribe(call.output)
    await settle()
    stage.scheduler.unsubscribe(call.output)
    assert not call.state.final
    stage.engine.released.set()
    await call.output.wait_final()
    stage.scheduler.unsubscribe(call.output)
    assert call.state is CallState.DONE


async def test_who_is_waited_for_ranks_before_who_is_not() -> None:
    stage = Stage()
    stage.engine.hold()
    early, late = stage.run(output="a"), stage.run(output="b")
    reader = stage.run("b", output="c")
    await settle()
    ranks = [context.urgency.rank for context in stage.engine.opened]
    assert ranks[0] < ranks[1]
    stage.scheduler.subscribe(reader.output)
    await settle()
    ranks = [context.urgency.rank for context in stage.engine.opened]
    assert ranks[1] < ranks[0], "what a waiting reader needs goes first"
    assert ranks[2] < ranks[0]
    stage.engine.released.set()
    await stage.scheduler.drained()
    assert early.state is late.state is CallState.DONE


async def test_of_several_that_one_client_waits_for_none_is_watched() -> None:
    """Only the last to end counts: what feeds it must not pause beside those that are nearer to their ends."""
    stage = Stage()
    stage.engine.hold()
    background, one, other = stage.run(), stage.run(), stage.run()
    await settle()
    for call in (one, other):
        stage.scheduler.subscribe(call.output, interactive=False)
    await settle()
    told = [context.urgency for context in stage.engine.opened]
    assert [urgency.interactive for urgency in told] == [False, False, False]
    assert max(told[1].rank, told[2].rank) < told[0].rank, "but soon it is wanted"
    stage.scheduler.subscribe(other.output)
    await settle()
    assert [context.urgency.interactive for context in stage.engine.opened] == [False, False, True]
    stage.scheduler.unsubscribe(other.output)
    await settle()
    assert [context.urgency.interactive for context in stage.engine.opened] == [False, False, False]
    for call in (one, other):
        stage.scheduler.unsubscribe(call.output, interactive=False)
    stage.engine.released.set()
    await stage.scheduler.drained()
    assert background.state is CallState.DONE


async def test_cancelling_before_the_coroutine_first_ran() -> None:
    stage = Stage()
    call = stage.run()
    stage.session.close(stage.scheduler.cancel)
    await stage.scheduler.drained()
    assert call.state is CallState.CANCELLED
    assert call.output.state is VariableState.CANCELLED


def many(stage: Stage, count: int) -> Addition:
    """At once: a call, many that nothing reads, and one that reads the first."""
    first, second = spec(output="first", deferred=False), spec("first", output="second", deferred=False)
    return stage.session.add_all([first, *(spec(deferred=True) for _ in range(count)), second])


async def test_others_have_turns_while_many_calls_are_started() -> None:
    stage, turns = Stage(), 0

    async def other() -> None:
        nonlocal turns
        while True:
            await asyncio.sleep(0)
            turns += 1

    stage.engine.hold()
    addition = many(stage, 400)
    counting = asyncio.create_task(other())
    await stage.scheduler.start(stage.session, addition)
    counting.cancel()
    assert turns >= 20
    assert stage.scheduler.unfinished == len(addition.calls), "all of them are there when it returns"
    stage.engine.released.set()
    await stage.scheduler.drained()
    assert {call.state for call in addition.calls if call.spec.deferred} == {CallState.DONE}


@pytest.mark.parametrize("leaves", [True, False])
async def test_what_is_cancelled_while_many_calls_are_started_is_not_begun(leaves: bool) -> None:
    stage = Stage()
    stage.engine.hold()
    addition = many(stage, 400)
    first, *others, second = addition.calls
    stage.scheduler.subscribe(second.output)
    starting = asyncio.create_task(stage.scheduler.start(stage.session, addition))
    for _ in range(3):
        await asyncio.sleep(0)
    assert 0 < stage.scheduler.unfinished < len(addition.calls)
    if leaves:
        starting.cancel()
        stage.scheduler.unsubscribe(second.output)
    else:
        stage.scheduler.cancel(second, Failure("cancelled", "nobody wants it"))
    await asyncio.wait([starting])
    stage.engine.released.set()
    await stage.scheduler.drained()
    assert first.state is second.state is CallState.CANCELLED, "what it needed is needed no more"
    assert {call.state for call in others} == {CallState.DONE}, "begun is done"
    assert stage.engine.load == 0
    stage.scheduler.submit(first)
    assert stage.scheduler.unfinished == 0, "what has ended is not begun"


async def test_a_server_that_stops_waits_for_what_is_being_started() -> None:
    for turns in range(10):
        stage = Stage()
        stage.run()  # ends at some time meanwhile
        for _ in range(turns):
            await asyncio.sleep(0)
        addition = many(stage, 100)
        starting = asyncio.create_task(stage.scheduler.start(stage.session, addition))
        await asyncio.sleep(0)
        await stage.scheduler.drained()
        assert all(call.state.final for call in addition.calls)
        await starting


async def test_without_an_engine_calls_fail_and_say_so() -> None:
    stage = Stage()
    stage.engine.ready = False
    call = stage.run()
    await call.output.wait_final()
    assert call.failure is not None
    assert call.failure.code == "engine_unavailable"


async def test_admission_is_bounded_but_graphs_go_on() -> None:
    stage = Stage(max_calls=1)
    stage.engine.hold()
    stage.scheduler.admit("", continues=False)
    stage.run()
    with pytest.raises(Overloaded):
        stage.scheduler.admit("", continues=False)
    stage.scheduler.admit("", continues=True)
    stage.scheduler.stop_admitting()
    with pytest.raises(Stopping):
        stage.scheduler.admit("", continues=True)
    await stage.scheduler.close()
    assert stage.scheduler.unfinished == 0


async def test_the_idlest_engine_is_chosen_and_at_a_tie_the_one_that_holds_the_inputs() -> None:
    one, two = StubEngine(name="one"), StubEngine(name="two")
    graph = session()
    source = graph.add(spec(output="a"))
    source.engine = "two"
    call = graph.add(spec("a"))
    assert place(call, [one, two], {}) is two
    two.open("", SOON)
    assert place(call, [one, two], {}) is one
    assert place(call, [one, two], {two: 100}) is two, "which holds the prompt's beginning, and is hardly busier"
    for _ in range(20):
        two.open("", SOON)
    assert place(call, [one, two], {two: 100}) is one


def test_beginnings_are_known_by_what_they_hold_within_texts_too() -> None:
    def call(*segments: Segment) -> Call:
        return graph.add(CallSpec(model="m", segments=[*segments, ANSWER], deferred=True))

    graph = session()
    made = graph.add(spec(output="a"))
    system, value = [*range(300)], Input(Reference("a"), "m")
    first = call(Text([*system, 7]), value, Text([8]))
    same_start = call(Text([*system, 9]))
    same_value = call(Text([*system, 7]), value, Text([9]))
    prefix_index, one, two = PrefixIndex(), StubEngine(name="one"), StubEngine(name="two")
    assert prefix_index.known(prefix_keys(first), 1) == 0
    prefix_index.add(prefix_keys(first), 1)
    prefix_index.given(prefix_keys(first), one)
    assert prefix_index.known(prefix_keys(same_start), 1) == 256, "two chunks of 128, for which the first one pays"
    assert prefix_index.known(prefix_keys(same_value), 1) == 301 + 64
    assert prefix_index.known(prefix_keys(same_value), 2) == 0, "nobody has read it yet, and another may have to"
    prefix_index.read(prefix_keys(first))
    assert prefix_index.known(prefix_keys(same_value), 2) == 301 + 64
    assert prefix_index.held(prefix_keys(same_start)) == {one: 256}
    prefix_index.given(prefix_keys(same_start), two)
    assert prefix_index.held(prefix_keys(same_value)) == {one: 365, two: 256}
    other = Session(id="s2", tenant="other", created=0.0, ttl=1.0, bounds=SessionLimits()).add(
        CallSpec(model="m", segments=[Text(system), ANSWER], deferred=True)
    )
    assert prefix_index.known(prefix_keys(other), 1) == 0, "nothing is shared between keys"
    assert made.output.value is None


def slot(name: str, **transform: object) -> Slot:
    return Slot(name, SamplingParams(), Transform(**transform) if transform else None)  # type: ignore[arg-type]


def submit(stage: Stage, one: CallSpec) -> Call:
    addition = stage.session.add_all([one])
    for call in addition.calls:
        stage.scheduler.submit(call)
    stage.session.settle(addition)
    return addition.calls[0]


async def test_slots_are_generated_in_place_on_one_context() -> None:
    stage = Stage()
    name = Input(Reference("name"), "m")
    segments = [Text([1, 2]), slot("name"), Text([3]), name, ANSWER]
    call = submit(stage, CallSpec(model="m", segments=segments, output="out", deferred=True))
    await stage.scheduler.drained()
    assert call.state is CallState.DONE
    assert stage.session.variable("name").value == "2"
    assert call.output.value == "5", "two tokens, one generated, one between, one of the value"
    assert stage.engine.opened[0].tokens == [1, 2, ord("2"), 3, ord("2"), ord("5")]
    assert len(stage.engine.opened) == 1
    assert (call.usage.prompt, call.usage.completion) == (4, 2)


async def test_an_assistant_message_with_slots_is_the_answer_once_they_are_there() -> None:
    stage = Stage()
    a, b = Input(Reference("a"), "m"), Input(Reference("b"), "m")
    spec = CallSpec(
        model="m", segments=[Text([1] * 12), slot("a"), Text([2]), slot("b")], parts=["A ", a, ", B ", b, "; ", a]
    )
    call = submit(stage, dataclasses.replace(spec, output="all", deferred=True))
    await stage.scheduler.drained()
    assert call.output.value == "A 12, B 15; 12"
    assert stage.session.variable("b").value == "15"


async def test_a_slot_that_is_done_is_not_generated_again_after_a_death() -> None:
    stage = Stage()
    segments = [Text([1, 2]), slot("a"), Text([9] * 20), ANSWER]
    stage.engine.deaths = 1
    call = submit(stage, CallSpec(model="m", segments=segments, output="out", deferred=True))
    await stage.scheduler.drained()
    assert (stage.session.variable("a").value, call.output.value) == ("2", "23")
    assert [context.generates for context in stage.engine.opened] == [2, 1]


async def test_transforms_make_the_value() -> None:
    stage = Stage()
    segments = [Text([1] * 123), Slot(None, SamplingParams(), Transform(regex="1(.)", group=1))]
    call = submit(stage, CallSpec(model="m", segments=segments, output="a", deferred=True))
    nothing = [Text([1] * 45), Slot(None, SamplingParams(), Transform(regex="x"))]
    failing = submit(stage, CallSpec(model="m", segments=nothing, output="b", deferred=True))
    await stage.scheduler.drained()
    assert call.output.value == "2"
    assert failing.failure is not None
    assert (failing.state, failing.failure.code) == (CallState.FAILED, "transform_failed")


async def test_templates_are_put_together_when_all_is_there() -> None:
    stage = Stage()
    stage.session.put("joke")
    parts = ["Joke:\n", Input(Reference("joke"), "template"), "!"]
    addition = stage.session.put("shown", template=parts)
    await stage.scheduler.start(stage.session, addition)
    reader = stage.run("shown")
    await settle()
    assert stage.session.variable("shown").state is VariableState.PENDING
    maker = stage.run(output="joke")
    await stage.scheduler.drained()
    assert maker.output.value == "2"
    assert stage.session.variable("shown").value == "Joke:\n2!"
    assert reader.output.value == "10"


GREEDY = Slot(None, SamplingParams(temperature=0.0))


async def test_identical_calls_run_once_and_live_while_one_is_read() -> None:
    stage = Stage()
    stage.engine.hold()
    greedy = CallSpec(model="m", segments=[Text([1] * 33), GREEDY])
    first, second = submit(stage, greedy), submit(stage, greedy)
    interactive = submit(stage, dataclasses.replace(greedy, share=False, deferred=True))
    other = submit(stage, dataclasses.replace(greedy, segments=[Text([2] * 33), GREEDY], deferred=True))
    for call in (first, second):
        stage.scheduler.subscribe(call.output)
    await settle()
    assert second.leader is first
    stage.scheduler.unsubscribe(first.output)
    assert not first.state.final, "the second is served by it"
    stage.engine.released.set()
    await stage.scheduler.drained()
    late = submit(stage, dataclasses.replace(greedy, deferred=True))
    await stage.scheduler.drained()
    assert [call.output.value for call in (first, second, interactive, other, late)] == ["33"] * 5
    assert sum(context.generates for context in stage.engine.opened) == 3
    assert stage.session.usage()["calls_shared"] == 2
    assert stage.session.usage()["calls_run"] == 3


async def test_a_shared_call_ends_when_its_last_reader_leaves() -> None:
    stage = Stage()
    stage.engine.hold()
    greedy = CallSpec(model="m", segments=[Text([1] * 33), GREEDY])
    first, second = submit(stage, greedy), submit(stage, greedy)
    for call in (first, second):
        stage.scheduler.subscribe(call.output)
    await settle()
    stage.scheduler.unsubscribe(first.output)
    stage.scheduler.unsubscribe(second.output)
    await stage.scheduler.drained()
    assert first.state is second.state is CallState.CANCELLED
    assert stage.engine.load == 0


async def test_a_value_is_filled_while_it_is_made() -> None:
    stage = Stage()
    source = stage.run(output="grows")
    reader = stage.run("grows")
    stage.engine.hold()
    await settle()
    source.output.append(Piece("x" * 100))
    await settle()
    assert stage.engine.opened[1].tokens == [1, 2, *[ord("x")] * 100]
    stage.engine.released.set()
    await stage.scheduler.drained()
    assert reader.output.value == "103"


async def test_a_deleted_variable_ends_who_waits_for_it_and_work_that_only_it_needed() -> None:
    stage = Stage()
    stage.engine.hold()
    stage.session.put("never")
    waiting = stage.run("never")
    running = stage.run(output="a")
    await settle()
    for name in ("never", "a"):
        stage.scheduler.release(stage.session.delete(name))
    await settle()
    assert running.state is CallState.CANCELLED
    assert waiting.failure is not None
    assert waiting.failure.code == "upstream_failed"
    stage.session.put("a")


async def test_without_filling_ahead_nothing_is_read_before_all_values_are_there() -> None:
    stage = Stage()
    stage.scheduler = Scheduler(Stubs(stage.engine), 10, fill_ahead=False)
    stage.session.put("later")
    call = stage.run("later")
    await settle()
    assert (call.state, stage.engine.opened) == (CallState.WAITING, [])
    stage.session.settle(stage.session.put("later", "xyz"))
    await call.output.wait_final()
    assert call.output.value == "5"


async def test_by_arrival_nobody_overtakes() -> None:
    stage = Stage()
    stage.scheduler = Scheduler(Stubs(stage.engine), 10, priorities=Priorities(CostModel(), Order.ARRIVAL))
    stage.engine.hold()
    stage.run(output="a")
    wanted = stage.run(output="b")
    stage.scheduler.subscribe(wanted.output)
    await settle()
    told = [context.urgency for context in stage.engine.opened]
    assert told[0].rank < told[1].rank
    assert all(one.interactive for one in told)
    stage.engine.released.set()
    await stage.scheduler.drained()


async def test_an_engine_is_told_who_is_watched() -> None:
    stage = Stage()
    stage.engine.hold()
    stage.run(output="a")
    last = stage.run("a", output="b")
    await settle()
    assert [context.urgency.interactive for context in stage.engine.opened] == [False, False]
    stage.scheduler.subscribe(last.output)
    await settle()
    assert [context.urgency.interactive for context in stage.engine.opened] == [False, True]
    stage.scheduler.unsubscribe(last.output)
    await settle()
    assert [context.urgency.interactive for context in stage.engine.opened] == [False, False]
    stage.engine.released.set()
    await stage.scheduler.drained()


async def test_a_call_that_lost_its_engine_goes_to_another() -> None:
    ill, well = StubEngine(name="ill"), StubEngine(name="well")
    scheduler = Scheduler(Stubs(ill, well), 10)
    call = session().add(spec(output="out"))
    ill.doomed = {call.spec.segments[0].tokens[0]} if isinstance(call.spec.segments[0], Text) else set()
    scheduler.submit(call)
    await call.output.wait_final()
    assert (call.state, call.engine) == (CallState.DONE, "well")
    assert len(ill.opened) == 1, "the ill one is not asked again while another is there"
    await scheduler.close()


async def test_models_answer_in_ones_place_in_their_order() -> None:
    class Two(Stubs):
        async def serving(self, model: str, *, wait: bool = True) -> Sequence[Engine]:
            asked.append((model, wait))
            if model == "first":
                raise NoEngine("it is down")
            return self.engines

    asked: list[tuple[str, bool]] = []
    engine = StubEngine()
    scheduler = Scheduler(Two(engine), 10)
    segments: list[Segment] = [Text([1] * 12), ANSWER]
    ones = session()
    call = ones.add(
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
    assert asked == [("first", False), ("second", False)], "only the last is waited for"
    await scheduler.close()


async def test_no_tenant_alone_fills_the_queue() -> None:
    engine = StubEngine()
    scheduler = Scheduler(Stubs(engine), 8, several_tenants=True)
    sessions = {tenant: Session(id=tenant, tenant=tenant, created=0.0, ttl=60.0) for tenant in ("a", "b")}

    def wait(tenant: str, count: int) -> None:
        session = sessions[tenant]
        if "never" not in session.variables:
            session.put("never")
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


async def test_slots_of_several_messages_are_generated_in_turn() -> None:
    stage = Stage()
    slots = [Slot("fruit", SamplingParams()), Text([5]), Slot("colour", SamplingParams())]
    parts = ["It is ", Input(Reference("colour"), "messages.3.content"), "."]
    call = stage.session.add(CallSpec(model="m", segments=[Text([1]), *slots], parts=parts, output="said"))
    stage.scheduler.subscribe(call.output)
    stage.scheduler.submit(call)
    async with asyncio.timeout(5):
        await call.output.wait_final()
    fruit, colour = (stage.session.variable(name).value for name in ("fruit", "colour"))
    assert call.output.value == f"It is {colour}."
    assert (fruit, colour) == ("1", "3"), "the stub says how many tokens it was given"
    stage.scheduler.unsubscribe(call.output)


async def test_a_slot_that_is_read_before_it_is_generated_fails_its_call() -> None:
    stage = Stage()
    segments = [Text([1]), Input(Reference("late"), "messages.0.content"), Slot("late", SamplingParams())]
    call = stage.session.add(
        dataclasses.replace(spec(deferred=True), segments=[Text([1]), Slot("late", SamplingParams())])
    )
    call.spec = dataclasses.replace(call.spec, segments=segments)  # the graph would refuse it
    stage.scheduler.submit(call)
    async with asyncio.timeout(5):
        await call.output.wait_final()
    assert call.failure is not None
    assert call.failure.code == "internal_error"


async def test_a_call_that_nothing_works_on_is_ended_with_a_line_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    stage = Stage()
    stage.session.put("declared")
    waits = stage.run("declared", output="a")
    reader = stage.run("a", output="b")
    await settle()
    assert stage.scheduler.end_stuck([stage.session]) == [], "a client may set it"
    other = stage.session.add(spec(deferred=True))  # as if the scheduler had never started it
    assert stage.scheduler.end_stuck([stage.session]) == [], "it may be about to be started"
    assert stage.scheduler.end_stuck([stage.session]) == [other]
    waits.inputs["declared"].producer = reader  # as if the graph had let a cycle pass
    waits.awaits = waits.inputs["declared"]
    (first, *_) = stage.scheduler.end_stuck([stage.session])
    assert first in (waits, reader)
    await stage.scheduler.drained()
    for call in (waits, reader, other):
        assert call.state is CallState.FAILED
        assert call.failure is not None
        assert call.failure.code in ("internal_error", "upstream_failed")
    assert "waits for 'declared', which gets no value" in caplog.text
    assert "has no coroutine" in caplog.text


async def test_calls_of_a_large_addition_are_not_taken_for_lost_before_they_are_submitted() -> None:
    stage = Stage()
    stage.session.put("declared")
    addition = stage.session.add_all([spec("declared", deferred=True) for _ in range(200)])
    starting = asyncio.create_task(stage.scheduler.start(stage.session, addition))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert 0 < stage.scheduler.unfinished < 200, "in pieces"
    for _ in range(3):
        assert stage.scheduler.end_stuck([stage.session]) == []
    await starting
    assert stage.scheduler.end_stuck([stage.session]) == []
    await stage.scheduler.close()
