"""Prefix keys: hashes of prompt beginnings. Parrot (Lin et al., OSDI'24) calls them PrefixHash."""

from array import array
from collections.abc import Iterator
from functools import lru_cache
from hashlib import blake2b
from typing import NamedTuple
from zlib import crc32

from gateway.graph.call import Call
from gateway.graph.segments import Characters, Input, Messages, Slot, Text

_CHUNK, _FULL_RESOLUTION, _GROWTH = 128, 4096, 8
"""Borders inside a long text: every 128 tokens up to 4096 tokens, then each an eighth further than the one before.

So the relative error of a known beginning is about the same for long and for short texts.
"""
_UNKNOWN_VALUE_TOKENS = 64
"""Tokens that a value is assumed to have before it exists."""


class PrefixKey(NamedTuple):
    """A prompt beginning: its approximate number of tokens, its hash, and whether a segment ends there.

    `key` has 64 bits and is the same in every process. Chunks are hashed with 32 bits: two beginnings that differ
    within one chunk collide once in four thousand million. Estimates and placement would then treat them as equal;
    nothing else depends on it.
    """

    tokens: int
    key: int
    ends_segment: bool = True


def prefix_keys(call: Call, *, own: bool = True) -> list[PrefixKey]:
    """Return the prefix keys from the shortest to the whole prompt. Keys are equal for equal texts and for
    inputs from the same producers, within one tenant and model.

    `own`: include keys after the first place where the call itself generates. No other call's prompt equals those.
    """
    key = _scope_key(call.scope, call.spec.model)
    found, length = [], 0
    for segment in call.spec.segments:
        if not own and isinstance(segment, Slot):
            break
        match segment:
            case Text(tokens, weight):
                numbers = memoryview(tokens if isinstance(tokens, array) else array("i", tokens))
                for begin, end in _chunks(len(tokens)):
                    key = hash((key, crc32(numbers[begin:end])))
                    found.append(PrefixKey(length + (end if weight is None else min(end, weight)), key, False))
                length += segment.length
            case Characters(text):
                size = segment.length
                for end, extended_key in _text_keys(key, text):
                    found.append(PrefixKey(length + min(end, size), extended_key, False))
                key, length = found[-1].key, length + size
            case Messages():
                size = segment.length
                for end, extended_key in _message_keys(key, segment):
                    found.append(PrefixKey(length + min(end, size), extended_key, False))
                key, length = found[-1].key if found else key, length + size
            case Input(reference) if reference.name in call.inputs:
                source = call.inputs[reference.name]
                producer = source.producer.id if source.producer is not None else f"{call.session.id}\0{source.name}"
                key = hash((key, 1, crc32(producer.encode()), crc32(str(reference).encode())))
                length += _UNKNOWN_VALUE_TOKENS if source.value is None else len(source.value) // 4
            case Input(reference):  # a slot of its own
                key = hash((key, 2, crc32(call.id.encode()), crc32(str(reference).encode())))
            case Slot(name):
                key = hash((key, 3, crc32(call.id.encode()), crc32((name or call.output.name).encode())))
        if found and found[-1].key == key:  # the end of the last chunk
            found.pop()
        found.append(PrefixKey(length, key))
    return found


def _chunks(length: int) -> list[tuple[int, int]]:
    """Return the first and last position of each chunk of a text of this length; one chunk for an empty text."""
    if length <= _CHUNK:  # most texts
        return [(0, length)]
    found, begin, end = [], 0, _CHUNK
    while end < length:
        found.append((begin, end))
        begin, end = end, end + (_CHUNK if end < _FULL_RESOLUTION else end // _GROWTH)
    return [*found, (begin, length)]


def _text_keys(key: int, text: str) -> Iterator[tuple[int, int]]:
    """Yield the length of each beginning of a text that follows `key`, and its key."""
    for begin, end in _chunks(len(text)):
        key = hash((key, crc32(text[begin:end].encode(errors="surrogatepass"))))
        yield end, key


def _message_keys(key: int, segment: Messages) -> list[tuple[int, int]]:
    """Return the length of each beginning of the messages that follow `key`, and its key. All keys differ."""
    found, length = [], 0
    digests = iter(segment.json_digests())
    if segment.prompt_fields:
        key = hash((key, crc32(next(digests))))
    for index, message in enumerate(segment.messages):
        if index or not segment.continues:
            key = hash((key, 4, crc32(next(digests))))
        content = message["content"]
        for part in (content,) if isinstance(content, str) else content:
            if not isinstance(part, str) and part["type"] != "text":
                key = hash((key, 5, crc32(next(digests))))
                continue
            text = part if isinstance(part, str) else part["text"]
            if len(text) <= _CHUNK:  # most texts
                key = hash((key, crc32(text.encode(errors="surrogatepass"))))
                found.append((length + len(text), key))
            else:
                found += [(length + end, extended_key) for end, extended_key in _text_keys(key, text)]
                key = found[-1][1]
            length += len(text)
    if not found or found[-1][1] != key:
        found.append((length, key))
    return found


@lru_cache(1024)
def _scope_key(scope: str, model: str) -> int:
    """Return the key of an empty prompt."""
    return int.from_bytes(blake2b(f"{scope}\0{model}".encode(), digest_size=8).digest())


def prefix_hashes(call: Call) -> list[str]:
    """Return hashes of the prompt at each end of a segment: equal for equal texts and inputs from the
    same producers, in one tenant."""
    return [f"{prefix.key % 2**64:016x}" for prefix in prefix_keys(call) if prefix.ends_segment]
