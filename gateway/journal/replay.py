"""Rows to sessions, after a restart.

What the rows hold is the beginning of what happened, cut at any place. So first every row is applied as it is; then
what was cut off in the middle is ended or made ready to begin anew, as far as that changes nothing that a client may
have seen.
"""

from collections.abc import Callable, Iterable

from gateway.graph.call import Call, CallState, Times, Usage
from gateway.graph.errors import Failure
from gateway.graph.events import (
    CallChanged,
    Change,
    Event,
    Log,
    VariableChanged,
    VariableDeleted,
)
from gateway.graph.session import Session, SessionLimits
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
    rows: Iterable[Row], bounds: SessionLimits, log: Log, damaged: Callable[[int, object], JournalError]
) -> dict[int, Session]:
    """Sessions by their keys; see `mend` for what is still to be done with them. Raises what `damaged` makes of a row
    and its problem."""
    applied: dict[int, Replay] = {}
    for id, entries in rows:
        for key, facts in entries:
            try:
                for seq, record in facts_of(facts):
                    if key in applied:
                        applied[key].apply(seq, record)
                    else:
                        applied[key] = Replay(record, bounds, log)
            except Exception as error:  # rows that were damaged may cause any error
                raise damaged(id, f"session {key}: {type(error).__name__}: {error}") from error
    return {key: one.session for key, one in applied.items()}


class Replay:
    """Owner of a session while it is put together again."""

    def __init__(self, record: Record, bounds: SessionLimits, log: Log) -> None:
        if not isinstance(record, SessionRecord):
            raise TypeError("a session's first row is missing")
        self.session = Session(
            id=record.id,
            tenant=record.tenant,
            created=record.created,
            ttl=record.ttl,
            metadata=record.metadata,
            bounds=bounds,
            log=log,
        )
        self._variables: dict[int, Variable] = {}

    def apply(self, seq: int, record: Record) -> None:
        """One row more. Raises LookupError if it speaks of something that no row before it made."""
        session = self.session
        session.facts = seq
        match record:
            case VariableRecord(at, number, name, state, failure):
                variable = self._variable(number, name)
                variable.state, variable.failure = state, failure
                if state.final:
                    variable.reserved = False
                if state in (VariableState.FAILED, VariableState.CANCELLED):
                    variable.value, variable.pieces = None, []
                self._happened(seq, at, VariableChanged(variable, state, failure))
            case DeletedRecord(at, number):
                variable = self._variables[number]
                session.forget(variable)
                if variable.producer is None:
                    variable.cancel(Failure("cancelled", f"variable {variable.name!r} was deleted"))
                self._happened(seq, at, VariableDeleted(variable))
            case ValueRecord(number, name, value):
                variable = self._variable(number, name)
                variable.value = value
                variable.pieces = [Piece(value)] if value else []
                variable.reserved = not variable.state.final
                session.grow(value)
            case ExposureRecord(number):
                self._variables[number].is_exposed = True
            case CallRecord():
                session.rejoin(self._call(record))
            case StateRecord(at, call_id, state, failure, outcome):
                call = session.calls[call_id]
                if state.final and not call.state.final:
                    session.call_ended(call)
                call.state, call.failure = state, failure
                if outcome is not None:
                    call.usage, call.times = outcome.usage, outcome.times
                    call.finish_reason, call.engine = outcome.finish_reason, outcome.engine
                    call.identity = outcome.identity
                    call.leader = session.calls.get(outcome.leader or "")
                    if call.identity is not None and state is CallState.DONE:
                        session.shared[call.identity] = call
                self._happened(seq, at, CallChanged(call, state, failure))
                if state.final:
                    call.conclude()
            case SlotTextRecord(call_id, slot, text):
                session.calls[call_id].made[slot] = text
            case SessionRecord():
                raise TypeError("a session began twice")

    def _happened(self, seq: int, at: float, change: Change) -> None:
        self.session.events.append(Event(seq, at, change))

    def _variable(self, number: int, name: str) -> Variable:
        variable = self._variables.get(number)
        if variable is None:
            variable = self._variables[number] = self.session.place(name, number)
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


def mend(session: Session) -> None:
    """Ends what was cut off in the middle, or makes it ready to begin anew. Writes what that changes."""
    for variable in session.variables.values():
        if variable.producer is None and variable.reserved and variable.state is VariableState.DECLARED:
            variable.complete()
    for call in session.calls.values():
        if call.state.final:
            continue
        if _kept(call.output):
            call.move(CallState.DONE)
            call.conclude()
        else:
            _begin_anew(call)


def _kept(variable: Variable) -> bool:
    """Whether the value is on disk: it is what it is then, even if nobody was told that it is there."""
    return variable.state is VariableState.READY or variable.reserved


def _begin_anew(call: Call) -> None:
    for slot in call.slots.values():
        if _kept(slot):
            slot.complete()
    if any(variable.is_exposed for variable in call.outputs if not variable.state.final):
        message = "the server ended while this was read, and it would not be the same again"
        call.failure = Failure("interrupted", message, call.id)
        call.move(CallState.FAILED)
        call.conclude()
        return
    for variable in call.outputs:
        variable.restart()
    call.usage = Usage()
    if call.state is not CallState.WAITING:
        call.move(CallState.WAITING)
