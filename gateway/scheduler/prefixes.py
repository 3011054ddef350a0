"""Which beginnings of prompts there have been, and which engines were given them: asked of no engine."""

from array import array
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import NamedTuple

from gateway.graph.call import Call, Input, Slot, Text

_CHUNK = 128
"""Tokens of a text from one border to the next, where no segment ends before."""
_VALUE = 64
"""Tokens that a value is taken to have while it is not there."""
_MOST = 100_000
"""Beginnings that are remembered."""
_HOLDERS = 4
"""Engines that are remembered for one."""


class Border(NamedTuple):
    """A beginning of a prompt: about how many tokens it has, and what it is."""

    tokens: int
    key: bytes


@dataclass(slots=True)
class _Seen:
    """`engines`: which were given it, the last ones last."""

    engines: list[str] = field(default_factory=list)


def borders(call: Call) -> list[Border]:
    """The beginnings of a call's prompt, from the shortest: equal for equal text and equal sources, in one tenant."""
    digest = blake2b(f"{call.scope}\0{call.spec.model}".encode(), digest_size=12)
    found, length = [], 0
    for segment in call.spec.segments:
        match segment:
            case Text(tokens):
                data = memoryview(array("i", tokens)).cast("B")
                for start in range(0, len(tokens), _CHUNK):
                    end = min(start + _CHUNK, len(tokens))
                    digest.update(data[4 * start : 4 * end])
                    found.append(Border(length + end, digest.digest()))
                length += len(tokens)
            case Input(reference):
                source = call.inputs.get(reference.name)
                if source is None:  # a slot of its own: from here on nobody else reads the same
                    break
                made_by = source.producer.id if source.producer is not None else f"{call.session.id}\0{source.name}"
                digest.update(f"\0v{made_by}\0{reference}\0".encode())
                length += _VALUE if source.value is None else len(source.value) // 4
                found.append(Border(length, digest.digest()))
            case Slot():
                break
    return found


class Prefixes:
    """Owner of what is known of beginnings. The last ones are remembered."""

    def __init__(self) -> None:
        self._seen: OrderedDict[bytes, _Seen] = OrderedDict()

    def known(self, beginnings: Sequence[Border]) -> int:
        """Tokens of the longest beginning that has been seen before."""
        for border in reversed(beginnings):
            if border.key in self._seen:
                return border.tokens
        return 0

    def add(self, beginnings: Sequence[Border]) -> None:
        """A call comes that will read them."""
        for _, key in beginnings:
            if key in self._seen:
                self._seen.move_to_end(key)
            else:
                self._seen[key] = _Seen()
        while len(self._seen) > _MOST:
            self._seen.popitem(last=False)

    def held(self, beginnings: Sequence[Border]) -> dict[str, int]:
        """Engines that were given some of it, with how many tokens of it each."""
        held: dict[str, int] = {}
        for tokens, key in beginnings:
            seen = self._seen.get(key)
            if seen is None:
                break
            for engine in seen.engines:
                held[engine] = tokens
        return held

    def given(self, beginnings: Sequence[Border], engine: str) -> None:
        """An engine was given all of it."""
        for _, key in beginnings:
            seen = self._seen.get(key)
            if seen is None:
                continue
            if engine in seen.engines:
                seen.engines.remove(engine)
            seen.engines.append(engine)
            del seen.engines[:-_HOLDERS]
