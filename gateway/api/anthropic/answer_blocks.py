"""Build the content blocks of an answer, and the events that describe their growth."""

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Any, Literal

from pydantic_core import from_json

from compat.anthropic import (
    ContentBlockDelta,
    ContentBlockStart,
    ContentBlockStop,
    InputJsonDelta,
    MessageEvent,
    OutputBlock,
    OutputText,
    OutputThinking,
    OutputToolUse,
    SignatureDelta,
    TextDelta,
    ThinkingDelta,
)
from gateway.api.anthropic.signature import ThinkingSigner
from gateway.graph.ids import new_id
from gateway.prompts.tool_calls.formats import INVALID_JSON
from gateway.prompts.tool_calls.parser import AnswerText, ToolCallArguments, ToolCallEvent, ToolCallStart
from gateway.runtime.json_codec import BadJson, decode_json, encode_json

_LONGEST_ARGUMENTS = 4 << 20
"""Maximum size of a tool call's arguments that are parsed, in bytes: no model writes so much, but a server might."""
ThinkingDisplay = Literal["full", "omitted", "none"]
"""Display of the reasoning: all of it, a block without text, or nothing."""


@dataclass(frozen=True)
class BlockOptions:
    """Options of an answer's blocks.

    `eager_tools`: names of the tools whose arguments are streamed while they are generated. `max_calls`: maximum number
    of tool calls; further ones are dropped.
    """

    thinking: ThinkingDisplay = "full"
    eager_tools: Collection[str] = ()
    max_calls: int | None = None


class AnswerBlocks:
    """Blocks of one answer. They are built one after another; at most one of them grows."""

    def __init__(self, signer: ThinkingSigner, options: BlockOptions) -> None:
        self.done: list[OutputBlock] = []
        self._signer = signer
        self._options = options
        self._growing: OutputBlock | None = None
        """The growing block, in its state at the start."""
        self._texts: list[str] = []
        """Parts of its text, its reasoning or its arguments."""
        self._calls = 0
        self._is_dropping = False
        """Whether the tool call that arrives is dropped."""

    @property
    def is_unanswered(self) -> bool:
        """Whether there is no block but reasoning yet."""
        blocks = [*self.done, self._growing]
        return all(block is None or isinstance(block, OutputThinking) for block in blocks)

    def add_reasoning(self, text: str) -> list[MessageEvent]:
        """Add reasoning of the model."""
        if self._options.thinking == "none":
            return []
        events: list[MessageEvent] = []
        if not isinstance(self._growing, OutputThinking):
            events = self._start(OutputThinking(thinking="", signature=""))
        self._texts.append(text)
        return events if self._options.thinking == "omitted" else [*events, self._delta(ThinkingDelta(text))]

    def add(self, found: Iterable[ToolCallEvent]) -> list[MessageEvent]:
        """Add texts and tool calls that a parser found in the answer."""
        events: list[MessageEvent] = []
        for event in found:
            match event:
                case AnswerText(text) if text:
                    self._is_dropping = False
                    if not isinstance(self._growing, OutputText):
                        events += self._start(OutputText(text=""))
                    self._texts.append(text)
                    events.append(self._delta(TextDelta(text)))
                case ToolCallStart(_, name):
                    self._is_dropping = self._calls == self._options.max_calls
                    if not self._is_dropping:
                        self._calls += 1
                        events += self._start(OutputToolUse(id=f"toolu_{new_id(24)}", name=name, input={}))
                case ToolCallArguments(_, text) if not self._is_dropping:
                    self._texts.append(text)
                    if isinstance(self._growing, OutputToolUse) and self._growing.name in self._options.eager_tools:
                        events.append(self._delta(InputJsonDelta(text)))
        return events

    def add_empty_text(self) -> list[MessageEvent]:
        """Start a text block without text."""
        return self._start(OutputText(text=""))

    def end(self, *, cut: bool = False) -> list[MessageEvent]:
        """End the block that grows. `cut`: it is not complete.

        The arguments of a tool call are emitted here, as one piece, because only now it is known whether they are a
        JSON object. If they are not, an object contains their text.
        """
        text = "".join(self._texts)
        events: list[MessageEvent] = []
        match self._growing:
            case None:
                return []
            case OutputText():
                block: OutputBlock = OutputText(text=text)
            case OutputThinking():
                signature = self._signer.sign(text)
                events.append(self._delta(SignatureDelta(signature)))
                shown = "" if self._options.thinking == "omitted" else text
                block = OutputThinking(thinking=shown, signature=signature)
            case OutputToolUse(id=id, name=name):
                arguments, input = _parse_arguments(text, cut=cut)
                if name not in self._options.eager_tools:
                    events.append(self._delta(InputJsonDelta(arguments)))
                block = OutputToolUse(id=id, name=name, input=input)
        events.append(ContentBlockStop(len(self.done)))
        self._growing, self._texts = None, []
        self.done.append(block)
        return events

    def _start(self, block: OutputBlock) -> list[MessageEvent]:
        """End the block before, and start this one."""
        before = self.end()
        self._growing = block
        return [*before, ContentBlockStart(len(self.done), block)]

    def _delta(self, delta: TextDelta | ThinkingDelta | SignatureDelta | InputJsonDelta) -> ContentBlockDelta:
        return ContentBlockDelta(len(self.done), delta)


def _parse_arguments(text: str, *, cut: bool) -> tuple[str, dict[str, Any]]:
    """Return the arguments of a tool call, as JSON text and as an object.

    `cut`: whether a limit may have cut off the text. Then return the text unchanged, and the object with the members
    so far, as clients parse it.
    """
    text = text.strip() or "{}"
    raw = text.encode(errors="replace")
    try:
        if len(raw) > _LONGEST_ARGUMENTS:
            raise BadJson("the arguments are too long")
        value = from_json(raw, allow_partial=True, allow_inf_nan=False) if cut else decode_json(raw)
    except (BadJson, ValueError):
        value = None
    if isinstance(value, dict):
        return text, value
    wrapped = {INVALID_JSON: text}
    return encode_json(wrapped).decode(), wrapped
