"""gateway/journal/replay.py: sessions are restored from the facts before a crash, wherever it happens."""

import asyncio
import dataclasses
from collections.abc import Iterator
from pathlib import Path

import pytest

from engine.sampling_params import SamplingParams
from gateway.api.semantic.events import describe_event
from gateway.graph.budget import BudgetExceeded, Limits
from gateway.graph.call import CallSpec, CallState, Input, Slot
from gateway.graph.forms.form import Branch, Condition
from gateway.graph.prefix_hash import prefix_hashes
from gateway.graph.references import Reference
from gateway.graph.segments import Text
from gateway.graph.transform import Transform
from gateway.graph.variable import Piece, VariableState
from gateway.journal import Journal
from gateway.journal.records import (
    Record,
    SlotTextRecord,
    entries_of,
)
from gateway.journal.sqlite import JournalFile
from gateway.journal.storage import Batch
from tests.gateway.journal.journal_harness import ANSWER, GREEDY, JournalHarness, spec


async def test_a_session_is_restored_unchanged(tmp_path: Path) -> None:
    harness = JournalHarness(tmp_path / "j")
    session = harness.store.create("tenant", "s", metadata={"a": "b"}, ttl=30.0)
    await harness.put(session, "given", "wörld\0\n<<x>>")
    await harness.put(session, "declared")
    parts = ["T ", Input(Reference("given"), "template")]
    await harness.scheduler.start(session, session.add_variable("shown", template=parts), promised=True)
    slots = (Slot("inner", GREEDY), Text([1]), ANSWER)
    calls = await harness.run(session, spec("a", "given"), spec("b", "a", slots=slots), spec("c", "given"))
    await harness.scheduler.wait_idle()
    session.delete("c")
    await harness.journal.flush()
    await harness.die()

    restored = JournalHarness(tmp_path / "j")
    (back,) = restored.restored
    assert (back.id, back.tenant, back.metadata, back.ttl) == ("s", "tenant", {"a": "b"}, 30.0)
    assert {v.name: (v.state, v.value) for v in back.variables.values()} == {
        v.name: (v.state, v.value) for v in session.variables.values()
    }
    assert back.variable("shown").value == "T wörld\0\n<<x>>"
    assert back.usage() == session.usage()
    assert [c.state for c in back.calls.values()] == [c.state for c in session.calls.values()]
    assert [c.id for c in back.variable("given").consumers] == [c.id for c in session.variable("given").consumers]
    assert back.variable("b").producer is back.calls[calls[1].id]
    assert prefix_hashes(back.calls[calls[1].id]) == prefix_hashes(calls[1])
    assert back.resources.bytes == session.resources.bytes
    assert [event.id for event in back.event_log.events] == [event.id for event in session.event_log.events]
    assert [describe_event(event) for event in back.event_log.events] == [
        describe_event(event) for event in session.event_log.events
    ]
    assert "c" in back._retired_names
    shared = (await restored.run(back, spec("twin", "given")))[0]
    await restored.scheduler.wait_idle()
    assert shared.leader is back.calls[calls[0].id], "a restored call serves identical new calls"
    assert restored.engine.opened[0].generates == 0
    await restored.die()


async def test_unfinished_calls_run_again_and_finished_ones_do_not(tmp_path: Path) -> None:
    harness = JournalHarness(tmp_path / "j")
    session = harness.store.create("", "s")
    await harness.run(session, spec("done"))
    await harness.scheduler.wait_idle()
    harness.engine.hold()
    running, waiting = await harness.run(session, spec("a", "done"), spec("b", "a"))
    other = dataclasses.replace(spec("c", deferred=False), segments=[Text([9]), ANSWER])
    blocking = (await harness.run(session, other))[0]
    needed = (await harness.run(session, spec("d", deferred=False)))[0]
    await harness.run(session, spec("e", "d"))
    for call in (blocking, needed):
        harness.scheduler.subscribe(call.output)
    for _ in range(20):
        await asyncio.sleep(0)
    assert running.state is CallState.PREFILL
    await harness.journal.flush()
    await harness.die()

    restored = JournalHarness(tmp_path / "j")
    await restored.resume()
    (back,) = restored.restored
    assert back.calls[running.id].state is back.calls[waiting.id].state is CallState.DONE
    assert back.calls[blocking.id].state is CallState.CANCELLED, "it lost its client, and no other call reads it"
    assert back.calls[needed.id].state is CallState.DONE, "another call reads it"
    assert sum(context.generates for context in restored.engine.opened) == 2, (
        "the other calls are served by finished ones"
    )
    assert back.unfinished_calls == 0
    await restored.die()


