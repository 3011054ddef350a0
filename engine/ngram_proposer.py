"""N-gram proposer: drafts of tokens that followed the same tokens before."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

MAX_MATCH = 8
"""Maximum length of a match, in tokens: a longer match predicts no better."""
_REST_STEPS = 4
"""Number of steps for which a proposer rests."""


class AcceptanceRate:
    """Acceptance rate of drafted tokens, with fading memory."""

    def __init__(self, accepted: float, checked: float, half_after: float) -> None:
        """Start with counts. `half_after`: number of tokens after which the old counts are halved."""
        self.accepted, self.checked, self._half_after = accepted, checked, half_after

    def add(self, accepted: int, checked: int) -> None:
        """Add counts of accepted and checked tokens."""
        self.accepted += accepted
        self.checked += checked
        if self.checked > self._half_after:
            self.fade(0.5)

    def fade(self, share: float) -> None:
        """Multiply both counts by `share`."""
        self.accepted *= share
        self.checked *= share


class NgramProposer:
    """Index of one sequence's tokens that finds how its end continued before."""

    def __init__(self, tokens: list[int], prediction: Sequence[int] = ()) -> None:
        """Start with all `tokens` of the sequence so far. `prediction`: a text that may be written once more; it takes
        precedence over the sequence."""
        self._predicted = len(prediction)
        self._tokens: NDArray[np.int32] = np.empty(max(64, 2 * (len(prediction) + len(tokens))), dtype=np.int32)
        self._tokens[: self._predicted] = prediction
        self._count = self._predicted
        self.rate = AcceptanceRate(0.0, 0.0, 32.0)
        self.match_length = 0
        """Length of the last match, in tokens, at most `MAX_MATCH`."""
        self.match_end = 0
        """Position after the last match, 0 without one."""
        self._resting_steps = 0
        self.extend(tokens)

    def skips_step(self) -> bool:
        """Return whether the proposer skips its sequence in this step. Call it once in each step: it counts down the
        rest."""
        self._resting_steps -= self._resting_steps > 0
        return self._resting_steps > 0

    def rest(self) -> None:
        """Skip the next steps, since no draft is likely enough. The rate fades, so that the proposer gets another try
        after a while."""
        self._resting_steps = _REST_STEPS
        self.rate.fade(0.9)

    def extend(self, tokens: list[int]) -> None:
        """Append the sequence's new tokens, those since this method ran last. `tokens`: all tokens of the sequence."""
        count = self._predicted + len(tokens)
        if count > len(self._tokens):
            self._tokens = np.concatenate((self._tokens, np.empty(count, dtype=np.int32)))
        self._tokens[self._count : count] = tokens[self._count - self._predicted :]
        self._count = count

    def find(self) -> bool:
        """Find the longest earlier match of the sequence's end, in the prediction or in the sequence. Return whether
        there is one; `match_end` is then the position after the latest."""
        tokens, last = self._tokens, self._count - 1
        self.match_length = self.match_end = 0
        found = matches = np.flatnonzero(tokens[:last] == tokens[last])
        while len(matches):
            found = matches
            self.match_length += 1
            if self.match_length == MAX_MATCH or self.match_length > last:
                break
            matches = matches[matches >= self.match_length]
            matches = matches[tokens[matches - self.match_length] == tokens[last - self.match_length]]
        if self.match_length:
            predicted = int(np.searchsorted(found, self._predicted - 1))  # before the end of the prediction
            self.match_end = int(found[predicted - 1 if predicted else -1]) + 1
        return self.match_length > 0

    @property
    def is_predicted(self) -> bool:
        """Whether the last match is in the prediction."""
        return 0 < self.match_end < self._predicted

    def draft(self, length: int) -> list[int]:
        """Return `length` tokens from `match_end` on, repeated from there if the end is near; fewer at the end of a
        prediction."""
        if self.is_predicted:
            length = min(length, self._predicted - self.match_end)
        period = self._count - self.match_end
        return [int(self._tokens[self.match_end + offset % period]) for offset in range(length)]
