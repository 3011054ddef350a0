"""Turn the blocks of a Messages request into the messages of a chat completion.

Roles and their order stay. Consecutive messages of one role become one message, as in Anthropic's API. The rules for
blocks without an equivalent are in docs/anthropic-compatibility.md.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from compat.anthropic import CountTokensRequest
from compat.anthropic.blocks import (
    Base64Document,
    CompactionBlock,
    ContentBlock,
    ContentSource,
    DocumentBlock,
    ImageBlock,
    ResultPart,
    SearchResultBlock,
    ServerToolResultBlock,
    ServerToolUseBlock,
    TextBlock,
    TextSource,
    ThinkingBlock,
    ToolReferenceBlock,
    ToolResultBlock,
    ToolUseBlock,
)
from compat.openai.messages import AnyToolCall, CalledFunction, MediaPart, Message, TextPart, ToolCall
from gateway.errors import RequestError
from gateway.prompts.tool_calls.formats import INVALID_JSON
from gateway.runtime.json_codec import encode_json

_ENCRYPTED = frozenset({"encrypted_content", "encrypted_index", "encrypted_stdout", "signature", "cache_control"})
"""Fields of results of other servers' tools that the model does not read."""

_Part = TextPart | MediaPart
VerifySignature = Callable[[str, str], bool]
"""Function that returns whether a signature is valid for a text."""


def to_chat_messages(
    body: CountTokensRequest, verify: VerifySignature, *, takes_late_system: bool
) -> tuple[list[Message], list[str]]:
    """Return the messages of a chat completion, and the path of each message's content in the request.

    `takes_late_system`: whether the model's chat template renders a system message after other messages. If not, its
    text becomes part of a user's message. Raises RequestError if the conversation has no message.
    """
    conversation = _Conversation(verify)
    conversation.add_system(_texts(body.system_blocks), "system")
    is_first = True
    for index, message in enumerate(body.messages):
        path = f"messages.{index}.content"
        if message.role == "assistant":
            conversation.add_assistant(message.blocks, path)
        elif message.role == "user":
            conversation.add_user_blocks(message.blocks, path)
        elif is_first or takes_late_system:
            conversation.add_system(_texts(message.blocks), path)
        else:
            text = "\n".join(part.text for part in _texts(message.blocks))
            conversation.add_user([_text(f"<system>\n{text}\n</system>")], path)
        is_first = is_first and message.role == "system"
    if not conversation.turns:
        raise RequestError(400, "messages has no text", code="invalid_value", param="messages")
    return [turn.message() for turn in conversation.turns], [turn.path for turn in conversation.turns]


@dataclass(slots=True)
class _Turn:
    """A message that consecutive messages of its role may still extend. `texts`: pieces of an assistant's text."""

    role: Literal["system", "user", "assistant", "tool"]
    path: str
    parts: list[_Part] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    tool_calls: list[AnyToolCall] = field(default_factory=list)
    reasoning: list[str] = field(default_factory=list)
    tool_call_id: str | None = None

    def message(self) -> Message:
        """Return the message of the turn. The limits of requests do not hold for it: several messages may be joined."""
        if self.role != "assistant":
            content: Any = _content(self.parts)
            return Message.model_construct(role=self.role, content=content, tool_call_id=self.tool_call_id)
        return Message.model_construct(
            role="assistant",
            content="".join(self.texts),
            tool_calls=self.tool_calls or None,
            reasoning_content="\n".join(self.reasoning) or None,
        )