async def test_an_exposed_random_value_is_not_generated_again(tmp_path: Path) -> None:
    harness = JournalHarness(tmp_path / "j")
    session = harness.store.create("", "s")
    harness.engine.deaths = 1
    random = Slot(None, SamplingParams(temperature=1.0))
    long = Text([1] * 98)
    specs = [
        dataclasses.replace(spec(name, slots=(slot,)), segments=[long, slot])
        for name, slot in (("random", random), ("greedy", ANSWER))
    ]
    harness.engine.released.clear()
    calls = await harness.run(session, *specs)
    for call in calls:  # part of each value exists
        call.set_state(CallState.DECODE)
        call.output.append(Piece("4", 1))
        with session.read(call.output) as reader:
            assert [piece.text for piece in await reader.next_pieces()] == ["4"]
    await harness.die()

    restored = JournalHarness(tmp_path / "j")
    await restored.resume()
    (back,) = restored.restored
    failed, same = back.calls[calls[0].id], back.calls[calls[1].id]
    assert failed.state is CallState.FAILED
    assert failed.output.failure is not None
    assert failed.output.failure.code == "interrupted"
    assert same.output.value == "98"
    await restored.die()


class RecordedTurns:
    """Recorder of the facts by turn of the event loop. A process may be killed after each of these turns."""

    def __init__(self, journal: Journal) -> None:
        self.turns: list[list[tuple[int, int, Record]]] = []
        self._journal = journal
        self._open = False
        begin_soon = journal._schedule

        def record_fact() -> None:
            if not self._open:
                self._open = True
                self.turns.append([])
                asyncio.get_running_loop().call_soon(self._close)
            self.turns[-1].append(journal._facts[-1])
            begin_soon()

        journal._schedule = record_fact  # type: ignore[method-assign]

    def _close(self) -> None:
        self._open = False

    def write(self, path: Path, count: int) -> None:
        """Write the facts of the first turns into a new journal file."""
        file = JournalFile(path)
        file.commit(Batch(entries_of(fact for turn in self.turns[:count] for fact in turn), [], []))
        file.close()

    def cuts(self, folder: Path) -> Iterator[tuple[int, Path]]:
        """Write a journal file for a kill after each turn from the second on. Yield the number of turns and the
        file."""
        for count in range(2, len(self.turns) + 1):
            path = folder / f"cut-{count}"
            self.write(path, count)
            yield count, path


async def test_a_restart_after_any_fact_completes_all_accepted_calls(tmp_path: Path) -> None:
    harness = JournalHarness(tmp_path / "j")
    recorded = RecordedTurns(harness.journal)
    session = harness.store.create("", "s")
    await harness.put(session, "late")
    random = Slot("dice", SamplingParams(temperature=1.0))
    specs = [
        spec("a"),
        spec("twin"),
        spec("b", "a", slots=(random, Text([3]), Slot("greedy", GREEDY), Text([4]), ANSWER)),
        spec("c", "b", "late"),
        dataclasses.replace(spec("d", "c"), segments=[Text([5]), Slot(None, GREEDY, Transform(regex="nothing"))]),
        spec("e", "d"),
    ]
    await harness.run(session, *specs)
    await harness.put(session, "late", "now")
    await harness.scheduler.wait_idle()
    expected = {v.name: (v.state, v.value) for v in session.variables.values()}
    assert {state for state, _ in expected.values()} == {VariableState.READY, VariableState.FAILED}
    await harness.die()
    assert len(recorded.turns) > 12

    for end, path in recorded.cuts(tmp_path):
        restored = JournalHarness(path)
        (back,) = restored.restored
        told = {event.id for event in back.event_log.events}
        known = {v.name: v.value for v in back.variables.values() if v.state is VariableState.READY}
        assert all(expected[name] == (VariableState.READY, value) for name, value in known.items())
        if back.variable("late").state is VariableState.DECLARED:
            await restored.put(back, "late", "now")
        await restored.resume()
        assert back.unfinished_calls == 0
        if back.calls:
            assert {v.name: (v.state, v.value) for v in back.variables.values()} == expected, f"cut behind {end}"
        assert len({event.id for event in back.event_log.events}) == len(back.event_log.events), "event ids are unique"
        assert told <= {event.id for event in back.event_log.events}
        await restored.journal.flush()  # failures are stored after clients may read them
        await restored.die()
        third = JournalHarness(path)  # the results after the restart are stored as well
        if back.calls:
            assert {v.name: (v.state, v.value) for v in third.restored[0].variables.values()} == expected
        await third.die()


