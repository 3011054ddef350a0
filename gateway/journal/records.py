"""Facts as rows, and back. Rows are JSON, so that a journal can be read with sqlite3 or psql alone.

A change of these records needs a new schema version: see `storage.SCHEMA`.
"""

from collections.abc import Callable, Iterable
from typing import Any

import msgspec

from gateway.graph.budget import Limits
from gateway.graph.call import Call, CallSpec, CallState, Objective, Rendering, Times, Usage
from gateway.graph.errors import Failure
from gateway.graph.events import (
    CallAddition,
    CallChanged,
    Event,
    Exposure,
    Fact,
    SlotText,
    ValueAssignment,
    VariableChanged,
    VariableDeleted,
)
from gateway.graph.forms.form import Origin
from gateway.graph.session import Session
from gateway.graph.variable import VariableState
from gateway.journal.form_records import FormRecord, form_of, form_record
from gateway.journal.segment_records import (
    InputPart,
    Part,
    StoredRecord,
    segment_record,
    segments_of,
    template_of,
    template_record,
)
from gateway.journal.storage import Entry


class SessionRecord(StoredRecord, frozen=True, tag="session"):
    """First record of each session."""

    tenant: str
    id: str
    created: float
    ttl: float
    metadata: dict[str, str]
    limits: Limits | None = None


class VariableRecord(StoredRecord, frozen=True, tag="variable"):
    """A variable, given by its number, was created or changed its state."""

    time: float
    number: int
    name: str
    state: VariableState
    failure: Failure | None


class DeletedRecord(StoredRecord, frozen=True, tag="deleted"):
    """A variable was deleted: it lost its name."""

    time: float
    number: int


class ValueRecord(StoredRecord, frozen=True, tag="value"):
    """Value that a variable is about to get."""

    number: int
    name: str
    value: str


class ExposureRecord(StoredRecord, frozen=True, tag="shown"):
    """Part of an unfinished value was sent to a client."""

    number: int


class CallRecord(StoredRecord, frozen=True, tag="call"):
    """A call joined the graph. `inputs` and `makes`: names and numbers of variables; the output is the last one
    made. `origin`: id of the call whose form added it, its place there, and the digest."""

    id: str
    created: float
    depth: int
    model: str
    segments: list[Part]
    parts: list[str | InputPart] | None
    inputs: dict[str, int]
    makes: dict[str, int]
    deferred: bool
    objective: Objective | None
    share: bool
    salt: str = ""
    fallbacks: tuple[tuple[str, list[Part]], ...] = ()
    form: FormRecord | None = None
    origin: tuple[str, str, str] | None = None
    where: str = ""
    unresolved: str | None = None
    defaults: dict[str, str] = msgspec.field(default_factory=dict)


class Outcome(StoredRecord, frozen=True):
    """Results of a call that has ended."""

    usage: Usage
    times: Times
    finish_reason: str | None
    engine: str | None
    leader: str | None
    identity: bytes | None


class StateRecord(StoredRecord, frozen=True, tag="state"):
    """A call changed its state."""

    time: float
    call: str
    state: CallState
    failure: Failure | None
    outcome: Outcome | None


class SlotTextRecord(StoredRecord, frozen=True, tag="made"):
    """Text of a slot as it stands in the prompt."""

    call: str
    slot: str
    text: str


Record = (
    SessionRecord
    | VariableRecord
    | DeletedRecord
    | ValueRecord
    | ExposureRecord
    | CallRecord
    | StateRecord
    | SlotTextRecord
)

_encode = msgspec.json.Encoder().encode
facts_of = msgspec.json.Decoder(list[tuple[int, Record]]).decode
"""Decode an entry's facts, with their numbers. Raises msgspec.DecodeError."""


