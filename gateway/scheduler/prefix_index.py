"""Which beginnings of prompts there have been, and which engines were given them: asked of no engine."""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field

from gateway.engines.protocol import Engine
from gateway.graph.prefix_hash import PrefixKey

_MOST = 100_000
"""Beginnings that are remembered."""
_HOLDERS = 4
"""Engines that are remembered for one."""


@dataclass(slots=True)
class _Seen:
    """`engines`: which were given it, the last ones last. `read`: whether one of them has read it to its end.
    `session`: which asked for it last."""

    session: int
    read: bool = False
    engines: list[Engine] = field(default_factory=list)


class PrefixIndex:
    """Owner of what is known of beginnings. The last ones are remembered."""

    def __init__(self) -> None:
        self._seen: OrderedDict[int, _Seen] = OrderedDict()

    def known(self, prefixes: Sequence[PrefixKey], session: int) -> int:
        """Tokens of the longest beginning that the session need not pay for: it has been read, or will be by a call of
        its own."""
        for border in reversed(prefixes):
            seen = self._seen.get(border.key)
            if seen is not None and (seen.read or seen.session == session):
                return border.tokens
        return 0

    def add(self, prefixes: Sequence[PrefixKey], session: int) -> None:
        """A call of the session comes that will read them."""
        for _, key, _ in prefixes:
            seen = self._seen.get(key)
            if seen is None:
                self._seen[key] = _Seen(session)
            else:
                seen.session = session
                self._seen.move_to_end(key)
        while len(self._seen) > _MOST:
            self._seen.popitem(last=False)

    def read(self, prefixes: Sequence[PrefixKey]) -> None:
        """A call has read them."""
        for border in reversed(prefixes):
            seen = self._seen.get(border.key)
            if seen is None:
                continue
            if seen.read:
                return  # and what is shorter with it
            seen.read = True

    def held(self, prefixes: Sequence[PrefixKey]) -> dict[Engine, int]:
        """Engines that were given some of it, with how many tokens of it each."""
        held: dict[Engine, int] = {}
        for tokens, key, _ in prefixes:
            seen = self._seen.get(key)
            if seen is None:
                break
            for engine in seen.engines:
                held[engine] = tokens
        return held

    def given(self, prefixes: Sequence[PrefixKey], engine: Engine) -> None:
        """An engine was given all of it."""
        for _, key, _ in prefixes:
            seen = self._seen.get(key)
            if seen is None:
                continue
            if engine in seen.engines:
                seen.engines.remove(engine)
            seen.engines.append(engine)
            del seen.engines[:-_HOLDERS]