async def test_a_restart_after_any_fact_keeps_what_is_skipped(tmp_path: Path) -> None:
    harness = JournalHarness(tmp_path / "j")
    recorded = RecordedTurns(harness.journal)
    session = harness.store.create("", "s")
    await harness.put(session, "verdict", "no")
    condition = Condition([Input(Reference("verdict"), "if")], "equals", '"yes"')
    branch = Branch(condition, [spec("a", deferred=False), spec("b", deferred=False)], [], "default")
    readers = [dataclasses.replace(spec(f"r{name}", name), defaults={name: "own"}) for name in "ab"]
    await harness.run(session, CallSpec(model="", form=branch, more_outputs=["a"], output="b", deferred=True), *readers)
    await harness.scheduler.wait_idle()
    expected = {v.name: (v.state, v.value) for v in session.variables.values()}
    assert expected["a"] == expected["b"] == (VariableState.SKIPPED, "default")
    await harness.die()

    cuts = 0
    for end, path in recorded.cuts(tmp_path):
        restored = JournalHarness(path)
        (back,) = restored.restored
        await restored.resume()
        if back.calls:
            cuts += 1
            assert {v.name: (v.state, v.value) for v in back.variables.values()} == expected, f"cut behind {end}"
        await restored.die()
    assert cuts > 3


async def test_a_finished_slot_is_not_generated_again(tmp_path: Path) -> None:
    harness = JournalHarness(tmp_path / "j")
    recorded = RecordedTurns(harness.journal)
    session = harness.store.create("", "s")
    dice = Slot("dice", SamplingParams(temperature=1.0))
    await harness.run(session, spec("whole", slots=(dice, Text([3]), ANSWER)))
    await harness.scheduler.wait_idle()
    await harness.die()
    done = next(
        index for index, turn in enumerate(recorded.turns) if any(isinstance(fact[2], SlotTextRecord) for fact in turn)
    )
    recorded.write(tmp_path / "cut", done + 1)

    restored = JournalHarness(tmp_path / "cut")
    (back,) = restored.restored
    assert (back.variable("dice").value, back.variable("whole").state) == ("2", VariableState.PENDING)
    await restored.resume()
    assert back.variable("whole").value == session.variable("whole").value
    assert sum(context.generates for context in restored.engine.opened) == 1, "only the answer is generated"
    await restored.die()


async def test_the_limits_of_a_session_and_what_it_has_used_survive(tmp_path: Path) -> None:
    def unshared(output: str) -> CallSpec:  # each uses two tokens of the prompt, and one of the answer
        return dataclasses.replace(spec(output), share=False)

    harness = JournalHarness(tmp_path / "j")
    session = harness.store.create("tenant", "s", limits=Limits(tokens=6))
    await harness.run(session, unshared("a"))
    await harness.scheduler.wait_idle()
    await harness.journal.flush()
    await harness.die()

    restored = JournalHarness(tmp_path / "j")
    (session,) = restored.restored
    assert session.budget is not None
    assert (session.budget.limits, session.budget.tokens) == (Limits(tokens=6), 3)
    (call,) = await restored.run(session, unshared("b"))
    await restored.scheduler.wait_idle()
    assert (call.state, session.budget.tokens) == (CallState.DONE, 6)
    with pytest.raises(BudgetExceeded, match="6 of 6 tokens"):
        session.add(spec("c"))
    await restored.die()


async def test_a_branch_ends_once_all_of_its_outputs_are_stored(tmp_path: Path) -> None:
    """Check a branch whose last output is on the side that is not taken: it is stored first, and ends other calls."""
    harness = JournalHarness(tmp_path / "j")
    session = harness.store.create("", "s")
    harness.engine.hold()
    condition = Condition(["no"], "equals", '"yes"')
    branch = Branch(condition, [spec("a", deferred=False)], [spec("b", deferred=False)], "default")
    form = CallSpec(model="", form=branch, more_outputs=["b"], output="a")
    (call,) = await harness.run(session, form)
    parts = [Input(Reference(name), "template") for name in "ab"]
    await harness.scheduler.start(session, session.add_variable("kept", template=parts), promised=True)
    async with asyncio.timeout(10):
        while not session.variable("a").state.is_final:
            await asyncio.sleep(0)
    await harness.journal.flush()
    assert not call.state.is_final
    await harness.die()

    restored = JournalHarness(tmp_path / "j")
    await restored.resume()
    values = {variable.name: variable.value for variable in restored.restored[0].variables.values()}
    assert values == {"a": "default", "b": "2", "b@else": "2", "kept": "default2"}
    await restored.die()
