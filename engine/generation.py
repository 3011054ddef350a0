"""One `generate` as it runs: what was sampled, what of it may be shown, and whether it has ended."""

import secrets
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from engine.grammar import Matcher
from engine.kernels.base import REQUEST
from engine.ngram_proposer import LONGEST, NgramProposer
from engine.protocol import SamplingParams, TokenLogprob
from engine.tokenizer import Detokenizer, Tokenizer


class Progress(NamedTuple):
    """What one token brought: text to show (perhaps none) and the reason to end, if it ended."""

    text: str
    finish: str | None


class Generation:
    """Owns the random stream, the token counts and the held-back text of one generate."""

    def __init__(
        self,
        sampling: SamplingParams,
        tokenizer: Tokenizer,
        prompt: list[int],
        limit: int,
        matcher: Matcher | None = None,
        prediction: Sequence[int] = (),
    ) -> None:
        """`prompt`: the context's tokens so far. `limit`: tokens that may come at most. `matcher` holds the text to a
        grammar. `prediction`: tokens of which many may come, in this order."""
        self.sampling = sampling
        self.matcher = matcher
        self.limit = limit
        self.count = 0
        self.pending = 0
        """Tokens that were chosen and not pushed yet: a step is prepared while another runs."""
        self.forced = 0
        """Tokens behind the one sampled last that a grammar left no choice of."""
        self._lookup: NgramProposer | None = None
        self._prediction = [*prompt[-LONGEST:], *prediction] if prediction else []
        """As if it had come behind this prompt once."""
        self.counts: Counter[int] = Counter()
        """Tokens generated, where a penalty asks how often."""
        self._counts = bool(sampling.presence_penalty or sampling.frequency_penalty)
        self._forces = not sampling.logprobs and not sampling.logit_bias
        """Whether tokens without a choice are taken without asking the model: else it has to say how likely they are,
        or which of several ways to write the same is wanted."""
        self._adjusts = bool(self._counts or sampling.logit_bias or sampling.repetition_penalty != 1.0)
        self.seen: set[int] = set(prompt) if sampling.repetition_penalty != 1.0 else set()
        seed = secrets.randbits(63) if sampling.seed is None else sampling.seed & (2**64 - 1)
        self.random = np.random.Generator(np.random.Philox(seed)) if sampling.temperature else None
        """Where `uniform` comes from; None for the likeliest token."""
        self.stop_tokens = frozenset(sampling.stop_token_ids) | (
            frozenset() if sampling.ignore_eos else tokenizer.eos_ids
        )
        logprobs = min(sampling.top_logprobs, tokenizer.vocabulary) if sampling.logprobs else -1
        row = (sampling.temperature, sampling.top_p, sampling.min_p, max(0, sampling.top_k), logprobs, 0.0)
        self.request = np.array(row, dtype=REQUEST).tobytes()
        """A row of REQUEST, but for its uniform number."""
        self._drawn: deque[float] = deque()
        """Numbers for the tokens that are chosen next."""
        self._tokenizer = tokenizer
        self._prompt_length = len(prompt)
        self._told = 0
        self._detokenizer = Detokenizer(tokenizer, skip_special=sampling.skip_special_tokens)
        self._stops = StopStrings(sampling.stop)

    @property
    def failure(self) -> tuple[str, str] | None:
        """Code and message of the reason why the text cannot be finished; None if there is none."""
        return None if self.matcher is None else self.matcher.failure

    @property
    def started(self) -> bool:
        """Whether a token was sampled yet."""
        return self.count + self.pending > 0

    @property
    def exhausted(self) -> bool:
        """Whether all tokens that may come have been chosen."""
        return self.count + self.pending >= self.limit

    @property
    def blind(self) -> bool:
        """Whether a token can be chosen without knowing the one before it, but for the model."""
        return self.matcher is None and not self._counts and self.sampling.repetition_penalty == 1.0

    @property
    def foreseeable(self) -> bool:
        """Whether several tokens can be chosen at once, if somebody says which they may be: none of them waits to be
        read, each is chosen without knowing the others, and from logits as they are."""
        return self.started and not self.pending and self.blind and not self.adjusts

    @property
    def adjusts(self) -> bool:
        """Whether logits are changed before a token is chosen."""
        return self._adjusts or self.muted

    @property
    def muted(self) -> bool:
        """Whether the text may not end with the token chosen next. Where a grammar says when it ends, it may."""
        return self.count + self.pending < self.sampling.min_tokens and self.matcher is None

    def uniform(self, ahead: int = 0) -> float:
        """The number that chooses the next token, or the one so many behind it: one a token, however often it is asked
        for. 0 where none is needed."""
        if self.random is None:
            return 0.0
        while len(self._drawn) <= self.pending + ahead:
            self._drawn.append(float(self.random.random()))
        return self._drawn[self.pending + ahead]

    def lookup(self, tokens: list[int]) -> NgramProposer:
        """Where drafts of what comes next are looked up. `tokens`: all of the context's when it is first asked for."""
        if self._lookup is None:
            self._lookup = NgramProposer(tokens, self._prediction)
        return self._lookup

    def push(self, token: int) -> tuple[list[int], Progress]:
        """Takes the token just sampled. Returns the tokens that follow it without a choice, which are taken as well,
        and what all of them brought."""
        progress, text = self._push(token), ""
        tokens: list[int] = []
        if progress.finish is None and self._forces and self.matcher is not None:
            for forced in self.matcher.forced():
                tokens.append(forced)
                text += progress.text
                progress = self._push(forced)
                if progress.finish is not None:
                    break
        self.forced = len(tokens)
        progress = Progress(text + progress.text, progress.finish)
        self._told += len(progress.text)
        return tokens, progress

    def kept(self, tokens: list[int]) -> tuple[int, list[int]]:
        """What of a context's tokens stands for exactly the text that was told: so many from its beginning, and then
        these. An end token goes, and so does what a stop string cut off."""
        end = len(tokens)
        if end > self._prompt_length and tokens[-1] in self.stop_tokens and self.count >= self.sampling.min_tokens:
            return end - 1, []
        detokenizer = Detokenizer(self._tokenizer, skip_special=self.sampling.skip_special_tokens)
        text, whole, length = "", self._prompt_length, 0
        for at in range(self._prompt_length, end):
            text += detokenizer.push(tokens[at])
            if len(text) > self._told:
                break
            if not detokenizer.pending:
                whole, length = at + 1, len(text)
        return whole, self._tokenizer.encode(text[length : self._told])

    def _push(self, token: int) -> Progress:
        if self._drawn:
            self._drawn.popleft()
        self.count += 1
        if self._counts:
            self.counts[token] += 1
        if self.sampling.repetition_penalty != 1.0:
            self.seen.add(token)
        over = self.matcher is not None and self.matcher.push(token)
        if token in self.stop_tokens:  # below min_tokens the sampler does not let one through
            return self._end("", "stop")
        piece = self._detokenizer.push(token)
        if self.count < self.sampling.min_tokens and self.matcher is None:
            # stop strings do not count yet, but there is an end to all
            return self._end(piece, "length") if self.count >= self.limit else Progress(piece, None)
        text, matched = self._stops.push(piece)
        if matched:
            return Progress(text, "stop")
        if over:
            return self._end(text, "stop")
        if self.count >= self.limit:
            return self._end(text, "length")
        return Progress(text, None)

    def _end(self, text: str, finish: str) -> Progress:
        more, matched = self._stops.push(self._detokenizer.flush())
        text += more
        if not matched:
            text += self._stops.flush()
        return Progress(text, "stop" if matched else finish)


