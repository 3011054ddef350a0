"""Build the items of a response, and the events that describe their growth."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import msgspec

from compat.openai import TokenLogprob
from compat.openai.responses import (
    ArgumentsDelta,
    ArgumentsDone,
    CustomToolCall,
    FlatTool,
    FunctionToolCall,
    InputDelta,
    InputDone,
    ItemEvent,
    ItemStatus,
    McpApprovalRequest,
    McpArgumentsDelta,
    McpArgumentsDone,
    McpCall,
    McpEvent,
    McpEventType,
    McpListTools,
    OutputItem,
    OutputMessage,
    OutputText,
    PartEvent,
    PartEventType,
    ReasoningDelta,
    ReasoningDone,
    ReasoningItem,
    ReasoningText,
    TextDelta,
    TextDone,
    ToolCallItem,
    ToolSearchCall,
    write_reasoning,
)
from gateway.api.serializers.chat import new_tool_call_id
from gateway.prompts.tool_calls.input_decoder import InputDecoder
from gateway.prompts.tool_calls.parser import AnswerText, ToolCallArguments, ToolCallEvent, ToolCallStart
from gateway.runtime.json_codec import BadJson, decode_json

_ToolCallEvent = ArgumentsDelta | ArgumentsDone | InputDelta | InputDone | McpArgumentsDelta | McpArgumentsDone
Event = ItemEvent | PartEvent | TextDelta | TextDone | ReasoningDelta | ReasoningDone | _ToolCallEvent | McpEvent

PREFIXES = {
    OutputMessage: "msg",
    ReasoningItem: "rs",
    FunctionToolCall: "fc",
    CustomToolCall: "ctc",
    ToolSearchCall: "tsc",
    McpCall: "mcp",
    McpApprovalRequest: "mcpr",
    McpListTools: "mcpl",
}
"""Prefixes of the items' ids, by type."""


class Items:
    """Items of one answer. They are built one after another; at most one of them grows."""

    def __init__(
        self, numbers: Iterator[int], id: str, tools: Mapping[str, FlatTool], *, encrypts: bool = False
    ) -> None:
        """`numbers`: sequence numbers of the events. `id`: id of the response, from which those of its items are made.
        `tools`: tools by the names under which the model knows them. `encrypts`: whether reasoning has
        `encrypted_content`."""
        self.done: list[OutputItem] = []
        self._numbers = numbers
        self._id = id
        self._tools = tools
        self._encrypts = encrypts
        self._input: InputDecoder | None = None
        """Decoder of the input, if the growing item is a call of a custom tool."""
        self._growing: OutputItem | None = None
        """The item that grows, as it was when it started."""
        self._texts: list[str] = []
        """Parts of the text, the reasoning or the arguments of that item."""
        self._logprobs: list[TokenLogprob] = []

    @property
    def is_unanswered(self) -> bool:
        """Whether there is no item but reasoning yet."""
        return all(isinstance(item, ReasoningItem) for item in (*self.done, self._growing) if item is not None)

    def add(self, found: ToolCallEvent, logprobs: Sequence[TokenLogprob] = ()) -> list[Event]:
        """Add text or a tool call that a parser found in the answer; with log probabilities of its tokens, if it is
        text."""
        match found:
            case AnswerText(text):
                events = [] if isinstance(self._growing, OutputMessage) else self._start_message()
                self._logprobs += logprobs
                return [*events, self._append(text, logprobs)]
            case ToolCallStart(_, name):
                return self._start_tool_call(name)
            case ToolCallArguments(_, text):
                return self._append_arguments(text if self._input is None else self._input.push(text))

    def add_reasoning(self, text: str) -> list[Event]:
        """Add reasoning of the model."""
        is_open = isinstance(self._growing, ReasoningItem)
        events = [] if is_open else self._start_item(ReasoningItem, content=[])
        return [*events, self._append(text)]

    def end(self, status: ItemStatus = "completed") -> list[Event]:
        """End the item that grows. With a status other than `completed`, the item is cut off."""
        events = [] if self._input is None else self._append_arguments(self._input.finish())
        text = "".join(self._texts)
        match self._growing:
            case None:
                return []
            case OutputMessage():
                fields: dict[str, Any] = {"content": [OutputText(text=text, logprobs=self._logprobs)]}
            case ReasoningItem():
                fields = {"content": [ReasoningText(text=text)]}
                if self._encrypts:
                    fields["encrypted_content"] = write_reasoning(text)
            case FunctionToolCall():
                fields = {"arguments": text}
            case CustomToolCall():
                fields = {"input": text}
            case ToolSearchCall():
                fields = {"arguments": _parsed(text)}
        item = msgspec.structs.replace(self._growing, status=status, **fields)
        events += _end_events(item, len(self.done), self._numbers)
        self._growing, self._texts, self._logprobs, self._input = None, [], [], None
        self.done.append(item)
        return events

    def interrupt(self) -> list[Event]:
        """End the item of an answer that has failed."""
        return self.end("incomplete")

    def _start_message(self) -> list[Event]:
        return self._start_item(OutputMessage, content=[])

    def _start_tool_call(self, name: str) -> list[Event]:
        """Start a tool call. `name`: name under which the model knows the tool."""
        tool, call_id = self._tools.get(name), new_tool_call_id()
        if tool is None:
            return self._start_item(FunctionToolCall, call_id=call_id, name=name, arguments="")
        if tool.kind == "tool_search":
            return self._start_item(ToolSearchCall, call_id=call_id, arguments={})
        fields: dict[str, Any] = {"call_id": call_id, "name": tool.name}
        if tool.namespace is not None:
            fields["namespace"] = tool.namespace
        if tool.kind == "function":
            return self._start_item(FunctionToolCall, arguments="", **fields)
        events = self._start_item(CustomToolCall, input="", **fields)
        self._input = InputDecoder()
        return events

    def _append_arguments(self, text: str) -> list[Event]:
        """Add to the arguments or the input of a tool call. The arguments of a search have no events."""
        if isinstance(self._growing, ToolSearchCall):
            self._texts.append(text)
            return []
        return [self._append(text)] if text else []

    def _start_item(
        self, kind: type[OutputMessage | ReasoningItem | ToolCallItem | McpCall], **fields: Any
    ) -> list[Event]:
        """End the item before, and start one of this type."""
        before = self.end()
        id = item_id(PREFIXES[kind], self._id, len(self.done))
        self._growing = item = kind(id=id, status="in_progress", **fields)
        return [*before, *_start_events(item, len(self.done), self._numbers)]

    def _append(self, text: str, logprobs: Sequence[TokenLogprob] = ()) -> Event:
        assert self._growing is not None
        self._texts.append(text)
        return _delta_event(self._growing, len(self.done), self._numbers, text, logprobs)


