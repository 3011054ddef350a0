"""Hashes of windows (pieces of 16 characters), with which text that a prompt and an answer have in common is found.

If two texts have 40 characters in common, windows at 25 consecutive positions are equal. Answers are *indexed* at each
25th position. So each common text of at least `WINDOW + PERIOD - 1` = 40 characters (`text_links.MIN_CHARACTERS`)
contains an indexed window.

A prompt is searched at each 5th position only, because it is much longer than the answers. For this, a filter contains
the hashes at 5 consecutive positions from each indexed position on. These positions of the answer have the
remainders 0 to 4 modulo 25. Of 25 consecutive positions of a prompt, 5 are searched, at a distance of 5. So in a common
text of 40 characters, exactly one of them has one of these remainders in the answer, and the filter contains its hash.
The indexed window of the common text is then at most 4 positions before this one, or 21 to 24 after it
(`WindowFilter.find`). Example: an answer is indexed at 0, 25 and 50, so the filter has the hashes at 0 to 4, 25 to 29
and 50 to 54. A common text begins at position 3 of the answer, and the prompt is searched at the answer's positions 3,
8, 13, 18 and 23. The hash at 3 is in the filter. The window at 0 is not in the common text, but the one at 25 is.

Each character is first folded to one byte, so a window of 16 characters is two 64-bit words. The hash of a window is
the sum of both, each multiplied by a random odd number, as in multiply-shift hashing (Dietzfelbinger et al., "A
Reliable Randomized Algorithm for the Closest-Pair Problem", 1997). numpy computes the hashes of a text in a few passes.
"""

import secrets

import numpy as np
from numpy.typing import NDArray

Keys = NDArray[np.uint64]
"""Hashes of windows."""

WINDOW = 16
"""Length of a window, in characters."""
PERIOD = 25
"""Distance between indexed positions, in characters. A common text of 40 characters has this many windows."""
STRIDE = 5
"""Distance between the searched positions of a prompt, in characters. Also the number of consecutive windows that the
filter has from each indexed position on. It divides `PERIOD`."""
_WORD = 8
"""Length of a word, in characters."""
_FIRST, _SECOND, _THIRD = (np.uint64(secrets.randbits(64) | 1) for _ in range(3))
"""Factors of the words of a window, and of the hash of an indexed window. They differ between processes, so a client
cannot predict hashes. A client can construct different windows with equal hashes: different characters with the same
byte, for example. So callers compare texts."""
_FACTORS = np.array([_FIRST, _SECOND])
"""The first two of these factors."""
_SHORT = 512
"""Maximum number of windows of a text that is searched at each position. For such a text, two steps take longer."""
_PADDING = "\0" * _WORD
"""Characters after a text, for the words of windows that begin at most `STRIDE` - 1 positions after its last window."""
_FOLDING = np.uint32(0x9D)
"""Factor that mixes bits 8 to 15 of a character into its byte."""
_MAX_COUNT, _ONE = np.uint8(255), np.uint8(1)
"""Maximum of a count, and one. A count that reaches the maximum never changes again, because further hashes are not
counted."""
_BEFORE = STRIDE - 1
"""Maximum distance from an indexed window to a searched position after it whose hash is in the filter."""
_AROUND = np.array([*range(_BEFORE + 1), *range(PERIOD, PERIOD + _BEFORE)])
"""Positions at which an indexed window can be, relative to the position `_BEFORE` before such a searched position."""


def _bytes(text: str) -> bytes:
    """Return one byte for each character of a text, then `_WORD` zeros. Characters below 256 are their own byte."""
    padded = text + _PADDING
    if padded.isascii():
        return padded.encode()
    characters = np.frombuffer(padded.encode("utf-32-le", "surrogatepass"), "<u4")
    folded: bytes = (characters ^ (characters >> 8) * _FOLDING).astype(np.uint8).tobytes()
    return folded


def _hash(words: Keys) -> Keys:
    """Return the hashes of windows, given as their words, in an array of shape (windows, 2)."""
    keys: Keys = words[:, 0] * _FIRST
    keys += words[:, 1] * _SECOND
    return keys


