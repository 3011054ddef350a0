"""The gateway's parts around the journal, without HTTP."""

from pathlib import Path

from engine.sampling_params import SamplingParams
from gateway.graph.call import Call, CallSpec, Input, Slot
from gateway.graph.references import Reference
from gateway.graph.segments import Text
from gateway.graph.session import Session, SessionLimits
from gateway.graph.session_store import SessionStore
from gateway.journal import Journal
from gateway.journal.sqlite import FileStorage
from gateway.scheduler import Scheduler
from tests.fakes.engine import FakeEngine, FakeEngines

GREEDY = SamplingParams(temperature=0.0)
ANSWER = Slot(None, GREEDY)


class JournalHarness:
    """A session store, a scheduler with one fake engine, and a journal: the parts of `app.py` without HTTP."""

    def __init__(self, path: Path) -> None:
        self.engine = FakeEngine()
        self.scheduler = Scheduler(FakeEngines(self.engine), 1000)
        self.storage = FileStorage(path)
        self.journal = Journal(self.storage)
        self.store = SessionStore(self.scheduler.cancel, SessionLimits(), 60.0, 100, 100, self.journal)
        self.restored = self.journal.restore(self.storage.rows(), SessionLimits())
        for session in self.restored:
            self.store.add(session)

    async def run(self, session: Session, *specs: CallSpec) -> list[Call]:
        addition = session.add_all(specs)
        await self.scheduler.start(session, addition, promised=True)
        return list(addition.calls)

    async def put(self, session: Session, name: str, value: str | None = None) -> None:
        await self.scheduler.start(session, session.add_variable(name, value), promised=True)

    async def resume(self) -> None:
        for session in self.restored:
            self.scheduler.resume(session)
        await self.scheduler.wait_idle()

    async def die(self) -> None:
        """End like a killed process: no more facts are stored, and no waiting task is resolved."""
        self.journal._closed = True
        await self.scheduler.close()
        self.storage.file.close()


def spec(output: str, *reads: str, deferred: bool = True, slots: tuple[Slot, ...] = (ANSWER,)) -> CallSpec:
    inputs = [Input(Reference(name), f"messages.{index}.content") for index, name in enumerate(reads)]
    return CallSpec(model="m", segments=[Text([7, 8]), *inputs, *slots], output=output, deferred=deferred)
