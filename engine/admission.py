"""Admission of prompts: decide before each step which prompts may begin. A prompt waits if it would evict KV that is
read soon.

While an agent waits for a tool or a person, its KV stays in the pool. If a new prompt evicted this KV, the agent would
compute its whole history again, and evict the KV of the next agent. So the engine *protects* KV whose forecast is short
enough (`engine.kv.pausing.max_protected_wait`): prompts that do not fit beside the protected KV wait. Protection only
delays prompts. The eviction policy does not know it, and running calls may evict protected KV. If at least half of a
prompt is cached, the pool evicts this KV last until the prompt's first step.

Only prompts with `Fill.pausable` wait: those of plain requests that belong to a program. A prompt waits for at most
`MAX_PAUSE_SECONDS`. If a step would be empty, the first waiting prompt is admitted. An admitted prompt may still wait
for free blocks.

An owner is an API key of a gateway. Owners have shares of the pool (`engine.kv.fair_shares`). If a prompt and all that
its owner has in the pool (contexts, protected KV, admitted prompts) fit its share, the protected KV and the prompts of
other owners do not count against the prompt. If all owners are within their shares, everything fits the pool. If the
share is exceeded, they count.

If a prompt fits or need not wait, its admission is final. If the pool is full, but no protected KV counts against a
prompt, the admission is valid for one step: the step scheduler decides by rank which prompts begin. The others may have
to wait in the next step, because the KV of calls that have ended meanwhile is protected. An owner gets no admission for
one step while one of its pausable contexts holds blocks and has no work: its call has probably ended, and its blocks
become protected KV once the gateway frees the context.
"""

import math
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence

from engine.kv.cache import KVCache, owner_of
from engine.kv.fair_shares import FairShares
from engine.kv.pausing import MAX_PAUSE_SECONDS, is_mostly_cached, is_small, max_protected_wait
from engine.sequence import Pause, TokenSequence

_LOOKUP_SECONDS = 1.0
"""Interval at which the cached beginning of a waiting prompt is looked up again, in seconds: another prompt may have
computed it."""
_LOOKUP_TOKENS = 65_536
"""Budget of the lookups of one step, in tokens, so that many long prompts do not make steps long. A lookup costs one
block, and the cached tokens that it finds; these count twice if the pool is to evict them last. The last lookup may
exceed the budget. The other prompts are looked up in the next steps."""
_COUNT_SECONDS = 0.02
"""Time for which the count of protected KV is valid, in seconds, if the cache expects no new reader
(`KVCache.expect_reader`)."""


