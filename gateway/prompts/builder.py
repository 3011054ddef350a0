"""Messages to segments: the chat template's text as tokens, with places for values and for what is generated.

Everything a client sends is data. A control token's text inside a message is taken out before the template is
rendered and put back as ordinary text afterwards, so that only the template itself can write control tokens.
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
from gateway.errors import RequestError, at
from gateway.graph.call import THOUGHT_BEGINS, THOUGHT_ENDS, Input, Segment, Slot, Text
from gateway.graph.errors import SlotWithoutPlace
from gateway.graph.references import Reference, check_references, parse
from gateway.prompts import message_passthrough as transcript
from gateway.prompts.chat_template import ChatTemplate, Messages, TemplateRefused
from gateway.prompts.tool_calls import PASSED_ON, Tool, Tools, Verbatim, in_words, style_of

_NONCE = secrets.token_hex(8)
"""Makes marks that nobody can forge: it leaves the process never, not even as tokens."""
_MARK = re.compile(f"\ue000{_NONCE}-(\\d+)\ue001")
_END = f"\ue000{_NONCE}-end\ue001"
"""Where a message ends that the answer goes on with."""


class PromptTokenizer(Protocol):
    """What prompts are made with: a checkpoint's tokenizer, or what stands for one where an engine takes messages.

    `is_passthrough`: the chat template writes messages, tools and all, as the client sent them.
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
        """Their text."""

    def token_bytes(self, token: int) -> bytes:
        """What a token stands for."""


@dataclass(frozen=True)
class Prompt:
    """Segments, the last of them the place of the answer; or, where the last message is an assistant's with slots, the
    answer's parts: it is that message, once its slots are there."""

    segments: Sequence[Segment]
    parts: Sequence[str | Input] | None = None
    field: str = "messages"
    """Of the request, where it came from."""


@dataclass(frozen=True)
class Media:
    """A part of a message that is no text, as requests have it."""

    part: Mapping[str, Any]


