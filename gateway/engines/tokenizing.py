"""Runs of text, for engines that accept tokens and for those that accept text. See `TextRun`."""

from collections.abc import Callable

from engine.incremental_tokenizer import IncrementalTokenizer
from engine.tokenizer import Tokenizer
from gateway.engines.protocol import ContextRefused
from gateway.runtime.executors import offload

_LONG_TEXT = 2_000
"""Length in characters from which texts are tokenised in a thread."""


class TokenRun:
    """Tokenises a run of text. Long texts are tokenised in a thread."""

    is_rewritten = True

    def __init__(self, tokenizer: Tokenizer, window: int | None, *, adds_space: bool) -> None:
        """`window`: the model's window in tokens; None if the engine checks it itself."""
        self._tokenizer = tokenizer
        self._window = window
        self._text = IncrementalTokenizer(tokenizer, adds_space=adds_space)

    async def push(self, text: str) -> list[int]:
        """Add known text, and return the tokens that have become stable. See `TextRun.push`."""
        self._text.append(text)
        return await self._run(lambda: self._text.take_stable(self._window)) if self._text.is_due else []

    async def rest(self) -> list[int]:
        """Return the tokens of the pending text. See `TextRun.rest`."""
        return await self._run(lambda: self._text.rest(self._window))

    def resume(self, text: str) -> None:
        """Add generated text. See `TextRun.resume`."""
        self._text.append(text)

    async def finish(self) -> list[int]:
        """Return the tokens of the pending text, which ends the run. See `TextRun.finish`."""
        return await self._run(lambda: self._text.finish(self._window))

    async def _run(self, work: Callable[[], list[int]]) -> list[int]:
        length = self._text.pending_length
        if length < _LONG_TEXT:
            return work()
        return await offload(lambda: self._checked(work), length)

    def _checked(self, work: Callable[[], list[int]]) -> list[int]:
        """Return the tokens that `work` returns. Raises ContextRefused if a long text is larger than the window by
        itself, as far as possible before it is tokenised."""
        text, window = self._text.pending, self._window
        if window is None:
            return work()
        count = self._tokenizer.minimum_tokens(text) if len(text) > window else 0
        if count < window:
            tokens = work()
            count = len(tokens)
            if count < window:
                return tokens
        message = f"this model's window is {window} tokens, but a text in the prompt has at least {count} tokens"
        raise ContextRefused("context_length_exceeded", message)


class CharacterRun:
    """Joins a run of text, for an engine that accepts text."""

    is_rewritten = False

    def __init__(self) -> None:
        self._texts: list[str] = []

    async def push(self, text: str) -> str:
        """Add known text. Return nothing: such an engine prefills nothing early. See `TextRun.push`."""
        self._texts.append(text)
        return ""

    async def rest(self) -> str:
        """Return the text since the last generated one. See `TextRun.rest`."""
        text = "".join(self._texts)
        self._texts.clear()
        return text

    def resume(self, text: str) -> None:
        """Do nothing: the context has the generated text. See `TextRun.resume`."""

    async def finish(self) -> str:
        """Return the text since the last generated one. See `TextRun.finish`."""
        return await self.rest()
