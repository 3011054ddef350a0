"""gateway/scheduler/fair_queue.py: shares by weight, as arithmetic and on an engine."""

import asyncio
from collections import Counter
from collections.abc import Sequence

import pytest

from gateway.engines.protocol import Engine
from gateway.graph.call import CallSpec, SamplingParams, Slot, Text
from gateway.graph.session import Session
from gateway.scheduler import Scheduler
from gateway.scheduler.cost_model import CostModel
from gateway.scheduler.fair_queue import FairQueue
from gateway.scheduler.priority import Priorities
from gateway.simulator import clock
from gateway.simulator.engine import CPU, SimulatedEngine


def test_shares_are_by_weight_and_nothing_is_saved_up() -> None:
    shares = FairQueue({"large": 4.0})
    assert shares.asked("small", 10.0) == 0.0, "alone"
    assert shares.asked("large", 10.0) == -10.0
    assert shares.asked("large", 10.0) == -7.5
    assert shares.asked("small", 1.0) == 0.0
    shares.done("small", 10.0)
    shares.done("small", 1.0)
    shares.done("large", 10.0)
    assert shares.asked("new", 1.0) == -2.5, "begins where the least served is, of those who have work"
    assert shares.asked("small", 1.0) == 0.0, "was served more than the others"
    assert shares.unfinished() == {"large": 1, "new": 1, "small": 1}


class Pool:
    def __init__(self, engine: Engine) -> None:
        self._engines = [engine]

    async def serving(self, model: str, *, wait: bool = True) -> Sequence[Engine]:
        return self._engines


@pytest.mark.parametrize("weight", [1.0, 3.0])
def test_two_keys_that_ask_without_end_get_what_their_weights_say(weight: float) -> None:
    """Each has thirty questions under way all the time, one key's twice as long as the other's."""

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
                if loop.time() > 300:  # it has settled
                    rows[tenant] += prompt

        tasks = [loop.create_task(client("heavy", at, 100)) for at in range(30)]
        tasks += [loop.create_task(client("light", at, 200)) for at in range(30)]
        await asyncio.sleep(800)
        await scheduler.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        return rows

    rows = clock.run(work())
    assert rows["heavy"] / rows["light"] == pytest.approx(weight, rel=0.1)
