"""gateway/scheduler/fair_queue.py: shares by weight, as arithmetic and on a simulated engine."""

import asyncio
from collections import Counter
from collections.abc import Sequence

import pytest

from engine.sampling_params import SamplingParams
from gateway.engines.protocol import Engine
from gateway.graph.call import CallSpec
from gateway.graph.segments import Slot, Text
from gateway.graph.session import Session
from gateway.scheduler import Scheduler
from gateway.scheduler.cost_model import CostModel
from gateway.scheduler.fair_queue import FairQueue
from gateway.scheduler.priority import Priorities
from gateway.simulator import clock
from gateway.simulator.engine import CPU, SimulatedEngine


def test_shares_follow_the_weights_and_idle_tenants_save_up_nothing() -> None:
    queue = FairQueue({"large": 4.0})
    assert queue.request("small", 10.0) == 0.0, "alone"
    assert queue.request("large", 10.0) == -10.0
    assert queue.request("large", 10.0) == -7.5
    assert queue.request("small", 1.0) == 0.0
    queue.finish("small", 10.0)
    queue.finish("small", 1.0)
    queue.finish("large", 10.0)
    assert queue.request("new", 1.0) == -2.5, "it begins at the clock of the least served busy tenant"
    assert queue.request("small", 1.0) == 0.0, "it was served more than the others"
    assert queue.unfinished() == {"large": 1, "new": 1, "small": 1}


def test_a_new_weight_takes_effect_for_new_calls() -> None:
    weights: dict[str, float] = {}
    queue = FairQueue(weights)
    queue.request("a", 10.0)
    queue.request("b", 10.0)
    weights["a"] = 10.0
    assert queue.request("a", 10.0) == 0.0
    assert queue.request("b", 10.0) == -1.0, "the second call of a counted a tenth"
    for tenant in "aabb":
        queue.finish(tenant, 10.0)
    assert queue.unfinished() == {}


class Pool:
    def __init__(self, engine: Engine) -> None:
        self._engines = [engine]

    async def find_ready(self, model: str, *, wait: bool = True) -> Sequence[Engine]:
        return self._engines


@pytest.mark.parametrize("weight", [1.0, 3.0])
def test_two_busy_keys_get_shares_by_their_weights(weight: float) -> None:
    """Keep thirty calls of each key running, one key's calls twice as long as the other's."""

    async def work() -> Counter[str]:
        loop = asyncio.get_running_loop()
        priorities = Priorities(CostModel(), weights={"heavy": weight})
        scheduler = Scheduler(Pool(SimulatedEngine("one", CPU)), 1000, priorities=priorities, now=loop.time)
        rows: Counter[str] = Counter()

        async def client(tenant: str, number: int, prompt: int) -> None:
            for turn in range(1000):
                session = Session(id="", tenant=tenant, created=loop.time(), ttl=1.0, clock=loop.time)
                text = Text([hash((tenant, number, turn)) % 2**31] * prompt)
                spec = CallSpec(model="m", segments=[text, Slot(None, SamplingParams(max_tokens=2, ignore_eos=True))])
                addition = session.add_all([spec])
                output = addition.calls[0].output
                scheduler.subscribe(output)
                await scheduler.start(session, addition)
                await output.wait_final()
                scheduler.unsubscribe(output)
                if loop.time() > 300:  # the shares are stable by this time
                    rows[tenant] += prompt

        tasks = [loop.create_task(client("heavy", number, 100)) for number in range(30)]
        tasks += [loop.create_task(client("light", number, 200)) for number in range(30)]
        await asyncio.sleep(800)
        await scheduler.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        return rows

    rows = clock.run(work())
    assert rows["heavy"] / rows["light"] == pytest.approx(weight, rel=0.1)
