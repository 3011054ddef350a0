"""gateway/graph/session.py"""

import asyncio
import gc
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.sampling_params import SamplingParams
from gateway.graph.call import CallSpec, CallState
from gateway.graph.call_size import VARIABLE_BYTES
from gateway.graph.errors import (
    BadReference,
    BadText,
    Cycle,
    GraphError,
    SessionClosed,
    TooLarge,
    TooManyWaiters,
    UnknownVariable,
    VariableAlreadySet,
)
from gateway.graph.events import Exposure, Fact, NullSink
from gateway.graph.limits import SessionLimits, SharedLimit, SharedLimits
from gateway.graph.prefix_hash import prefix_hashes
from gateway.graph.references import Reference
from gateway.graph.segments import Input, Segment, Slot, Text
from gateway.graph.session import Session
from gateway.graph.variable import Piece, VariableState


def session(**limits: Any) -> Session:
    return Session(id="s", tenant="t", created=0.0, ttl=60.0, limits=SessionLimits(**limits))


def spec(*reads: str, output: str | None = None, **more: Any) -> CallSpec:
    segments: list[Segment] = [Text([1, 2])]
    segments += [Input(Reference(name), f"messages.{index}.content") for index, name in enumerate(reads)]
    segments.append(Slot(None, SamplingParams()))
    return CallSpec(model="m", segments=segments, output=output, **more)


def put(graph: Session, name: str, value: str) -> None:
    graph.set_values(graph.add_variable(name, value))


def test_calls_and_variables_are_joined() -> None:
    graph = session()
    first = graph.add(spec(output="a"))
    second = graph.add(spec("a", "topic", inputs={"topic": "cats"}))
    assert graph.variable("a").producer is first
    assert graph.variable("a").consumers == [second]
    assert graph.variable("topic").producer is None
    assert graph.variable("topic").value == "cats"
    assert second.waiting_on == ["a"]
    assert second.output.name in graph.variables
    assert second.output.state is VariableState.PENDING


def test_an_unknown_name_is_rejected_with_its_field_and_similar_names() -> None:
    graph = session()
    put(graph, "summary_1", "x")
    with pytest.raises(UnknownVariable, match="did you mean <<summary_1>>") as refusal:
        graph.add(spec("sumary_1", output="out"))
    assert refusal.value.where == "messages.0.content"
    assert "out" not in graph.variables


@pytest.mark.parametrize("kind", [VariableAlreadySet, BadReference, UnknownVariable, TooLarge])
def test_a_rejected_call_changes_nothing(kind: type[GraphError]) -> None:
    graph = session(value_bytes=10)
    graph.add(spec(output="taken"))
    before = (set(graph.variables), set(graph.calls))
    wrong = {
        VariableAlreadySet: spec(output="taken", inputs={"fresh": "x"}),
        BadReference: spec(output="1st", inputs={"fresh": "x"}),
        UnknownVariable: spec("nobody", output="b", inputs={"fresh": "x"}),
        TooLarge: spec(output="b", inputs={"fresh": "x" * 11}),
    }[kind]
    with pytest.raises(kind):
        graph.add(wrong)
    assert (set(graph.variables), set(graph.calls)) == before


def test_inputs_and_output_must_differ() -> None:
    with pytest.raises(VariableAlreadySet, match="is also an output"):
        session().add(spec(output="a", inputs={"a": "x"}))


def test_a_declared_variable_can_be_read_before_it_has_a_producer() -> None:
    graph = session()
    graph.add_variable("later")
    reader = graph.add(spec("later"))
    assert reader.waiting_on == ["later"]
    producer = graph.add(spec(output="later"))
    assert graph.variable("later").producer is producer
    assert graph.variable("later").consumers == [reader]
    with pytest.raises(VariableAlreadySet):
        graph.add_variable("later")


def test_a_cycle_is_rejected_and_its_names_are_listed() -> None:
    graph = session()
    graph.add_variable("a")
    graph.add(spec("a", output="b"))
    graph.add(spec("b", output="c"))
    with pytest.raises(Cycle, match="a <- c <- b <- a"):
        graph.add(spec("c", output="a"))
    with pytest.raises(Cycle, match="x <- x"):
        graph.add(spec("x", output="x"))
    assert "x" not in graph.variables


