"""What holds whatever comes: nothing starves, and no engine is idle while there is something for it to do."""

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
from gateway.scheduler.priority import LATER, OUTSTANDING, Order, Priorities
from gateway.simulator import clock
from gateway.simulator.engine import CPU, SimulatedEngine
from gateway.simulator.workload import MIXES, Application, Applications


@dataclass
class Stage:
    """A scheduler over modelled engines, on virtual time."""

    engines: Sequence[SimulatedEngine]
    order: Order = Order.NEED
    calls: list[Call] = field(default_factory=list)
    """Unfinished, and some that have just ended."""

    def __post_init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.priorities = Priorities(CostModel(), self.order)
        self.scheduler = Scheduler(self, 10**6, priorities=self.priorities, now=self.loop.time)

    async def serving(self, model: str, *, wait: bool = True) -> Sequence[Engine]:
        return self.engines

    async def run(self, application: Application) -> float:
        """Seconds that it takes."""
        began = self.loop.time()
        session = Session(id="", tenant="", created=began, ttl=1.0, clock=self.loop.time)
        (step,) = application.steps
        addition = session.add_all(step.calls)
        self.calls += addition.calls
        output = session.variable(step.wanted[0])
        self.scheduler.subscribe(output)
        await self.scheduler.start(session, addition)
        await output.wait_final()
        self.scheduler.unsubscribe(output)
        assert output.failure is None
        return self.loop.time() - began


@pytest.mark.parametrize("order", Order)
@given(seed=st.integers(0, 2**32), mix=st.sampled_from(MIXES), count=st.integers(1, 3))
@settings(max_examples=8, deadline=None)
def test_no_engine_is_idle_while_a_call_that_could_run_is_placed_on_it(
    order: Order, seed: int, mix: str, count: int
) -> None:
    async def work() -> None:
        stage = Stage([SimulatedEngine(f"engine-{at}", CPU) for at in range(count)], order)
        pick = random.Random(seed)
        source = Applications(pick).of(mix)
        looked = 0
        async with asyncio.TaskGroup() as group:
            for _ in range(12):
                group.create_task(stage.run(next(source)))
                await asyncio.sleep(pick.expovariate(0.3))
                for _ in range(30):  # what has just come or just become ready takes a few turns of the loop
                    await asyncio.sleep(0)
                stage.calls = [call for call in stage.calls if not call.state.final]
                ready = {call.engine for call in stage.calls if not call.waiting_on}
                looked += len(ready)
                for engine in stage.engines:
                    assert engine.working or engine.name not in ready
        assume(looked > 0)  # all may have ended between two looks

    clock.run(work())


def test_a_large_application_ends_though_short_questions_alone_are_more_than_can_be_done() -> None:
    async def work() -> tuple[float, float, int]:
        stage = Stage([SimulatedEngine("one", CPU)])
        pick = random.Random(1)
        large, small = Applications(pick).of("map_reduce"), Applications(pick).of("chat")
        task = stage.loop.create_task(stage.run(next(large)))
        await asyncio.sleep(0)
        needed = sum(stage.priorities.estimates.cost(call).work for call in stage.calls)
        questions = []
        while not task.done() and len(questions) < 20_000:
            questions.append(stage.loop.create_task(stage.run(next(small))))
            await asyncio.sleep(pick.expovariate(9.0))
        late = sum(call.state is not CallState.DONE for call in stage.calls)
        seconds = await task
        for question in questions:
            question.cancel()
        await asyncio.gather(*questions, return_exceptions=True)
        await stage.scheduler.close()
        return seconds, needed, late

    seconds, needed, late = clock.run(work())
    assert late > 100, "they were more than could be done"
    bound = LATER + (1 + OUTSTANDING) * needed
    assert LATER < seconds < 2 * bound, "twice, since what came before it was due goes first"
