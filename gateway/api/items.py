"""An answer as items of a response, and the events that tell how they grow."""

from collections.abc import Iterator, Sequence

from compat.openai import TokenLogprob
from compat.openai.responses import (
    ArgumentsDelta,
    ArgumentsDone,
    FunctionToolCall,
    ItemEvent,
    ItemEventType,
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
from gateway.api.chat import call_id
from gateway.graph.ids import new_id
from gateway.tools import Argued, Called, Found, Said

Event = ItemEvent | PartEvent | TextDelta | TextDone | ReasoningDelta | ReasoningDone | ArgumentsDelta | ArgumentsDone


class Items:
    """Owner of an answer's items. They come one after another; at most one of them grows."""

    def __init__(self, numbers: Iterator[int]) -> None:
        """`numbers`: of the events."""
        self.done: list[OutputItem] = []
        self._numbers = numbers
        self._growing: OutputItem | None = None
        """As it began."""
        self._texts: list[str] = []
        """Of what it says or thinks, or of its arguments."""
        self._logprobs: list[TokenLogprob] = []

    @property
    def unanswered(self) -> bool:
        """Whether there is nothing of an answer yet."""
        return all(isinstance(item, ReasoningItem) for item in (*self.done, self._growing) if item is not None)

    def add(self, found: Found, logprobs: Sequence[TokenLogprob] = ()) -> list[Event]:
        """What was found in the answer goes on, with log probabilities of its tokens if it is text."""
        match found:
            case Said(text):
                events = [] if isinstance(self._growing, OutputMessage) else [*self.end(), *self._begin_message()]
                self._logprobs += logprobs
                return [*events, self._say(text, logprobs)]
            case Called(_, name):
                return [*self.end(), self._begin_call(name)]
            case Argued(_, text):
                return [self._argue(text)]

    def think(self, text: str) -> list[Event]:
        """What the model tells beside its answer goes on."""
        events = [] if isinstance(self._growing, ReasoningItem) else [*self.end(), *self._begin_reasoning()]
        assert self._growing is not None
        self._texts.append(text)
        number, id = next(self._numbers), self._growing.id
        return [*events, ReasoningDelta(sequence_number=number, output_index=self._index, item_id=id, delta=text)]

    def end(self, status: ItemStatus = "completed") -> list[Event]:
        """The item that grows is whole, or, with another status, there is no more of it."""
        item, text = self._growing, "".join(self._texts)
        self._growing, self._texts = None, []
        match item:
            case None:
                return []
            case OutputMessage(id=id):
                logprobs, self._logprobs = self._logprobs, []
                part = OutputText(text=text, logprobs=logprobs)
                whole: OutputItem = OutputMessage(id=id, status=status, content=[part])
                events: list[Event] = [
                    TextDone(
                        sequence_number=next(self._numbers),
                        output_index=self._index,
                        item_id=id,
                        text=text,
                        logprobs=logprobs,
                    ),
                    self._part_event("response.content_part.done", id, part),
                ]
            case ReasoningItem(id=id):
                thought = ReasoningText(text=text)
                whole = ReasoningItem(id=id, content=[thought], status=status)
                number = next(self._numbers)
                events = [
                    ReasoningDone(sequence_number=number, output_index=self._index, item_id=id, text=text),
                    self._part_event("response.content_part.done", id, thought),
                ]
            case FunctionToolCall(id=id, call_id=call, name=name):
                whole = FunctionToolCall(id=id, call_id=call, name=name, arguments=text, status=status)
                events = [
                    ArgumentsDone(
                        sequence_number=next(self._numbers),
                        output_index=self._index,
                        item_id=id,
                        name=name,
                        arguments=text,
                    )
                ]
        events.append(self._item_event("response.output_item.done", whole))
        self.done.append(whole)
        return events

    @property
    def _index(self) -> int:
        """Of the item that grows."""
        return len(self.done)

    def _begin_message(self) -> list[Event]:
        self._growing = item = OutputMessage(id=f"msg_{new_id(24)}", status="in_progress", content=[])
        return [
            self._item_event("response.output_item.added", item),
            self._part_event("response.content_part.added", item.id, OutputText(text="")),
        ]

    def _begin_reasoning(self) -> list[Event]:
        self._growing = item = ReasoningItem(id=f"rs_{new_id(24)}", content=[], status="in_progress")
        return [
            self._item_event("response.output_item.added", item),
            self._part_event("response.content_part.added", item.id, ReasoningText(text="")),
        ]

    def _begin_call(self, name: str) -> Event:
        item = FunctionToolCall(id=f"fc_{new_id(24)}", call_id=call_id(), name=name, arguments="", status="in_progress")
        self._growing = item
        return self._item_event("response.output_item.added", item)

    def _say(self, text: str, logprobs: Sequence[TokenLogprob]) -> Event:
        assert self._growing is not None
        self._texts.append(text)
        return TextDelta(
            sequence_number=next(self._numbers),
            output_index=self._index,
            item_id=self._growing.id,
            delta=text,
            logprobs=list(logprobs),
        )

    def _argue(self, text: str) -> Event:
        assert self._growing is not None
        self._texts.append(text)
        return ArgumentsDelta(
            sequence_number=next(self._numbers), output_index=self._index, item_id=self._growing.id, delta=text
        )

    def _item_event(self, type: ItemEventType, item: OutputItem) -> Event:
        return ItemEvent(type=type, sequence_number=next(self._numbers), output_index=self._index, item=item)

    def _part_event(self, type: PartEventType, id: str, part: OutputText | ReasoningText) -> Event:
        return PartEvent(
            type=type, sequence_number=next(self._numbers), output_index=self._index, item_id=id, part=part
        )