@given(edges=st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), max_size=12))
def test_the_graph_never_has_a_cycle(edges: list[tuple[int, int]]) -> None:
    graph = session()
    for name in range(7):
        graph.add_variable(f"v{name}")
    accepted: dict[int, int] = {}
    for reads, makes in edges:
        index: int | None = reads
        is_cycle = False
        while index is not None:  # reference algorithm: each call has one input, so producers form chains
            is_cycle |= index == makes
            index = accepted.get(index)
        try:
            graph.add(spec(f"v{reads}", output=f"v{makes}"))
        except Cycle:
            assert is_cycle
            assert makes not in accepted
        except VariableAlreadySet:
            assert makes in accepted
        else:
            assert not is_cycle
            accepted[makes] = reads


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


def test_prefix_hashes_are_equal_as_far_as_prompts_are_equal() -> None:
    graph = session()
    put(graph, "a", "x")
    one, two = graph.add(spec("a")), graph.add(spec("a"))
    other = graph.add(CallSpec(model="m", segments=[Text([1, 2]), Text([3])]))
    assert prefix_hashes(one)[:2] == prefix_hashes(two)[:2]
    assert prefix_hashes(one)[0] == prefix_hashes(other)[0]
    assert prefix_hashes(one)[1] != prefix_hashes(other)[1]


def test_closing_a_session_cancels_unfinished_calls_and_variables() -> None:
    graph = session()
    done, running = graph.add(spec()), graph.add(spec())
    done.set_state(CallState.DONE)
    graph.add_variable("never")
    cancelled = []
    graph.close(lambda call, failure: cancelled.append((call, failure.code)))
    assert cancelled == [(running, "cancelled")]
    assert graph.variable("never").state is VariableState.CANCELLED


def test_deleted_names_make_no_edges() -> None:
    graph = session()
    graph.add_variable("late")
    graph.add(spec("late", output="gone"))
    graph.add(spec("gone", output="last"))
    graph.delete("gone")
    graph.add_variable("gone")
    deep = graph.add(
        spec(output="late")
    )  # its readers become deeper, although a name on the path was deleted and declared again
    assert [call.depth for call in graph.calls.values()] == [2, 3, deep.depth] == [2, 3, 1]
    graph.add(spec("last", output="gone"))  # the name belongs to another variable now, so this is no cycle
    assert graph.calls[list(graph.calls)[-1]].depth == 4


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


def test_depth_of_calls_that_are_added_together() -> None:
    graph = session()
    addition = graph.add_all([spec(output="a"), spec("a", output="b"), spec(), spec("a", "b")])
    assert [call.depth for call in addition.calls] == [1, 2, 1, 3]
    assert [call.depth for call in graph.add_all([spec(), spec("b")]).calls] == [1, 3]


def test_dissolving_a_session_frees_its_calls_unless_they_run() -> None:
    graph = session()
    first, second = graph.add_all([spec(output="a"), spec("a", output="b")]).calls
    graph.dissolve()
    assert second.inputs["a"].producer is first
    for call in (first, second):
        call.set_state(CallState.DONE)
        call.conclude()
    gc.collect()
    graph.dissolve()
    del graph, first, second, call
    assert gc.collect() == 0, "no reference cycles were left for the collector"


def test_a_declared_name_cannot_hide_depth() -> None:
    graph = session(depth=3)
    graph.add_variable("late")
    graph.add(spec("late", output="a"))
    graph.add(spec("a", output="b"))
    graph.add(spec(output="x"))
    with pytest.raises(TooLarge, match="4 calls would wait for one another"):
        graph.add(spec("x", output="late"))
    graph.add(spec(output="late"))


class BlockedLog(NullSink):
    """Log that stores facts only once `kept` is set."""

    def __init__(self) -> None:
        self.written: list[Fact] = []
        self.kept = asyncio.Event()

    def write(self, session: Session, fact: Fact) -> None:
        self.written.append(fact)

    async def flush(self) -> None:
        await self.kept.wait()


async def test_random_text_is_readable_only_after_its_exposure_is_stored() -> None:
    log = BlockedLog()
    mine = Session(id="s", tenant="t", created=0.0, ttl=60.0, sink=log)
    call = mine.add(CallSpec(model="m", segments=[Text([1]), Slot(None, SamplingParams(temperature=1.0))]))
    call.output.append(Piece("a"))
    with mine.read(call.output) as one, mine.read(call.output) as other:
        reading = [asyncio.ensure_future(reader.next_pieces()) for reader in (one, other)]
        await asyncio.sleep(0.01)
        assert not any(read.done() for read in reading)
        assert call.output.is_exposed, "its producer cannot start again"
        log.kept.set()
        assert [[piece.text for piece in await read] for read in reading] == [["a"], ["a"]]
    assert sum(isinstance(fact, Exposure) for fact in log.written) == 1


