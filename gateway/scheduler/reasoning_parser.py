"""Which part of a generated text is thought, and which is answer, for models that write both."""

from gateway.graph.call import THOUGHT_BEGINS, THOUGHT_ENDS


class ReasoningParser:
    """A text as it grows. Thoughts stand at its beginning, between two marks; white space around either is nothing."""

    def __init__(self, *, begun: bool) -> None:
        """`begun`: the first mark is in the prompt."""
        self._begun = begun
        self._state = "before"
        """… the first mark, `within` thoughts, `behind` the last mark, in the `answer`."""
        self._held = ""
        """What came and may be a mark, or nothing."""
        self._told = False
        """Whether something was told of the thoughts."""

    @property
    def answering(self) -> bool:
        """Whether they have ended, or will not come."""
        return self._state in ("behind", "answer")

    def push(self, text: str, *, last: bool = False) -> tuple[str, str]:
        """More of the text: what of it is thought, and what answer. `last`: that was all."""
        self._held += text
        thought = ""
        if self._state == "before":
            self._begin(last)
        if self._state == "within":
            thought = self._think(last)
        if self._state == "behind":
            self._held = self._held.lstrip()
            if self._held:
                self._state = "answer"
        answer = ""
        if self._state == "answer":
            answer, self._held = self._held, ""
        return thought, answer

    def _begin(self, last: bool) -> None:
        rest = self._held.lstrip()
        if rest.startswith(THOUGHT_BEGINS):
            self._state, self._held = "within", rest[len(THOUGHT_BEGINS) :]
        elif last or not THOUGHT_BEGINS.startswith(rest):
            self._state = "within" if self._begun else "answer"

    def _think(self, last: bool) -> str:
        if not self._told:
            self._held = self._held.lstrip()
        text, mark, behind = self._held.partition(THOUGHT_ENDS)
        if mark:
            self._state, self._held = "behind", behind
            thought = text.rstrip()
        else:
            held = 0 if last else _begun(text)
            thought = text[: len(text) - held].rstrip()
            self._held = "" if last else text[len(thought) :]
        self._told = self._told or bool(thought)
        return thought


def _begun(text: str) -> int:
    """Length of the longest end of the text that may be the beginning of the last mark."""
    for length in range(min(len(text), len(THOUGHT_ENDS) - 1), 0, -1):
        if THOUGHT_ENDS.startswith(text[len(text) - length :]):
            return length
    return 0
