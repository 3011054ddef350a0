"""Budget of prefill and draft rows in a step, from measured durations of steps."""

import math
from typing import NamedTuple

_SMOOTHING = 0.2
_MANY = 1 << 30
_MIN_ROWS = 16
"""Minimum number of rows in a prefill chunk: fewer are not worth reading the weights."""
_OUTLIER = 2.0
"""A step that took more than this many times its estimate was delayed by something else, and changes the estimate
less."""


_FREE_SHARE = 0.7
_FULL_SHARE = 2.0
"""Shares of a decode step's duration that other rows may take. `_FREE_SHARE`: the step hardly gets longer, because it
reads the weights meanwhile. `_FULL_SHARE`: it gets longer, but by less than a step of their own would take."""
_DECODE_ONLY_INTERVAL = 16
_MIN_SHARE = 0.2
"""Minimum share of a step's duration that is not due to drafts."""
FEW_ROWS = 8
"""Number of rows with which a trial measures the cost of one more row in a step that is bound by reading the
weights."""


class StepAllowance(NamedTuple):
    """Number of prefill rows that a step may carry, counted by their cost (see `StepBudget.cost`).

    `total`: rows for all prompts together.
    `long`: rows for deferrable prompts: while an interactive sequence decodes, these are long prompts and the prompts
        of background calls.
    `less_urgent`: rows for prompts that are less urgent than a decoding sequence.
    `prefetch`: rows for prefetched prompts: no generation waits for them yet, because an input is missing.
    """

    total: float
    long: float
    less_urgent: float
    prefetch: float