def item_events(item: OutputItem, index: int, numbers: Iterator[int]) -> list[Event]:
    """Return the events of a complete item, as if it were generated now in one piece."""
    logprobs: Sequence[TokenLogprob] = ()
    match item:
        case McpListTools() | McpCall() | McpApprovalRequest():
            return mcp_events(item, index, numbers)
        case OutputMessage(content=[part]):
            started: OutputItem = msgspec.structs.replace(item, status="in_progress", content=[])
            text, logprobs = part.text, part.logprobs
        case ReasoningItem(content=parts):
            started = msgspec.structs.replace(item, status="in_progress", content=[])
            text = "".join([part.text for part in parts])
        case FunctionToolCall(arguments=text):
            started = msgspec.structs.replace(item, status="in_progress", arguments="")
        case CustomToolCall(input=text):
            started = msgspec.structs.replace(item, status="in_progress", input="")
        case ToolSearchCall():
            started = msgspec.structs.replace(item, status="in_progress", arguments={})
            return [*_start_events(started, index, numbers), *_end_events(item, index, numbers)]
        case _:
            raise ValueError(f"unknown item: {item}")
    return [
        *_start_events(started, index, numbers),
        _delta_event(started, index, numbers, text, logprobs),
        *_end_events(item, index, numbers),
    ]


def mcp_events(item: McpListTools | McpCall | McpApprovalRequest, index: int, numbers: Iterator[int]) -> list[Event]:
    """Return the events of a complete item of an MCP server, as if it were made now."""
    match item:
        case McpListTools(error=error):
            return [
                *_start_events(msgspec.structs.replace(item, tools=[], error=None), index, numbers),
                mcp_event("response.mcp_list_tools.in_progress", item.id, index, numbers),
                mcp_event(
                    "response.mcp_list_tools.completed" if error is None else "response.mcp_list_tools.failed",
                    item.id,
                    index,
                    numbers,
                ),
                *_end_events(item, index, numbers),
            ]
        case McpApprovalRequest():
            return [*_start_events(item, index, numbers), *_end_events(item, index, numbers)]
        case McpCall():
            return [*begin_run_events(item, index, numbers), *end_run_events(item, index, numbers)]


def begin_run_events(item: McpCall, index: int, numbers: Iterator[int]) -> list[Event]:
    """Return the first events of a tool call that the gateway runs, whose arguments are complete."""
    started = msgspec.structs.replace(item, status="in_progress", arguments="", output=None, error=None)
    return [
        *_start_events(started, index, numbers),
        mcp_event("response.mcp_call.in_progress", item.id, index, numbers),
        *([_delta_event(item, index, numbers, item.arguments, ())] if item.arguments else []),
        arguments_done(item, index, numbers),
    ]


