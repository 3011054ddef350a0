"""Beginnings of prompts, as what they hold: what the paper calls PrefixHash."""

from array import array
from hashlib import blake2b
from typing import NamedTuple

from gateway.graph.call import Call, Input, Slot, Text

_CHUNK = 128
"""Tokens of a text from one border to the next, where no segment ends before."""
_VALUE = 64
"""Tokens that a value is taken to have while it is not there."""


class Border(NamedTuple):
    """A beginning of a prompt: about how many tokens it has, what it is, and whether a segment ends there."""

    tokens: int
    key: bytes
    ends: bool = True


def borders(call: Call) -> list[Border]:
    """From the shortest to the whole prompt: equal for equal text and equal sources, in one tenant and model."""
    digest = blake2b(f"{call.scope}\0{call.spec.model}".encode(), digest_size=16)
    found, length = [], 0
    for segment in call.spec.segments:
        match segment:
            case Text(tokens):
                data = memoryview(array("i", tokens)).cast("B")
                for end in range(_CHUNK, len(tokens), _CHUNK):
                    digest.update(data[4 * (end - _CHUNK) : 4 * end])
                    found.append(Border(length + end, digest.digest(), ends=False))
                digest.update(data[4 * (max(0, len(tokens) - 1) // _CHUNK * _CHUNK) :])
                length += len(tokens)
            case Input(reference) if reference.name in call.inputs:
                source = call.inputs[reference.name]
                made_by = source.producer.id if source.producer is not None else f"{call.session.id}\0{source.name}"
                digest.update(f"\0v{made_by}\0{reference}\0".encode())
                length += _VALUE if source.value is None else len(source.value) // 4
            case Input(reference):  # a slot of its own
                digest.update(f"\0s{call.id}\0{reference}\0".encode())
            case Slot(name):
                digest.update(f"\0s{call.id}\0{name or call.output.name}\0".encode())
        found.append(Border(length, digest.digest()))
    return found
