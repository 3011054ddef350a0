"""gateway/simulator/workload.py: generated applications are graphs that a session accepts."""

import itertools
import random
import statistics

import pytest

from gateway.graph.session import Session
from gateway.simulator.workload import MIXES, Applications, arrivals


@pytest.mark.parametrize("mix", MIXES)
def test_every_application_is_a_graph_that_waits_for_its_own_outputs(mix: str) -> None:
    for application in itertools.islice(Applications(random.Random(1)).of(mix), 20):
        graph = Session(id="s", tenant="t", created=0.0, ttl=60.0)
        for step in application.steps:
            addition = graph.add_all(step.calls)
            assert len(addition.calls) == len(step.calls)
            assert step.awaited
            assert all(graph.variable(name).producer is not None for name in step.awaited)
        if mix != "mixed":
            assert application.kind == mix


def test_the_same_seed_generates_the_same_applications() -> None:
    first, second, other = (
        list(itertools.islice(Applications(random.Random(seed)).of("mixed"), 30)) for seed in (1, 1, 2)
    )
    assert first == second != other


def test_a_mix_has_all_kinds() -> None:
    kinds = {application.kind for application in itertools.islice(Applications(random.Random(1)).of("mixed"), 300)}
    assert kinds == set(MIXES) - {"mixed"}


def test_only_copilots_share_the_beginnings_of_their_prompts() -> None:
    def beginnings(mix: str) -> set[int]:
        found = itertools.islice(Applications(random.Random(1)).of(mix), 40)
        return {application.steps[0].calls[0].segments[0].tokens[0] for application in found}  # type: ignore[union-attr]

    assert len(beginnings("copilot")) == 4
    assert len(beginnings("chat")) == 40


@pytest.mark.parametrize("bursts", [False, True])
def test_the_rate_of_arrivals(bursts: bool) -> None:
    gaps = list(itertools.islice(arrivals(random.Random(1), 5.0, bursts=bursts), 20_000))
    assert min(gaps) >= 0.0
    assert statistics.mean(gaps) == pytest.approx(0.2, rel=0.2)
    if bursts:
        assert statistics.median(gaps) < 0.01
