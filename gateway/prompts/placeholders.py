"""Marks that stand for references, slots and the texts of control tokens while a chat template renders."""

import dataclasses
import re
import secrets
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from engine.tokenizer import Preceding, Tokenizer
from gateway.errors import RequestError
from gateway.graph.segments import Input, Segment, Slot, Trim, escape_json
from gateway.prompts.content_parser import Media, Piece
from gateway.prompts.segment_builder import SegmentBuilder

_NONCE = secrets.token_hex(8)
"""Random part of the marks. It never leaves the process, not even as tokens, so that no client can forge a mark."""
_MARK = re.compile(f'\ue000{_NONCE}-(\\d+)(\\\\?)"\ue001')
"""Pattern of a mark: its number, and a backslash if the template has written it into a JSON string."""
_EDGE_NONCE = "".join(secrets.choice("\u2000\u2001\u2002\u2003") for _ in range(32))
_LINES = "\n" * 7
"""Outer part of an edge: more line feeds than templates write."""
_KEPT_LINES = rf"((?:\n|\\n){{{len(_LINES)}}})?"
_EDGE = re.compile(f"{_KEPT_LINES}{_EDGE_NONCE}([\u2004\u2005]{{20}}){_KEPT_LINES}")
"""Numbered white space at an edge of a content. It disappears if the template removes white space there; only its line
feeds do if the template removes those. JSON does not escape it."""
END_MARK = f"\ue000{_NONCE}-end\ue001"
"""Mark of the end of a message that the answer continues."""


@dataclass(frozen=True)
class _TrimMark:
    """A place from which on the template would remove white space, if it removes it at an edge of the content.

    `left`, `right`: numbers of these edges; None for an edge that is visible text. `ends`: the end of such a place.
    """

    left: int | None
    right: int | None
    ends: bool = False

    def effect(self, edges: Mapping[int, bool]) -> Trim | None:
        """Return what begins or ends here; None if nothing is removed. `edges`: the edges that the template has left,
        and whether with their line feeds."""
        left, right = (number is not None and not edges.get(number, False) for number in (self.left, self.right))
        if not left and not right:
            return None
        if self.ends:
            return Trim()
        return Trim(left, right, lines=all(number in edges for number in (self.left, self.right) if number is not None))


class PlaceholderMap:
    """Owner of the pieces of one request that marks stand for."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._pieces: list[str | Input | Slot | _TrimMark] = []
        self._edges = 0
        """Number of edges of contents that were marked."""

    def mark_pieces(self, pieces: Sequence[Piece]) -> str:
        """Return the pieces of a content as one text, with marks for references, slots and control tokens.

        If a value stands at an edge of the content, white space with a number marks the edge.
        """
        if len(pieces) == 1 and isinstance(pieces[0], str):  # most contents
            return self.neutralise_text(pieces[0])
        marked = [self.neutralise_text(piece) if isinstance(piece, str) else self._mark(piece) for piece in pieces]
        visible = [index for index, piece in enumerate(pieces) if not isinstance(piece, str) or piece.strip()]
        if not visible:
            return "".join(marked)
        first, last = visible[0], visible[-1]
        left = self._new_edge() if isinstance(pieces[first], Input) else None
        right = self._new_edge() if isinstance(pieces[last], Input) else None
        known = next((index for index in reversed(visible) if not isinstance(pieces[index], Input)), None)
        if right is not None and known is not None:  # white space is removed after the last visible text
            kept = marked[known].rstrip()
            marked[known] = kept + self._mark(_TrimMark(None, right)) + marked[known][len(kept) :]
        begin = "" if left is None else self._mark(_TrimMark(left, right if known is None else None))
        end = "" if right is None else self._mark(_TrimMark(None, right, ends=True))
        return _edge(left) + begin + "".join(marked) + end + _edge(right, is_left=False)

    def _new_edge(self) -> int:
        self._edges += 1
        return self._edges

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

    def _mark(self, piece: "Piece | _TrimMark") -> str:
        assert not isinstance(piece, Media), "refused before"
        self._pieces.append(piece)
        return f'\ue000{_NONCE}-{len(self._pieces) - 1}"\ue001'

    def segments(self, rendered: str, window: int | None, param: str, *, heals: bool = False) -> list[Segment]:
        """Return the rendered template as segments. Raises RequestError as soon as it has at least as many tokens as
        the window.

        `param`: path of the prompt in the request. `heals`: generated text completes the end of the prompt.
        """
        edges = {_edge_number(found): _keeps_lines(found) for found in _EDGE.finditer(rendered)} if self._edges else {}
        if edges:
            rendered = _EDGE.sub("", rendered)
        if self._pieces and (_NONCE in _MARK.sub("", rendered) or _EDGE_NONCE in rendered):
            message = (
                "the model's chat template changes the text of messages, so it does not support references in them"
            )
            raise RequestError(400, message, code="unsupported_with_semantic", param=param)
        builder = SegmentBuilder(self._tokenizer, window, param)
        run: list[str | Input | Slot | Trim] = []
        preceding: Preceding = "nothing"
        for part in self._parts(rendered):
            if isinstance(part, _TrimMark):
                trim = part.effect(edges)
                if trim is not None:
                    run.append(trim)
            elif isinstance(part, int):
                if run:
                    builder.add_run(run, preceding)
                    run = []
                builder.add_control_token(part)
                preceding = "control"
            elif run and isinstance(part, str) and isinstance(before := run[-1], str):  # a mark stood between them
                run[-1] = before + part
            else:
                run.append(part)
        builder.add_run(run, preceding, heals=heals)
        return builder.finish()

    def _parts(self, rendered: str) -> "Iterator[str | int | Input | Slot | _TrimMark]":
        """Yield the ordinary texts, as long as possible, and the control tokens and other pieces between them."""
        text = ""
        pattern = self._tokenizer.control_pattern
        for index, part in enumerate([rendered] if pattern is None else pattern.split(rendered)):
            pieces: Iterable[str | int | Input | Slot | _TrimMark]
            if index % 2:
                pieces = [self._tokenizer.control[part]]
            elif not self._pieces:  # most prompts
                text = part
                continue
            else:
                pieces = self._split(part)
            for piece in pieces:
                if isinstance(piece, str):
                    text += piece
                    continue
                if text:
                    yield text
                text = ""
                yield piece
        if text:
            yield text

    def _split(self, text: str) -> "Iterator[str | Input | Slot | _TrimMark]":
        """Yield the texts of a rendered text without control tokens, and what the marks between them stand for."""
        texts = _MARK.split(text)
        yield texts[0]
        for index in range(1, len(texts), 3):
            number, backslash, following = texts[index : index + 3]
            piece = self._pieces[int(number)]
            if backslash and isinstance(piece, Input):
                piece = dataclasses.replace(piece, in_json=True)
            elif backslash and isinstance(piece, str):
                piece = escape_json(piece)
            yield piece
            yield following


def _edge(number: int | None, *, is_left: bool = True) -> str:
    """Return the white space that marks an edge; none for None. The number is in binary. Line feeds are on the outer
    side."""
    if number is None:
        return ""
    mark = _EDGE_NONCE + f"{number:020b}".translate({ord("0"): "\u2004", ord("1"): "\u2005"})
    return _LINES + mark if is_left else mark + _LINES


def _edge_number(found: re.Match[str]) -> int:
    return int(found[2].translate({0x2004: "0", 0x2005: "1"}), 2)


def _keeps_lines(found: re.Match[str]) -> bool:
    """Return whether the template has left the line feeds of an edge."""
    return bool(found[1] or found[3])