class StopStrings:
    """Searcher for stop strings in a text that arrives in pieces. It holds back text that may be part of one.

    It is the algorithm of Knuth, Morris and Pratt (1977): each character takes constant time on average, for stop
    strings of any length and texts with any repetition.
    """

    def __init__(self, stops: tuple[str, ...]) -> None:
        self._stops = [(stop, _failure_table(stop)) for stop in stops]
        self._matched = [0] * len(stops)
        """Number of characters of each stop string that the text ends with."""
        self._held = ""

    def push(self, piece: str) -> tuple[str, bool]:
        """Return the text to show now, and whether a stop string was found: then no later text is ever shown.

        Where several begin, the one that begins first counts.
        """
        if not self._stops:
            return piece, False
        text, begins = self._held + piece, -1
        for number, (stop, failure_table) in enumerate(self._stops):
            length = self._matched[number]
            for position, character in enumerate(piece, start=len(self._held) + 1):
                while length and stop[length] != character:
                    length = failure_table[length - 1]
                length += stop[length] == character
                if length == len(stop):
                    begin = position - length
                    begins = begin if begins < 0 else min(begins, begin)
                    length = 0
                    break
            self._matched[number] = length
        if begins >= 0:
            self._held = ""
            return text[:begins], True
        shown = len(text) - max(self._matched)
        self._held = text[shown:]
        return text[:shown], False

    def flush(self) -> str:
        """Return the text that was held back, which turned out to be ordinary text."""
        held, self._held = self._held, ""
        self._matched = [0] * len(self._stops)
        return held


def _failure_table(stop: str) -> list[int]:
    """Return for each prefix of the text the length of its longest proper prefix that is also its suffix."""
    failure_table, length = [0] * len(stop), 0
    for position in range(1, len(stop)):
        while length and stop[length] != stop[position]:
            length = failure_table[length - 1]
        length += stop[length] == stop[position]
        failure_table[position] = length
    return failure_table


@dataclass(frozen=True)
class Sampled:
    """A token and, where asked for, how likely it was."""

    token: int
    logprob: TokenLogprob | None