def hash_indexed_windows(text: str, end: int) -> Keys:
    """Return the hashes of the windows of a text that are indexed, and of those after them, in an array of shape
    (windows, `STRIDE` + 1).

    The first column has the hashes at the indexed positions below `end`: 0, `PERIOD`, 2 * `PERIOD` ... The next columns
    have those at the next positions; beyond the text, windows contain zeros. The last column has other hashes of the
    indexed windows, for `WindowFilter`.
    """
    count, data = max(0, -(-min(len(text) - WINDOW + 1, end) // PERIOD)), _bytes(text)
    hashes = np.empty((count, STRIDE + 1), np.uint64)
    words = np.ndarray((count, STRIDE, 2), np.uint64, data, 0, (PERIOD, 1, _WORD))
    np.matmul(words, _FACTORS, out=hashes[:, :STRIDE])  # for few windows in half the time of separate products
    np.multiply(hashes[:, 0], _THIRD, out=hashes[:, STRIDE])
    return hashes


class WindowFilter:
    """Counting Bloom filter of hashes (Fan et al., "Summary cache", 2000), with one hash function for all windows that
    are added, and another one for those that are indexed. It finds the windows of a text that may be indexed. The
    filter has false positives, but no false negatives.

    Almost all windows of a prompt are in no answer. The filter excludes them in a small part of the time of lookups in
    a dictionary, which wait for memory.
    """

    def __init__(self, capacity: int) -> None:
        """`capacity`: number of indexed windows up to which at most 40% of the slots are in use."""
        bits = max(10, (2 * (STRIDE + 1) * capacity - 1).bit_length())
        self._shift = np.uint64(64 - bits)
        self._counts = np.zeros(1 << bits, np.uint8)

    def add(self, hashes: Keys) -> None:
        """Add what `hash_indexed_windows` returns for a text. A hash that occurs several times counts once."""
        slots = self._slots(hashes)
        self._counts[slots] = np.minimum(self._counts.take(slots), _MAX_COUNT - _ONE) + _ONE

    def remove(self, hashes: Keys) -> None:
        """Remove what was added for a text."""
        slots = self._slots(hashes)
        counts = self._counts.take(slots)
        self._counts[slots] = counts - (counts < _MAX_COUNT)  # at the maximum, more may have been added: it stays

    def find(self, text: str, limit: int) -> list[tuple[int, int]]:
        """Return the first positions of a text, at most `limit`, at which there may be an indexed window, each with its
        hash. The positions ascend. Unless the limit cuts the search, the indexed window of each common text of 40
        characters is among them, if the filter contains all hashes of `hash_indexed_windows` for the other text.
        """
        count, data = len(text) - WINDOW + 1, _bytes(text)
        if count <= 0:
            return []
        words = np.ndarray((count, 2), np.uint64, data, 0, (1, _WORD))
        if count <= _SHORT:
            keys = _hash(words)
            passed = self._pass(keys * _THIRD)[:limit]
            return list(zip(passed.tolist(), keys[passed].tolist(), strict=True)) if len(passed) else []
        searched = self._pass(_hash(words[::STRIDE]))  # not limited: false positives would use up the limit
        if not len(searched):
            return []
        candidates = np.zeros(_BEFORE + count + PERIOD, np.bool_)
        candidates[searched[:, None] * STRIDE + _AROUND] = True
        positions = candidates[_BEFORE : _BEFORE + count].nonzero()[0]
        keys = _hash(words[positions])
        passed = self._pass(keys * _THIRD)[:limit]
        return list(zip(positions[passed].tolist(), keys[passed].tolist(), strict=True))

    def _pass(self, keys: Keys) -> NDArray[np.intp]:
        """Return the indices of the hashes that may be in the filter."""
        return self._counts.take(self._slots(keys)).nonzero()[0]

    def _slots(self, keys: Keys) -> NDArray[np.intp]:
        return (keys >> self._shift).view(np.intp)
