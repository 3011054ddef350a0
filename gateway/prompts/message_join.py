"""Join the pieces of a prompt that an upstream server gets as messages: segments, values and generated texts."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from gateway.graph.segments import Messages

_Content = list[list[str] | Mapping[str, Any]]
"""A content under construction: runs of texts, and parts of other kinds."""


def append_text(content: _Content, text: str) -> None:
    """Append a text to a content. If the content ends with a text, join the two."""
    if not content or not isinstance(content[-1], list):
        content.append([])
    content[-1].append(text)  # type: ignore[union-attr]


def finish_content(content: _Content) -> str | list[Mapping[str, Any]]:
    """Return the content in the form of a chat request.

    It is a string if all its parts are texts, otherwise a list of parts without empty texts.
    """
    if all(isinstance(part, list) for part in content):
        return "".join([text for run in content for text in run])
    parts = [{"type": "text", "text": "".join(part)} if isinstance(part, list) else part for part in content]
    return [part for part in parts if part["type"] != "text" or part["text"]]


def join_messages(pieces: Sequence[str | Messages]) -> Messages:
    """Return one segment with all messages of a prompt.

    `pieces`: the segments of the prompt, and the values and generated texts between them. A text is appended to the
    message before it, so the first piece is a segment.
    """
    first = pieces[0]
    if len(pieces) == 1 and isinstance(first, Messages):
        return first
    fields: dict[str, Any] = {}
    messages: list[Mapping[str, Any]] = []
    content: _Content = []
    is_open = False
    for piece in pieces:
        if isinstance(piece, str):
            append_text(content, piece)
            continue
        fields.update(piece.fields)
        for index, message in enumerate(piece.messages):
            if index or not piece.continues:
                if is_open:
                    messages[-1] = {**messages[-1], "content": finish_content(content)}
                messages.append(message)
                content = []
            _extend(content, message["content"])
            is_open = True
    if is_open:
        messages[-1] = {**messages[-1], "content": finish_content(content)}
    last = next(piece for piece in reversed(pieces) if isinstance(piece, Messages))
    return Messages(messages, fields, is_open=last.is_open)


def _extend(content: _Content, added: str | Iterable[Mapping[str, Any]]) -> None:
    if isinstance(added, str):
        append_text(content, added)
        return
    for part in added:
        if part["type"] == "text":
            append_text(content, part["text"])
        else:
            content.append(part)
