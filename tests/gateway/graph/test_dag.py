"""Tests of gateway/graph/dag.py: cycles, and the number of calls on a path."""

from itertools import pairwise

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from gateway.graph.call import CallSpec
from gateway.graph.errors import Cycle, TooLarge, VariableAlreadySet
from tests.gateway.graph.test_session import session, spec


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


def test_depth_of_calls_that_are_added_together() -> None:
    graph = session()
    addition = graph.add_all([spec(output="a"), spec("a", output="b"), spec(), spec("a", "b")])
    assert [call.depth for call in addition.calls] == [1, 2, 1, 3]
    assert [call.depth for call in graph.add_all([spec(), spec("b")]).calls] == [1, 3]


def test_a_declared_name_cannot_hide_depth() -> None:
    graph = session(depth=3)
    graph.add_variable("late")
    graph.add(spec("late", output="a"))
    graph.add(spec("a", output="b"))
    graph.add(spec(output="x"))
    with pytest.raises(TooLarge, match="4 calls would wait for one another"):
        graph.add(spec("x", output="late"))
    graph.add(spec(output="late"))


def test_a_cycle_names_the_field_that_closes_it() -> None:
    graph = session()
    graph.add_variable("x")
    graph.add(spec("x", output="y"))
    first, second = spec("free", "y", output="z"), spec("z", output="x")
    graph.add_variable("free")
    with pytest.raises(Cycle, match="a call would wait for itself: x <- z <- y <- x") as refusal:
        graph.add_all([second, first])
    assert refusal.value.where == "messages.0.content"
    assert not graph.variables["y"].consumers, "nothing was added"


NAMES = 6


@st.composite
def reads_of_calls(draw: st.DrawFn) -> list[set[int]]:
    """Return for each of several calls the calls whose outputs it reads. There may be cycles."""
    count = draw(st.integers(1, NAMES))
    return [draw(st.sets(st.integers(0, count - 1), max_size=3)) for _ in range(count)]


def longest_paths(reads: list[set[int]]) -> list[int] | None:
    """Return the number of calls on the longest path to each call, by trying all paths; None if there is a cycle."""

    def longest(call: int, path: tuple[int, ...]) -> int:
        if call in path:
            raise RecursionError
        return 1 + max((longest(source, (*path, call)) for source in reads[call]), default=0)

    try:
        return [longest(call, ()) for call in range(len(reads))]
    except RecursionError:
        return None


def assert_is_cycle(message: str, reads: list[set[int]]) -> None:
    """Check that each call on the path that an error lists reads the next one."""
    names = message.rpartition(": ")[2].split(" <- ")
    assert names[0] == names[-1]
    assert len(set(names)) == len(names) - 1, "each name once"
    for reader, source in pairwise(names):
        assert int(source[1:]) in reads[int(reader[1:])]


@given(reads=reads_of_calls(), order=st.permutations(range(NAMES)), cuts=st.sets(st.integers(1, NAMES - 1)))
def test_depths_and_cycles_are_those_of_all_paths(reads: list[set[int]], order: list[int], cuts: set[int]) -> None:
    """Add the calls in several requests, in any order, so that new calls make existing ones deeper."""
    graph = session(depth=NAMES)
    for call in range(len(reads)):
        graph.add_variable(f"v{call}")
    calls = [call for call in order if call < len(reads)]
    bounds = [0, *sorted(cut for cut in cuts if cut < len(calls)), len(calls)]
    added: set[int] = set()
    for begin, end in pairwise(bounds):
        batch = calls[begin:end]
        exist = added | set(batch)
        known = [sources & exist if call in exist else set() for call, sources in enumerate(reads)]
        expected = longest_paths(known)
        before = {variable.name: variable.producer for variable in graph.variables.values()}
        specs: list[CallSpec] = [
            spec(*(f"v{source}" for source in sorted(reads[call])), output=f"v{call}") for call in batch
        ]
        try:
            graph.add_all(specs)
        except Cycle as error:
            assert expected is None
            assert_is_cycle(str(error), known)
            assert {variable.name: variable.producer for variable in graph.variables.values()} == before
            return
        assert expected is not None
        added = exist
        depths = {call: graph.variable(f"v{call}").producer.depth for call in added}  # type: ignore[union-attr]
        assert depths == {call: expected[call] for call in added}


@given(reads=reads_of_calls(), depth=st.integers(1, NAMES))
def test_paths_longer_than_the_maximum_are_rejected(reads: list[set[int]], depth: int) -> None:
    expected = longest_paths(reads)
    assume(expected is not None)
    assert expected is not None
    graph = session(depth=depth)
    specs = [
        spec(*(f"v{source}" for source in sorted(sources)), output=f"v{call}") for call, sources in enumerate(reads)
    ]
    if max(expected) > depth:
        with pytest.raises(TooLarge, match=f"calls would wait for one another in a row; the maximum is {depth}"):
            graph.add_all(specs)
        assert not graph.calls
    else:
        graph.add_all(specs)


def test_a_cycle_is_listed_from_the_new_call_that_closes_it() -> None:
    graph = session()
    graph.add_variable("v")
    graph.add(spec("v", output="e"))
    with pytest.raises(Cycle, match="itself: v <- e <- v") as refusal:
        graph.add_all([spec("e", output="a"), spec("e", output="v")])
    assert refusal.value.where == "messages.0.content"


def test_calls_that_read_a_deleted_variable_do_not_read_the_new_one_of_its_name() -> None:
    graph = session()
    graph.add_variable("x")
    graph.add(spec("x", output="r"))
    graph.delete("x")
    graph.add_variable("x")
    later = graph.add(spec("x", output="q"))
    new = graph.add(spec("r", output="x"))
    assert (new.depth, later.depth) == (2, 3)