class PromptBuilder:
    """Renders one model's prompts. Immutable; safe to use from several threads."""

    def __init__(self, tokenizer: PromptTokenizer, window: int | None = None) -> None:
        """`window`: the model's window in tokens. Prompts that do not fit are refused before they are tokenised as a
        whole; with None, there is no limit. Raises TemplateRefused if the chat template cannot be compiled."""
        self._tokenizer = tokenizer
        self._window = None if tokenizer.is_passthrough else window
        self.is_passthrough = tokenizer.is_passthrough
        """Whether messages go to the engine's server as they are."""
        source = tokenizer.chat_template or ""
        self._template = None if tokenizer.chat_template is None else ChatTemplate(source, tokenizer.special_texts)
        self._thinks = THOUGHT_ENDS in source
        """Whether the model may write thoughts before its answers."""
        self.style = PASSED_ON if self.is_passthrough else style_of(source)
        """How the model writes calls of tools."""

    def unbounded(self) -> "PromptBuilder":
        """Return a builder of the same prompts without a limit of length."""
        made = copy.copy(self)
        made._window = None
        return made

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
        """The prompt of a conversation, with the assistant's answer behind it.

        `messages`: as in the request, contents as strings or lists of text parts. `references`: whether `<<name>>` is
        one; `slots` are those that this call generates itself. `tools`: if there are any. `opens`: whether an
        assistant's message is begun; `continues`: whether the answer goes on with the last one. `options`: what else
        the template is told; `passed_on`: what only an engine elsewhere that is given messages can do something with,
        by its name in requests. `where`: the path of the request in a larger one; `field`: of the request, where the
        messages are; `places`: the paths of their contents, where these do not follow from that.
        Raises RequestError if the model has no template or the template refuses the messages, SlotWithoutPlace.
        """
        if self._template is None and not self.is_passthrough:
            raise RequestError(400, "this model has no chat template, so it cannot chat", code="no_chat_template")
        if passed_on and not self.is_passthrough:
            name = min(passed_on)
            message = f"this model runs on an engine that can do nothing with {name}"
            raise RequestError(400, message, code="unsupported_by_engine", param=at(where, name))
        if not self.is_passthrough:
            _refuse_media(messages, where, field, places)
            self._refuse_long(messages, references, at(where, field))
        elif not references and not slots:
            told = _request(tools, options, passed_on, opens=opens or continues)
            plain = [_joined(message) for message in messages]
            written = transcript.write(told, plain, unfinished=continues)
            return Prompt([Text(written, written.weight), answer], field=field)
        held = _Held(self._tokenizer, references, slots or {})
        known_tools = tools.known if tools is not None and tools.choice != "none" else ()
        asked, template = messages, self._template
        in_text = template is not None and not template.knows_tools
        if in_text:
            system = template is None or template.takes_system
            messages = in_words(messages, known_tools, system=system)
        shift = len(messages) - len(asked)  # what was put before them is no message of the request's
        safe = [
            held.take_out(message, at(where, places[index] if places and index >= 0 else f"{field}.{index}.content"))
            for index, message in enumerate(messages, start=-shift)
        ]
        if template is not None and in_text and template.alternates:
            safe = _alternating(safe, [{}] * shift + [*asked])
        held.check_slots()
        parts = held.last_message(messages[-1]) if messages else None
        if continues and parts is not None:
            message = "a message with slots is gone on with anyway"
            param = at(where, "continue_final_message")
            raise RequestError(400, message, code="unsupported_with_semantic", param=param)
        begun = False
        if self._template is None:
            told = _request(tools, options, passed_on, opens=parts is not None or opens or continues)
            segments = held.transcript(told, safe, continues=continues)
        else:
            segments, begun = self._rendered(
                held,
                safe,
                tools,
                known_tools,
                options,
                opens=parts is None and opens,
                continues=continues,
                where=where,
                field=field,
            )
        held.check_rendered(segments, at(where, field))
        if parts is None:
            if self._thinks and not continues:
                answer = dataclasses.replace(answer, thinks="begun" if begun else "perhaps")
            return Prompt([*segments, answer], field=field)
        last = max(index for index, segment in enumerate(segments) if isinstance(segment, Slot))
        return Prompt(segments[: last + 1], parts, field)

    def _rendered(
        self,
        held: "_Held",
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
        """What the model's template makes of the messages, and whether it begins to think in the model's place."""
        assert self._template is not None
        if continues:
            safe[-1]["content"] += _END
        if taken := self._template.reserved & (options or {}).keys():
            message = f"{min(taken)} cannot be set: the server sets it for the template"
            raise RequestError(400, message, code="invalid_value", param=at(where, "chat_template_kwargs"))
        described = None
        if known_tools and self._template.knows_tools:
            described = held.neutral([tool.described() for tool in known_tools])
        opens = opens and not continues
        try:
            told = held.neutral(dict(options or {}))
            text = self._template.render(safe, opens=opens, tools=described, options=told)
        except TemplateRefused as error:
            raise RequestError(
                400, f"the model's chat template refuses these messages: {error}", param=at(where, field)
            ) from error
        begun = opens and text.rstrip().endswith(THOUGHT_BEGINS)
        if tools is not None and tools.choice == "forced" and opens:
            text += (f"\n{THOUGHT_ENDS}\n\n" if begun else "") + self.style.begin  # a call is no thought
            begun = False
        if continues:
            text, end, _ = text.rpartition(_END)
            if not end:
                message = "the model's chat template does not write the last message as it is"
                raise RequestError(400, message, param=at(where, "continue_final_message"))
        return held.segments(text, self._window, at(where, field)), begun

    def _refuse_long(self, messages: Sequence[Mapping[str, Any]], references: bool, param: str) -> None:
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
            part.rpartition(THOUGHT_ENDS)[2] if message["role"] == "assistant" else part
            for message in messages
            for part in ([message["content"]] if isinstance(message["content"], str) else message["content"])
        ]
        fewest = sum(self._tokenizer.fewest(text.strip()) for text in texts if not (references and "<<" in text))
        if fewest >= self._window:
            raise over_window(self._window, fewest, param)

    def completion(
        self, text: str, answer: Slot, *, references: bool = False, begins: bool = True, where: str = "prompt"
    ) -> Prompt:
        """A text, at `where` in the request, that the answer goes on with. It is the client's own template: control
        tokens in it are control tokens, but not those in values. `begins`: with what the model wants at a beginning."""
        found = parse(text) if references else [text]
        pieces = [Input(piece, where) if isinstance(piece, Reference) else piece for piece in found]
        return Prompt(self.raw([*pieces, answer], begins=begins, where=where), field=where)

    def raw(self, pieces: Sequence[str | Input | Slot], *, begins: bool = True, where: str = "prompt") -> list[Segment]:
        """Return the segments of a client's own template, which is given in pieces; see `completion`. Raises
        RequestError if it cannot fit into the window. `where`: path of the template in the request."""
        held = _Held(self._tokenizer, references=False, slots={})
        rendered = held.mark(pieces)
        if self._tokenizer.adds_bos and begins:
            rendered = self._tokenizer.bos_text + rendered
        return held.segments(rendered, self._window, where)

    def tokens(self, tokens: Sequence[int], answer: Slot, *, where: str = "prompt") -> Prompt:
        """Return a prompt of these tokens. Raises RequestError if they do not fit into the window."""
        if self._window is not None and len(tokens) >= self._window:
            raise over_window(self._window, len(tokens), where)
        return Prompt([_text(tokens), answer], field=where)


