"""Admission of prompts: decide which prompts wait, so that agents do not evict each other's KV.

While an agent waits for a tool or a person, its KV stays in the pool. A forecast estimates when it is read again. If a
new prompt evicted this KV, the agent would compute its whole history again, and evict the KV of the next agent. So the
engine *protects* KV whose forecast is short enough (`engine.kv.pausing.longest_wait`), and prompts that do not fit
beside the protected KV wait. The cached beginning of a prompt that continues a program is protected as well until the
prompt begins.

A prompt that fits is admitted for good, so memory that running sequences hold must not count as room: when they end,
their KV would be protected, and the prompt would evict it. Blocks of contexts without work count as room, because the
scheduler takes them.

Only prompts with `Fill.pausable` wait: those of plain requests that belong to a program. They wait only while other
work runs, and for at most `MAX_PAUSE_SECONDS`.

An owner is an API key of a gateway. Owners with protected KV or with prompts have equal shares of the pool. If the
tokens that a prompt needs and the protected KV of its owner fit this share, the protected KV and the prompts of other
owners are no reason to wait. Otherwise they count: the prompts in full, the protected KV up to the shares of the other
owners.
"""

import math
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence

from engine.kv.cache import KVCache, owner_of
from engine.kv.pausing import MAX_PAUSE_SECONDS, is_active, is_small, longest_wait
from engine.sequence import Pause, TokenSequence

_LOOKUP_SECONDS = 1.0
"""Interval at which the cached beginning of a waiting prompt is looked up again, in seconds: another prompt may have
computed it."""
_LOOKUP_TOKENS = 65_536
"""Number of cached tokens that the lookups of one step may find and protect, so that many long prompts do not make
steps long. The other prompts are looked up in the next steps."""
_COUNT_SECONDS = 0.02
"""Validity of the count of protected KV, in seconds, unless a new reader is expected."""


class PromptAdmission:
    """Decides which prompts wait. A prompt that was admitted never waits again."""

    def __init__(
        self, cache: KVCache, row_seconds: Callable[[], float], now: Callable[[], float] = time.monotonic
    ) -> None:
        """`row_seconds` returns the time to compute one prompt token. `now`: clock in seconds."""
        self._cache = cache
        self._row_seconds = row_seconds
        self._now = now
        self._kept: dict[int, int] = {}
        """Tokens of protected KV, by owner."""
        self._kept_total = 0
        self._counted = -1.0
        self._counted_readers = 0
        """Number of readers that had been expected at the time of the count."""
        self._lookups_left = 0
        """Number of tokens that lookups may still find in this step."""

    def admit_fitting(self, prefills: Sequence[TokenSequence], others: Iterable[TokenSequence] = ()) -> None:
        """Admit the prompts that fit beside the protected KV, in order of rank. Call it before each step with all
        prompts that are to be computed, in this order. `others`: sequences that may hold blocks without work."""
        waiting = [sequence for sequence in prefills if not sequence.is_admitted]
        if not waiting:
            return
        now = self._now()
        self._lookups_left = _LOOKUP_TOKENS
        self._count(now)
        for sequence in waiting:  # first lookups before repeated ones, which would use up the tokens
            pause = sequence.pause = sequence.pause or Pause(now, 0, -math.inf)
            if pause.looked_up == -math.inf and self._lookups_left > 0:
                self._look_up(sequence, pause, now)
        size, promised = self._cache.block_size, Counter[int]()
        for sequence in prefills:
            if sequence.is_admitted:
                missing = max(0, len(sequence.tokens) - len(sequence.blocks) * size)
                promised[owner_of(sequence.scope)] += missing
        idle = sum([len(other.blocks) for other in others if other.blocks and not other.has_work])
        room = size * (self._cache.available + idle)
        owners = len(self._kept.keys() | promised.keys() | {owner_of(sequence.scope) for sequence in waiting})
        for sequence in waiting:
            needed = self._needed(sequence, now)
            if needed is None or self._fits(sequence, needed, promised, owners, room):
                self.admit(sequence)
                promised[owner_of(sequence.scope)] += needed or 0

    def admit(self, sequence: TokenSequence) -> None:
        """Let a sequence's prompt begin, whatever the pool holds."""
        sequence.is_admitted, sequence.pause = True, None

    def _needed(self, sequence: TokenSequence, now: float) -> int | None:
        """Return the number of tokens of the pool that a prompt needs beside those that are cached. Return None if it
        need not wait."""
        if sequence.blocks:  # it continues a context that holds its KV
            return None
        prompt, pause = len(sequence.tokens), sequence.pause
        assert pause is not None
        if now - pause.looked_up >= _LOOKUP_SECONDS and self._lookups_left > 0:
            self._look_up(sequence, pause, now)
        needed = prompt - pause.cached
        if (
            is_active(prompt, pause.cached)
            or is_small(needed, self._cache.capacity)
            or now - pause.since >= MAX_PAUSE_SECONDS
        ):
            return None
        return needed

    def _look_up(self, sequence: TokenSequence, pause: Pause, now: float) -> None:
        """Count the tokens of a prompt that are cached. If the prompt continues a program, it is admitted in this step.
        Protect its cached beginning until its own first step, which may come many steps later."""
        node, pause.cached = self._cache.cached_path(sequence.scope, sequence.tokens)
        pause.looked_up = now
        self._lookups_left -= self._cache.block_size + pause.cached
        if is_active(len(sequence.tokens), pause.cached):
            sequence.expect_blocks(node)
            self._lookups_left -= pause.cached

    def _count(self, now: float) -> None:
        """Count the protected KV.

        KV that a sequence has just freed must count at once: it is room as well, so a prompt would be admitted for it.
        """
        readers = self._cache.expected_readers
        if readers == self._counted_readers and 0.0 <= now - self._counted < _COUNT_SECONDS:
            return
        capacity, row_seconds = self._cache.capacity, self._row_seconds()
        self._kept = self._cache.expected_tokens(
            lambda tokens, wait: wait <= longest_wait(tokens, capacity, row_seconds)
        )
        self._kept_total = sum(self._kept.values())
        self._counted, self._counted_readers = now, readers

    def _fits(self, sequence: TokenSequence, needed: int, promised: Counter[int], owners: int, room: int) -> bool:
        """Return whether a prompt fits beside the protected KV that counts for it. `promised`: tokens that admitted
        prompts have not got yet, by owner. `owners`: number of owners that have protected KV or prompts. `room`: tokens
        that sequences with work do not hold."""
        capacity, owner = self._cache.capacity, owner_of(sequence.scope)
        own = self._kept.get(owner, 0)
        counted, pending = own, promised[owner]
        if (own + needed) * owners > capacity:
            counted += min(self._kept_total - own, capacity * (owners - 1) // owners)
            pending = promised.total()
        return needed + pending + counted <= room
