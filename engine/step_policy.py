"""The policy of steps: which sequences decode, and how many rows each prompt gets. Pure: it knows no KV cache.

The step scheduler applies it to sequences, and the gateway's simulator to simulated contexts.
"""

from typing import NamedTuple

from engine.step_budget import StepAllowance, StepBudget

EQUAL_URGENCY_SECONDS = 0.001
"""Maximum difference between ranks of equal urgency, in seconds."""


def background_decoders(
    interactive: int, background: int, *, has_interactive_prompts: bool, step_budget: StepBudget
) -> int:
    """Return how many of the background sequences decode in the next step; the most urgent ones should.

    If interactive ones had to keep pace with every background sequence, they would crawl, and so would prompts. The
    less urgent ones pause until it is their turn. `interactive`, `background`: numbers of sequences that can decode.
    `has_interactive_prompts`: whether prompts of interactive sequences wait.
    """
    if not interactive and not has_interactive_prompts:
        return background
    return min(background, step_budget.background_rows(interactive))


class PromptKind(NamedTuple):
    """Kind of a prompt in one step; see `StepAllowance`."""

    is_long: bool
    is_less_urgent: bool
    is_prefetch: bool


class PrefillRows:
    """Prefill rows that are left in one step, for each kind of prompt.

    They are counted as a step budget allows them: a row that attends to many keys counts as several (see
    `StepBudget.cost`).
    """

    def __init__(self, allowance: StepAllowance, *, step_rows: int, interactive: int, first_rank: float) -> None:
        """`step_rows`: rows for which the step has room. `interactive`: number of interactive sequences that decode in
        it. `first_rank`: lowest rank of a sequence that decodes in it."""
        self.step_rows = step_rows
        """Number of rows for which the step has room, whatever they cost."""
        self._left = float(allowance.total)
        self.long_taken = 0.0
        """Rows that deferrable prompts have taken."""
        self._allowance = allowance
        self._interactive = interactive
        self._first_rank = first_rank + EQUAL_URGENCY_SECONDS
        self._long = float(allowance.long)
        self._less_urgent = float(allowance.less_urgent)
        self._prefetch = float(allowance.prefetch)

    def has_room(self, rank: float) -> bool:
        """Return whether prompts of this rank can get rows. If not, those of higher ranks cannot either."""
        return self._left > 0 and self.step_rows > 0 and (rank <= self._first_rank or self._less_urgent > 0)

    def has_room_for(self, *, is_interactive: bool, is_prefetch: bool) -> bool:
        """Return whether a short prompt of this kind can get rows.

        `is_interactive`: it belongs to an interactive call. `is_prefetch`: no generation waits for it yet.
        """
        return (self._prefetch > 0 or not is_prefetch) and (self._long > 0 or is_interactive or not self._interactive)

    def kind_of(self, *, rank: float, is_interactive: bool, is_prefetch: bool, prompt_tokens: int) -> PromptKind:
        """Return the kind of a prompt. `is_prefetch`: whether no generation waits for it yet. `prompt_tokens`: its
        number of tokens when its prefill began."""
        is_long = self._interactive > 0 and (prompt_tokens > self._allowance.total or not is_interactive)
        return PromptKind(is_long, rank > self._first_rank, is_prefetch)

    def allowed(self, kind: PromptKind) -> float:
        """Return what the rows of a prompt of this kind may cost; 0 or less if it gets none."""
        return min(
            self._left,
            self._long if kind.is_long else self._left,
            self._less_urgent if kind.is_less_urgent else self._left,
            self._prefetch if kind.is_prefetch else self._left,
        )

    def take(self, kind: PromptKind, rows: int, cost: float) -> None:
        """Give rows, with their cost, to a prompt of this kind."""
        self.step_rows -= rows
        self._left -= cost
        if kind.is_less_urgent:
            self._less_urgent -= cost
        if kind.is_prefetch:
            self._prefetch -= cost
        if kind.is_long:
            self._long -= cost
            self.long_taken += cost