def test_text_with_lone_surrogates_is_rejected_and_changes_nothing() -> None:
    graph = session()
    with pytest.raises(BadText) as refusal:
        graph.add_variable("a", "x\ud800")
    assert refusal.value.where == "name"
    with pytest.raises(BadText):
        graph.add_variable("a", template=["x\udfff"])
    with pytest.raises(BadText):
        graph.add(spec(output="b", inputs={"in": "\udc00"}))
    assert not graph.variables
    variable = graph.add(spec(output="b")).output
    with pytest.raises(BadText):
        graph.record_value(variable, "\ud800")


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


def test_a_graph_is_blocked_if_all_calls_wait_for_declared_variables() -> None:
    graph = session()
    assert not graph.is_blocked
    graph.add_variable("declared")
    first, second = graph.add(spec("declared", output="a")), graph.add(spec("a"))
    assert graph.is_blocked
    runs = graph.add(spec())
    assert not graph.is_blocked
    runs.set_state(CallState.DONE)
    assert graph.is_blocked
    put(graph, "declared", "x")
    assert not graph.is_blocked
    for call in (first, second):
        call.set_state(CallState.DONE)
    assert not graph.is_blocked


def test_references_count_towards_the_bytes_of_a_session() -> None:
    graph = session(bytes=100_000)
    put(graph, "a", "x")
    with pytest.raises(TooLarge, match="the maximum is"):
        graph.add_variable("t", template=[Input(Reference("a"), "template")] * 1000)
    graph.add_variable("t", template=[Input(Reference("a"), "template")] * 100)
    assert graph.resources.bytes > 100 * 100


def test_parameters_count_towards_the_bytes_of_a_session() -> None:
    costly = SamplingParams(
        logit_bias=dict.fromkeys(range(1_000), 1.0), prediction="x" * 50_000, stop_token_ids=(1,) * 500
    )
    slots = [Slot(f"s{number}", costly) for number in range(10)]
    graph = session(bytes=1_000_000)
    graph.add(CallSpec(model="m", segments=[Text([1]), *slots, Slot(None, costly)]))
    assert 150_000 < graph.resources.bytes < 250_000, "parameters that slots share count once"
    other = SamplingParams(json_schema="x" * 1_000_000)
    with pytest.raises(TooLarge, match="the maximum is"):
        graph.add(CallSpec(model="m", segments=[Text([1]), Slot(None, other)]))


def test_an_ended_session_accepts_no_additions() -> None:
    shared = SharedLimits(SharedLimit(10_000), SharedLimit(10))
    graph = session()
    graph.resources.join(shared)
    graph.close(lambda call, failure: None)
    for add in (
        lambda: graph.add(spec(output="a")),
        lambda: graph.add_variable("b"),
        lambda: graph.add_variable("c", "x"),
    ):
        with pytest.raises(SessionClosed):
            add()
    assert not graph.calls
    assert shared.bytes.amount("t") == 0


def test_the_number_of_inputs_of_all_calls_is_limited() -> None:
    graph = session(edges=3)
    put(graph, "a", "x")
    put(graph, "b", "x")
    graph.add(spec("a", "b"))
    with pytest.raises(TooLarge, match="read 4 inputs; the maximum is 3"):
        graph.add(spec("a", "b"))
    graph.add(spec("a"))


@given(st.lists(st.tuples(st.sets(st.integers(0, 5), max_size=3), st.booleans()), max_size=8))
def test_unfinished_consumers_are_counted(steps: list[tuple[set[int], bool]]) -> None:
    graph = session()
    calls = []
    for number, (reads, ends) in enumerate(steps):
        names = [f"v{read}" for read in reads if read < number]
        calls.append(graph.add(spec(*names, output=f"v{number}")))
        if ends:
            calls[number // 2].state.is_final or calls[number // 2].set_state(CallState.DONE)
        for variable in graph.variables.values():
            unfinished = [call for call in variable.consumers if not call.state.is_final]
            assert variable.unfinished_consumers == len(unfinished)
