"""Segments of prompts and texts with references, as parts of records."""

import dataclasses
from array import array
from collections.abc import Sequence
from typing import Any, Literal

import msgspec

from engine.sampling_params import SamplingParams
from gateway.graph.forms.form import Template
from gateway.graph.references import Reference
from gateway.graph.segments import Characters, Input, Messages, Segment, Slot, Text, Trim
from gateway.graph.transform import Transform
from gateway.journal.message_codec import decode_messages, encode_messages, has_marks


class StoredRecord(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Base of all records: a JSON list of the fields, with a tag in front where there are several kinds."""


class TextPart(StoredRecord, frozen=True, tag="text"):
    """Tokens, as 32-bit integers in the machine's byte order. For messages, see `message_codec`."""

    tokens: bytes
    weight: int | None = None


class CharactersPart(StoredRecord, frozen=True, tag="characters"):
    """Text that is not tokenised yet. Before schema 3 it was stored as the code points of a `TextPart`."""

    text: str
    adds_space: bool
    weight: int | None


class InputPart(StoredRecord, frozen=True, tag="input"):
    """A reference to a variable."""

    name: str
    path: tuple[str, ...]
    where: str
    in_json: bool = False


class SlotPart(StoredRecord, frozen=True, tag="slot"):
    """A place where text is generated. Only sampling and transform fields that differ from their defaults are
    stored."""

    name: str | None
    sampling: dict[str, Any]
    transform: dict[str, Any] | None
    where: str
    thinks: Literal["perhaps", "begun"] | None = None
    heals: bool = False


class TrimPart(StoredRecord, frozen=True, tag="trim"):
    """A place from which on white space is removed."""

    left: bool
    right: bool
    lines: bool


Part = TextPart | CharactersPart | InputPart | SlotPart | TrimPart


def segment_record(segment: Segment) -> Part:
    """Return the part of a record for a segment."""
    match segment:
        case Text(tokens, weight):
            return TextPart(array("i", tokens).tobytes(), weight)
        case Characters(text, adds_space, weight):
            return CharactersPart(text, adds_space, weight)
        case Messages():
            return TextPart(encode_messages(segment).tobytes(), segment.weight)
        case Input():
            return input_record(segment)
        case Trim(left, right, lines):
            return TrimPart(left, right, lines)
        case Slot(name, sampling, transform, where, thinks, heals):
            transform_fields = None if transform is None else non_default(transform)
            return SlotPart(name, non_default(sampling), transform_fields, where, thinks, heals)


def template_record(template: Template) -> list[str | InputPart]:
    """Return the parts of a record for a template."""
    return [part if isinstance(part, str) else input_record(part) for part in template]


def input_record(part: Input) -> InputPart:
    """Return the part of a record for a reference."""
    return InputPart(part.reference.name, part.reference.path, part.where, part.in_json)


def segments_of(parts: Sequence[Part]) -> list[Segment]:
    """Return the segments of a prompt."""
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
        case InputPart():
            return input_of(part)
        case SlotPart(name, sampling, transform, where, thinks, heals):
            restored = None if transform is None else msgspec.convert(transform, Transform)
            return Slot(name, msgspec.convert(sampling, SamplingParams, strict=False), restored, where, thinks, heals)


def template_of(parts: Sequence[str | InputPart]) -> list[str | Input]:
    """Return a template."""
    return [_part(part) for part in parts]


def input_of(part: InputPart) -> Input:
    """Return a reference."""
    return Input(Reference(part.name, part.path), part.where, part.in_json)


def _part(part: str | InputPart) -> str | Input:
    return part if isinstance(part, str) else input_of(part)


def _defaults(kind: type[SamplingParams] | type[Transform]) -> Sequence[tuple[str, Any]]:
    return [(name, getattr(kind(), name)) for name in (field.name for field in dataclasses.fields(kind))]


_DEFAULTS = {kind: _defaults(kind) for kind in (SamplingParams, Transform)}


def non_default(parameters: SamplingParams | Transform) -> dict[str, Any]:
    """Return the fields that differ from their defaults."""
    return {
        name: value for name, default in _DEFAULTS[type(parameters)] if (value := getattr(parameters, name)) != default
    }
