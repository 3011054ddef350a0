"""Build the segments of a prompt from its control tokens, texts, references and slots."""

from array import array
from collections.abc import Sequence

from engine.incremental_tokenizer import IncrementalTokenizer
from engine.tokenizer import Preceding, Tokenizer
from gateway.graph.segments import Characters, Input, Segment, Slot, Text, Trim
from gateway.prompts.prompt import over_window

_CHARACTERS_PER_TOKEN = 4
"""Average length of a token, for estimates."""


class SegmentBuilder:
    """Owner of the segments of one prompt, and of the tokens of its last segment while it grows.

    A *run* is all that stands between two control tokens: texts, references and slots. The engine tokenises its text as
    a whole once the values are known. Here, only those tokens are made that no value and no generated text can change.
    """

    def __init__(self, tokenizer: Tokenizer, window: int | None, param: str) -> None:
        """`window`: maximum number of tokens, at which RequestError is raised. `param`: path of the prompt in the
        request."""
        self._tokenizer = tokenizer
        self._window = window
        self._param = param
        self._segments: list[Segment] = []
        self._tokens: list[int] = []
        self._known = 0
        """Minimum number of tokens of the other segments."""
        self._has_slots = False

    def add_control_token(self, token: int) -> None:
        """Add a control token."""
        self._tokens.append(token)
        if self._window is not None and self._known + len(self._tokens) >= self._window:
            self._check_window()

    def add_run(self, run: Sequence[str | Input | Slot | Trim], preceding: Preceding, *, heals: bool = False) -> None:
        """Add a run. `preceding`: what precedes it. `heals`: generated text completes its end."""
        if len(run) == 1 and isinstance(run[0], str) and not heals and not self._has_slots:  # most runs
            self._add_whole(run[0], preceding)
            return
        adds_space = self._tokenizer.adds_space(preceding)
        if run and isinstance(text := run[0], str) and not self._has_slots:
            run = run[1:]
            if heals or any(isinstance(part, Input) or (isinstance(part, Slot) and part.heals) for part in run):
                self._add_stable(text, adds_space=adds_space)
            else:
                self._add_whole(text, preceding)
            adds_space = False
        for part in run:
            if isinstance(part, str) or (adds_space and isinstance(part, Input)):
                self._add_characters(part if isinstance(part, str) else "", adds_space=adds_space)
            adds_space = False
            if not isinstance(part, str):
                self._end_tokens()
                self._segments.append(part)
                self._has_slots = self._has_slots or isinstance(part, Slot)

    def finish(self) -> list[Segment]:
        """Return the segments."""
        self._end_tokens()
        return self._segments

    def _add_whole(self, text: str, preceding: Preceding) -> None:
        """Add the tokens of a text that is a run by itself."""
        left = self._check_length(text)
        self._tokens += self._tokenizer.encode(text, after=preceding, max_tokens=left)
        self._check_window()

    def _add_stable(self, text: str, *, adds_space: bool) -> None:
        """Add the first text of a run: the tokens that later text cannot change, and the rest as characters."""
        left = self._check_length(text)
        growing = IncrementalTokenizer(self._tokenizer, adds_space=adds_space)
        growing.append(text)
        self._tokens += growing.take_stable(left)
        self._check_window()
        self._add_characters(growing.pending, adds_space=False)

    def _add_characters(self, text: str, *, adds_space: bool) -> None:
        """Add text that is tokenised together with its neighbours, later."""
        if not text and not adds_space:
            return
        self._check_length(text)
        self._end_tokens()
        self._segments.append(Characters(text, adds_space, -(-len(text) // _CHARACTERS_PER_TOKEN)))
        self._known += self._tokenizer.minimum_tokens(text, is_part=True)
        self._check_window()

    def _end_tokens(self) -> None:
        if self._tokens:
            self._segments.append(text_segment(self._tokens))
            self._known += len(self._tokens)
            self._tokens = []

    def _check_length(self, text: str) -> int | None:
        """Return how many tokens may be added; None if there is no limit. Raises RequestError if a text certainly has
        as many."""
        if self._window is None:
            return None
        left = self._window - self._known - len(self._tokens)
        if len(text) > left and (minimum := self._tokenizer.minimum_tokens(text)) >= left:
            raise over_window(self._window, self._window - left + minimum, self._param)
        return left

    def _check_window(self) -> None:
        known = self._known + len(self._tokens)
        if self._window is not None and known >= self._window:
            raise over_window(self._window, known, self._param)


def text_segment(tokens: Sequence[int]) -> Text:
    """Return a segment of these tokens. An array needs a ninth of a list's memory."""
    return Text(array("i", tokens))
