"""State of one `generate` command: the sampled tokens, the text to emit, and the finish reason."""

import secrets
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from engine.grammar import Matcher
from engine.healing import PrefixMatcher
from engine.kernels.base import REQUEST
from engine.ngram_proposer import MAX_MATCH, NgramProposer
from engine.protocol import TokenLogprob
from engine.sampling_params import SamplingParams
from engine.tokenizer import Detokenizer, Tokenizer


class Progress(NamedTuple):
    """Effect of one token: the text to emit, possibly empty, and the finish reason if the generation has ended."""

    text: str
    finish: str | None


class Generation:
    """Owner of the random stream, the token counts and the held-back text of one `generate` command."""

    def __init__(
        self,
        sampling: SamplingParams,
        tokenizer: Tokenizer,
        prompt: list[int],
        limit: int,
        matcher: Matcher | PrefixMatcher | None = None,
        prediction: Sequence[int] = (),
        prefix: bytes = b"",
        room: int | None = None,
    ) -> None:
        """Start a generation.

        `prompt`: all tokens of the sequence so far.
        `limit`: maximum number of tokens to generate.
        `matcher`: constrains the text to a grammar, or to the prefix.
        `prediction`: tokens that the text probably contains, in this order.
        `prefix`: end of the prompt that was taken back (see `healing`). The matcher makes the tokens begin with it. It
            is not part of the generated text, and tokens inside it do not count.
        `room`: maximum number of tokens with those inside the prefix.
        """
        self.sampling = sampling
        self.matcher = matcher
        self.limit = limit
        self.room = limit if room is None else room
        self._prefix_bytes = len(prefix)
        self.prefix_count = 0
        """Number of tokens inside the prefix."""
        self.token_cut = 0
        """Number of bytes of the token pushed last that belong to the prefix."""
        self.count = 0
        self.pending = 0
        """Number of tokens that are sampled on the device but not pushed yet: the engine prepares a step while another
        runs."""
        self.forced_count = 0
        """Number of tokens after the last sampled one that the grammar determined."""
        self._proposer: NgramProposer | None = None
        self._prediction = [*prompt[-MAX_MATCH:], *prediction] if prediction else []
        """The prediction after the end of the prompt: the proposer sees it as if it had followed this prompt
        before."""
        self.token_counts: Counter[int] = Counter()
        """Number of times each token was generated; counted only if a penalty needs it."""
        self._counts_tokens = bool(sampling.presence_penalty or sampling.frequency_penalty)
        self._forces_tokens = not sampling.logprobs and not sampling.logit_bias
        """Whether tokens that the grammar determines are appended without running the model. It must run if log
        probabilities are requested, or if a logit bias chooses between several encodings of the same text."""
        self._adjusts_logits = bool(self._counts_tokens or sampling.logit_bias or sampling.repetition_penalty != 1.0)
        self.seen_tokens: set[int] = set(prompt) if sampling.repetition_penalty != 1.0 else set()
        seed = secrets.randbits(63) if sampling.seed is None else sampling.seed & (2**64 - 1)
        self.random = np.random.Generator(np.random.Philox(seed)) if sampling.temperature else None
        """Source of `uniform`; None for greedy sampling."""
        self.stop_tokens = frozenset(sampling.stop_token_ids) | (
            frozenset() if sampling.ignore_eos else tokenizer.eos_ids
        )
        logprobs = min(sampling.top_logprobs, tokenizer.vocabulary) if sampling.logprobs else -1
        row = (sampling.temperature, sampling.top_p, sampling.min_p, max(0, sampling.top_k), logprobs, 0.0)
        self.request = np.array(row, dtype=REQUEST).tobytes()
        """Row of REQUEST with the sampling parameters, except for the uniform number."""
        self._uniforms: deque[float] = deque()
        """Uniform numbers for the next tokens, drawn but not used yet."""
        self._tokenizer = tokenizer
        self._prompt_length = len(prompt)
        self._emitted_length = len(prefix.decode())
        self._detokenizer = Detokenizer(tokenizer, skip_special=sampling.skip_special_tokens)
        self._stops = StopStrings(sampling.stop)

    @property
    def failure(self) -> tuple[str, str] | None:
        """Code and message of the reason why the text cannot be finished, or None."""
        return None if self.matcher is None else self.matcher.failure

    @property
    def has_started(self) -> bool:
        """Whether a token was sampled."""
        return self.count + self.pending > 0

    @property
    def is_exhausted(self) -> bool:
        """Whether all tokens that the limit allows are sampled."""
        return self._is_full(self.count + self.pending)

    @property
    def is_history_free(self) -> bool:
        """Whether sampling needs nothing from the previous token, apart from the model's input: no grammar and no
        penalty depends on it."""
        return self.matcher is None and not self._counts_tokens and self.sampling.repetition_penalty == 1.0

    @property
    def can_speculate(self) -> bool:
        """Whether a step can check drafts: no sampled token is pending, and each token is sampled independently of the
        others from unchanged logits."""
        return self.has_started and not self.pending and self.is_history_free and not self.adjusts_logits

    @property
    def adjusts_logits(self) -> bool:
        """Whether the logits are changed before sampling."""
        return self._adjusts_logits or self.suppresses_stop

    @property
    def suppresses_stop(self) -> bool:
        """Whether the next token must not end the text because of `min_tokens`. A grammar decides for itself when the
        text ends."""
        count = self.count + self.pending - self.prefix_count
        return count < self.sampling.min_tokens and self.matcher is None

    def uniform(self, offset: int = 0) -> float:
        """Return the uniform number that samples the next token, or the token `offset` places after it.

        Each token has one number, however often it is requested. Returns 0 for greedy sampling.
        """
        if self.random is None:
            return 0.0
        while len(self._uniforms) <= self.pending + offset:
            self._uniforms.append(float(self.random.random()))
        return self._uniforms[self.pending + offset]

    def proposer(self, tokens: list[int]) -> NgramProposer:
        """Return the n-gram proposer of this generation. `tokens`: all tokens of the sequence, for the first call."""
        if self._proposer is None:
            self._proposer = NgramProposer(tokens, self._prediction)
        return self._proposer

    def push(self, token: int) -> tuple[list[int], Progress]:
        """Append the token just sampled. Return the tokens that the grammar forces after it, appended too, and their
        joint effect."""
        progress, text = self._push(token), ""
        tokens: list[int] = []
        if progress.finish is None and self._forces_tokens and self.matcher is not None:
            for forced in self.matcher.forced_tokens():
                tokens.append(forced)
                text += progress.text
                progress = self._push(forced)
                if progress.finish is not None:
                    break
        self.forced_count = len(tokens)
        progress = Progress(text + progress.text, progress.finish)
        self._emitted_length += len(progress.text)
        return tokens, progress

    def emitted_tokens(self, tokens: list[int]) -> tuple[int, list[int]]:
        """Return how to cut a sequence so that its tokens stand for exactly the emitted text.

        The first value is the number of tokens to retain, the second a list of tokens to append to them. The cut
        removes an end token, and text from a stop string on.
        """
        end = len(tokens)
        counted = self.count - self.prefix_count
        if end > self._prompt_length and tokens[-1] in self.stop_tokens and counted >= self.sampling.min_tokens:
            return end - 1, []
        detokenizer = Detokenizer(self._tokenizer, skip_special=self.sampling.skip_special_tokens)
        text, whole, length = "", self._prompt_length, 0
        for position in range(self._prompt_length, end):
            text += detokenizer.push(tokens[position])
            if len(text) > self._emitted_length:
                break
            if not detokenizer.has_partial_character:
                whole, length = position + 1, len(text)
        return whole, self._tokenizer.encode(text[length : self._emitted_length])

    def _push(self, token: int) -> Progress:
        if self._uniforms:
            self._uniforms.popleft()
        self.count += 1
        if self.sampling.repetition_penalty != 1.0:
            self.seen_tokens.add(token)
        is_complete = self.matcher is not None and self.matcher.push(token)
        if self._cut_prefix(token):
            if is_complete:
                return self._end("", "stop")
            return self._end("", "length") if self._is_full(self.count) else Progress("", None)
        if self._counts_tokens:
            self.token_counts[token] += 1
        if token in self.stop_tokens:  # below min_tokens the sampler gives it no chance
            return self._end("", "stop")
        piece = self._detokenizer.push(token, self.token_cut)
        if self.count - self.prefix_count < self.sampling.min_tokens and self.matcher is None:
            # stop strings do not count below min_tokens, but the limit does
            return self._end(piece, "length") if self._is_full(self.count) else Progress(piece, None)
        text, matched = self._stops.push(piece)
        if matched:
            return Progress(text, "stop")
        if is_complete:
            return self._end(text, "stop")
        if self._is_full(self.count):
            return self._end(text, "length")
        return Progress(text, None)

    @property
    def stop_string(self) -> str | None:
        """The stop string that ended the text; None if none did."""
        return self._stops.found

    def _is_full(self, count: int) -> bool:
        """Return whether `count` tokens are all that may be generated."""
        return count - self.prefix_count >= self.limit or count >= self.room

    def _cut_prefix(self, token: int) -> bool:
        """Consume a token's part of the prefix. Return whether the whole token is inside the prefix."""
        left, self.token_cut = self._prefix_bytes, 0
        if not left:
            return False
        length = len(self._tokenizer.token_bytes(token))
        self.token_cut, self._prefix_bytes = min(left, length), max(0, left - length)
        if not self._prefix_bytes and isinstance(self.matcher, PrefixMatcher):
            self.matcher = None  # any text may follow
        self.prefix_count += length <= left
        return length <= left

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
        self._held_text = ""
        self.found: str | None = None
        """The stop string that was found."""

    def push(self, piece: str) -> tuple[str, bool]:
        """Return the text to emit now, and whether a stop string was found. After a stop string no later text is
        emitted.

        If several stop strings match, the string that begins first counts.
        """
        if not self._stops:
            return piece, False
        text, begins = self._held_text + piece, -1
        for number, (stop, failure_table) in enumerate(self._stops):
            length = self._matched[number]
            for position, character in enumerate(piece, start=len(self._held_text) + 1):
                while length and stop[length] != character:
                    length = failure_table[length - 1]
                length += stop[length] == character
                if length == len(stop):
                    begin = position - length
                    if begins < 0 or begin < begins:
                        begins, self.found = begin, stop
                    length = 0
                    break
            self._matched[number] = length
        if begins >= 0:
            self._held_text = ""
            return text[:begins], True
        shown = len(text) - max(self._matched)
        self._held_text = text[shown:]
        return text[:shown], False

    def flush(self) -> str:
        """Return the text that was held back, which turned out to be ordinary text."""
        text, self._held_text = self._held_text, ""
        self._matched = [0] * len(self._stops)
        return text


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
class SampledToken:
    """A sampled token and, if requested, its log probability."""

    token: int
    logprob: TokenLogprob | None
