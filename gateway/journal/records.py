"""Facts as rows, and back. Rows are JSON, so that a journal can be read with sqlite3 or psql alone.

A change of these records needs a new schema version: see `storage.SCHEMA`.
"""

import dataclasses
from array import array
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal

import msgspec

from engine.sampling_params import SamplingParams
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
from gateway.graph.references import Reference
from gateway.graph.segments import Characters, Input, Messages, Segment, Slot, Text, Trim
from gateway.graph.session import Session
from gateway.graph.transform import Transform
from gateway.graph.variable import VariableState
from gateway.journal.message_codec import decode_messages, encode_messages, has_marks
from gateway.journal.storage import Entry


class _Record(msgspec.Struct, frozen=True, array_like=True, gc=False):
    pass


class SessionRecord(_Record, frozen=True, tag="session"):
    """First record of each session."""

    tenant: str
    id: str
    created: float
    ttl: float
    metadata: dict[str, str]
    limits: Limits | None = None


class VariableRecord(_Record, frozen=True, tag="variable"):
    """A variable, given by its number, was created or changed its state."""

    time: float
    number: int
    name: str
    state: VariableState
    failure: Failure | None


class DeletedRecord(_Record, frozen=True, tag="deleted"):
    """A variable was deleted: it lost its name."""

    time: float
    number: int


class ValueRecord(_Record, frozen=True, tag="value"):
    """Value that a variable is about to get."""

    number: int
    name: str
    value: str


class ExposureRecord(_Record, frozen=True, tag="shown"):
    """Part of an unfinished value was sent to a client."""

    number: int


class TextPart(_Record, frozen=True, tag="text"):
    """Tokens, as 32-bit integers in the machine's byte order. For messages, see `message_codec`."""

    tokens: bytes
    weight: int | None = None


class CharactersPart(_Record, frozen=True, tag="characters"):
    """Text that is not tokenised yet. Before schema 3 it was stored as the code points of a `TextPart`."""

    text: str
    adds_space: bool
    weight: int | None


class InputPart(_Record, frozen=True, tag="input"):
    """A reference to a variable."""

    name: str
    path: tuple[str, ...]
    where: str
    in_json: bool = False


class SlotPart(_Record, frozen=True, tag="slot"):
    """A place where text is generated. Only sampling and transform fields that differ from their defaults are
    stored."""

    name: str | None
    sampling: dict[str, Any]
    transform: dict[str, Any] | None
    where: str
    thinks: Literal["perhaps", "begun"] | None = None
    heals: bool = False


class TrimPart(_Record, frozen=True, tag="trim"):
    """A place from which on white space is removed."""

    left: bool
    right: bool
    lines: bool


Part = TextPart | CharactersPart | InputPart | SlotPart | TrimPart


class CallRecord(_Record, frozen=True, tag="call"):
    """A call joined the graph. `inputs` and `makes`: names and numbers of variables; the output is the last one
    made."""

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
    fallbacks: list[tuple[str, list[Part]]] = []


class Outcome(_Record, frozen=True):
    """Results of a call that has ended."""

    usage: Usage
    times: Times
    finish_reason: str | None
    engine: str | None
    leader: str | None
    identity: bytes | None


class StateRecord(_Record, frozen=True, tag="state"):
    """A call changed its state."""

    time: float
    call: str
    state: CallState
    failure: Failure | None
    outcome: Outcome | None


class SlotTextRecord(_Record, frozen=True, tag="made"):
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
    return CallSpec(
        model=record.model,
        segments=_segments(record.segments),
        output=list(record.makes)[-1],
        parts=None if record.parts is None else [_part(part) for part in record.parts],
        deferred=record.deferred,
        objective=record.objective,
        share=record.share,
        salt=record.salt,
        fallbacks=tuple(Rendering(model, _segments(parts)) for model, parts in record.fallbacks),
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
        segments=[_segment_record(segment) for segment in spec.segments],
        parts=None
        if spec.parts is None
        else [part if isinstance(part, str) else _input_record(part) for part in spec.parts],
        inputs={name: variable.number for name, variable in call.inputs.items()},
        makes={variable.name: variable.number for variable in call.outputs},
        deferred=spec.deferred,
        objective=spec.objective,
        share=spec.share,
        salt=spec.salt,
        fallbacks=[
            (rendering.model, [_segment_record(segment) for segment in rendering.segments])
            for rendering in spec.fallbacks
        ],
    )


def _segment_record(segment: Segment) -> Part:
    match segment:
        case Text(tokens, weight):
            return TextPart(array("i", tokens).tobytes(), weight)
        case Characters(text, adds_space, weight):
            return CharactersPart(text, adds_space, weight)
        case Messages():
            return TextPart(encode_messages(segment).tobytes(), segment.weight)
        case Input():
            return _input_record(segment)
        case Trim(left, right, lines):
            return TrimPart(left, right, lines)
        case Slot(name, sampling, transform, where, thinks, heals):
            transform_fields = None if transform is None else _non_default(transform)
            return SlotPart(name, _non_default(sampling), transform_fields, where, thinks, heals)


def _input_record(part: Input) -> InputPart:
    return InputPart(part.reference.name, part.reference.path, part.where, part.in_json)


def _segments(parts: Sequence[Part]) -> list[Segment]:
    texts = {index: array("i", part.tokens) for index, part in enumerate(parts) if isinstance(part, TextPart)}
    are_messages = any(map(has_marks, texts.values()))
    return [_segment(part, texts.get(index), are_messages) for index, part in enumerate(parts)]


def _segment(part: Part, text: "array[int] | None", is_message: bool) -> Segment:
    match part:
        case TextPart(_, weight):
            assert text is not None
            return decode_messages(text, weight) if is_message else Text(text, weight)
        case CharactersPart(characters, adds_space, weight):
            return Characters(characters, adds_space, weight)
        case TrimPart(left, right, lines):
            return Trim(left, right, lines)
        case InputPart(name, path, where, in_json):
            return Input(Reference(name, path), where, in_json)
        case SlotPart(name, sampling, transform, where, thinks, heals):
            restored = None if transform is None else msgspec.convert(transform, Transform)
            return Slot(name, msgspec.convert(sampling, SamplingParams, strict=False), restored, where, thinks, heals)


def _part(part: str | InputPart) -> str | Input:
    return part if isinstance(part, str) else Input(Reference(part.name, part.path), part.where, part.in_json)


def _defaults(kind: type[SamplingParams] | type[Transform]) -> Sequence[tuple[str, Any]]:
    return [(name, getattr(kind(), name)) for name in (field.name for field in dataclasses.fields(kind))]


_DEFAULTS = {kind: _defaults(kind) for kind in (SamplingParams, Transform)}


def _non_default(parameters: SamplingParams | Transform) -> dict[str, Any]:
    """Return the fields that differ from their defaults."""
    return {
        name: value for name, default in _DEFAULTS[type(parameters)] if (value := getattr(parameters, name)) != default
    }
