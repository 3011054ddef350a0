"""Turn messages into segments: tokens of the chat template's text, with places for values and for generated text.

Everything that a client sends is data. A control token's text inside a message is replaced by a mark before the
template is rendered, and put back as ordinary text afterwards. So only the template itself can write control tokens.
"""

import copy
import dataclasses
import re
import secrets
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from engine.tokenizer import Place
from gateway.errors import RequestError, field_path
from gateway.graph.call import REASONING_END, REASONING_START, Input, Segment, Slot, Text
from gateway.graph.errors import SlotWithoutPlace
from gateway.graph.references import Reference, check_references, parse
from gateway.prompts import message_passthrough
from gateway.prompts.chat_template import ChatTemplate, Messages, TemplateRefused
from gateway.prompts.tool_calls.description import Verbatim, describe_in_text
from gateway.prompts.tool_calls.formats import UPSTREAM, format_of_template
from gateway.prompts.tool_calls.tools import Tool, Tools

_NONCE = secrets.token_hex(8)
"""Random part of the marks that stand for references, slots, media and the texts of control tokens while the chat
template renders. It never leaves the process, not even as tokens, so that no client can forge a mark."""
_MARK = re.compile(f"\ue000{_NONCE}-(\\d+)\ue001")
_END = f"\ue000{_NONCE}-end\ue001"
"""Mark of the end of a message that the answer continues."""


class PromptTokenizer(Protocol):
    """Tokenizer that prompts are built with: a checkpoint's, or a substitute for engines that receive messages.

    `is_passthrough`: messages and tools reach the engine as the client sent them, without a chat template.
    """

    is_passthrough: bool
    control: dict[str, int]
    control_pattern: re.Pattern[str] | None
    chat_template: str | None
    bos_text: str
    special_texts: Mapping[str, str]
    adds_bos: bool

    def encode(self, text: str, *, after: Place = "text", most: int | None = None) -> Sequence[int]:
        """Return the tokens of ordinary text. After more than `most` tokens, the rest may be left out."""

    def fewest(self, text: str) -> int:
        """Return a lower bound of a text's number of tokens, without tokenising it."""

    def decode(self, tokens: list[int], *, skip_special: bool = True) -> str:
        """Return the text of the tokens."""

    def token_bytes(self, token: int) -> bytes:
        """Return the bytes of one token."""


@dataclass(frozen=True)
class Prompt:
    """A prompt as segments.

    The last segment is the place of the answer. If the last message is an assistant's message with slots, `parts` are
    the parts of the answer instead: the answer is that message, once its slots have values.
    """

    segments: Sequence[Segment]
    parts: Sequence[str | Input] | None = None
    field: str = "messages"
    """Path of the field of the request that the prompt was built from."""


@dataclass(frozen=True)
class Media:
    """A part of a message that is not text, in the form of requests."""

    part: Mapping[str, Any]


