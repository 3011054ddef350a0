"""Admission of prompts: which prompts wait, so that agents do not evict each other's KV.

While an agent's tool runs, its KV stays in the pool, and a forecast says when it is read again. A new prompt that does
not fit beside it would evict it. The agent then computes its whole history again and evicts the KV of the next agent.
So such a prompt waits; `engine.kv.pausing` has the rule and its reason.

Only prompts that the gateway declares as pausable wait, and only while other work runs. A prompt waits for at most
`MAX_PAUSE_SECONDS`. The KV of other scopes is a reason to wait only up to their equal shares of the pool, so a scope
that holds less than its share never waits for others.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

from engine.kv.cache import KVCache
from engine.kv.pausing import MAX_PAUSE_SECONDS, is_active, is_small, longest_wait
from engine.sequence import TokenSequence

_LOOKUP_SECONDS = 1.0
"""Interval at which the cached beginning of a waiting prompt is looked up again, in seconds: another prompt may have
computed it."""
_COUNT_SECONDS = 0.02
"""Validity of the count of KV that is worth its memory, in seconds."""


@dataclass(slots=True)
class Pause:
    """Pause of a prompt. `since`: its begin. `cached`: number of tokens that were cached at the time `looked_up`. Times
    are in seconds."""

    since: float
    cached: int
    looked_up: float


class PromptAdmission:
    """Owner of the decision whether a prompt waits. A prompt that was admitted never waits again."""

    def __init__(
        self, cache: KVCache, row_seconds: Callable[[], float], now: Callable[[], float] = time.monotonic
    ) -> None:
        """`row_seconds` returns the time to compute one prompt token. `now`: clock in seconds."""
        self._cache = cache
        self._row_seconds = row_seconds
        self._now = now
        self._kept: dict[int, int] = {}
        """Tokens of KV that is worth its memory, by scope."""
        self._counted = -1.0

    def must_wait(self, sequence: TokenSequence) -> bool:
        """Return whether the sequence's prompt must wait now. If not, it is admitted for good."""
        if sequence.is_admitted:
            return False
        if sequence.blocks:  # it has begun, or continues a context that holds its KV
            sequence.is_admitted = True
            return False
        now, prompt = self._now(), len(sequence.tokens)
        pause = sequence.pause
        if pause is None:
            pause = sequence.pause = Pause(now, self._cache.cached_tokens(sequence.scope, sequence.tokens), now)
        elif now - pause.looked_up >= _LOOKUP_SECONDS:
            pause.cached = self._cache.cached_tokens(sequence.scope, sequence.tokens)
            pause.looked_up = now
        needed = prompt - pause.cached
        if (
            is_active(prompt, pause.cached)
            or is_small(needed, self._cache.capacity)
            or now - pause.since >= MAX_PAUSE_SECONDS
            or self._fits(sequence, needed, now)
        ):
            self.admit(sequence)
            return False
        return True

    def admit(self, sequence: TokenSequence) -> None:
        """Let a sequence's prompt begin, whatever the pool holds."""
        sequence.is_admitted, sequence.pause = True, None

    def _fits(self, sequence: TokenSequence, needed: int, now: float) -> bool:
        cache = self._cache
        if not 0.0 <= now - self._counted < _COUNT_SECONDS:
            row_seconds = self._row_seconds()
            self._kept = cache.expected_tokens(
                lambda tokens, wait: wait <= longest_wait(tokens, cache.capacity, row_seconds)
            )
            self._counted = now
        own_scope = cache.root(sequence.scope).scope
        own = self._kept.get(own_scope, 0)
        others = sum(self._kept.values()) - own
        scopes = len(self._kept) + (own_scope not in self._kept)
        others = min(others, cache.capacity * (scopes - 1) // scopes)
        return needed <= cache.available * cache.block_size - own - others
