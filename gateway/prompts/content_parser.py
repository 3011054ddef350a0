"""Split the contents of messages into texts, references, slots and media."""

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gateway.graph.errors import SlotWithoutPlace
from gateway.graph.references import check_references, parse
from gateway.graph.segments import Input, Slot
from gateway.prompts.tool_calls.description import Verbatim


@dataclass(frozen=True)
class Media:
    """A part of a message that is not text, in the form of requests."""

    part: Mapping[str, Any]


Piece = str | Input | Slot | Media


class ContentParser:
    """Owner of the references and slots that were found in the messages of one request."""

    def __init__(self, references: Container[str], slots: Mapping[str, Slot]) -> None:
        """`references`: names for which `<<name>>` in a text is a reference. `slots`: the slots by name."""
        self._references = references
        self._slots = slots
        self.placed: set[str] = set()
        """Names of the slots that have a place in a message."""
        self._reference_count = 0
        self._parts: list[str | Input] = []
        """Parts of the content that was parsed last."""
        self._parts_have_slots = False

    def parse(self, content: str | Sequence[Any], where: str, *, is_assistant: bool) -> list[Piece]:
        """Return the pieces of a message's content. Each text of a list starts on its own line.

        `where`: path of the content. `is_assistant`: whether the message is an assistant's. Only those have slots.
        Raises BadReference or TooLarge if a reference is invalid, or there are too many.
        """
        self._parts, self._parts_have_slots = [], False
        if isinstance(content, str):
            return self._parse_text(content, where, is_assistant)
        pieces: list[Piece] = []
        follows_text = False
        index = 0  # position among the client's own parts
        for part in content:
            if not isinstance(part, str):
                pieces.append(Media(part))
            else:
                if follows_text:
                    self._parts.append("\n")
                    pieces.append("\n")
                pieces += self._parse_text(part, f"{where}.{index}.text", is_assistant)
            follows_text = isinstance(part, str)
            index += not isinstance(part, Verbatim)
        return pieces

    def _parse_text(self, text: str, where: str, is_assistant: bool) -> list[Piece]:
        if not self._references or isinstance(text, Verbatim):
            self._parts.append(str(text))
            return [str(text)]
        pieces: list[Piece] = []
        for piece in parse(text, self._references):
            if isinstance(piece, str):
                self._parts.append(piece)
                pieces.append(piece)
                continue
            self._reference_count += 1
            check_references(self._reference_count, where=where)
            self._parts.append(Input(piece, where))
            slot = self._slots.get(piece.name) if is_assistant and not piece.path else None
            if slot is not None and piece.name not in self.placed:
                self.placed.add(piece.name)
                self._parts_have_slots = True
                pieces.append(slot)
            else:
                pieces.append(Input(piece, where))
        return pieces

    def check_slots(self) -> None:
        """Raise SlotWithoutPlace if no assistant message has a reference to a slot."""
        for name, slot in self._slots.items():
            if name not in self.placed:
                raise SlotWithoutPlace(
                    f"no assistant message contains <<{name}>>, the place where the slot is generated", slot.where
                )

    def answer_parts(self) -> Sequence[str | Input] | None:
        """Return the parts of the content that was parsed last; None unless it has slots."""
        return self._parts if self._parts_have_slots else None
