"""gateway/simulator/: the scheduler on virtual time, with simulated engines."""

import asyncio
import json
import time

import pytest

from engine.sampling_params import SamplingParams
from gateway.cli.main import main
from gateway.engines.protocol import ContextEvent, PrefillResult, TokenDelta, Urgency
from gateway.simulator import clock
from gateway.simulator.engine import CPU, Costs, SimulatedContext, SimulatedEngine
from gateway.simulator.simulation import Scenario, simulate

FLAT = Costs("flat", ((1, 1.0), (1000, 1.0)), attention=0.0, step_rows=64, kv_tokens=320)
URGENT = Urgency(0.0, interactive=False)


def test_waiting_takes_no_real_time() -> None:
    async def work() -> list[float]:
        loop = asyncio.get_running_loop()

        async def wait(seconds: float) -> float:
            await asyncio.sleep(seconds)
            return loop.time()

        return await asyncio.gather(wait(3600.0), wait(5.0), wait(0.0))

    began = time.monotonic()
    assert clock.run(work()) == pytest.approx([3600.0, 5.0, 0.0])
    assert time.monotonic() - began < 60, "an hour of virtual time"


def test_waiting_without_a_timer_is_an_error() -> None:
    async def work() -> None:
        await asyncio.get_running_loop().create_future()

    with pytest.raises(RuntimeError, match="would never end"):
        clock.run(work())


def test_step_costs_are_interpolated() -> None:
    assert CPU.step(1, 0) == pytest.approx(0.0104)
    assert CPU.step(3, 0) == pytest.approx((0.0104 + 0.0116) / 2), "linear interpolation"
    assert CPU.step(449, 0) > CPU.step(257, 0) + (CPU.step(257, 0) - CPU.step(65, 0)) * 0.99
    assert CPU.step(1, 1000) > CPU.step(1, 0)


async def run_context(context: SimulatedContext, prompt: list[int], tokens: int) -> tuple[int, int]:
    """Return the numbers of cached prompt tokens and of generated tokens."""
    context.fill(prompt)
    cached = generated = 0
    events: list[ContextEvent] = []
    await context.generate(SamplingParams(max_tokens=tokens), events.append)
    for event in events:
        match event:
            case PrefillResult(_, cached_tokens):
                cached = cached_tokens
            case TokenDelta(piece):
                generated += piece.tokens
    context.free()
    return cached, generated


def test_contexts_share_steps_and_prefixes() -> None:
    async def work() -> tuple[list[tuple[int, int]], float, int]:
        engine = SimulatedEngine("one", FLAT)
        first = await run_context(engine.open("", URGENT), [7] * 32, 3)
        both = await asyncio.gather(
            *(run_context(engine.open("", URGENT), [7] * 32 + [index], 3) for index in range(2))
        )
        other = await run_context(engine.open("another key", URGENT), [7] * 32, 1)
        return [first, *both, other], asyncio.get_running_loop().time(), engine.load

    answers, seconds, load = clock.run(work())
    assert answers == [(0, 3), (32, 3), (32, 3), (0, 1)]
    # each step takes a second: two steps for a new prompt, one for the rest of a cached one, one for each token
    assert seconds == pytest.approx((2 + 3) + (1 + 3) + (2 + 1))
    assert load == 0


def test_the_least_recently_used_blocks_are_evicted() -> None:
    async def work() -> list[int]:
        engine = SimulatedEngine("one", FLAT)
        texts = [[index] * 160 for index in range(3)]
        return [(await run_context(engine.open("", URGENT), [*texts[index], 1], 1))[0] for index in (0, 1, 0, 2, 1, 2)]

    assert clock.run(work()) == [0, 0, 160, 0, 0, 160]


def test_a_scenario_is_reproducible() -> None:
    scenario = Scenario(applications=40, engines=2, seed=3)
    first, again = (simulate(scenario, ["fifo", "parrot", "myna"]) for _ in range(2))
    assert [outcome.seconds for outcome in first] == [outcome.seconds for outcome in again]
    assert len({outcome.calls for outcome in first}) == 1, "all policies do the same work"
    assert all(len(outcome.seconds) == 40 and min(outcome.seconds) > 0 for outcome in first)


def test_short_calls_do_not_wait_for_large_graphs() -> None:
    fifo, ours = simulate(Scenario(applications=60, mix="mixed", utilisation=1.5, seed=5), ["fifo", "myna"])
    assert max(ours.by_kind["chat"]) < max(ours.by_kind["map_reduce"])
    assert sum(ours.seconds) < 1.1 * sum(fifo.seconds)


def test_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["simulate", "--applications", "10", "--mix", "chain", "--policies", "prefix", "myna", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["policy"] for row in rows] == ["prefix", "myna"]
    assert main(["simulate", "--applications", "10", "--engines", "3", "--table", "h100", "--bursts"]) == 0
    text = capsys.readouterr().out
    assert text.splitlines()[0].split()[:4] == ["policy", "mean", "median", "p99"]
    assert "map_reduce" in text
    assert main(["simulate", "--engines", "0"]) == 2
