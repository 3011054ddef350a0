"""Build prompts of tokens with a model's chat template.

Everything that a client sends is data. A control token's text inside a message is replaced by a mark before the
template is rendered, and put back as ordinary text afterwards. So only the template itself can write control tokens.
"""

import copy
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Self

from engine.tokenizer import Tokenizer
from gateway.errors import RequestError
from gateway.graph.segments import REASONING_END, REASONING_START, Input, Segment, Slot
from gateway.prompts.builder import PromptBuilder
from gateway.prompts.chat_template import ChatTemplate, Messages, TemplateRefused
from gateway.prompts.content_parser import ContentParser
from gateway.prompts.passthrough_builder import needless_continuation
from gateway.prompts.placeholders import END_MARK, PlaceholderMap
from gateway.prompts.prompt import ChatInput, Prompt, over_window
from gateway.prompts.segment_builder import text_segment
from gateway.prompts.tool_calls.description import describe_in_text
from gateway.prompts.tool_calls.formats import format_of_template
from gateway.prompts.tool_calls.tools import Tool


class _Rendered(NamedTuple):
    """Segments of a rendered conversation, and whether the template begins the model's reasoning."""

    segments: list[Segment]
    begins_reasoning: bool


class TemplatePromptBuilder(PromptBuilder):
    """Renders conversations with a chat template and tokenises them."""

    def __init__(self, tokenizer: Tokenizer, window: int | None = None) -> None:
        """`window`: the model's window in tokens. Prompts that do not fit are refused before they are tokenised as a
        whole; with None, there is no limit. Raises TemplateRefused if the chat template cannot be compiled."""
        self._tokenizer = tokenizer
        self._window = window
        source = tokenizer.chat_template or ""
        self._template = None if tokenizer.chat_template is None else ChatTemplate(source, tokenizer.special_texts)
        self.takes_late_system = self._template is not None and self._template.takes_late_system
        self._can_reason = REASONING_END in source
        """Whether the model may write reasoning before its answers."""
        self.tool_call_format = format_of_template(source)

    def unbounded(self) -> Self:
        """Return a builder without a limit of length. See `PromptBuilder.unbounded`."""
        builder = copy.copy(self)
        builder._window = None
        return builder

    def chat(self, chat: ChatInput, answer: Slot) -> Prompt:
        """Return the prompt of a conversation. See `PromptBuilder.chat`."""
        template = self._template
        if template is None:
            message = "this model has no chat template, so it does not support chat"
            raise RequestError(400, message, code="no_chat_template")
        if chat.upstream_fields:
            name = min(chat.upstream_fields)
            message = f"{name} is not supported by the engine of this model"
            raise RequestError(400, message, code="unsupported_by_engine", param=chat.path(name))
        _check_media(chat)
        self._check_length(chat)
        parser, placeholders = ContentParser(chat.references, chat.slots), PlaceholderMap(self._tokenizer)
        tools = chat.tools.known if chat.tools is not None and chat.tools.choice != "none" else ()
        messages = chat.messages
        if not template.knows_tools:
            messages = describe_in_text(messages, tools, system=template.takes_system)
        added = len(messages) - len(chat.messages)  # number of messages before the request's
        safe_messages = [
            _safe_message(parser, placeholders, message, chat.content_path(index))
            for index, message in enumerate(messages, start=-added)
        ]
        if not template.knows_tools and template.alternates:
            safe_messages = _join_tool_answers(safe_messages, [{}] * added + [*chat.messages])
        parser.check_slots()
        parts = parser.answer_parts()
        if chat.continue_final_message and parts is not None:
            raise needless_continuation(chat)
        segments, begins_reasoning = self._render(
            template,
            placeholders,
            safe_messages,
            chat,
            tools,
            opens=parts is None and chat.add_generation_prompt,
            heals=parts is None and answer.heals,
        )
        written = [segment.name for segment in segments if isinstance(segment, Slot)]
        if sorted(written, key=str) != sorted(parser.placed):
            message = "the model's chat template does not write every message exactly once"
            raise RequestError(400, message, param=chat.path(chat.field))
        if parts is None:
            if self._can_reason and not chat.continue_final_message:
                answer = dataclasses.replace(answer, thinks="begun" if begins_reasoning else "perhaps")
            return Prompt([*segments, answer], field=chat.field)
        last = max(index for index, segment in enumerate(segments) if isinstance(segment, Slot))
        return Prompt(segments[: last + 1], parts, chat.field)

    def _render(
        self,
        template: ChatTemplate,
        placeholders: PlaceholderMap,
        messages: list[dict[str, Any]],
        chat: ChatInput,
        tools: Sequence[Tool],
        *,
        opens: bool,
        heals: bool,
    ) -> _Rendered:
        """Render the messages with the chat template. `opens`: whether a new answer begins after them. `heals`: whether
        the answer completes the end of the prompt."""
        if chat.continue_final_message:
            messages[-1]["content"] += END_MARK
        options = chat.template_options or {}
        if reserved := template.reserved & options.keys():
            message = f"{min(reserved)} cannot be set: the server sets it for the template"
            raise RequestError(400, message, code="invalid_value", param=chat.path("chat_template_kwargs"))
        described = None
        if tools and template.knows_tools:
            described = placeholders.neutralise([tool.as_openai() for tool in tools])
        opens = opens and not chat.continue_final_message
        try:
            text = template.render(
                messages, add_generation_prompt=opens, tools=described, options=placeholders.neutralise(dict(options))
            )
        except TemplateRefused as error:
            message = f"the model's chat template refuses these messages: {error}"
            raise RequestError(400, message, param=chat.path(chat.field)) from error
        begins_reasoning = opens and text.rstrip().endswith(REASONING_START)
        if chat.tools is not None and chat.tools.choice == "forced" and opens:
            # a forced tool call needs no reasoning
            text += (f"\n{REASONING_END}\n\n" if begins_reasoning else "") + self.tool_call_format.begin
            begins_reasoning = False
        if chat.continue_final_message:
            text, end, _ = text.rpartition(END_MARK)
            if not end:
                message = "the model's chat template does not write the last message unchanged"
                raise RequestError(400, message, param=chat.path("continue_final_message"))
        segments = placeholders.segments(text, self._window, chat.path(chat.field), heals=heals)
        return _Rendered(segments, begins_reasoning)

    def _check_length(self, chat: ChatInput) -> None:
        """Raise RequestError if the messages cannot fit into the window, before the template renders them.

        It counts only what every template renders: texts without surrounding white space, and without an assistant's
        reasoning. Texts with references do not count: the size of the values is not known yet.
        """
        if self._window is None:
            return
        length = 0
        for message in chat.messages:
            content = message["content"]
            length += len(content) if isinstance(content, str) else sum(map(len, content))
        if length <= self._window:
            return
        texts = [
            part.rpartition(REASONING_END)[2] if message["role"] == "assistant" else part
            for message in chat.messages
            for part in ([message["content"]] if isinstance(message["content"], str) else message["content"])
        ]
        if chat.references:
            texts = [text for text in texts if "<<" not in text]
        minimum = sum(self._tokenizer.minimum_tokens(text.strip()) for text in texts)
        if minimum >= self._window:
            raise over_window(self._window, minimum, chat.path(chat.field))

    def template(
        self, pieces: Sequence[str | Input | Slot], *, add_bos: bool = True, where: str = "prompt"
    ) -> list[Segment]:
        """Return the segments of a client's own template. See `PromptBuilder.template`."""
        placeholders = PlaceholderMap(self._tokenizer)
        rendered = placeholders.mark_template(pieces)
        if self._tokenizer.adds_bos and add_bos:
            rendered = self._tokenizer.bos_text + rendered
        return placeholders.segments(rendered, self._window, where)

    def tokens(self, tokens: Sequence[int], answer: Slot, *, where: str = "prompt") -> Prompt:
        """Return a prompt of these tokens. Raises RequestError if they do not fit into the window."""
        if self._window is not None and len(tokens) >= self._window:
            raise over_window(self._window, len(tokens), where)
        return Prompt([text_segment(tokens), answer], field=where)


