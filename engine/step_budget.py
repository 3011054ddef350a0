"""How much prefill a step may carry beside those who decode, from what steps have been taking."""

from typing import NamedTuple

_SMOOTHING = 0.2
_FEWEST = 16
"""Rows; a smaller chunk of prefill is not worth reading the weights for."""
_STRANGE = 2.0
"""A step that took more than so many times what was foreseen was held up by something else, and teaches less."""


_FREE = 0.7
_FULL = 2.0
"""Rows whose products take such a share of the time of a step that only decodes: hidden behind the reading of the
weights, and more than that, which is still less than they would take by themselves."""
_BARE_EVERY = 16
_AT_LEAST = 0.2
"""Part of a step with drafts that is not theirs."""
FEW_ROWS = 8
"""Of which a trial says what a row more costs a step that is bound by reading the weights."""


class Allowance(NamedTuple):
    """Rows of prefill that a step may carry.

    `most`: of all. `long`: of prompts that wait for their share, where somebody is watched. `behind`: of prompts that
    are less urgent than somebody who decodes. `ahead`: of prompts behind which nothing is generated yet, since
    something in them is still missing.
    """

    most: int
    long: int
    behind: int
    ahead: int


class StepBudget:
    """Owner of the cost model: a step takes `decode_seconds`, and `row_seconds` more for each row of prefill.

    While somebody decodes and is watched, others take on average so much time that those keep `decode_share` of the
    speed that they would have by themselves: answers that nobody watches, as many as that allows, and long prompts and
    those of calls that nobody watches, for which time is saved up until it pays for a chunk. No step is planned to take
    longer than `gap` seconds, which is what a reader sees between two tokens. Prompts so short that one step takes them
    whole, and for whose answers somebody waits, do not wait for that. Where nobody watches, only when the last is done
    counts: prompts that are as urgent as what decodes have whole steps, and decoding rides along; less urgent ones have
    as many rows as decoding can carry without being slowed down much.

    A step that decodes is bound by reading the weights, and a few rows more cost it next to nothing. So rows of prompts
    that wait for something ride with every such step, instead of having steps of their own later.
    """

    def __init__(self, *, decode_share: float, gap: float) -> None:
        self._share = decode_share
        self._gap = gap
        self.decode_seconds = 0.01
        self.row_seconds = 0.0005
        self.alone_seconds = 0.01
        """Of a step in which one or two contexts decode."""
        self._few_seconds = 0.0
        """That each of the first `FEW_ROWS` rows adds to a step."""
        self._saved = 0.0
        self._carried = False
        self._since_bare = 0
        """Steps since one that decoded alone, from which it is learned what that takes."""
        self._decoding = 0
        """Rows that decoded then."""

    @property
    def whole(self) -> int:
        """Rows of a step that takes as long as a step may."""
        return max(_FEWEST, int(self._gap / self.row_seconds))

    def rows(self, decoding: int, *, interactive: int, mixed: bool = False, drafted: int = 0) -> Allowance:
        """What the next step may carry, in which so many rows decode, and so many of these are watched.

        `mixed`: whether prompts for whose answers somebody waits stand beside others. `drafted`: rows beside those that
        decode, of which it is not known yet whether they count.
        """
        whole = max(_FEWEST, int((1 if mixed else 2) * self._gap / self.row_seconds))
        if not decoding:
            return Allowance(whole, whole, whole, whole)
        overdue = self._since_bare >= _BARE_EVERY
        blind = overdue or abs(decoding - self._decoding) > 0.25 * self._decoding
        if not interactive:
            riding = max(_FEWEST, self._fitting(_FULL, decoding + drafted))
            return Allowance(whole, whole, 0 if overdue else riding, 0 if blind else riding)
        most = max(_FEWEST, int((self._gap - self.decode_seconds) / self.row_seconds) - drafted)
        affordable = int(self._saved / self.row_seconds)
        free = 0 if blind else self._fitting(_FREE, decoding + drafted)
        if self._carried or affordable < _FEWEST:
            return Allowance(most, free, most, free)
        return Allowance(most, min(most, affordable), most, free)

    def unwatched(self, interactive: int) -> int:
        """Rows that nobody watches and that may decode beside so many that are watched, or waited for."""
        free = max(0, int(_FREE * self.alone_seconds / self.row_seconds) - interactive)
        others = (1 / self._share - 1) * max(self.alone_seconds, interactive * self.row_seconds)
        return max(1, free + int(others / self.row_seconds))

    def draftable(self, *, beside: bool) -> int:
        """Rows of drafts in a step that somebody watches: it takes no longer than a step may, and half of that where
        prompts are to be read as well, which are read in every other step."""
        return max(0, int(((0.5 if beside else 1.0) * self._gap - self.decode_seconds) / self.row_seconds))

    def further_seconds(self, rows: int, *, beside: bool) -> float:
        """What one row more takes that decodes, in a step of so many. `beside`: whether prompts are in it too."""
        return self.row_seconds if beside or rows >= FEW_ROWS else self._few_seconds

    def _fitting(self, share: float, decoding: int) -> int:
        """Rows that fit beside those who decode, if all together may take such a share of a decoding step's time."""
        return max(0, int(share * self.decode_seconds / self.row_seconds) - decoding)

    def learn(self, rows: int, seconds: float) -> None:
        """From a trial: a step of one row, then of at most `FEW_ROWS` that decode, or of many rows of one prompt."""
        if rows == 1:
            self.decode_seconds = self.alone_seconds = seconds
        elif rows <= FEW_ROWS:
            self._few_seconds = max(0.0, seconds - self.alone_seconds) / (rows - 1)
        else:
            self.row_seconds = seconds / rows

    def observe(
        self,
        *,
        decoding: int,
        interactive: int,
        prefill: int,
        long: int,
        waiting: bool,
        seconds: float,
        drafted: int = 0,
    ) -> None:
        """A step over `decoding` rows that decode, `interactive` of them watched, and `prefill` rows of prompts, `long`
        of them of such that wait for their share.

        `waiting`: whether prefill was left undone. `drafted`: rows beside those, of which it was not known whether they
        count; what they took is not taken for what decoding takes, and others have their part of it too.
        """
        whole = seconds
        few = min(drafted, max(0, FEW_ROWS - decoding))
        seconds = max(_AT_LEAST * seconds, seconds - few * self._few_seconds - (drafted - few) * self.row_seconds)
        if decoding and not prefill:
            self._since_bare, self._decoding = 0, decoding
        else:
            self._since_bare += 1
        extra = seconds - (self.decode_seconds if decoding else 0.0)
        if not prefill:
            if decoding:
                self.decode_seconds += _SMOOTHING * (min(seconds, _STRANGE * self.decode_seconds) - self.decode_seconds)
            if decoding in (1, 2):
                self.alone_seconds += _SMOOTHING * (min(seconds, _STRANGE * self.alone_seconds) - self.alone_seconds)
        elif prefill >= _FEWEST and extra > 0:
            row = min(extra / prefill, _STRANGE * self.row_seconds)
            self.row_seconds += _SMOOTHING * (row - self.row_seconds)
        self._carried = long > self._fitting(_FREE, decoding)
        if not decoding or not (waiting or long):
            self._saved = 0.0
            return
        self._saved -= extra * long / prefill if long else 0.0
        # what those who are watched would take by themselves
        themselves = max(min(self.alone_seconds, self.decode_seconds), self.decode_seconds * interactive / decoding)
        others = max(0.0, themselves / self._share - self.decode_seconds) + (1 / self._share - 1) * (whole - seconds)
        self._saved = min(self._saved + others, self._gap)