def entries_of(facts: Iterable[tuple[int, int, Record]]) -> list[Entry]:
    """Return entries, one for each session, from session keys, fact numbers and facts."""
    by_session: dict[int, list[tuple[int, Record]]] = {}
    for key, seq, record in facts:
        by_session.setdefault(key, []).append((seq, record))
    return [Entry(key, group[0][0], _encode((key, group))) for key, group in by_session.items()]


def record_of(fact: Fact) -> Record:
    """Return a snapshot of a fact as a record: the fact's call or variable may change later."""
    # a lookup by type is faster than `match`: a call has about ten facts
    if isinstance(fact, Event):
        record: Record = _CHANGES[type(fact.change)](fact.time, fact.change)
    else:
        record = _FACTS[type(fact)](fact)
    return record


def session_record(session: Session) -> SessionRecord:
    """Return the record of a session without any variables or calls."""
    limits = None if session.budget is None else session.budget.limits
    return SessionRecord(session.tenant, session.id, session.created, session.ttl, session.metadata, limits)


def spec_of(record: CallRecord) -> CallSpec:
    """Return the call as its client requested it."""
    *more_outputs, output = record.makes
    return CallSpec(
        model=record.model,
        segments=segments_of(record.segments),
        output=output,
        parts=None if record.parts is None else template_of(record.parts),
        deferred=record.deferred,
        objective=record.objective,
        share=record.share,
        salt=record.salt,
        fallbacks=tuple(Rendering(model, segments_of(parts)) for model, parts in record.fallbacks),
        form=None if record.form is None else form_of(record.form),
        more_outputs=more_outputs if record.form is not None or record.unresolved is not None else (),
        origin=None if record.origin is None else Origin(*record.origin),
        where=record.where,
        unresolved=record.unresolved,
        defaults=record.defaults,
    )


def _variable_changed(time: float, change: VariableChanged) -> Record:
    variable = change.variable
    return VariableRecord(time, variable.number, variable.name, change.state, change.failure)


def _call_changed(time: float, change: CallChanged) -> Record:
    outcome = _outcome(change.call) if change.state.is_final else None
    return StateRecord(time, change.call.id, change.state, change.failure, outcome)


_CHANGES: dict[type, Callable[[float, Any], Record]] = {
    VariableChanged: _variable_changed,
    CallChanged: _call_changed,
    VariableDeleted: lambda time, change: DeletedRecord(time, change.variable.number),
}
"""Records of events by type. There is none for SessionEnded: the session's rows are deleted."""

_FACTS: dict[type, Callable[[Any], Record]] = {
    ValueAssignment: lambda fact: ValueRecord(fact.variable.number, fact.variable.name, fact.value),
    CallAddition: lambda fact: _call(fact.call),
    SlotText: lambda fact: SlotTextRecord(fact.call.id, fact.slot, fact.text),
    Exposure: lambda fact: ExposureRecord(fact.variable.number),
}


def _outcome(call: Call) -> Outcome:
    leader = call.leader.id if call.leader else None
    return Outcome(call.usage, call.times, call.finish_reason, call.engine, leader, call.identity)


def _call(call: Call) -> CallRecord:
    spec = call.spec
    return CallRecord(
        id=call.id,
        created=call.times.created,
        depth=call.depth,
        model=spec.model,
        segments=[segment_record(segment) for segment in spec.segments],
        parts=None if spec.parts is None else template_record(spec.parts),
        inputs={name: variable.number for name, variable in call.inputs.items()},
        makes={variable.name: variable.number for variable in call.outputs},
        deferred=spec.deferred,
        objective=spec.objective,
        share=spec.share,
        salt=spec.salt,
        fallbacks=tuple(
            (rendering.model, [segment_record(segment) for segment in rendering.segments])
            for rendering in spec.fallbacks
        ),
        form=None if spec.form is None else form_record(spec.form),
        origin=None if spec.origin is None else (spec.origin.call, spec.origin.place, spec.origin.digest),
        where=spec.where if spec.form is not None or spec.origin is not None else "",
        unresolved=spec.unresolved,
        defaults=dict(spec.defaults),
    )
