"""Beginnings of prompts, as what they hold: what the paper calls PrefixHash."""

from array import array
from functools import lru_cache
from hashlib import blake2b
from typing import NamedTuple
from zlib import crc32

from gateway.graph.call import Call, Input, Slot, Text

_CHUNK, _FAR, _PART = 128, 4096, 8
"""Tokens of a text from one border to the next, where no segment ends before; and how far into it the next one lies so
many parts of the way further: what is known of long texts is as exact as it is of short ones, and not more so."""
_VALUE = 64
"""Tokens that a value is taken to have while it is not there."""


class PrefixKey(NamedTuple):
    """A beginning of a prompt: about how many tokens it has, what it is, and whether a segment ends there.

    `key`: 64 bits, the same in every process. Two beginnings that have one by chance (one in four thousand millions, of
    those that part between two borders) would be taken for equal by estimates and placement, and by nothing else.
    """

    tokens: int
    key: int
    ends: bool = True


def prefix_keys(call: Call, *, own: bool = True) -> list[PrefixKey]:
    """From the shortest to the whole prompt: equal for equal text and equal sources, in one tenant and model.

    `own`: also from the first place on where the call itself generates, from which on no other's prompt is equal.
    """
    key = _scope_key(call.scope, call.spec.model)
    found, length = [], 0
    for segment in call.spec.segments:
        if not own and isinstance(segment, Slot):
            break
        match segment:
            case Text(tokens, weight):
                numbers = memoryview(tokens if isinstance(tokens, array) else array("i", tokens))
                begin, end = 0, _CHUNK
                while end < len(tokens):
                    key = _goes_on(key, numbers[begin:end])
                    found.append(PrefixKey(length + (end if weight is None else min(end, weight)), key, ends=False))
                    begin, end = end, end + (_CHUNK if end < _FAR else end // _PART)
                key = _goes_on(key, numbers[begin:] if begin else numbers)
                length += len(tokens) if weight is None else weight
            case Input(reference) if reference.name in call.inputs:
                source = call.inputs[reference.name]
                made_by = source.producer.id if source.producer is not None else f"{call.session.id}\0{source.name}"
                key = hash((key, 1, crc32(made_by.encode()), crc32(str(reference).encode())))
                length += _VALUE if source.value is None else len(source.value) // 4
            case Input(reference):  # a slot of its own
                key = hash((key, 2, crc32(call.id.encode()), crc32(str(reference).encode())))
            case Slot(name):
                key = hash((key, 3, crc32(call.id.encode()), crc32((name or call.output.name).encode())))
        found.append(PrefixKey(length, key))
    return found


@lru_cache(1024)
def _scope_key(scope: str, model: str) -> int:
    """Of no tokens at all."""
    return int.from_bytes(blake2b(f"{scope}\0{model}".encode(), digest_size=8).digest())


def _goes_on(key: int, numbers: memoryview) -> int:
    """The key of what begins so and goes on with these."""
    return hash((key, crc32(numbers)))
