"""Index of prompt beginnings: which ones exist, and which engines received them. No engine is asked."""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field

from gateway.engines.protocol import Engine
from gateway.graph.prefix_hash import PrefixKey

_MAX_KEYS = 100_000
"""Maximum number of prefix keys in the index."""
_MAX_ENGINES = 4
"""Maximum number of engines that are recorded for one prefix key."""


@dataclass(slots=True)
class _Entry:
    """Record of one prefix key.

    `engines`: engines that received this beginning, the latest last. `read`: whether one of them has prefilled all of
    it. `session`: the session whose call requested it last.
    """

    session: int
    read: bool = False
    engines: list[Engine] = field(default_factory=list)


class PrefixIndex:
    """Owner of the entries by prefix key. The least recently requested ones are evicted."""

    def __init__(self) -> None:
        self._entries: OrderedDict[int, _Entry] = OrderedDict()

    def covered_tokens(self, prefixes: Sequence[PrefixKey], session: int) -> int:
        """Return the tokens of the longest beginning that the session need not pay for: an engine has prefilled it, or
        will do so for another call of the session."""
        for prefix in reversed(prefixes):
            entry = self._entries.get(prefix.key)
            if entry is not None and (entry.read or entry.session == session):
                return prefix.tokens
        return 0

    def add(self, prefixes: Sequence[PrefixKey], session: int) -> None:
        """Add the beginnings of a new call's prompt. `session`: id of the call's session."""
        for _, key, _ in prefixes:
            entry = self._entries.get(key)
            if entry is None:
                self._entries[key] = _Entry(session)
            else:
                entry.session = session
                self._entries.move_to_end(key)
        while len(self._entries) > _MAX_KEYS:
            self._entries.popitem(last=False)

    def mark_prefilled(self, prefixes: Sequence[PrefixKey]) -> None:
        """Record that an engine has prefilled the prompt."""
        for prefix in reversed(prefixes):
            entry = self._entries.get(prefix.key)
            if entry is None:
                continue
            if entry.read:
                return  # shorter beginnings are marked already
            entry.read = True

    def tokens_by_engine(self, prefixes: Sequence[PrefixKey]) -> dict[Engine, int]:
        """Return the engines that received a beginning of the prompt, with the tokens of the longest one each."""
        tokens_by_engine: dict[Engine, int] = {}
        for tokens, key, _ in prefixes:
            entry = self._entries.get(key)
            if entry is None:
                break
            for engine in entry.engines:
                tokens_by_engine[engine] = tokens
        return tokens_by_engine

    def record_placement(self, prefixes: Sequence[PrefixKey], engine: Engine) -> None:
        """Record that an engine received the prompt."""
        for _, key, _ in prefixes:
            entry = self._entries.get(key)
            if entry is None:
                continue
            if engine in entry.engines:
                entry.engines.remove(engine)
            entry.engines.append(engine)
            del entry.engines[:-_MAX_ENGINES]