def end_run_events(item: McpCall, index: int, numbers: Iterator[int]) -> list[Event]:
    """Return the last events of a tool call that the gateway has run, or that was interrupted."""
    events: list[Event] = []
    if item.status == "completed":
        events.append(mcp_event("response.mcp_call.completed", item.id, index, numbers))
    elif item.status == "failed":
        events.append(mcp_event("response.mcp_call.failed", item.id, index, numbers))
    return [*events, *_end_events(item, index, numbers)]


def mcp_event(type: McpEventType, item_id: str, index: int, numbers: Iterator[int]) -> Event:
    """Return an event of an item of an MCP server."""
    return McpEvent(type=type, sequence_number=next(numbers), output_index=index, item_id=item_id)


def arguments_done(item: McpCall, index: int, numbers: Iterator[int]) -> Event:
    """Return the event at the end of a call's arguments."""
    return McpArgumentsDone(
        sequence_number=next(numbers), output_index=index, item_id=item.id, arguments=item.arguments
    )


def item_id(prefix: str, response_id: str, index: int) -> str:
    """Return the id of an item of a response's output. `response_id_of` returns the response's id for it."""
    return f"{prefix}_{response_id.removeprefix(_RESPONSE_PREFIX)}_o{index}"


def response_id_of(item_id: str) -> str | None:
    """Return the id of the response whose input or output has an item with this id; None if the id is of another
    form."""
    _, _, rest = item_id.partition("_")
    digits, _, index = rest.rpartition("_")
    return f"{_RESPONSE_PREFIX}{digits}" if digits and index else None


_RESPONSE_PREFIX = "resp_"


def _parsed(arguments: str) -> Any:
    """Return the arguments of a search, as a text if they are not JSON."""
    try:
        return decode_json((arguments or "{}").encode())
    except (BadJson, UnicodeError):
        return arguments


def _start_events(item: OutputItem, index: int, numbers: Iterator[int]) -> Iterator[Event]:
    yield ItemEvent(type="response.output_item.added", sequence_number=next(numbers), output_index=index, item=item)
    if isinstance(item, OutputMessage | ReasoningItem):
        part = OutputText(text="") if isinstance(item, OutputMessage) else ReasoningText(text="")
        yield _part("response.content_part.added", item.id, index, numbers, part)


def _delta_event(
    item: OutputItem, index: int, numbers: Iterator[int], text: str, logprobs: Sequence[TokenLogprob]
) -> Event:
    number = next(numbers)
    match item:
        case OutputMessage(id=id):
            return TextDelta(
                sequence_number=number, output_index=index, item_id=id, delta=text, logprobs=list(logprobs)
            )
        case ReasoningItem(id=id):
            return ReasoningDelta(sequence_number=number, output_index=index, item_id=id, delta=text)
        case FunctionToolCall(id=id):
            return ArgumentsDelta(sequence_number=number, output_index=index, item_id=id, delta=text)
        case CustomToolCall(id=id):
            return InputDelta(sequence_number=number, output_index=index, item_id=id, delta=text)
        case McpCall(id=id):
            return McpArgumentsDelta(sequence_number=number, output_index=index, item_id=id, delta=text)
        case ToolSearchCall() | McpListTools() | McpApprovalRequest():
            raise ValueError(f"items of type {type(item).__name__} do not grow")


def _end_events(item: OutputItem, index: int, numbers: Iterator[int]) -> Iterator[Event]:
    match item:
        case OutputMessage(id=id, content=parts):
            for part in parts:
                yield TextDone(
                    sequence_number=next(numbers),
                    output_index=index,
                    item_id=id,
                    text=part.text,
                    logprobs=part.logprobs,
                )
                yield _part("response.content_part.done", id, index, numbers, part)
        case ReasoningItem(id=id, content=texts):
            for text in texts:
                yield ReasoningDone(sequence_number=next(numbers), output_index=index, item_id=id, text=text.text)
                yield _part("response.content_part.done", id, index, numbers, text)
        case FunctionToolCall(id=id, name=name, arguments=arguments):
            yield ArgumentsDone(
                sequence_number=next(numbers), output_index=index, item_id=id, name=name, arguments=arguments
            )
        case CustomToolCall(id=id, input=text):
            yield InputDone(sequence_number=next(numbers), output_index=index, item_id=id, input=text)
    yield ItemEvent(type="response.output_item.done", sequence_number=next(numbers), output_index=index, item=item)


def _part(
    type: PartEventType, id: str, index: int, numbers: Iterator[int], part: OutputText | ReasoningText
) -> PartEvent:
    return PartEvent(type=type, sequence_number=next(numbers), output_index=index, item_id=id, part=part)
