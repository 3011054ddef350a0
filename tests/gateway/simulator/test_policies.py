"""gateway/simulator/policies.py: the order and the placement of each policy."""

import pytest

from gateway.graph.call import Objective
from gateway.simulator.policies import POLICIES, policy
from tests.fakes.engine import FakeEngine
from tests.gateway.graph.test_session import session, spec


def engines(*loads: int) -> list[FakeEngine]:
    found = [FakeEngine(name=f"e{index}") for index in range(len(loads))]
    for engine, load in zip(found, loads, strict=True):
        engine.load = load
    return found


@pytest.mark.parametrize("name", POLICIES)
def test_every_run_has_a_policy_of_its_own(name: str) -> None:
    first, second = policy(name), policy(name)
    assert first.name == second.name == name
    assert first.priorities is not second.priorities


def test_an_unknown_policy_is_refused() -> None:
    with pytest.raises(ValueError, match="no policy 'lottery'"):
        policy("lottery")


def test_only_this_scheduler_prefetches() -> None:
    assert [name for name in POLICIES if policy(name).fill_ahead] == ["myna"]


def test_fifo_chooses_the_idlest_engine_whatever_is_cached() -> None:
    found = engines(2, 1)
    assert policy("fifo").place(session().add(spec()), found, {found[0]: 1_000}) is found[1]


def test_prefix_chooses_the_longest_beginning_and_else_takes_turns() -> None:
    found, chosen, call = engines(9, 0, 0), policy("prefix"), session().add(spec())
    assert chosen.place(call, found, {found[0]: 10, found[1]: 5}) is found[0]
    assert [chosen.place(call, found, {}) for _ in range(4)] == [found[0], found[1], found[2], found[0]]


def test_parrot_leaves_an_engine_that_is_far_busier_than_others() -> None:
    call = session().add(spec())
    for load, expected in ((8, 0), (9, 1)):
        found = engines(load, 0)
        assert policy("parrot").place(call, found, {found[0]: 10}) is found[expected]


def test_parrot_runs_calls_for_throughput_last_and_others_in_order_of_arrival() -> None:
    priorities, graph = policy("parrot").priorities, session()
    first, second = graph.add(spec(objective=Objective.LATENCY)), graph.add(spec(objective=Objective.LATENCY))
    batch = graph.add(spec(objective=Objective.THROUGHPUT))
    ranks = [priorities.urgency(call).rank for call in (first, second, batch)]
    assert ranks == sorted(ranks)
    assert ranks[2] > ranks[1] + 1e6
