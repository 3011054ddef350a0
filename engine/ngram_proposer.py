"""What a context's own tokens say of how it may go on."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

LONGEST = 8
"""Tokens; a match may be longer and says no more."""
_REST = 4
"""Steps."""


class Rate:
    """Which share of the drafted tokens was right, of late."""

    def __init__(self, right: float, tried: float, most: float) -> None:
        """`most`: tokens after which what is old counts half."""
        self.right, self.tried, self._most = right, tried, most

    def add(self, right: int, tried: int) -> None:
        """So many more."""
        self.right += right
        self.tried += tried
        if self.tried > self._most:
            self.fade(0.5)

    def fade(self, share: float) -> None:
        """What is known counts less."""
        self.right *= share
        self.tried *= share


class NgramProposer:
    """The tokens of one generation's context, to look up how they may go on."""

    def __init__(self, tokens: list[int], prediction: Sequence[int] = ()) -> None:
        """`tokens`: all of the context's so far. `prediction`: a text that may be written once more, which is believed
        rather than the context."""
        self._predicted = len(prediction)
        self._tokens: NDArray[np.int32] = np.empty(max(64, 2 * (len(prediction) + len(tokens))), dtype=np.int32)
        self._tokens[: self._predicted] = prediction
        self._count = self._predicted
        self.rate = Rate(0.0, 0.0, 32.0)
        self.match = 0
        """Tokens by which the last draft was found, at most `LONGEST`."""
        self.start = 0
        """Where it was found, 0 for nowhere."""
        self._rest = 0
        self.follow(tokens)

    @property
    def resting(self) -> bool:
        """Whether it is not worth a look now; for a few steps after `rest`, each of which asks once."""
        self._rest -= self._rest > 0
        return self._rest > 0

    def rest(self) -> None:
        """Nothing that is found is likely enough. Who was wrong long ago is tried once more."""
        self._rest = _REST
        self.rate.fade(0.9)

    def follow(self, tokens: list[int]) -> None:
        """Takes in what has come since: `tokens` are all of the context's."""
        count = self._predicted + len(tokens)
        if count > len(self._tokens):
            self._tokens = np.concatenate((self._tokens, np.empty(count, dtype=np.int32)))
        self._tokens[self._count : count] = tokens[self._count - self._predicted :]
        self._count = count

    def find(self) -> bool:
        """Whether the context ends as it, or the prediction, has gone on before: `start` is then behind the latest of
        the longest matches."""
        tokens, last = self._tokens, self._count - 1
        self.match = self.start = 0
        found = hits = np.flatnonzero(tokens[:last] == tokens[last])
        while len(hits):
            found = hits
            self.match += 1
            if self.match == LONGEST or self.match > last:
                break
            hits = hits[hits >= self.match]
            hits = hits[tokens[hits - self.match] == tokens[last - self.match]]
        if self.match:
            predicted = int(np.searchsorted(found, self._predicted - 1))  # before the end of the prediction
            self.start = int(found[predicted - 1 if predicted else -1]) + 1
        return self.match > 0

    @property
    def predicted(self) -> bool:
        """Whether what was found last is the prediction's."""
        return 0 < self.start < self._predicted

    def draft(self, length: int) -> list[int]:
        """So many tokens as they come from `start` on, and around again where that is near the end; fewer at the end of
        a prediction."""
        if self.predicted:
            length = min(length, self._predicted - self.start)
        period = self._count - self.start
        return [int(self._tokens[self.start + at % period]) for at in range(length)]
