"""gateway/scheduler/placement.py: load, cached beginnings and producers decide about the engine."""

import random
from typing import Any

import pytest

from gateway.engines.protocol import Urgency
from gateway.scheduler.placement import place
from tests.fakes.engine import FakeEngine
from tests.gateway.graph.test_session import session, spec


def engines(*loads: int) -> list[Any]:
    found = [FakeEngine(name=f"e{index}") for index in range(len(loads))]
    for engine, load in zip(found, loads, strict=True):
        engine.load = load
    return found


@pytest.mark.parametrize(
    ("loads", "prefix_tokens", "expected"),
    [
        ((0, 0), {}, 0),
        ((1, 0), {}, 1),
        ((1, 0), {0: 11}, 1),
        ((1, 0), {0: 13}, 0),
        ((3, 0), {0: 30}, 1),
        ((3, 0), {0: 37}, 0),
        ((0, 0), {1: 1}, 1),
    ],
)
def test_cached_tokens_outweigh_load(loads: tuple[int, ...], prefix_tokens: dict[int, int], expected: int) -> None:
    found = engines(*loads)
    held = {found[index]: tokens for index, tokens in prefix_tokens.items()}
    assert place(session().add(spec()), found, held) is found[expected]


def test_units_of_other_engines_are_converted() -> None:
    found = engines(1, 0)
    found[0].tokens_per_unit = 0.25
    call = session().add(spec())
    assert place(call, found, {found[0]: 40}) is found[1], "forty characters are ten tokens"
    assert place(call, found, {found[0]: 52}) is found[0]


def test_among_equals_the_producer_of_the_inputs_is_preferred() -> None:
    graph, found = session(), engines(0, 0)
    producer = graph.add(spec(output="a"))
    producer.engine = "e1"
    assert place(graph.add(spec("a")), found, {}) is found[1]
    found[1].load = 1
    assert place(graph.add(spec("a")), found, {}) is found[0]


def test_of_many_engines_an_idle_one_is_found() -> None:
    rng, graph = random.Random(1), session()
    found = engines(*[5] * 100)
    for index in rng.sample(range(100), 20):
        found[index].load = 0
    loads = [place(graph.add(spec()), found, {}).load for _ in range(50)]
    assert loads.count(0) >= 45


def test_of_many_engines_the_holder_of_the_beginning_is_considered() -> None:
    found = engines(*[0] * 100)
    call = session().add(spec())
    assert place(call, found, {found[77]: 500}) is found[77]
    found[77].is_ready = False
    assert place(call, found, {found[77]: 500}) is not found[77]


async def test_placement_chooses_the_idlest_engine_or_the_one_that_holds_the_prompt() -> None:
    one, two = FakeEngine(name="one"), FakeEngine(name="two")
    graph = session()
    source = graph.add(spec(output="a"))
    source.engine = "two"
    call = graph.add(spec("a"))
    assert place(call, [one, two], {}) is two
    two.open("", Urgency(0.0, interactive=True))
    assert place(call, [one, two], {}) is one
    assert place(call, [one, two], {two: 100}) is two, "it holds the prompt's beginning and is hardly busier"
    for _ in range(20):
        two.open("", Urgency(0.0, interactive=True))
    assert place(call, [one, two], {two: 100}) is one
