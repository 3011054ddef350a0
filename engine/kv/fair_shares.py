"""Shares of a pool for its owners. Pure.

The owners of more than a small part of the pool have equal shares of what the others leave. So many small owners hardly
reduce the share of a large one. If each owner uses at most its share, everything fits the pool.
"""

from collections import Counter

from engine.kv.pausing import is_small


class FairShares:
    """The tokens that each owner uses, and the shares that follow from them."""

    def __init__(self, capacity: int, used: Counter[int]) -> None:
        """`capacity`: tokens of the pool. `used`: tokens by owner; `add` changes it."""
        self._capacity = capacity
        self._used = used
        small = [tokens for tokens in used.values() if is_small(tokens, capacity)]
        self._small_tokens = sum(small)
        self._large_count = len(used) - len(small)

    def used(self, owner: int) -> int:
        """Return the tokens that an owner uses."""
        return self._used[owner]

    def add(self, owner: int, tokens: int) -> None:
        """Let an owner use more tokens."""
        before = self._used[owner]
        after = self._used[owner] = before + tokens
        if is_small(before, self._capacity):
            self._small_tokens -= before
            if is_small(after, self._capacity):
                self._small_tokens += after
            else:
                self._large_count += 1

    def share(self, owner: int) -> int:
        """Return the share of an owner, in tokens, as if it used more than a small part of the pool."""
        own, small_tokens, large_count = self._used[owner], self._small_tokens, self._large_count
        if is_small(own, self._capacity):
            small_tokens, large_count = small_tokens - own, large_count + 1
        owners = len(self._used) + (owner not in self._used)
        return max(self._capacity // owners, (self._capacity - small_tokens) // large_count)
