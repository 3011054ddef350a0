"""Marks that stand for references, slots and the texts of control tokens while a chat template renders."""

import re
import secrets
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from engine.tokenizer import Preceding, Tokenizer
from gateway.graph.segments import Input, Segment, Slot, Text
from gateway.prompts.content_parser import Media, Piece
from gateway.prompts.prompt import over_window

_NONCE = secrets.token_hex(8)
"""Random part of the marks. It never leaves the process, not even as tokens, so that no client can forge a mark."""
_MARK = re.compile(f"\ue000{_NONCE}-(\\d+)\ue001")
END_MARK = f"\ue000{_NONCE}-end\ue001"
"""Mark of the end of a message that the answer continues."""


class PlaceholderMap:
    """Owner of the pieces of one request that marks stand for."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._pieces: list[str | Input | Slot] = []

    def mark_pieces(self, pieces: Iterable[Piece]) -> str:
        """Return the pieces of a content as one text, with marks for references, slots and control tokens."""
        return "".join(
            [self.neutralise_text(piece) if isinstance(piece, str) else self._mark(piece) for piece in pieces]
        )

    def mark_template(self, pieces: Iterable[str | Input | Slot]) -> str:
        """Return the pieces of a client's own template as one text. Control tokens in it stay control tokens."""
        return "".join([piece if isinstance(piece, str) else self._mark(piece) for piece in pieces])

    def neutralise(self, value: Any) -> Any:
        """Return a JSON value for the chat template to render: in its strings, marks replace the control tokens.

        So the text of a client cannot become a control token.
        """
        if isinstance(value, str):
            return self.neutralise_text(value)
        if isinstance(value, Mapping):
            return {key: self.neutralise(item) for key, item in value.items()}
        if isinstance(value, list):
            return [self.neutralise(item) for item in value]
        return value

    def neutralise_text(self, text: str) -> str:
        """Return the text with each control token replaced by a mark."""
        pattern = self._tokenizer.control_pattern
        return text if pattern is None else pattern.sub(lambda match: self._mark(match.group()), text)

    def _mark(self, piece: Piece) -> str:
        assert not isinstance(piece, Media), "refused before"
        self._pieces.append(piece)
        return f"\ue000{_NONCE}-{len(self._pieces) - 1}\ue001"

    def segments(self, rendered: str, window: int | None, param: str) -> list[Segment]:
        """Return the rendered template as segments: references, slots, and the tokens between them. Raises RequestError
        as soon as it has at least as many tokens as the window. `param`: path of the prompt in the request."""
        segments: list[Segment] = []
        tokens: list[int] = []
        known = 0
        for run, preceding in self._runs(rendered):
            if isinstance(run, str):
                left = None if window is None else window - known - len(tokens)
                if left is not None and len(run) > left and (minimum := self._tokenizer.minimum_tokens(run)) >= left:
                    raise over_window(window or 0, known + len(tokens) + minimum, param)
                tokens += self._tokenizer.encode(run, after=preceding, max_tokens=left)
            elif isinstance(run, int):
                tokens.append(run)
            else:
                if tokens:
                    segments.append(text_segment(tokens))
                    known += len(tokens)
                tokens = []
                segments.append(run)
            if window is not None and known + len(tokens) >= window:
                raise over_window(window, known + len(tokens), param)
        if tokens:
            segments.append(text_segment(tokens))
        return segments

    def _runs(self, rendered: str) -> Iterator[tuple[str | int | Input | Slot, Preceding]]:
        """Yield runs of ordinary text, as long as possible, and the control tokens, references and slots between them.
        The second element is the kind of the part that precedes a run."""
        run = ""
        preceding: Preceding = "nothing"
        pattern = self._tokenizer.control_pattern
        for index, part in enumerate([rendered] if pattern is None else pattern.split(rendered)):
            if index % 2:
                if run:
                    yield run, preceding
                run, preceding = "", "control"
                yield self._tokenizer.control[part], preceding
                continue
            for position, piece in enumerate(_MARK.split(part)):
                piece_or_mark = self._pieces[int(piece)] if position % 2 else piece
                if isinstance(piece_or_mark, str):
                    run += piece_or_mark
                    continue
                if run:
                    yield run, preceding
                run, preceding = "", "text"
                yield piece_or_mark, preceding
        if run:
            yield run, preceding


def text_segment(tokens: Sequence[int]) -> Text:
    """Return a segment of these tokens. An array needs a ninth of a list's memory."""
    return Text(array("i", tokens))
