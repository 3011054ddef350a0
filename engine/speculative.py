"""What may come next, looked up in what was said before, so that one step can check several tokens.

Prompt lookup decoding (Saxena 2023; llama.cpp's lookup, vLLM's n-gram method): where a context ends as it has gone on
before, it is likely to go on as it did then. A step computes the drafted tokens behind the last one, and of what is
chosen after each of them all that is as drafted stands, and one token more. Every token is chosen from the same logits,
with the same random number, as it would have been alone: where rows do not depend on their neighbours, speculation
changes no text.
"""

import heapq
from collections.abc import Iterable
from dataclasses import dataclass

from engine.ngram_proposer import LONGEST, NgramProposer, Rate
from engine.sequence import Context
from engine.step_budget import StepBudget

_MOST = 31
"""Tokens of a draft."""
_PRIOR = 4.0
"""So many drafted tokens of others weigh as much as one's own."""


@dataclass
class _Draft:
    """Of so many tokens, `most` at most. `chance`: that the next is right where those before it are. `tokens`: that the
    answer gets in the step, on average."""

    context: int
    lookup: NgramProposer
    chance: float
    most: int
    length: int = 0
    tokens: float = 1.0

    @property
    def worth(self) -> float:
        """By what part a token more would make the answer faster."""
        return float(self.chance ** (self.length + 1)) / self.tokens

    def take(self) -> None:
        """One token more."""
        self.tokens += self.chance ** (self.length + 1)
        self.length += 1


class Speculator:
    """Owner of what is known about drafts, and of how many tokens are worth a row.

    A row more makes a step longer for all, by what the pacer knows, and brings its answer a token if all before it and
    it are right. Rows are added, those worth most first, while each makes its answer faster by a larger part than it
    makes all together slower (proportional fairness, Kelly 1997): so one stream speculates far, many hardly, who is
    never right not at all, and nobody crawls because another repeats itself.
    """

    def __init__(self, pacer: StepBudget) -> None:
        self._pacer = pacer
        self._rates = [Rate(1.0, 2.0, 256.0) for _ in range(LONGEST + 1)]
        """By the length of the match."""
        self.drafted = 0
        self.right = 0
        """Tokens since the start."""
        self.gain = 1.0
        """Tokens that a context gets in a step in which it decodes, on average of late."""

    def propose(self, contexts: Iterable[Context], rows: int, *, among: int, beside: bool) -> dict[int, list[int]]:
        """Drafts by the context's id, for those of the `contexts` that get one; at most `rows` tokens in all.

        `among`: how many decode in the step. `beside`: whether prompts are read in it, which then takes longer with
        every row.
        """
        found = [draft for context in contexts if (draft := self._look(context)) is not None]
        likely = [(-draft.worth, place, draft) for place, draft in enumerate(found)]
        heapq.heapify(likely)
        seconds, taken = self._pacer.decode_seconds, 0
        while likely and taken < rows:
            _, place, draft = heapq.heappop(likely)
            more = self._pacer.further_seconds(among + taken, beside=beside)
            if draft.worth <= among * more / seconds:
                break
            seconds, taken = seconds + more, taken + 1
            draft.take()
            if draft.length < draft.most:
                heapq.heappush(likely, (-draft.worth, place, draft))
        for draft in found:
            if not draft.length:
                draft.lookup.rest()
        return {draft.context: draft.lookup.draft(draft.length) for draft in found if draft.length}

    def _look(self, context: Context) -> "_Draft | None":
        """What may be drafted for it."""
        generation = context.generation
        if generation is None or not generation.foreseeable or len(context.tokens) - context.computed != 1:
            return None
        most = min(_MOST, generation.limit - generation.count - 1)
        if most <= 0:
            return None
        lookup = generation.lookup(context.tokens)
        if lookup.resting:
            return None
        lookup.follow(context.tokens)
        if not lookup.find():
            return None
        others, own = self._rates[lookup.match], lookup.rate
        chance = (own.right + _PRIOR * others.right / others.tried) / (own.tried + _PRIOR)
        return _Draft(context.id, lookup, chance, most)

    def tell(self, context: Context, drafted: int, right: int) -> tuple[int, int]:
        """Of so many tokens that were drafted for a context, none or more, the first `right` were. Returns how many
        tokens of its prediction were right, and wrong."""
        self.gain += 0.02 * (1 + right - self.gain)
        if not drafted:
            return 0, 0
        assert context.generation is not None
        lookup = context.generation.lookup(context.tokens)
        self.drafted += drafted
        self.right += right
        tried = min(drafted, right + 1)
        lookup.rate.add(right, tried)
        self._rates[lookup.match].add(right, tried)
        return (right, drafted - right) if lookup.predicted else (0, 0)