class _Conversation:
    """The turns so far. Adding to them takes linear time, however many messages of one role there are."""

    def __init__(self, verify: VerifySignature) -> None:
        self.turns: list[_Turn] = []
        self._verify = verify

    def _turn(self, role: Literal["system", "user", "assistant"], path: str) -> _Turn:
        """Return the last turn if it has this role, otherwise a new one."""
        if not self.turns or self.turns[-1].role != role:
            self.turns.append(_Turn(role, path))
        return self.turns[-1]

    def add_system(self, texts: Sequence[TextPart], path: str) -> None:
        """Add a system message."""
        if texts:
            self._turn("system", path).parts += texts

    def add_user(self, parts: Sequence[_Part], path: str) -> None:
        """Add a user's message."""
        self._turn("user", path).parts += parts

    def add_user_blocks(self, blocks: Sequence[ContentBlock], path: str) -> None:
        """Add a user's message, and a message of the role `tool` for each result of a tool.

        Images in results follow all results, in a user's message: OpenAI's API does not have them elsewhere.
        """
        parts: list[_Part] = []
        media: list[_Part] = []
        has_results = False
        for index, block in enumerate(blocks):
            if isinstance(block, ToolResultBlock):
                if parts:
                    self.add_user([*media, *parts], path)
                    parts, media = [], []
                media += self._add_result(block, f"{path}.{index}.content")
                has_results = True
            else:
                parts += _input_parts(block)
        if parts or media or not has_results:
            self.add_user([*media, *parts], path)

    def _add_result(self, block: ToolResultBlock, path: str) -> list[_Part]:
        """Add the result of a tool. Return its parts that are not text."""
        content = [_text(block.content)] if isinstance(block.content, str) else block.content
        parts = [part for result in content or () for part in _input_parts(result)]
        texts = [part for part in parts if isinstance(part, TextPart)]
        if block.is_error:
            texts = [_text("Error: " + texts[0].text if texts else "Error"), *texts[1:]]
        self.turns.append(_Turn("tool", path, [*texts], tool_call_id=block.tool_use_id))
        return [part for part in parts if not isinstance(part, TextPart)]

    def add_assistant(self, blocks: Sequence[ContentBlock], path: str) -> None:
        """Add an assistant's message: its text, its tool calls, and reasoning with a signature of this server."""
        turn = self._turn("assistant", path)
        on_new_line = bool(turn.texts)
        for block in blocks:
            match block:
                case TextBlock(text=text):
                    # the text blocks of an answer are one text; all others are on lines of their own
                    turn.texts += ["\n", text] if on_new_line else [text]
                    on_new_line = False
                case ThinkingBlock(thinking=thinking, signature=signature):
                    if thinking and self._verify(thinking, signature):
                        turn.reasoning.append(thinking)
                case ToolUseBlock():
                    turn.tool_calls.append(_tool_call(block))
                case _:
                    found = [part.text for part in _input_parts(block) if isinstance(part, TextPart)]
                    if found:
                        turn.texts += ["\n" if turn.texts else "", *found]
                        on_new_line = True


def _text(text: str) -> TextPart:
    return TextPart(type="text", text=text)


def _media(type: str, content: Mapping[str, Any]) -> MediaPart:
    return MediaPart.model_validate({"type": type, type: content})


def _texts(blocks: Iterable[ContentBlock]) -> list[TextPart]:
    """Return the texts of blocks that are all text."""
    return [block for block in blocks if isinstance(block, TextBlock)]


def _content(parts: Sequence[_Part]) -> str | list[_Part]:
    """Return the parts as the content of a message: a single text as a string, as most clients send it."""
    if not parts:
        return ""
    first = parts[0]
    return first.text if len(parts) == 1 and isinstance(first, TextPart) else list(parts)


def _input_parts(block: ContentBlock | ResultPart | TextPart) -> list[_Part]:
    """Return a block of a user's message, or of a tool's result, as parts of a message."""
    match block:
        case TextPart():
            return [block]
        case ImageBlock(source=source):
            assert not isinstance(source, str)
            return [_media("image_url", {"url": source.url})]  # type: ignore[union-attr]
        case DocumentBlock():
            return _document(block)
        case SearchResultBlock():
            texts = "\n".join(text.text for text in block.content)
            return [_text(f"{block.title}\n{block.source}\n{texts}")]
        case ToolReferenceBlock(tool_name=name):
            return [_text(f"Tool: {name}")]
        case ServerToolUseBlock(name=name, input=input):
            return [_text(f"[{name}: {encode_json(input).decode()}]")]
        case ServerToolResultBlock():
            return [_text(_server_result(block))]
        case CompactionBlock(content=content):
            return [_text(content)] if content else []
        case _:
            return []


def _document(block: DocumentBlock) -> list[_Part]:
    """Return a document as parts: its title and context, and its content between two marks."""
    source = block.source
    if isinstance(source, Base64Document):
        name = {"filename": block.title or "document.pdf", "file_data": source.url}
        return [*([_text(block.context)] if block.context else []), _media("file", name)]
    parts: list[_Part] = []
    if isinstance(source, TextSource):
        parts = [_text(source.data)]
    elif isinstance(source, ContentSource):
        content = [_text(source.content)] if isinstance(source.content, str) else source.content
        parts = [part for piece in content for part in _input_parts(piece)]
    title = f" title={encode_json(block.title).decode()}" if block.title else ""
    head = f"<document{title}>" + (f"\n{block.context}" if block.context else "")
    return [_text(head), *parts, _text("</document>")]


def _server_result(block: ServerToolResultBlock) -> str:
    """Return the result of another server's tool as text."""
    content = block.content
    if isinstance(content, str):
        return content
    if isinstance(content, list) and all(isinstance(part, dict) and part.get("type") == "text" for part in content):
        return "\n".join(str(part.get("text", "")) for part in content if isinstance(part, dict))
    return encode_json(_without_encrypted(content)).decode()


def _without_encrypted(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_encrypted(item) for name, item in value.items() if name not in _ENCRYPTED}
    return [_without_encrypted(item) for item in value] if isinstance(value, list) else value


def _tool_call(block: ToolUseBlock) -> ToolCall:
    raw = block.input.get(INVALID_JSON) if len(block.input) == 1 else None
    arguments = raw if isinstance(raw, str) else encode_json(block.input).decode()
    return ToolCall(id=block.id, function=CalledFunction(name=block.name, arguments=arguments))