class PromptAdmission:
    """Decides which prompts wait."""

    def __init__(
        self, cache: KVCache, row_seconds: Callable[[], float], now: Callable[[], float] = time.monotonic
    ) -> None:
        """`row_seconds` returns the time to compute one prompt token. `now`: clock in seconds."""
        self._cache = cache
        self._row_seconds = row_seconds
        self._now = now
        self._protected: dict[int, int] = {}
        """Tokens of protected KV at the last count, by owner."""
        self._protected_total = 0
        self._count_time = -1.0
        self._reader_count = 0
        """`KVCache.expected_readers` at the time of the count."""
        self._lookups_left = 0
        """Rest of the budget of lookups in this step, in tokens; may be negative."""
        self._tried: list[TokenSequence] = []
        """Prompts that are admitted for this step only, unless they begin in it."""

    def admit_fitting(self, prefills: Sequence[TokenSequence], block_holders: Iterable[TokenSequence] = ()) -> None:
        """Admit the prompts that fit beside the protected KV or need not wait, in order of rank. Admit for one step
        those against which no protected KV counts. Withdraw such admissions of the last step, if the prompts did not
        begin in it.

        Call it before each step. `prefills`: all prompts that are to be computed, in order of rank. `block_holders`:
        all sequences that may hold blocks.
        """
        for sequence in self._tried:
            if sequence.has_own_blocks:
                sequence.pause = None
            elif sequence.pause is not None:
                sequence.is_admitted = False
        self._tried = []
        waiting = [sequence for sequence in prefills if not sequence.is_admitted]
        if not waiting:
            return
        now = self._now()
        self._lookups_left = _LOOKUP_TOKENS
        self._count(now)
        for sequence in waiting:  # first lookups before repeated ones, which could use up the budget
            pause = sequence.pause = sequence.pause or Pause(now, 0, -math.inf)
            if pause.looked_up == -math.inf and self._lookups_left > 0:
                self._look_up(sequence, pause, now)
        size, unallocated, ending = self._cache.block_size, Counter[int](), set()
        used = Counter(self._protected) + Counter(self._cache.used_tokens)
        for sequence in prefills:
            if sequence.is_admitted:
                # Cached tokens of a turn in line for its first step count as room that it takes. Without this reserve,
                # simulated agents took up to 10% longer. They are protected KV, so they do not count twice as used.
                unallocated[owner_of(sequence.scope)] += max(0, len(sequence.tokens) - len(sequence.blocks) * size)
                used[owner_of(sequence.scope)] += self._missing(sequence)
        for holder in block_holders:
            if holder.blocks:
                owner = owner_of(holder.scope)
                used[owner] += holder.private_blocks * size
                if holder.is_pausable and not holder.has_work:
                    ending.add(owner)
        shares, unallocated_total = FairShares(self._cache.capacity, used), unallocated.total()
        for sequence in waiting:
            owner, must_fit, needed = owner_of(sequence.scope), self._must_fit(sequence, now), self._missing(sequence)
            protected, pending = self._protected.get(owner, 0), unallocated[owner]
            if shares.used(owner) + needed > shares.share(owner):
                protected, pending = self._protected_total, unallocated_total
            if not must_fit or needed + protected + pending <= self._cache.available * size:
                self.admit(sequence)
            elif not protected and owner not in ending:
                assert sequence.pause is not None
                sequence.is_admitted = sequence.pause.was_tried = True
                self._tried.append(sequence)
            else:
                continue
            unallocated[owner] += needed
            unallocated_total += needed
            shares.add(owner, needed)

    def admit(self, sequence: TokenSequence) -> None:
        """Admit the prompt of a sequence for good, without a check."""
        if sequence.pause is not None:
            sequence.cached_prompt_tokens = sequence.pause.cached
        sequence.is_admitted, sequence.pause = True, None

    def _must_fit(self, sequence: TokenSequence, now: float) -> bool:
        """Return whether a prompt must fit beside the protected KV. Look it up again if the last lookup is old."""
        prompt, pause = len(sequence.tokens), sequence.pause
        assert pause is not None
        if sequence.blocks and not pause.was_tried:  # a fork begins with the blocks of its parent
            return False
        if now - pause.looked_up >= _LOOKUP_SECONDS and self._lookups_left > 0:
            self._look_up(sequence, pause, now)
        return not (
            is_mostly_cached(prompt, pause.cached)
            or is_small(self._missing(sequence), self._cache.capacity)
            or now - pause.since >= MAX_PAUSE_SECONDS
        )

    def _missing(self, sequence: TokenSequence) -> int:
        """Return the number of tokens of a prompt without blocks, less those that were cached at the last lookup.

        A prompt that was admitted for one step may have taken cached blocks without getting its own.
        """
        if sequence.pause is not None:
            cached = sequence.pause.cached
        else:
            cached = 0 if sequence.has_own_blocks else sequence.cached_prompt_tokens
        return max(0, len(sequence.tokens) - max(cached, len(sequence.blocks) * self._cache.block_size))

    def _look_up(self, sequence: TokenSequence, pause: Pause, now: float) -> None:
        """Look up how many tokens of a prompt are cached. If these are at least half of it, the pool evicts them last
        until the prompt's first step, which may come many steps later."""
        node, pause.cached = self._cache.cached_path(sequence.scope, sequence.tokens)
        pause.looked_up = now
        self._lookups_left -= self._cache.block_size + pause.cached
        if is_mostly_cached(len(sequence.tokens), pause.cached):
            sequence.expect_blocks(node)
            self._lookups_left -= pause.cached

    def _count(self, now: float) -> None:
        """Count the protected KV, unless the last count is recent and the cache expects no new reader since.

        Reason: freed blocks are available immediately. With a count from before, a prompt could be admitted to their
        room, although they are protected.
        """
        readers = self._cache.expected_readers
        if readers == self._reader_count and 0.0 <= now - self._count_time < _COUNT_SECONDS:
            return
        capacity, row_seconds = self._cache.capacity, self._row_seconds()
        self._protected = self._cache.expected_tokens(
            lambda tokens, wait: wait <= max_protected_wait(tokens, capacity, row_seconds)
        )
        self._protected_total = sum(self._protected.values())
        self._count_time, self._reader_count = now, readers