class PromptBuilder:
    """Renderer of one model's prompts. Immutable; safe to use from several threads."""

    def __init__(self, tokenizer: PromptTokenizer, window: int | None = None) -> None:
        """`window`: the model's window in tokens. Prompts that do not fit are refused before they are tokenised as a
        whole; with None, there is no limit. Raises TemplateRefused if the chat template cannot be compiled."""
        self._tokenizer = tokenizer
        self._window = None if tokenizer.is_passthrough else window
        self.is_passthrough = tokenizer.is_passthrough
        """Whether messages are forwarded to an upstream server without a chat template."""
        source = tokenizer.chat_template or ""
        self._template = None if tokenizer.chat_template is None else ChatTemplate(source, tokenizer.special_texts)
        self._thinks = REASONING_END in source
        """Whether the model may write reasoning before its answers."""
        self.tool_call_format = UPSTREAM if self.is_passthrough else format_of_template(source)
        """Format in which the model writes tool calls."""

    def unbounded(self) -> "PromptBuilder":
        """Return a builder of the same prompts without a limit of length."""
        builder = copy.copy(self)
        builder._window = None
        return builder

    def chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        answer: Slot,
        *,
        references: bool = False,
        slots: Mapping[str, Slot] | None = None,
        tools: Tools | None = None,
        opens: bool = True,
        continues: bool = False,
        options: Mapping[str, Any] | None = None,
        passed_on: Mapping[str, Any] | None = None,
        where: str = "",
        field: str = "messages",
        places: Sequence[str] = (),
    ) -> Prompt:
        """Return the prompt of a conversation, which ends with the place of the assistant's answer.

        `messages`: as in the request; contents are strings or lists of parts. `references`: whether `<<name>>` in a
        text is a reference. `slots`: slots that this call generates, by name. `tools`: tools of the request, if any.
        `opens`: whether to add the generation prompt. `continues`: whether the answer continues the last message.
        `options`: the client's `chat_template_kwargs`. `passed_on`: fields, by name, that only upstream servers that
        receive messages support. `where`: path of the request in a larger one. `field`: path of the messages in the
        request. `places`: paths of the contents of the messages, if they do not follow from `field`.

        Raises RequestError if the model has no template or the template refuses the messages, and SlotWithoutPlace.
        """
        if self._template is None and not self.is_passthrough:
            message = "this model has no chat template, so it does not support chat"
            raise RequestError(400, message, code="no_chat_template")
        if passed_on and not self.is_passthrough:
            name = min(passed_on)
            message = f"{name} is not supported by the engine of this model"
            raise RequestError(400, message, code="unsupported_by_engine", param=field_path(where, name))
        if not self.is_passthrough:
            _check_media(messages, where, field, places)
            self._check_length(messages, references, field_path(where, field))
        elif not references and not slots:
            request_fields = _request_fields(tools, options, passed_on, opens=opens or continues)
            plain = [_join_text(message) for message in messages]
            sequence = message_passthrough.write(request_fields, plain, unfinished=continues)
            return Prompt([Text(sequence, sequence.weight), answer], field=field)
        placeholders = _PlaceholderMap(self._tokenizer, references, slots or {})
        known_tools = tools.known if tools is not None and tools.choice != "none" else ()
        original, template = messages, self._template
        in_text = template is not None and not template.knows_tools
        if in_text:
            system = template is None or template.takes_system
            messages = describe_in_text(messages, known_tools, system=system)
        shift = len(messages) - len(original)  # number of messages added before the request's
        safe = [
            placeholders.replace(
                message, field_path(where, places[index] if places and index >= 0 else f"{field}.{index}.content")
            )
            for index, message in enumerate(messages, start=-shift)
        ]
        if template is not None and in_text and template.alternates:
            safe = _join_tool_answers(safe, [{}] * shift + [*original])
        placeholders.check_slots()
        parts = placeholders.answer_parts(messages[-1]) if messages else None
        if continues and parts is not None:
            message = "continue_final_message is not needed: the answer continues a message with slots anyway"
            param = field_path(where, "continue_final_message")
            raise RequestError(400, message, code="unsupported_with_semantic", param=param)
        begun = False
        if self._template is None:
            request_fields = _request_fields(tools, options, passed_on, opens=parts is not None or opens or continues)
            segments = placeholders.passthrough_segments(request_fields, safe, continues=continues)
        else:
            segments, begun = self._render(
                placeholders,
                safe,
                tools,
                known_tools,
                options,
                opens=parts is None and opens,
                continues=continues,
                where=where,
                field=field,
            )
        placeholders.check_rendered(segments, field_path(where, field))
        if parts is None:
            if self._thinks and not continues:
                answer = dataclasses.replace(answer, thinks="begun" if begun else "perhaps")
            return Prompt([*segments, answer], field=field)
        last = max(index for index, segment in enumerate(segments) if isinstance(segment, Slot))
        return Prompt(segments[: last + 1], parts, field)

    def _render(
        self,
        placeholders: "_PlaceholderMap",
        safe: list[dict[str, Any]],
        tools: Tools | None,
        known_tools: Sequence[Tool],
        options: Mapping[str, Any] | None,
        *,
        opens: bool,
        continues: bool,
        where: str,
        field: str,
    ) -> tuple[list[Segment], bool]:
        """Render the messages with the chat template. Return the segments, and whether the template begins the
        model's reasoning."""
        assert self._template is not None
        if continues:
            safe[-1]["content"] += _END
        if reserved := self._template.reserved & (options or {}).keys():
            message = f"{min(reserved)} cannot be set: the server sets it for the template"
            raise RequestError(400, message, code="invalid_value", param=field_path(where, "chat_template_kwargs"))
        described = None
        if known_tools and self._template.knows_tools:
            described = placeholders.neutral([tool.as_openai() for tool in known_tools])
        opens = opens and not continues
        try:
            template_options = placeholders.neutral(dict(options or {}))
            text = self._template.render(safe, opens=opens, tools=described, options=template_options)
        except TemplateRefused as error:
            raise RequestError(
                400, f"the model's chat template refuses these messages: {error}", param=field_path(where, field)
            ) from error
        begun = opens and text.rstrip().endswith(REASONING_START)
        if tools is not None and tools.choice == "forced" and opens:
            text += (
                f"\n{REASONING_END}\n\n" if begun else ""
            ) + self.tool_call_format.begin  # a forced call needs no reasoning
            begun = False
        if continues:
            text, end, _ = text.rpartition(_END)
            if not end:
                message = "the model's chat template does not write the last message unchanged"
                raise RequestError(400, message, param=field_path(where, "continue_final_message"))
        return placeholders.segments(text, self._window, field_path(where, field)), begun

    def _check_length(self, messages: Sequence[Mapping[str, Any]], references: bool, param: str) -> None:
        """Raise RequestError if the messages cannot fit into the window, before the template renders them.

        It counts only what every template renders: texts without surrounding white space, and without an assistant's
        reasoning. Texts with references do not count: the size of the values is not known yet.
        """
        if self._window is None:
            return
        length = 0
        for message in messages:
            content = message["content"]
            length += len(content) if isinstance(content, str) else sum(map(len, content))
        if length <= self._window:
            return
        texts = [
            part.rpartition(REASONING_END)[2] if message["role"] == "assistant" else part
            for message in messages
            for part in ([message["content"]] if isinstance(message["content"], str) else message["content"])
        ]
        fewest = sum(self._tokenizer.fewest(text.strip()) for text in texts if not (references and "<<" in text))
        if fewest >= self._window:
            raise over_window(self._window, fewest, param)

    def completion(
        self, text: str, answer: Slot, *, references: bool = False, begins: bool = True, where: str = "prompt"
    ) -> Prompt:
        """Return the prompt of a completion: a text that the answer continues. `where`: path of the text.

        The text is the client's own template: control tokens in it are control tokens, but those in values are not.
        `begins`: whether to put the model's BOS token in front.
        """
        parts = parse(text) if references else [text]
        pieces = [Input(piece, where) if isinstance(piece, Reference) else piece for piece in parts]
        return Prompt(self.raw([*pieces, answer], begins=begins, where=where), field=where)

    def raw(self, pieces: Sequence[str | Input | Slot], *, begins: bool = True, where: str = "prompt") -> list[Segment]:
        """Return the segments of a client's own template, which is given in pieces; see `completion`. Raises
        RequestError if it cannot fit into the window. `where`: path of the template in the request."""
        placeholders = _PlaceholderMap(self._tokenizer, references=False, slots={})
        rendered = placeholders.mark_pieces(pieces)
        if self._tokenizer.adds_bos and begins:
            rendered = self._tokenizer.bos_text + rendered
        return placeholders.segments(rendered, self._window, where)

    def tokens(self, tokens: Sequence[int], answer: Slot, *, where: str = "prompt") -> Prompt:
        """Return a prompt of these tokens. Raises RequestError if they do not fit into the window."""
        if self._window is not None and len(tokens) >= self._window:
            raise over_window(self._window, len(tokens), where)
        return Prompt([_text(tokens), answer], field=where)


