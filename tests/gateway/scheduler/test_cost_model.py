"""gateway/scheduler/cost_model.py: estimates follow from parameters, from paces and from earlier calls."""

from dataclasses import dataclass
from typing import Any

import pytest

from engine.sampling_params import SamplingParams
from gateway.engines.protocol import StepTimes
from gateway.graph.call import Call, CallSpec, Input, Slot
from gateway.graph.forms.form import Map
from gateway.graph.references import Reference
from gateway.graph.segments import Text
from gateway.graph.session import Session
from gateway.graph.variable import Piece
from gateway.scheduler.cost_model import Cost, CostModel
from tests.gateway.graph.test_session import session


@dataclass
class PacedEngine:
    """The part of an engine that the cost model reads."""

    step_times: StepTimes | None


def add(to: Session, output: str, *reads: str, prompt: int = 100, tokens: int | None = 20, model: str = "m") -> Call:
    inputs = [Input(Reference(name), "") for name in reads]
    slot = Slot(None, SamplingParams(max_tokens=tokens))
    return to.add(CallSpec(model=model, segments=[Text([1] * prompt), *inputs, slot], output=output, deferred=True))


def answered(call: Call, tokens: int) -> Call:
    call.usage.completion = tokens
    return call


def paced(row: float = 0.001, step: float = 0.01) -> CostModel:
    costs, engine = CostModel(), PacedEngine(StepTimes(row, step))
    costs.observe(engine)  # type: ignore[arg-type]
    return costs


def test_time_is_that_of_the_prompt_and_of_each_token() -> None:
    cost = paced().cost(add(session(), "a"))
    assert cost.time == pytest.approx(100 * 0.001 + 20 * 0.01)
    assert 100 * 0.001 < cost.work < cost.time, "steps are shared"


@pytest.mark.parametrize(("cached", "rows"), [(0, 100), (60, 40), (100, 0), (500, 0)])
def test_cached_tokens_cost_nothing(cached: int, rows: int) -> None:
    assert paced().cost(add(session(), "a"), cached).time == pytest.approx(rows * 0.001 + 20 * 0.01)


def test_a_template_costs_nothing() -> None:
    graph = session()
    template = graph.add(CallSpec(model="", parts=["text"], output="t"))
    assert paced().cost(template) == Cost(0.0, 0.0)


def test_inputs_count_with_their_known_or_expected_length() -> None:
    graph, costs = session(), paced()
    graph.set_values(graph.add_variable("known", "x" * 400))
    graph.set_values(graph.add_variable("declared"))
    plain = costs.cost(add(graph, "a")).time
    assert costs.cost(add(graph, "b", "known")).time == pytest.approx(plain + 100 * 0.001)
    assert costs.cost(add(graph, "c", "declared")).time == pytest.approx(plain)
    assert costs.cost(add(graph, "d", "a")).time == pytest.approx(plain + 20 * 0.001)


def test_lengths_are_learned_from_calls_of_the_same_shape() -> None:
    graph, costs = session(), paced()
    before = costs.cost(add(graph, "a", tokens=None)).time
    for index in range(60):
        costs.learn(answered(add(graph, f"b{index}", tokens=None), 10))
    assert costs.cost(add(graph, "c", tokens=None)).time == pytest.approx(0.1 + 10 * 0.01)
    assert costs.cost(add(graph, "d", tokens=None)).time < before
    assert costs.cost(add(graph, "e", tokens=30)).time == pytest.approx(0.1 + 30 * 0.01), "another shape"


def test_calls_that_did_not_generate_teach_nothing() -> None:
    graph, costs = session(), paced()
    follower, leader = add(graph, "a", tokens=None), add(graph, "b", tokens=None)
    follower.follow(leader)
    before = costs.cost(leader)
    costs.learn(answered(follower, 5))
    costs.learn(leader)
    assert costs.cost(leader) == before


@pytest.mark.parametrize("pace", [None, StepTimes(0.001, 0.01)])
def test_an_engine_without_a_pace_changes_nothing(pace: StepTimes | None) -> None:
    costs = CostModel()
    engines: list[Any] = [PacedEngine(pace), PacedEngine(None)]
    for engine in engines:
        costs.observe(engine)
    assert costs.pace == pace


def test_the_average_pace_moves_slowly() -> None:
    costs, slow = paced(0.001, 0.01), PacedEngine(StepTimes(0.1, 1.0))
    costs.observe(slow)  # type: ignore[arg-type]
    assert costs.pace is not None
    assert 0.001 < costs.pace.row_seconds < 0.002
    for _ in range(10_000):
        costs.observe(slow)  # type: ignore[arg-type]
    assert costs.pace.step_seconds == pytest.approx(1.0, rel=0.01)


def test_the_length_of_a_map_is_learned_from_maps_of_the_same_call() -> None:
    graph, costs = session(), paced()

    def mapped(name: str) -> Call:
        form = Map('["x"]', "item", CallSpec(model="m", segments=[Slot(None, SamplingParams())]), max_items=9)
        return graph.add(CallSpec(model="", form=form, output=name, deferred=True))

    first = mapped("first")
    before = costs.tokens(first.output)
    first.output.append(Piece("x" * 400))
    first.output.complete()
    costs.learn(first)
    assert costs.tokens(mapped("second").output) == 100 != before
