"""Speculative decoding with n-gram drafts, so that one step can check several tokens.

It is prompt lookup decoding (Saxena 2023; llama.cpp's lookup, vLLM's n-gram method): if the last tokens occurred
before, the tokens that followed them then are likely to follow again. A step computes the drafted tokens after the last
one. It accepts the drafted tokens before the first that differs from the sampled one, and then that sampled token.
Every token is sampled from the same logits, with the same random number, as without drafts: if the kernels are batch
invariant, speculation changes no text.
"""

import heapq
from collections.abc import Iterable
from dataclasses import dataclass

from engine.ngram_proposer import MAX_MATCH, AcceptanceRate, NgramProposer
from engine.sequence import TokenSequence
from engine.step_budget import StepBudget

_MAX_LENGTH = 31
"""Maximum length of a draft, in tokens."""
_PRIOR_WEIGHT = 4.0
"""Number of drafted tokens of a sequence at which its own acceptance rate weighs as much as the rate of all."""


@dataclass
class _Draft:
    """A draft that may still be extended.

    `chance`: probability that a drafted token is accepted if all drafted tokens before it are. `max_length`: maximum
    length. `tokens`: expected number of tokens that the sequence gets in the step.
    """

    sequence: int
    proposer: NgramProposer
    chance: float
    max_length: int
    length: int = 0
    tokens: float = 1.0

    @property
    def worth(self) -> float:
        """Relative gain in speed from one more token."""
        return float(self.chance ** (self.length + 1)) / self.tokens

    def extend(self) -> None:
        """Extend the draft by one token."""
        self.tokens += self.chance ** (self.length + 1)
        self.length += 1


class Speculator:
    """Owner of the acceptance rates. It decides how many tokens to draft for each sequence.

    Each drafted token adds a row to the step. The row makes the step longer for all sequences, by a time that the step
    budget has measured. It gives its own sequence one more token, if that drafted token and all before it are accepted.
    Rows are added in order of their worth, as long as each speeds up its own sequence by a larger ratio than it slows
    down all sequences (proportional fairness, Kelly 1997). So drafts are long if one stream decodes alone, and short or
    absent if many decode. A stream with a low acceptance rate gets no drafts, and a repetitive stream slows others only
    a little.
    """

    def __init__(self, step_budget: StepBudget) -> None:
        self._step_budget = step_budget
        self._rates = [AcceptanceRate(1.0, 2.0, 256.0) for _ in range(MAX_MATCH + 1)]
        """Acceptance rates by the length of the match."""
        self.drafted_count = 0
        self.accepted_count = 0
        """Number of drafted tokens since the start, and of accepted ones."""
        self.gain = 1.0
        """Moving average of the tokens that a sequence gets in a step in which it decodes."""

    def propose(
        self, sequences: Iterable[TokenSequence], rows: int, *, decoding: int, with_prefill: bool
    ) -> dict[int, list[int]]:
        """Return drafts by the id of the sequence, at most `rows` tokens in all.

        `decoding`: number of sequences that decode in the step. `with_prefill`: whether prompts are in it, so that each
        row costs full time.
        """
        drafts = [draft for sequence in sequences if (draft := self._find_draft(sequence)) is not None]
        heap = [(-draft.worth, index, draft) for index, draft in enumerate(drafts)]
        heapq.heapify(heap)
        seconds, added = self._step_budget.decode_seconds, 0
        while heap and added < rows:
            _, index, draft = heapq.heappop(heap)
            row_seconds = self._step_budget.next_row_seconds(decoding + added, with_prefill=with_prefill)
            if draft.worth <= decoding * row_seconds / seconds:
                break
            seconds, added = seconds + row_seconds, added + 1
            draft.extend()
            if draft.length < draft.max_length:
                heapq.heappush(heap, (-draft.worth, index, draft))
        for draft in drafts:
            if not draft.length:
                draft.proposer.rest()
        return {draft.sequence: draft.proposer.draft(draft.length) for draft in drafts if draft.length}

    def _find_draft(self, sequence: TokenSequence) -> "_Draft | None":
        """Return an empty draft for the sequence if its proposer finds a match, else None."""
        generation = sequence.generation
        if generation is None or not generation.can_speculate or len(sequence.tokens) - sequence.computed_tokens != 1:
            return None
        max_length = min(_MAX_LENGTH, generation.limit - generation.count - 1)
        if max_length <= 0:
            return None
        proposer = generation.proposer(sequence.tokens)
        if proposer.skips_step():
            return None
        proposer.extend(sequence.tokens)
        if not proposer.find():
            return None
        all_rates, own_rate = self._rates[proposer.match_length], proposer.rate
        chance = (own_rate.accepted + _PRIOR_WEIGHT * all_rates.accepted / all_rates.checked) / (
            own_rate.checked + _PRIOR_WEIGHT
        )
        return _Draft(sequence.id, proposer, chance, max_length)

    def record(self, sequence: TokenSequence, drafted: int, accepted: int) -> tuple[int, int]:
        """Record that the first `accepted` of `drafted` tokens of a sequence were accepted; both may be 0.

        Return how many drafted tokens from the client's `prediction` were accepted, and how many rejected."""
        self.gain += 0.02 * (1 + accepted - self.gain)
        if not drafted:
            return 0, 0
        assert sequence.generation is not None
        proposer = sequence.generation.proposer(sequence.tokens)
        self.drafted_count += drafted
        self.accepted_count += accepted
        checked = min(drafted, accepted + 1)
        proposer.rate.add(accepted, checked)
        self._rates[proposer.match_length].add(accepted, checked)
        return (accepted, drafted - accepted) if proposer.is_predicted else (0, 0)
