"""Hashes of windows: pieces of 16 characters, by which a text that two texts have in common is found.

If two texts have 40 characters in common, windows at 25 consecutive positions are equal. Answers are indexed at each
25th position, and prompts are searched at each position. So each common text of at least `WINDOW + PERIOD - 1` = 40
characters (`text_links.MIN_CHARACTERS`) contains an indexed window.

Each character is first folded to one byte, so a window of 16 characters is two 64-bit words. The hash of a window is
the sum of both, each multiplied by a random odd number, as in multiply-shift hashing (Dietzfelbinger et al., "A
reliable randomized algorithm for the closest-pair problem", 1997).
numpy computes the hashes of a text in a twentieth of the time that Python's `hash` of each window takes.
"""

import secrets
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

Keys = NDArray[np.uint64]
"""Hashes of windows."""

WINDOW = 16
"""Length of a window, in characters."""
PERIOD = 25
"""Distance between indexed positions, in characters. A common text of 40 characters has this many windows."""
_WORD = 8
"""Length of a word, in characters."""
_FIRST, _SECOND = (np.uint64(secrets.randbits(64) | 1) for _ in range(2))
"""Factors of the words of a window. They differ between processes, so a client cannot predict hashes. A client can
construct different windows with equal hashes: different characters with the same byte, for example. So callers compare
texts."""
_PADDING = "\0" * _WORD
_FOLDING = np.uint32(0x9D)
"""Factor that mixes bits 8 to 15 of a character into its byte."""
_MAX_COUNT = 255
"""Maximum of a count. A count that reaches it never changes again, because further hashes are not counted."""
_MANY_KEYS = 4_096
"""Number of hashes from which `WindowFilter.find` tests bits instead of counts. The bits fit into the caches of a CPU,
but a test of a bit takes more instructions."""
_BITS_SHIFT, _BITS_MASK = np.int64(3), np.int64(7)
"""Shift and mask that split the number of a bit into the number of its byte and its number in the byte."""
_BIT_OF = (1 << np.arange(8)).astype(np.uint8)
"""Masks of one bit, by the number of the bit."""


def _bytes(text: str) -> bytes:
    """Return one byte for each character of a text, then `_WORD` zeros. Characters below 256 are their own byte."""
    padded = text + _PADDING
    if padded.isascii():
        return padded.encode()
    characters = np.frombuffer(padded.encode("utf-32-le", "surrogatepass"), "<u4")
    folded: bytes = (characters ^ (characters >> 8) * _FOLDING).astype(np.uint8).tobytes()
    return folded


def hash_windows(text: str) -> Keys:
    """Return the hashes of the windows of a text at all positions. The text must have at least `WINDOW` characters."""
    words = np.ndarray((len(text) - WINDOW + 1 + _WORD,), np.uint64, _bytes(text), 0, (1,))
    keys: Keys = words[:-_WORD] * _FIRST
    keys += words[_WORD:] * _SECOND
    return keys


def hash_indexed_windows(text: str, end: int) -> list[int]:
    """Return the hashes of the windows of a text at its indexed positions below `end`: 0, `PERIOD`, 2 * `PERIOD` ..."""
    count = -(-min(len(text) - WINDOW + 1, end) // PERIOD)
    if count <= 0:
        return []
    words = np.ndarray((count, 2), np.uint64, _bytes(text), 0, (PERIOD, _WORD))
    keys: list[int] = (words[:, 0] * _FIRST + words[:, 1] * _SECOND).tolist()
    return keys


class WindowFilter:
    """Counting Bloom filter of hashes (Fan et al., "Summary cache", 2000), with one hash function. `find` tests many
    hashes at once. The filter has false positives, but no false negatives.

    Almost all windows of a prompt are in no answer. The filter excludes them in a tenth of the time of lookups in a
    dictionary, which wait for memory.
    """

    def __init__(self, capacity: int) -> None:
        """`capacity`: number of hashes up to which the rate of false positives is at most a quarter."""
        bits = max(10, (4 * capacity - 1).bit_length())
        self._shift, self._numpy_shift = 64 - bits, np.uint64(64 - bits)
        self._counts = bytearray(1 << bits)
        self._numpy_counts = np.frombuffer(self._counts, np.uint8)
        self._bits = bytearray(1 << bits - 3)
        """One bit for each count: whether it is more than 0."""
        self._numpy_bits = np.frombuffer(self._bits, np.uint8)

    def add(self, keys: Iterable[int]) -> None:
        """Add hashes. The caller adds each hash at most once, until it removes the hash."""
        counts, bits, shift = self._counts, self._bits, self._shift
        for key in keys:
            slot = key >> shift
            count = counts[slot]
            if not count:
                bits[slot >> 3] |= 1 << (slot & 7)
            if count < _MAX_COUNT:
                counts[slot] = count + 1

    def remove(self, keys: Iterable[int]) -> None:
        """Remove hashes that were added."""
        counts, bits, shift = self._counts, self._bits, self._shift
        for key in keys:
            slot = key >> shift
            count = counts[slot]
            if count < _MAX_COUNT:  # otherwise more may have been added: it stays
                counts[slot] = count - 1
                if count == 1:
                    bits[slot >> 3] ^= 1 << (slot & 7)

    def find(self, keys: Keys, limit: int) -> list[tuple[int, int]]:
        """Return the first positions, at most `limit`, whose hashes the filter may contain, each with its hash.

        `keys`: hashes at consecutive positions; see `hash_windows`.
        """
        slots = keys >> self._numpy_shift
        if len(slots) < _MANY_KEYS:
            hits = self._numpy_counts.take(slots)
        else:
            signed = slots.view(np.int64)  # other types would be copied for `take`
            hits = self._numpy_bits.take(signed >> _BITS_SHIFT) & _BIT_OF.take(signed & _BITS_MASK)
        positions = hits.nonzero()[0][:limit]
        return list(zip(positions.tolist(), keys[positions].tolist(), strict=True)) if len(positions) else []