class StepBudget:
    """Owner of the cost model: a step takes `decode_seconds`, and `row_seconds` more for each row of prefill, or a
    multiple of that for a row that attends to many keys (see `cost`).

    While interactive sequences decode, they keep `decode_share` of their stand-alone speed on average. The rest of the
    time goes to background sequences, as many as that allows, and to long prompts and those of background calls. For
    such prompts the budget saves time up until it pays for a chunk. No step is planned to take longer than
    `max_step_seconds`, which is the gap between two tokens that a client sees. Prompts that fit one step, and for which
    a client waits, need no saved time.

    If no interactive sequence decodes, only the completion time of all counts. Prompts that are as urgent as the
    decoding sequences get whole steps, and decoding rides along. Less urgent ones get as many rows as decoding can
    carry without slowing down much.

    A decode step is bound by reading the weights, so a few rows more cost next to nothing. Prefetched rows ride with
    every such step instead of having steps of their own later.
    """

    def __init__(self, *, decode_share: float, max_step_seconds: float) -> None:
        self._share = decode_share
        self._max_step_seconds = max_step_seconds
        self.decode_seconds = 0.01
        self.row_seconds = 0.0005
        self._key_rows = 0.0
        """Time for which a row attends to one key, as a part of `row_seconds`."""
        self.stand_alone_seconds = 0.01
        """Duration of a step in which one or two sequences decode, in seconds."""
        self._few_seconds = 0.0
        """Time that each of the first `FEW_ROWS` rows adds to a step, in seconds."""
        self._saved_seconds = 0.0
        self._paid_last_step = False
        """Whether saved time paid for deferrable rows of the last step."""
        self._steps_since_decode_only = 0
        """Number of steps since the last one that only decoded, from which `decode_seconds` is measured."""
        self._decoding = 0
        """Number of decoding rows in that step."""

    @property
    def max_step_rows(self) -> int:
        """Number of rows of a step that takes the longest duration allowed."""
        return max(_MIN_ROWS, int(self._max_step_seconds / self.row_seconds))

    def allow_rows(
        self, decoding: int, *, interactive: int, mixed: bool = False, drafted: int = 0, alone: bool = False
    ) -> StepAllowance:
        """Return the prefill rows that the next step may carry, with `decoding` rows that decode, `interactive` of them
        interactive.

        `mixed`: whether prompts of interactive and of background calls wait. `drafted`: number of drafted rows.
        `alone`: whether the only work is one prompt. A long step then delays no other request.
        """
        if alone:
            return StepAllowance(math.inf, math.inf, math.inf, math.inf)
        total = max(_MIN_ROWS, int((1 if mixed else 2) * self._max_step_seconds / self.row_seconds))
        if not decoding:
            return StepAllowance(total, total, total, total)
        is_overdue = self._steps_since_decode_only >= _DECODE_ONLY_INTERVAL
        is_uncertain = is_overdue or abs(decoding - self._decoding) > 0.25 * self._decoding
        if not interactive:
            riding = max(_MIN_ROWS, self._fitting_rows(_FULL_SHARE, decoding + drafted))
            return StepAllowance(total, total, 0 if is_overdue else riding, 0 if is_uncertain else riding)
        total = max(_MIN_ROWS, int((self._max_step_seconds - self.decode_seconds) / self.row_seconds) - drafted)
        affordable_rows = int(self._saved_seconds / self.row_seconds)
        free_rows = 0 if is_uncertain else self._fitting_rows(_FREE_SHARE, decoding + drafted)
        if self._paid_last_step or affordable_rows < _MIN_ROWS:
            return StepAllowance(total, free_rows, total, free_rows)
        return StepAllowance(total, min(total, affordable_rows), total, free_rows)

    def background_rows(self, interactive: int) -> int:
        """Return how many background sequences may decode next to `interactive` interactive ones."""
        free_rows = max(0, int(_FREE_SHARE * self.stand_alone_seconds / self.row_seconds) - interactive)
        saved = (1 / self._share - 1) * max(self.stand_alone_seconds, interactive * self.row_seconds)
        return max(1, free_rows + int(saved / self.row_seconds))

    def draft_rows(self, *, with_prefill: bool) -> int:
        """Return the number of drafted rows in a step with interactive sequences.

        A step takes at most `max_step_seconds`. While prompts wait, it takes at most half of that, because every second
        step then prefills.
        """
        return max(
            0, int(((0.5 if with_prefill else 1.0) * self._max_step_seconds - self.decode_seconds) / self.row_seconds)
        )

    def next_row_seconds(self, rows: int, *, with_prefill: bool) -> float:
        """Return the time that one more decoding row adds to a step of `rows` rows, in seconds. `with_prefill`: whether
        the step also carries prompts."""
        return self.row_seconds if with_prefill or rows >= FEW_ROWS else self._few_seconds

    def _fitting_rows(self, share: float, decoding: int) -> int:
        """Return the number of rows that fit next to decoding ones if all together may take a `share` of a decode
        step's duration."""
        return max(0, int(share * self.decode_seconds / self.row_seconds) - decoding)

    def cost(self, start: int, end: int) -> float:
        """Return the cost of prefilling the tokens of a prompt from `start` to `end`, in rows that attend to few
        keys. Each row attends to all tokens before it."""
        return (end - start) * (1.0 + self._key_rows * (start + end) / 2)

    def affordable_rows(self, cost: float, start: int) -> int:
        """Return how many rows of a prompt, from `start` on, cost at most `cost`; some rows in any case."""
        if cost == math.inf or not self._key_rows:
            return _MANY if cost == math.inf else int(cost)
        first = 1.0 + self._key_rows * start  # cost of the first row; each row costs `_key_rows` more
        # the root of a quadratic, in the form that is exact for small `_key_rows`: no difference of close numbers
        rows = 2 * cost / (math.sqrt(first * first + 2 * self._key_rows * cost) + first)
        return max(int(rows), min(int(cost), _MIN_ROWS))

    def calibrate_keys(self, rows: int, keys: int, seconds: float) -> None:
        """Set the cost of attention from a trial step of many rows of one prompt, which attend to `keys` keys each."""
        self._key_rows = max(0.0, seconds / (rows * self.row_seconds) - 1.0) / keys

    def calibrate(self, rows: int, seconds: float) -> None:
        """Set the estimates from a trial step of one decoding row, of at most `FEW_ROWS` decoding rows, or of many rows
        of one prompt."""
        if rows == 1:
            self.decode_seconds = self.stand_alone_seconds = seconds
        elif rows <= FEW_ROWS:
            self._few_seconds = max(0.0, seconds - self.stand_alone_seconds) / (rows - 1)
        else:
            self.row_seconds = seconds / rows

    def observe(
        self,
        *,
        decoding: int,
        interactive: int,
        prefill: float,
        long: float,
        waiting: bool,
        seconds: float,
        drafted: int = 0,
    ) -> None:
        """Update the estimates with a step of `decoding` decoding rows, `interactive` of them interactive, and of
        prompts' rows that cost `prefill`, deferrable ones `long`.

        `waiting`: whether a prompt got no rows. `drafted`: number of drafted rows. Their time does not count as
        decoding time, but the other sequences get their share of it.
        """
        total_seconds = seconds
        few_rows = min(drafted, max(0, FEW_ROWS - decoding))
        seconds = max(
            _MIN_SHARE * seconds, seconds - few_rows * self._few_seconds - (drafted - few_rows) * self.row_seconds
        )
        if decoding and not prefill:
            self._steps_since_decode_only, self._decoding = 0, decoding
        else:
            self._steps_since_decode_only += 1
        extra = seconds - (self.decode_seconds if decoding else 0.0)
        if not prefill:
            if decoding:
                self.decode_seconds += _SMOOTHING * (min(seconds, _OUTLIER * self.decode_seconds) - self.decode_seconds)
            if decoding in (1, 2):
                self.stand_alone_seconds += _SMOOTHING * (
                    min(seconds, _OUTLIER * self.stand_alone_seconds) - self.stand_alone_seconds
                )
        elif prefill >= _MIN_ROWS and extra > 0:
            row = min(extra / prefill, _OUTLIER * self.row_seconds)
            self.row_seconds += _SMOOTHING * (row - self.row_seconds)
        self._paid_last_step = long > self._fitting_rows(_FREE_SHARE, decoding)
        if not decoding or not (waiting or long):
            self._saved_seconds = 0.0
            return
        self._saved_seconds -= extra * long / prefill if long else 0.0
        # duration of a step of the interactive sequences without the others
        alone = max(min(self.stand_alone_seconds, self.decode_seconds), self.decode_seconds * interactive / decoding)
        saved = max(0.0, alone / self._share - self.decode_seconds) + (1 / self._share - 1) * (total_seconds - seconds)
        self._saved_seconds = min(self._saved_seconds + saved, self._max_step_seconds)
