"""Split generated text into reasoning and answer, for models that emit both."""

from gateway.graph.segments import REASONING_END, REASONING_START
from gateway.runtime.suffix_overlap import suffix_overlap


class ReasoningParser:
    """Incremental parser of one generated text.

    Reasoning stands at the beginning of the text, between two tags. White space around either tag is dropped.
    """

    def __init__(self, *, starts_inside: bool) -> None:
        """`starts_inside`: the prompt ends with the opening tag."""
        self._starts_inside = starts_inside
        self._state = "before"
        """Position in the text: `before` the opening tag, `within` reasoning, `behind` the closing tag, or in the
        `answer`."""
        self._pending = ""
        """Text that is not emitted yet: it may be part of a tag, or white space that is dropped."""
        self._has_reasoning = False
        """Whether reasoning was emitted."""
        self._has_entered = False
        """Whether the text is inside the reasoning, or has been."""
        self.reasoning_tokens = 0
        """Number of tokens up to the closing tag; 0 if the text has no reasoning."""
        self._undecided_tokens = 0
        """Number of tokens before it is known whether the text has reasoning."""

    @property
    def is_in_answer(self) -> bool:
        """Whether the reasoning has ended, or the text has none."""
        return self._state in ("behind", "answer")

    def push(self, text: str, *, tokens: int = 0, last: bool = False) -> tuple[str, str]:
        """Append text, and return the new parts of reasoning and answer. `tokens`: number of its tokens. `last`: no
        more text will follow."""
        was_in_answer = self.is_in_answer
        self._pending += text
        reasoning = ""
        if self._state == "before":
            self._begin(last)
        if self._state == "within":
            reasoning = self._think(last)
        if self._state == "behind":
            self._pending = self._pending.lstrip()
            if self._pending:
                self._state = "answer"
        answer = ""
        if self._state == "answer":
            answer, self._pending = self._pending, ""
        if not was_in_answer:
            self._undecided_tokens += tokens
            if self._has_entered:
                self.reasoning_tokens += self._undecided_tokens
            if self._state != "before":
                self._undecided_tokens = 0
        return reasoning, answer

    def _begin(self, last: bool) -> None:
        rest = self._pending.lstrip()
        if rest.startswith(REASONING_START):
            self._state, self._pending = "within", rest[len(REASONING_START) :]
        elif last or not REASONING_START.startswith(rest):
            self._state = "within" if self._starts_inside else "answer"
        self._has_entered = self._state == "within"

    def _think(self, last: bool) -> str:
        if not self._has_reasoning:
            self._pending = self._pending.lstrip()
        text, tag, behind = self._pending.partition(REASONING_END)
        if tag:
            self._state, self._pending = "behind", behind
            reasoning = text.rstrip()
        else:
            pending = 0 if last else suffix_overlap(text, REASONING_END)
            reasoning = text[: len(text) - pending].rstrip()
            self._pending = "" if last else text[len(reasoning) :]
        self._has_reasoning = self._has_reasoning or bool(reasoning)
        return reasoning