def _safe_message(
    parser: ContentParser, placeholders: PlaceholderMap, message: Mapping[str, Any], content_path: str
) -> dict[str, Any]:
    """Return the message with marks for references, slots and control tokens, also in its other fields: templates write
    roles and names, although they are not text."""
    safe: dict[str, Any] = {}
    for key, value in message.items():
        if key == "content" and value is not None:
            pieces = parser.parse(value, content_path, is_assistant=message.get("role") == "assistant")
            safe[key] = placeholders.mark_pieces(pieces)
        else:
            safe[key] = placeholders.neutralise(value)
    return safe


def _check_media(chat: ChatInput) -> None:
    """Raise RequestError if a part of a message is not text."""
    for index, message in enumerate(chat.messages):
        content = message["content"]
        for number, part in enumerate(() if isinstance(content, str) else content):
            if not isinstance(part, str):
                raise RequestError(
                    400,
                    f"this model supports only text, not {part['type']}",
                    code="unsupported_by_engine",
                    param=f"{chat.content_path(index)}.{number}",
                )


def _join_tool_answers(messages: Sequence[dict[str, Any]], originals: Messages) -> list[dict[str, Any]]:
    """Return the messages, with each tool's answer joined with neighbouring tool answers and user messages.

    `originals`: the messages before `describe_in_text` changed them.
    """
    joined: list[dict[str, Any]] = []
    role_before: Any = None
    for message, original in zip(messages, originals, strict=True):
        role = original.get("role")
        if "tool" in (role, role_before) and joined and joined[-1]["role"] == message["role"] == "user":
            joined[-1] = {**joined[-1], "content": f"{joined[-1]['content']}\n{message['content']}"}
        else:
            joined.append(message)
        role_before = role
    return joined