def over_window(window: int, tokens: int, param: str) -> RequestError:
    """Return the error for a prompt with at least `tokens` tokens. `param`: path of the prompt in the request."""
    message = f"this model's window is {window} tokens, but the prompt has at least {tokens} tokens; shorten it"
    return RequestError(400, message, code="context_length_exceeded", param=param)


def _refuse_media(messages: Sequence[Mapping[str, Any]], where: str, field: str, places: Sequence[str]) -> None:
    """Raises RequestError if there is something in the messages that is no text."""
    for index, message in enumerate(messages):
        content = message["content"]
        for number, part in enumerate(() if isinstance(content, str) else content):
            if not isinstance(part, str):
                place = places[index] if places else f"{field}.{index}.content"
                raise RequestError(
                    400,
                    f"this model runs on an engine that reads text, and no {part['type']}",
                    code="unsupported_by_engine",
                    param=at(where, f"{place}.{number}"),
                )


def _alternating(messages: Sequence[dict[str, Any]], asked: Messages) -> list[dict[str, Any]]:
    """Return the messages, with each tool's answer joined with tool answers and user messages next to it. `asked`: the
    messages before tools were put into words."""
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


def _request(
    tools: Tools | None, options: Mapping[str, Any] | None, passed_on: Mapping[str, Any] | None, *, opens: bool
) -> dict[str, Any]:
    """What is passed on besides messages, under the names that requests have for it."""
    told: dict[str, Any] = {} if tools is None else tools.request()
    told |= passed_on or {}
    if options:
        told["chat_template_kwargs"] = dict(options)
    if not opens:
        told["add_generation_prompt"] = False
    return told


def _joined(message: Mapping[str, Any]) -> dict[str, Any]:
    """With its content as one text, if it is text alone."""
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


