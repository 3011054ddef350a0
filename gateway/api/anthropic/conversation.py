"""Turn the blocks of a Messages request into the messages of a chat completion.

Roles and their order stay. Consecutive messages of one role become one message, as in Anthropic's API. The rules for
blocks without an equivalent are in docs/anthropic-compatibility.md.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from compat.anthropic import CountTokensRequest
from compat.anthropic.blocks import (
    Base64Document,
    CompactionBlock,
    ContentBlock,
    ContentSource,
    DocumentBlock,
    ImageBlock,
    RedactedThinkingBlock,
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
from compat.openai.messages import CalledFunction, MediaPart, Message, TextPart, ToolCall
from gateway.errors import RequestError
from gateway.runtime.json_codec import encode_json

INVALID_JSON = "INVALID_JSON"
"""Key of a tool call's input under which Anthropic's clients keep arguments that are not a JSON object."""
_ENCRYPTED = frozenset({"encrypted_content", "encrypted_index", "encrypted_stdout", "signature", "cache_control"})
"""Fields of the results of other servers' tools that say nothing to the model."""

_Part = TextPart | MediaPart
VerifySignature = Callable[[str, str], bool]
"""Tells whether a signature is this server's signature of a text."""


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
    if not conversation.messages:
        raise RequestError(400, "messages has no text", code="invalid_value", param="messages")
    return conversation.messages, conversation.paths


class _Conversation:
    """Owner of the messages so far."""

    def __init__(self, verify: VerifySignature) -> None:
        self.messages: list[Message] = []
        self.paths: list[str] = []
        self._verify = verify

    def _add(self, path: str, **fields: Any) -> None:
        # validated before, as blocks
        self.messages.append(Message.model_construct(**fields))
        self.paths.append(path)

    def _last(self, role: str) -> Message | None:
        """Return the last message if it has this role."""
        return self.messages[-1] if self.messages and self.messages[-1].role == role else None

    def _add_parts(self, role: str, parts: Sequence[_Part], path: str) -> None:
        """Add a message, or extend the last one of the same role."""
        before = self._last(role)
        if before is None:
            self._add(path, role=role, content=_content(parts))
        else:
            before.content = [*_parts(before.content), *parts]

    def add_system(self, texts: Sequence[TextPart], path: str) -> None:
        """Add a system message."""
        if texts:
            self._add_parts("system", texts, path)

    def add_user(self, parts: Sequence[_Part], path: str) -> None:
        """Add a user's message."""
        self._add_parts("user", parts, path)

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
        content = [TextBlock(type="text", text=block.content)] if isinstance(block.content, str) else block.content
        parts = [part for result in content or () for part in _input_parts(result)]
        texts = [part for part in parts if isinstance(part, TextPart)]
        if block.is_error:
            texts = [_text("Error: " + texts[0].text if texts else "Error"), *texts[1:]]
        self._add(path, role="tool", content=_content(texts), tool_call_id=block.tool_use_id)
        return [part for part in parts if not isinstance(part, TextPart)]

    def add_assistant(self, blocks: Sequence[ContentBlock], path: str) -> None:
        """Add an assistant's message: its text, its tool calls, and reasoning with a signature of this server."""
        texts: list[str] = []
        reasoning: list[str] = []
        tool_calls: list[ToolCall] = []
        before: ContentBlock | None = None
        for block in blocks:
            match block:
                case TextBlock(text=text):
                    # the text blocks of an answer are one text; other blocks are on lines of their own
                    separator = "\n" if texts and not isinstance(before, TextBlock | ToolUseBlock) else ""
                    texts.append(separator + text)
                case ThinkingBlock(thinking=thinking, signature=signature):
                    if thinking and self._verify(thinking, signature):
                        reasoning.append(thinking)
                case RedactedThinkingBlock():
                    continue
                case ToolUseBlock():
                    tool_calls.append(_tool_call(block))
                case _:
                    texts += ["\n" if texts else "", *(part.text for part in _input_parts(block))]  # type: ignore[union-attr]
            before = block
        last = self._last("assistant")
        if last is not None:
            texts = [str(last.content), *(["\n"] if last.content and texts else []), *texts]
            tool_calls = [*(last.tool_calls or ()), *tool_calls]
            reasoning = [*([last.reasoning_content] if last.reasoning_content else []), *reasoning]
            self.messages.pop()
            path = self.paths.pop()
        self._add(
            path,
            role="assistant",
            content="".join(texts),
            tool_calls=tool_calls or None,
            reasoning_content="\n".join(reasoning) or None,
        )


def _text(text: str) -> TextPart:
    return TextPart.model_construct(type="text", text=text)


def _media(type: str, content: Mapping[str, Any]) -> MediaPart:
    return MediaPart.model_validate({"type": type, type: content})


def _texts(blocks: Iterable[ContentBlock]) -> list[TextPart]:
    """Return the texts of blocks that are all text."""
    return [_text(block.text) for block in blocks if isinstance(block, TextBlock)]


def _parts(content: str | Sequence[Any] | None) -> list[Any]:
    return [_text(content or "")] if content is None or isinstance(content, str) else list(content)


def _content(parts: Sequence[_Part]) -> str | list[_Part]:
    """Return the parts as the content of a message: a single text as a string, as most clients send it."""
    if not parts:
        return ""
    first = parts[0]
    return first.text if len(parts) == 1 and isinstance(first, TextPart) else list(parts)


def _input_parts(block: ContentBlock | ResultPart) -> list[_Part]:
    """Return a block of a user's message, or of a tool's result, as parts of a message."""
    match block:
        case TextBlock(text=text):
            return [_text(text)]
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
        content = [TextBlock(type="text", text=source.content)] if isinstance(source.content, str) else source.content
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
    function = CalledFunction.model_construct(name=block.name, arguments=arguments)
    return ToolCall.model_construct(id=block.id, function=function)
