"""A scheduler over one fake engine, and a session, for tests."""

import asyncio

from engine.sampling_params import SamplingParams
from gateway.graph.call import Call, CallSpec
from gateway.graph.segments import Slot
from gateway.graph.session import Session
from gateway.graph.transform import Transform
from gateway.scheduler import Scheduler
from tests.fakes.engine import FakeEngine, FakeEngines
from tests.gateway.graph.test_session import session, spec

ANSWER = Slot(None, SamplingParams())
GREEDY = Slot(None, SamplingParams(temperature=0.0))


class SchedulerHarness:
    """A scheduler over one fake engine, and a session."""

    def __init__(self, max_calls: int = 100) -> None:
        self.engine = FakeEngine()
        self.ended: list[Call] = []
        self.scheduler = Scheduler(FakeEngines(self.engine), max_calls, self.ended.append)
        self.session: Session = session()

    def run(self, *reads: str, output: str | None = None, deferred: bool = True) -> Call:
        call = self.session.add(spec(*reads, output=output, deferred=deferred))
        self.scheduler.submit(call)
        return call


async def settle() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


def slot(name: str, **transform: object) -> Slot:
    return Slot(name, SamplingParams(), Transform(**transform) if transform else None)  # type: ignore[arg-type]


def submit(harness: SchedulerHarness, call_spec: CallSpec) -> Call:
    addition = harness.session.add_all([call_spec])
    for call in addition.calls:
        harness.scheduler.submit(call)
    harness.session.set_values(addition)
    return addition.calls[0]
