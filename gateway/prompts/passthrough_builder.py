"""Build prompts for engines that accept messages or text instead of tokens: upstream servers."""

import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, Self

from gateway.errors import RequestError
from gateway.graph.segments import Characters, Input, Messages, Segment, Slot, json_digest
from gateway.prompts.builder import PromptBuilder
from gateway.prompts.content_parser import ContentParser, Media, Piece
from gateway.prompts.message_join import append_text, finish_content
from gateway.prompts.prompt import ChatInput, Prompt
from gateway.prompts.tool_calls.formats import UPSTREAM
from gateway.runtime.json_codec import encode_json

MEDIA_WEIGHT = 4_000
"""Weight of a part that is not text, in characters: an image has some thousand tokens."""


class PassthroughPromptBuilder(PromptBuilder):
    """Forwards messages and tools as the client sent them. It cuts them at references and slots."""

    tool_call_format = UPSTREAM

    def unbounded(self) -> Self:
        """Return this builder: the upstream server limits the length."""
        return self

    def chat(self, chat: ChatInput, answer: Slot) -> Prompt:
        """Return the prompt of a conversation. See `PromptBuilder.chat`."""
        continues = chat.continue_final_message
        if not chat.references and not chat.slots:
            fields = _request_fields(chat, opens=chat.add_generation_prompt or continues)
            messages = [_join_texts(message) for message in chat.messages]
            return Prompt([_segment(messages, fields, is_open=continues), answer], field=chat.field)
        parser = ContentParser(chat.references, chat.slots)
        contents = []
        parts = None
        for index, message in enumerate(chat.messages):
            is_assistant = message.get("role") == "assistant"
            contents.append(parser.parse(message["content"], chat.content_path(index), is_assistant=is_assistant))
            parts = parser.answer_parts()
        parser.check_slots()
        if continues and parts is not None:
            raise needless_continuation(chat)
        fields = _request_fields(chat, opens=parts is not None or chat.add_generation_prompt or continues)
        segments = _segments(chat.messages, contents, fields, continues=continues)
        if parts is None:
            return Prompt([*segments, answer], field=chat.field)
        last = max(index for index, segment in enumerate(segments) if isinstance(segment, Slot))
        return Prompt(segments[: last + 1], parts, chat.field)

    def template(
        self, pieces: Sequence[str | Input | Slot], *, add_bos: bool = True, where: str = "prompt"
    ) -> list[Segment]:
        """Return the segments of a client's own template. See `PromptBuilder.template`."""
        segments: list[Segment] = []
        for piece in pieces:
            if not isinstance(piece, str):
                segments.append(piece)
            elif piece:
                segments.append(Characters(piece))
        return segments


def needless_continuation(chat: ChatInput) -> RequestError:
    """Return the error for `continue_final_message` with a last message that has slots."""
    message = "continue_final_message is not needed: the answer continues a message with slots anyway"
    param = chat.path("continue_final_message")
    return RequestError(400, message, code="unsupported_with_semantic", param=param)


def _request_fields(chat: ChatInput, *, opens: bool) -> dict[str, Any]:
    """Return the fields of an upstream request besides its messages."""
    fields: dict[str, Any] = {} if chat.tools is None else chat.tools.request_fields()
    fields |= chat.upstream_fields or {}
    if chat.template_options:
        fields["chat_template_kwargs"] = dict(chat.template_options)
    if not opens:
        fields["add_generation_prompt"] = False
    return fields


def _join_texts(message: Mapping[str, Any]) -> dict[str, Any]:
    """Return the message. If its content consists of texts only, they are joined."""
    content = message["content"]
    if type(content) is str:
        return {**message}
    if isinstance(content, str):
        return {**message, "content": str(content)}
    if all(isinstance(part, str) for part in content):
        return {**message, "content": "\n".join(content)}
    return {
        **message,
        "content": [{"type": "text", "text": part} if isinstance(part, str) else part for part in content],
    }


def _segments(
    messages: Sequence[Mapping[str, Any]],
    contents: Sequence[Sequence[Piece]],
    fields: Mapping[str, Any],
    *,
    continues: bool,
) -> list[Segment]:
    """Return the messages as segments, cut at references and slots. `contents`: pieces of their contents."""
    segments: list[Segment] = []
    known: list[dict[str, Any]] = []
    is_continued = False
    for message, pieces in zip(messages, contents, strict=True):
        head = {name: value for name, value in message.items() if name != "content"}
        content: list[list[str] | Mapping[str, Any]] = []
        for piece in pieces:
            if isinstance(piece, str):
                append_text(content, piece)
            elif isinstance(piece, Media):
                content.append(piece.part)
            else:
                known.append({**head, "content": finish_content(content)})
                segments += [_segment(known, fields, continues=is_continued, is_open=True), piece]
                known, fields, content, head, is_continued = [], {}, [], {}, True
        known.append({**head, "content": finish_content(content)})
    return [*segments, _segment(known, fields, continues=is_continued, is_open=continues)]


def _segment(
    messages: list[dict[str, Any]], fields: Mapping[str, Any], *, continues: bool = False, is_open: bool
) -> Messages:
    """Return a segment, with its size: three characters for each message, and all texts and JSON in it."""
    size, discount = -is_open, 0
    digests: list[bytes] = []
    if read := Messages([], fields).prompt_fields:
        encoded = encode_json(read)
        size += 1 + len(encoded.decode())
        digests.append(json_digest(encoded))
    for index, message in enumerate(messages):
        if index == 0 and continues:
            size += 1
        elif len(message) == 2 and "role" in message:
            role_size, digest = _role_head(message["role"])
            size += 3 + role_size
            digests.append(digest)
        else:
            encoded = encode_json({name: value for name, value in message.items() if name != "content"})
            size += 3 + len(encoded.decode())
            digests.append(json_digest(encoded))
        content = message["content"]
        if isinstance(content, str):
            size += len(content)
            continue
        for part in content:
            if part["type"] == "text":
                size += len(part["text"])
            else:
                part_size = 2 + (len(json.dumps(part)) + 1) // 2
                size += part_size
                discount += part_size - MEDIA_WEIGHT
                digests.append(json_digest(encode_json(part)))
    return Messages(messages, fields, continues, is_open, size, size - discount if discount else None, digests)


@lru_cache(16)
def _role_head(role: str) -> tuple[int, bytes]:
    """Return the size and the digest of most messages without their content: those with no field but role and
    content."""
    encoded = encode_json({"role": role})
    return len(encoded.decode()), json_digest(encoded)
