"""Build the items of a response, and the events that describe their growth."""

from collections.abc import Iterator, Sequence

import msgspec

from compat.openai import TokenLogprob
from compat.openai.responses import (
    ArgumentsDelta,
    ArgumentsDone,
    FunctionToolCall,
    ItemEvent,
    ItemStatus,
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
)
from gateway.api.serializers.chat import new_tool_call_id
from gateway.graph.ids import new_id
from gateway.prompts.tool_calls.parser import AnswerText, ToolCallArguments, ToolCallEvent, ToolCallStart

Event = ItemEvent | PartEvent | TextDelta | TextDone | ReasoningDelta | ReasoningDone | ArgumentsDelta | ArgumentsDone


class Items:
    """Items of one answer. They are built one after another; at most one of them grows."""

    def __init__(self, numbers: Iterator[int]) -> None:
        """`numbers`: sequence numbers of the events."""
        self.done: list[OutputItem] = []
        self._numbers = numbers
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
                events = [] if isinstance(self._growing, OutputMessage) else self._start_item(_message())
                self._logprobs += logprobs
                return [*events, self._append(text, logprobs)]
            case ToolCallStart(_, name):
                return self._start_item(_function_call(name))
            case ToolCallArguments(_, text):
                return [self._append(text)]

    def add_reasoning(self, text: str) -> list[Event]:
        """Add reasoning of the model."""
        events = [] if isinstance(self._growing, ReasoningItem) else self._start_item(_reasoning())
        return [*events, self._append(text)]

    def end(self, status: ItemStatus = "completed") -> list[Event]:
        """End the item that grows. With a status other than `completed`, the item is cut off."""
        text = "".join(self._texts)
        match self._growing:
            case None:
                return []
            case OutputMessage(id=id):
                part = OutputText(text=text, logprobs=self._logprobs)
                item: OutputItem = OutputMessage(id=id, status=status, content=[part])
            case ReasoningItem(id=id):
                item = ReasoningItem(id=id, content=[ReasoningText(text=text)], status=status)
            case FunctionToolCall(id=id, call_id=call_id, name=name):
                item = FunctionToolCall(id=id, call_id=call_id, name=name, arguments=text, status=status)
        events = list(_end_events(item, len(self.done), self._numbers))
        self._growing, self._texts, self._logprobs = None, [], []
        self.done.append(item)
        return events

    def _start_item(self, item: OutputItem) -> list[Event]:
        """End the item before, and start this one."""
        before = self.end()
        self._growing = item
        return [*before, *_start_events(item, len(self.done), self._numbers)]

    def _append(self, text: str, logprobs: Sequence[TokenLogprob] = ()) -> Event:
        assert self._growing is not None
        self._texts.append(text)
        return _delta_event(self._growing, len(self.done), self._numbers, text, logprobs)


def item_events(item: OutputItem, index: int, numbers: Iterator[int]) -> list[Event]:
    """Return the events of a complete item, as if it were generated now in one piece."""
    logprobs: Sequence[TokenLogprob] = ()
    match item:
        case OutputMessage(content=[part]):
            started: OutputItem = msgspec.structs.replace(item, status="in_progress", content=[])
            text, logprobs = part.text, part.logprobs
        case ReasoningItem(content=parts):
            started = msgspec.structs.replace(item, status="in_progress", content=[])
            text = "".join([part.text for part in parts])
        case FunctionToolCall(arguments=text):
            started = msgspec.structs.replace(item, status="in_progress", arguments="")
        case _:
            raise ValueError(f"unknown item: {item}")
    return [
        *_start_events(started, index, numbers),
        _delta_event(started, index, numbers, text, logprobs),
        *_end_events(item, index, numbers),
    ]


def _message() -> OutputMessage:
    return OutputMessage(id=f"msg_{new_id(24)}", status="in_progress", content=[])


def _reasoning() -> ReasoningItem:
    return ReasoningItem(id=f"rs_{new_id(24)}", content=[], status="in_progress")


def _function_call(name: str) -> FunctionToolCall:
    id, call_id = f"fc_{new_id(24)}", new_tool_call_id()
    return FunctionToolCall(id=id, call_id=call_id, name=name, arguments="", status="in_progress")


def _start_events(item: OutputItem, index: int, numbers: Iterator[int]) -> Iterator[Event]:
    yield ItemEvent(type="response.output_item.added", sequence_number=next(numbers), output_index=index, item=item)
    if not isinstance(item, FunctionToolCall):
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
    yield ItemEvent(type="response.output_item.done", sequence_number=next(numbers), output_index=index, item=item)


def _part(
    type: PartEventType, id: str, index: int, numbers: Iterator[int], part: OutputText | ReasoningText
) -> PartEvent:
    return PartEvent(type=type, sequence_number=next(numbers), output_index=index, item_id=id, part=part)