def over_window(window: int, tokens: int, param: str) -> RequestError:
    """Return the error for a prompt with at least `tokens` tokens. `param`: path of the prompt in the request."""
    message = f"this model's window is {window} tokens, but the prompt has at least {tokens} tokens; shorten it"
    return RequestError(400, message, code="context_length_exceeded", param=param)


def _check_media(messages: Sequence[Mapping[str, Any]], where: str, field: str, places: Sequence[str]) -> None:
    """Raise RequestError if a part of a message is not text."""
    for index, message in enumerate(messages):
        content = message["content"]
        for number, part in enumerate(() if isinstance(content, str) else content):
            if not isinstance(part, str):
                place = places[index] if places else f"{field}.{index}.content"
                raise RequestError(
                    400,
                    f"this model supports only text, not {part['type']}",
                    code="unsupported_by_engine",
                    param=field_path(where, f"{place}.{number}"),
                )


def _join_tool_answers(messages: Sequence[dict[str, Any]], asked: Messages) -> list[dict[str, Any]]:
    """Return the messages, with each tool's answer joined with neighbouring tool answers and user messages.

    `asked`: the messages before `tool_calls.describe_in_text` changed them.
    """
    joined: list[dict[str, Any]] = []
    before: Any = None
    for message, origin in zip(messages, asked, strict=True):
        role = origin.get("role")
        if "tool" in (role, before) and joined and joined[-1]["role"] == message["role"] == "user":
            joined[-1] = {**joined[-1], "content": f"{joined[-1]['content']}\n{message['content']}"}
        else:
            joined.append(message)
        before = role
    return joined


