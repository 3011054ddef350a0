"""gateway/simulator/agents/modelled_engine.py: times of calls, conservation of tokens, memory and preemption."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.simulator.agents.call import AgentCall
from gateway.simulator.agents.kv_pool import build_paths
from gateway.simulator.agents.modelled_engine import ModelledEngine, facts_of
from gateway.simulator.agents.policies.vllm import VllmPolicy
from gateway.simulator.agents.sessions import RecordedSession
from gateway.simulator.engine import CPU, H100, Costs
from tests.gateway.simulator.agents.synthetic import chain, request


def engine_for(costs: Costs, capacity: int) -> ModelledEngine:
    return ModelledEngine(costs, capacity, VllmPolicy(facts_of(costs, capacity)))


def calls_of(*sessions: RecordedSession) -> list[AgentCall]:
    paths = build_paths(sessions)
    return [
        AgentCall(number, index, recorded, paths[number][index], 0.0)
        for number, session in enumerate(sessions)
        for index, recorded in enumerate(session.requests)
    ]


def run(engine: ModelledEngine) -> list[AgentCall]:
    ended = []
    while engine.has_work:
        ended += engine.advance(math.inf)
    return ended


def seconds_alone(costs: Costs, prompt: int, output: int, chunk: int) -> float:
    """Sum up every single step of one call: chunks of its prompt, then one token after the other."""
    seconds, computed = 0.0, 0
    while computed < prompt:
        rows = min(chunk, prompt - computed)
        seconds += costs.step(rows, computed)
        computed += rows
    return seconds + sum(costs.step(1, prompt + made) for made in range(output))


@pytest.mark.parametrize("costs", [H100, CPU])
@pytest.mark.parametrize(("prompt", "output"), [(1, 1), (700, 50), (5000, 300)])
def test_a_call_alone_takes_the_sum_of_its_steps(costs: Costs, prompt: int, output: int) -> None:
    engine = engine_for(costs, 100_000)
    (call,) = calls_of(RecordedSession("s", 0, 0, (request(prompt, output),)))
    engine.submit(call)
    assert run(engine) == [call]
    # chunks have as many rows as fit twice the longest step, and the estimate of a row's time moves with each chunk
    largest = seconds_alone(costs, prompt, output, costs.step_rows)
    smallest = seconds_alone(costs, prompt, output, 64)
    assert min(largest, smallest) * 0.999 <= engine.now <= max(largest, smallest) * 1.001
    assert engine.busy == pytest.approx(engine.now)
    assert call.service == pytest.approx(engine.now)


def test_whole_steps_of_a_prompt_take_exactly_the_time_of_the_table() -> None:
    engine = engine_for(H100, 100_000)
    (call,) = calls_of(RecordedSession("s", 0, 0, (request(4 * 1024, 300),)))
    engine.submit(call)
    run(engine)
    assert engine.now == pytest.approx(seconds_alone(H100, 4096, 300, H100.step_rows), rel=1e-9)


def test_calls_that_decode_together_share_steps() -> None:
    engine = engine_for(H100, 100_000)
    for call in calls_of(*[chain(64, output=400) for _ in range(8)]):
        engine.submit(call)
    run(engine)
    assert engine.now < 2 * seconds_alone(H100, 64, 400, 1024)


def test_a_time_limit_ends_a_run_of_steps() -> None:
    engine = engine_for(H100, 100_000)
    (call,) = calls_of(chain(64, output=1000))
    engine.submit(call)
    while engine.now < 2.0:
        assert not engine.advance(2.0)
    assert 2.0 <= engine.now < 2.0 + H100.step(1, 1064)
    assert 0 < call.made < 1000


def test_a_full_pool_preempts_the_latest_call_and_its_work_stays_cached() -> None:
    engine = engine_for(H100, 2100)
    first, second = calls_of(chain(800, output=500), chain(800, output=400))
    engine.submit(first)
    engine.submit(second)
    assert run(engine) == [first, second]
    assert engine.preemptions == 1
    assert engine.pool.peak <= 2100
    assert second.answers  # it was interrupted
    assert engine.generated == 900
    assert engine.computed < 2 * 800 + 2 * 400  # not all was computed again


def test_a_call_that_can_never_fit_is_refused() -> None:
    (call,) = calls_of(chain(800, output=300))
    with pytest.raises(ValueError, match="larger than the KV pool"):
        engine_for(H100, 1000).submit(call)


@given(
    st.lists(st.tuples(st.integers(1, 3000), st.integers(1, 200)), min_size=1, max_size=12),
    st.integers(3200, 12_000),
)
def test_tokens_are_conserved_and_memory_is_never_exceeded(sizes: list[tuple[int, int]], capacity: int) -> None:
    engine = engine_for(H100, capacity)
    calls = calls_of(*[RecordedSession("s", 0, 0, (request(prompt, output),)) for prompt, output in sizes])
    for call in calls:
        engine.submit(call)
    assert set(run(engine)) == set(calls)
    assert engine.pool.peak <= capacity
    assert engine.pool.pinned == 0
    assert engine.prompt == sum(prompt for prompt, _ in sizes)
    assert engine.generated == sum(output for _, output in sizes)
    assert engine.hits + engine.computed >= engine.prompt
    if not engine.preemptions:
        assert engine.hits + engine.computed == engine.prompt
    assert sum(call.service for call in calls) == pytest.approx(engine.busy)
    engine.pool.check_integrity(
        [*engine.pool.candidates, *(e for call in calls for e in call.path if e not in engine.pool.candidates)], 0
    )
