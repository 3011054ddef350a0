"""Properties under any load: no call starves, and no engine is idle while it has calls to run."""

import asyncio
import random
from collections.abc import Sequence
from dataclasses import dataclass, field

import hypothesis.strategies as st
import pytest
from hypothesis import assume, given, settings

from gateway.engines.protocol import Engine
from gateway.graph.call import Call, CallState
from gateway.graph.session import Session
from gateway.scheduler import Scheduler
from gateway.scheduler.cost_model import CostModel
from gateway.scheduler.priority import LONG_WORK_EXTENSION, WORK_FACTOR, Order, Priorities
from gateway.simulator import clock
from gateway.simulator.engine import CPU, SimulatedEngine
from gateway.simulator.workload import MIXES, Application, Applications


@dataclass
class SchedulerHarness:
    """A scheduler over simulated engines, on virtual time."""

    engines: Sequence[SimulatedEngine]
    order: Order = Order.NEED
    calls: list[Call] = field(default_factory=list)
    """Unfinished calls, and some that have just ended."""

    def __post_init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.priorities = Priorities(CostModel(), self.order)
        self.scheduler = Scheduler(self, 10**6, priorities=self.priorities, now=self.loop.time)

    async def find_ready(self, model: str, *, wait: bool = True) -> Sequence[Engine]:
        return self.engines

    async def run(self, application: Application) -> float:
        """Run an application. Return the seconds that it takes."""
        began = self.loop.time()
        session = Session(id="", tenant="", created=began, ttl=1.0, clock=self.loop.time)
        (step,) = application.steps
        addition = session.add_all(step.calls)
        self.calls += addition.calls
        output = session.variable(step.awaited[0])
        self.scheduler.subscribe(output)
        await self.scheduler.start(session, addition)
        await output.wait_final()
        self.scheduler.unsubscribe(output)
        assert output.failure is None
        return self.loop.time() - began


@pytest.mark.parametrize("order", Order)
@given(seed=st.integers(0, 2**32), mix=st.sampled_from(MIXES), count=st.integers(1, 3))
@settings(max_examples=8)
def test_no_engine_is_idle_while_a_ready_call_is_placed_on_it(order: Order, seed: int, mix: str, count: int) -> None:
    async def work() -> None:
        harness = SchedulerHarness([SimulatedEngine(f"engine-{index}", CPU) for index in range(count)], order)
        pick = random.Random(seed)
        source = Applications(pick).of(mix)
        ready_count = 0
        async with asyncio.TaskGroup() as group:
            for _ in range(12):
                group.create_task(harness.run(next(source)))
                await asyncio.sleep(pick.expovariate(0.3))
                for _ in range(30):  # calls that are new or just ready need a few turns of the loop
                    await asyncio.sleep(0)
                harness.calls = [call for call in harness.calls if not call.state.is_final]
                ready = {call.engine for call in harness.calls if not call.waiting_on}
                ready_count += len(ready)
                for engine in harness.engines:
                    assert engine.working or engine.name not in ready
        assume(ready_count > 0)  # all calls may have ended between two checks

    clock.run(work())


def test_a_large_application_ends_under_an_overload_of_short_calls() -> None:
    async def work() -> tuple[float, float, int]:
        harness = SchedulerHarness([SimulatedEngine("one", CPU)])
        pick = random.Random(1)
        large, small = Applications(pick).of("map_reduce"), Applications(pick).of("chat")
        task = harness.loop.create_task(harness.run(next(large)))
        await asyncio.sleep(0)
        needed = sum(harness.priorities.cost_model.cost(call).work for call in harness.calls)
        questions = []
        while not task.done() and len(questions) < 20_000:
            questions.append(harness.loop.create_task(harness.run(next(small))))
            await asyncio.sleep(pick.expovariate(9.0))
        late = sum(call.state is not CallState.DONE for call in harness.calls)
        seconds = await task
        for question in questions:
            question.cancel()
        await asyncio.gather(*questions, return_exceptions=True)
        await harness.scheduler.close()
        return seconds, needed, late

    seconds, needed, late = clock.run(work())
    assert late > 100, "the short calls alone are an overload"
    bound = LONG_WORK_EXTENSION + (1 + WORK_FACTOR) * needed
    assert LONG_WORK_EXTENSION < seconds < 2 * bound, "the factor 2: calls that arrived before its deadline go first"