def _request_fields(
    tools: Tools | None, options: Mapping[str, Any] | None, passed_on: Mapping[str, Any] | None, *, opens: bool
) -> dict[str, Any]:
    """Return the fields of an upstream request besides its messages."""
    fields: dict[str, Any] = {} if tools is None else tools.request()
    fields |= passed_on or {}
    if options:
        fields["chat_template_kwargs"] = dict(options)
    if not opens:
        fields["add_generation_prompt"] = False
    return fields


def _join_text(message: Mapping[str, Any]) -> dict[str, Any]:
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


class _PlaceholderMap:
    """Owner of the placeholders of one request: of the references, slots and control tokens that marks stand for."""

    def __init__(self, tokenizer: PromptTokenizer, references: bool, slots: Mapping[str, Slot]) -> None:
        self._tokenizer = tokenizer
        self._references = references
        self._slots = slots
        self._placed: set[str] = set()
        self._pieces: list[str | Input | Slot | Media] = []
        self._found = 0
        """Number of references, including slots."""
        self._last: list[str | Input] = []
        """Parts of the content that was processed last."""
        self._last_has_slots = False

    def replace(self, message: Mapping[str, Any], where: str) -> dict[str, Any]:
        """Return the message, with marks for the references and control tokens in it. `where`: path of the content."""
        replaced: dict[str, Any] = {}
        for key, value in message.items():
            if key == "content" and value is not None:
                replaced[key] = self._content(value, where, message.get("role") == "assistant")
            else:
                replaced[key] = self._neutralise(value)  # templates write roles and names, although they are not text
        return replaced

    def _content(self, content: Any, where: str, assistant: bool) -> str:
        self._last, self._last_has_slots = [], False
        if isinstance(content, str):
            return self._text(content, where, assistant)
        rendered = ""
        text_before = False
        index = 0  # position among the client's own parts
        for part in content:
            if not isinstance(part, str):
                rendered += self._mark(Media(part))
            else:
                if text_before:  # each text starts on its own line
                    self._last.append("\n")
                    rendered += "\n"
                rendered += self._text(part, f"{where}.{index}.text", assistant)
            text_before = isinstance(part, str)
            index += not isinstance(part, Verbatim)
        return rendered

    def _text(self, text: str, where: str, assistant: bool) -> str:
        if not self._references or isinstance(text, Verbatim):
            self._last.append(str(text))
            return self._neutral(text)
        out = ""
        for piece in parse(text):
            if isinstance(piece, str):
                self._last.append(piece)
                out += self._neutral(piece)
                continue
            self._found += 1
            check_references(self._found, where=where)
            self._last.append(Input(piece, where))
            slot = self._slots.get(piece.name) if assistant and not piece.path else None
            if slot is not None and piece.name not in self._placed:
                self._placed.add(piece.name)
                self._last_has_slots = True
                out += self._mark(slot)
            else:
                out += self._mark(Input(piece, where))
        return out

    def neutral(self, value: Any) -> Any:
        """Return a value for the template besides messages, with marks for control tokens."""
        return self._neutralise(value)

    def mark_pieces(self, pieces: Iterable[str | Input | Slot]) -> str:
        """Return the pieces as one text, with marks for references and slots only."""
        return "".join([piece if isinstance(piece, str) else self._mark(piece) for piece in pieces])

    def check_slots(self) -> None:
        """Raise SlotWithoutPlace if no assistant message has a reference to a slot."""
        for name, slot in self._slots.items():
            if name not in self._placed:
                raise SlotWithoutPlace(
                    f"no assistant message contains <<{name}>>, the place where the slot is generated", slot.where
                )

    def check_rendered(self, segments: Sequence[Segment], where: str) -> None:
        """Raise RequestError if the template omitted a slot, or wrote one twice."""
        written = [segment.name for segment in segments if isinstance(segment, Slot)]
        if sorted(written, key=str) != sorted(self._placed):
            message = "the model's chat template does not write every message exactly once"
            raise RequestError(400, message, param=where)

    def answer_parts(self, message: Mapping[str, Any]) -> Sequence[str | Input] | None:
        """Return the parts of the message that was processed last; None unless it is an assistant's with slots."""
        return self._last if message.get("role") == "assistant" and self._last_has_slots else None

    def _neutralise(self, value: Any) -> Any:
        if isinstance(value, str):
            return self._neutral(value)
        if isinstance(value, Mapping):
            return {key: self._neutralise(item) for key, item in value.items()}
        if isinstance(value, list):
            return [self._neutralise(item) for item in value]
        return value

    def _neutral(self, text: str) -> str:
        pattern = self._tokenizer.control_pattern
        return text if pattern is None else pattern.sub(lambda match: self._mark(match.group()), text)

    def _mark(self, piece: str | Input | Slot | Media) -> str:
        self._pieces.append(piece)
        return f"\ue000{_NONCE}-{len(self._pieces) - 1}\ue001"

    def passthrough_segments(
        self, request: Mapping[str, Any], messages: Sequence[Mapping[str, Any]], *, continues: bool
    ) -> list[Segment]:
        """Return the messages as a passthrough sequence, cut at references and slots."""
        segments: list[Segment] = []
        discount = 0
        tokens = message_passthrough.options_mark(request) if request else array("i")
        for message in messages:
            rest = {key: value for key, value in message.items() if key != "content"}
            tokens.extend(message_passthrough.message_mark(rest))
            for place, piece in enumerate(_MARK.split(message["content"])):
                piece_or_mark = self._pieces[int(piece)] if place % 2 else piece
                if isinstance(piece_or_mark, str):
                    tokens.extend(message_passthrough.characters(piece_or_mark))
                elif isinstance(piece_or_mark, Media):
                    mark = message_passthrough.part_mark(piece_or_mark.part)
                    tokens.extend(mark)
                    discount += len(mark) - message_passthrough.PART_WEIGHT
                else:
                    segments += [_weighted_text(tokens, discount), piece_or_mark]
                    tokens, discount = array("i"), 0
            tokens.append(message_passthrough.END)
        if continues:
            tokens.pop()
        return [*segments, _weighted_text(tokens, discount)]

    def segments(self, rendered: str, window: int | None, param: str) -> list[Segment]:
        """Return the rendered template as segments: references, slots, and the tokens between them. Raises RequestError
        as soon as it has at least as many tokens as the window. `param`: path of the prompt in the request."""
        segments: list[Segment] = []
        tokens: list[int] = []
        known = 0
        for run, preceding in self._runs(rendered):
            if isinstance(run, str):
                left = None if window is None else window - known - len(tokens)
                if left is not None and len(run) > left and (fewest := self._tokenizer.fewest(run)) >= left:
                    raise over_window(window or 0, known + len(tokens) + fewest, param)
                tokens += self._tokenizer.encode(run, after=preceding, most=left)
            elif isinstance(run, int):
                tokens.append(run)
            else:
                if tokens:
                    segments.append(_text(tokens))
                    known += len(tokens)
                tokens = []
                segments.append(run)
            if window is not None and known + len(tokens) >= window:
                raise over_window(window, known + len(tokens), param)
        if tokens:
            segments.append(_text(tokens))
        return segments

    def _runs(self, rendered: str) -> Iterator[tuple[str | int | Input | Slot, Place]]:
        """Yield runs of ordinary text, as long as possible, and the control tokens, references and slots between them.
        The second element says what precedes a run."""
        run = ""
        preceding: Place = "nothing"
        pattern = self._tokenizer.control_pattern
        for index, part in enumerate([rendered] if pattern is None else pattern.split(rendered)):
            if index % 2:
                if run:
                    yield run, preceding
                run, preceding = "", "control"
                yield self._tokenizer.control[part], preceding
                continue
            for place, piece in enumerate(_MARK.split(part)):
                piece_or_mark = self._pieces[int(piece)] if place % 2 else piece
                if isinstance(piece_or_mark, str):
                    run += piece_or_mark
                    continue
                assert not isinstance(piece_or_mark, Media), "refused before"
                if run:
                    yield run, preceding
                run, preceding = "", "text"
                yield piece_or_mark, preceding
        if run:
            yield run, preceding


def _text(tokens: Sequence[int]) -> Text:
    """Return a segment of these tokens. An array needs a ninth of a list's memory."""
    return Text(array("i", tokens))


def _weighted_text(tokens: Sequence[int], discount: int) -> Text:
    """Return a text segment. Estimates count `discount` tokens less than it has; see `Text.weight`."""
    return Text(tokens, len(tokens) - discount if discount else None)
