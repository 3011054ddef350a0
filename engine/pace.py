"""How much prefill a step may carry beside those who decode, from what steps have been taking."""

_SMOOTHING = 0.2
_FEWEST = 16
"""Rows; a smaller chunk of prefill is not worth reading the weights for."""
_STRANGE = 2.0
"""A step that took more than so many times what was foreseen was held up by something else, and teaches less."""


class Pacer:
    """Owner of the cost model: a step takes `decode_seconds`, and `row_seconds` more for each row of prefill.

    While somebody decodes, long prompts get on average so much time that decoding keeps `decode_share` of its
    speed, saved up until it pays for a chunk; and no step is planned to take longer than `gap` seconds, which is
    what a reader sees between two tokens. Prompts so short that one step takes them whole do not wait for that.
    """

    def __init__(self, *, decode_share: float, gap: float) -> None:
        self._share = decode_share
        self._gap = gap
        self.decode_seconds = 0.01
        self.row_seconds = 0.0005
        self._saved = 0.0
        self._carried = False

    def rows(self, *, decoding: bool) -> tuple[int, int]:
        """Rows of prefill that the next step may carry: at most, and at most of long prompts.

        A prompt is long if it is, or was when it began, more than the first number.
        """
        if not decoding:
            most = max(_FEWEST, int(2 * self._gap / self.row_seconds))
            return most, most
        most = max(_FEWEST, int((self._gap - self.decode_seconds) / self.row_seconds))
        affordable = int(self._saved / self.row_seconds)
        if self._carried or affordable < _FEWEST:
            return most, 0
        return most, min(most, affordable)

    def learn(self, rows: int, seconds: float) -> None:
        """From a trial: a step of one row, or of many rows of one prompt."""
        if rows == 1:
            self.decode_seconds = seconds
        else:
            self.row_seconds = seconds / rows

    def observe(self, *, decoding: int, prefill: int, long: int, waiting: bool, seconds: float) -> None:
        """A step over `decoding` rows that decode and `prefill` rows of prompts, `long` of them of long ones.

        `waiting`: whether prefill was left undone.
        """
        extra = seconds - (self.decode_seconds if decoding else 0.0)
        if not prefill:
            if decoding:
                self.decode_seconds += _SMOOTHING * (min(seconds, _STRANGE * self.decode_seconds) - self.decode_seconds)
        elif prefill >= _FEWEST and extra > 0:
            row = min(extra / prefill, _STRANGE * self.row_seconds)
            self.row_seconds += _SMOOTHING * (row - self.row_seconds)
        # Every other step at least is one of decoding alone, and tells what that takes.
        self._carried = long > 0
        if not decoding or not (waiting or long):
            self._saved = 0.0
            return
        self._saved -= extra * long / prefill if long else 0.0
        self._saved = min(self._saved + self.decode_seconds * (1 / self._share - 1), self._gap)