class _Held:
    """What was taken out of the messages of one request, and where it was."""

    def __init__(self, tokenizer: PromptTokenizer, references: bool, slots: Mapping[str, Slot]) -> None:
        self._tokenizer = tokenizer
        self._references = references
        self._slots = slots
        self._placed: set[str] = set()
        self._pieces: list[str | Input | Slot | Media] = []
        self._found = 0
        """References, slots among them."""
        self._last: list[str | Input] = []
        """What the content looked at last is made of."""
        self._last_has_slots = False

    def take_out(self, message: Mapping[str, Any], where: str) -> dict[str, Any]:
        """The message, whose content is at `where`, with references and control tokens in it replaced by marks."""
        taken: dict[str, Any] = {}
        for key, value in message.items():
            if key == "content" and value is not None:
                taken[key] = self._content(value, where, message.get("role") == "assistant")
            else:
                taken[key] = self._neutralise(value)  # roles and names are no prompt text, but templates write them
        return taken

    def _content(self, content: Any, where: str, assistant: bool) -> str:
        self._last, self._last_has_slots = [], False
        if isinstance(content, str):
            return self._text(content, where, assistant)
        told = ""
        text_before = False
        index = 0  # of the client's own parts
        for part in content:
            if not isinstance(part, str):
                told += self._keep(Media(part))
            else:
                if text_before:  # texts stand on lines of their own
                    self._last.append("\n")
                    told += "\n"
                told += self._text(part, f"{where}.{index}.text", assistant)
            text_before = isinstance(part, str)
            index += not isinstance(part, Verbatim)
        return told

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
                out += self._keep(slot)
            else:
                out += self._keep(Input(piece, where))
        return out

    def neutral(self, value: Any) -> Any:
        """What a template is told besides messages, without control tokens."""
        return self._neutralise(value)

    def mark(self, pieces: Iterable[str | Input | Slot]) -> str:
        """The pieces as one text, with nothing but references and slots replaced by marks."""
        return "".join([piece if isinstance(piece, str) else self._keep(piece) for piece in pieces])

    def check_slots(self) -> None:
        """Raises SlotWithoutPlace."""
        for name, slot in self._slots.items():
            if name not in self._placed:
                raise SlotWithoutPlace(
                    f"no assistant message has a place <<{name}>> where the slot could be generated", slot.where
                )

    def check_rendered(self, segments: Sequence[Segment], where: str) -> None:
        """Raises RequestError if the template left a slot out, or wrote one twice."""
        written = [segment.name for segment in segments if isinstance(segment, Slot)]
        if sorted(written, key=str) != sorted(self._placed):
            raise RequestError(400, "the model's chat template does not write every message once", param=where)

    def last_message(self, message: Mapping[str, Any]) -> Sequence[str | Input] | None:
        """The parts of the message looked at last, if it is an assistant's with slots."""
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
        return text if pattern is None else pattern.sub(lambda match: self._keep(match.group()), text)

    def _keep(self, piece: str | Input | Slot | Media) -> str:
        self._pieces.append(piece)
        return f"\ue000{_NONCE}-{len(self._pieces) - 1}\ue001"

    def transcript(
        self, request: Mapping[str, Any], messages: Sequence[Mapping[str, Any]], *, continues: bool
    ) -> list[Segment]:
        """The messages as they are, cut at references and slots; see `gateway.prompts.message_passthrough`."""
        segments: list[Segment] = []
        lighter = 0
        tokens = transcript.options_mark(request) if request else array("i")
        for message in messages:
            rest = {key: value for key, value in message.items() if key != "content"}
            tokens.extend(transcript.message_mark(rest))
            for place, piece in enumerate(_MARK.split(message["content"])):
                held = self._pieces[int(piece)] if place % 2 else piece
                if isinstance(held, str):
                    tokens.extend(transcript.characters(held))
                elif isinstance(held, Media):
                    mark = transcript.part_mark(held.part)
                    tokens.extend(mark)
                    lighter += len(mark) - transcript.PART_WEIGHT
                else:
                    segments += [_reckoned(tokens, lighter), held]
                    tokens, lighter = array("i"), 0
            tokens.append(transcript.END)
        if continues:
            tokens.pop()
        return [*segments, _reckoned(tokens, lighter)]

    def segments(self, rendered: str, window: int | None, param: str) -> list[Segment]:
        """Return the rendered template as segments: references, slots, and the tokens between them. Raises RequestError
        as soon as it has at least as many tokens as the window. `param`: path of the prompt in the request."""
        segments: list[Segment] = []
        tokens: list[int] = []
        known = 0
        for run, before in self._runs(rendered):
            if isinstance(run, str):
                left = None if window is None else window - known - len(tokens)
                if left is not None and len(run) > left and (fewest := self._tokenizer.fewest(run)) >= left:
                    raise over_window(window or 0, known + len(tokens) + fewest, param)
                tokens += self._tokenizer.encode(run, after=before, most=left)
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
        The second element says what comes before a run."""
        run = ""
        before: Place = "nothing"
        pattern = self._tokenizer.control_pattern
        for index, part in enumerate([rendered] if pattern is None else pattern.split(rendered)):
            if index % 2:
                if run:
                    yield run, before
                run, before = "", "control"
                yield self._tokenizer.control[part], before
                continue
            for place, piece in enumerate(_MARK.split(part)):
                held = self._pieces[int(piece)] if place % 2 else piece
                if isinstance(held, str):
                    run += held
                    continue
                assert not isinstance(held, Media), "refused before"
                if run:
                    yield run, before
                run, before = "", "text"
                yield held, before
        if run:
            yield run, before


def _text(tokens: Sequence[int]) -> Text:
    """Return a segment of these tokens. An array needs a ninth of a list's memory."""
    return Text(array("i", tokens))


def _reckoned(tokens: Sequence[int], lighter: int) -> Text:
    """A text that is to be reckoned as so many tokens fewer than it has."""
    return Text(tokens, len(tokens) - lighter if lighter else None)
