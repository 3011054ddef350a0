"""Restore sessions from rows, after a restart.

The rows are the first facts of each session, cut off at any place. First, all rows are applied. Then unfinished calls
are ended or reset for a new start, unless that would contradict what a client may have seen.
"""

from collections.abc import Callable, Iterable

from gateway.graph.budget import FREE, Budget
from gateway.graph.call import Call, CallState, Times, Usage
from gateway.graph.errors import Failure
from gateway.graph.events import (
    CallChanged,
    Change,
    Event,
    FactSink,
    VariableChanged,
    VariableDeleted,
)
from gateway.graph.limits import SessionLimits
from gateway.graph.session import Session
from gateway.graph.text import size_of
from gateway.graph.variable import Piece, Variable, VariableState
from gateway.journal.records import (
    CallRecord,
    DeletedRecord,
    ExposureRecord,
    Record,
    SessionRecord,
    SlotTextRecord,
    StateRecord,
    ValueRecord,
    VariableRecord,
    facts_of,
    spec_of,
)
from gateway.journal.storage import JournalError, Row


def replay(
    rows: Iterable[Row], limits: SessionLimits, sink: FactSink, damaged: Callable[[int, object], JournalError]
) -> dict[int, Session]:
    """Return the sessions by their keys. Call `finish_replay` for each of them. Raises the error that `damage_error`
    returns for a row and its problem."""
    applied: dict[int, Replay] = {}
    for id, entries in rows:
        for key, facts in entries:
            try:
                for seq, record in facts_of(facts):
                    if key in applied:
                        applied[key].apply(seq, record)
                    else:
                        applied[key] = Replay(record, limits, sink)
            except Exception as error:  # damaged rows may cause any error
                raise damaged(id, f"session {key}: {type(error).__name__}: {error}") from error
    return {key: restored.session for key, restored in applied.items()}


class Replay:
    """Owner of a session while it is restored."""

    def __init__(self, record: Record, limits: SessionLimits, sink: FactSink) -> None:
        if not isinstance(record, SessionRecord):
            raise TypeError("a session's first row is missing")
        self.session = Session(
            id=record.id,
            tenant=record.tenant,
            created=record.created,
            ttl=record.ttl,
            metadata=record.metadata,
            limits=limits,
            sink=sink,
        )
        if record.limits is not None:  # the store sets the costs
            self.session.budget = Budget(f"session {record.id!r}", record.limits, lambda model: FREE)
        self._variables: dict[int, Variable] = {}

    def apply(self, seq: int, record: Record) -> None:
        """Apply one record. Raises LookupError if it refers to a variable or call that no earlier record created."""
        session = self.session
        session.event_log.fact_count = seq
        match record:
            case VariableRecord(time, number, name, state, failure):
                variable = self._variable(number, name)
                variable.state, variable.failure = state, failure
                if state.is_final:
                    variable.reserved = False
                if state in (VariableState.FAILED, VariableState.CANCELLED):
                    variable.value, variable.pieces = None, []
                self._append_event(seq, time, VariableChanged(variable, state, failure))
            case DeletedRecord(time, number):
                variable = self._variables[number]
                session.remove_name(variable)
                if variable.producer is None:
                    variable.cancel(Failure("cancelled", f"variable {variable.name!r} was deleted"))
                self._append_event(seq, time, VariableDeleted(variable))
            case ValueRecord(number, name, value):
                variable = self._variable(number, name)
                variable.value = value
                variable.pieces = [Piece(value)] if value else []
                variable.reserved = not variable.state.is_final
                session.resources.add_bytes(size_of(value))
            case ExposureRecord(number):
                self._variables[number].is_exposed = True
            case CallRecord():
                session.restore_call(self._call(record))
            case StateRecord(time, call_id, state, failure, outcome):
                call = session.calls[call_id]
                if state.is_final and not call.state.is_final:
                    session.count_call_end(call)
                call.state, call.failure = state, failure
                call.was_running = call.was_running or state is CallState.RUNNING
                if outcome is not None:
                    call.usage, call.times = outcome.usage, outcome.times
                    call.finish_reason, call.engine = outcome.finish_reason, outcome.engine
                    call.identity = outcome.identity
                    call.leader = session.calls.get(outcome.leader or "")
                    if call.identity is not None and state is CallState.DONE:
                        session.reusable_calls[call.identity] = call
                self._append_event(seq, time, CallChanged(call, state, failure))
                if state.is_final:
                    call.conclude()
            case SlotTextRecord(call_id, slot, text):
                session.calls[call_id].slot_texts[slot] = text
            case SessionRecord():
                raise TypeError("a session has two first rows")

    def _append_event(self, seq: int, time: float, change: Change) -> None:
        self.session.event_log.events.append(Event(seq, time, change))

    def _variable(self, number: int, name: str) -> Variable:
        variable = self._variables.get(number)
        if variable is None:
            variable = self._variables[number] = self.session.create_variable(name, number)
        return variable

    def _call(self, record: CallRecord) -> Call:
        *slots, output = [self._variable(number, name) for name, number in record.makes.items()]
        return Call(
            id=record.id,
            spec=spec_of(record),
            inputs={name: self._variable(number, name) for name, number in record.inputs.items()},
            slots={slot.name: slot for slot in slots},
            output=output,
            times=Times(record.created),
            session=self.session,
            arrival=0,
            depth=record.depth,
        )


def finish_replay(session: Session) -> None:
    """End calls that were cut off, or reset them for a new start. The log gets the changes."""
    for variable in session.variables.values():
        if variable.producer is None and variable.reserved and variable.state is VariableState.DECLARED:
            variable.complete()
    for call in session.calls.values():
        if call.state.is_final:
            continue
        if _has_ended(call):
            call.set_state(CallState.DONE)
            call.conclude()
        else:
            _restart(call)


def _has_ended(call: Call) -> bool:
    """Return whether all results of a call are stored. A call stores its output last; a form does not."""
    if call.spec.form is None:
        return _is_stored(call.output)
    return all(_is_stored(output) or output.state is VariableState.SKIPPED for output in call.outputs)


def _is_stored(variable: Variable) -> bool:
    """Return whether the value is stored. Then it is final, even if no client learned about it."""
    return variable.has_value or variable.reserved


def _restart(call: Call) -> None:
    for variable in call.outputs:
        if _is_stored(variable):
            variable.complete()
    if any(variable.is_exposed for variable in call.outputs if not variable.state.is_final):
        message = (
            "the server stopped while a client was reading this output, and another run could generate another text"
        )
        call.failure = Failure("interrupted", message, call.id)
        call.set_state(CallState.FAILED)
        call.conclude()
        return
    for variable in call.outputs:
        variable.restart()
    call.usage = Usage()
    if call.state is not CallState.WAITING:
        call.set_state(CallState.WAITING)
