"""Events of a streamed response. Each has a sequence number, from 0."""

from typing import Literal

import msgspec

from compat.openai.answers import TokenLogprob
from compat.openai.responses.objects import OutputItem, OutputText, ReasoningText, Response

ResponseEventType = Literal[
    "response.created",
    "response.queued",
    "response.in_progress",
    "response.completed",
    "response.incomplete",
    "response.failed",
]
ItemEventType = Literal["response.output_item.added", "response.output_item.done"]
PartEventType = Literal["response.content_part.added", "response.content_part.done"]


class _Event(msgspec.Struct, frozen=True, kw_only=True):
    sequence_number: int


class ResponseEvent(_Event, frozen=True, kw_only=True):
    """A change of the response's state. The last event of a stream is `completed`, `incomplete` or `failed`."""

    type: ResponseEventType
    response: Response


class _ItemEvent(_Event, frozen=True, kw_only=True):
    output_index: int


class ItemEvent(_ItemEvent, frozen=True, kw_only=True):
    """The beginning or the end of an item."""

    type: ItemEventType
    item: OutputItem


class _TextEvent(_ItemEvent, frozen=True, kw_only=True):
    item_id: str
    content_index: Literal[0] = 0


class PartEvent(_TextEvent, frozen=True, kw_only=True):
    """The beginning or the end of an item's text."""

    type: PartEventType
    part: OutputText | ReasoningText


class TextDelta(_TextEvent, frozen=True, kw_only=True):
    """More text of the answer."""

    type: Literal["response.output_text.delta"] = "response.output_text.delta"
    delta: str
    logprobs: list[TokenLogprob] = []


class TextDone(_TextEvent, frozen=True, kw_only=True):
    """The end of the answer's text."""

    type: Literal["response.output_text.done"] = "response.output_text.done"
    text: str
    logprobs: list[TokenLogprob] = []


class ReasoningDelta(_TextEvent, frozen=True, kw_only=True):
    """More text of the model's reasoning."""

    type: Literal["response.reasoning_text.delta"] = "response.reasoning_text.delta"
    delta: str


class ReasoningDone(_TextEvent, frozen=True, kw_only=True):
    """The end of the model's reasoning."""

    type: Literal["response.reasoning_text.done"] = "response.reasoning_text.done"
    text: str


class ArgumentsDelta(_ItemEvent, frozen=True, kw_only=True):
    """More arguments of a tool call."""

    type: Literal["response.function_call_arguments.delta"] = "response.function_call_arguments.delta"
    item_id: str
    delta: str


class ArgumentsDone(_ItemEvent, frozen=True, kw_only=True):
    """End of the arguments of a tool call, with all of them."""

    type: Literal["response.function_call_arguments.done"] = "response.function_call_arguments.done"
    item_id: str
    name: str
    arguments: str


class InputDelta(_ItemEvent, frozen=True, kw_only=True):
    """More input of a custom tool."""

    type: Literal["response.custom_tool_call_input.delta"] = "response.custom_tool_call_input.delta"
    item_id: str
    delta: str


class InputDone(_ItemEvent, frozen=True, kw_only=True):
    """End of the input of a custom tool, with all of it."""

    type: Literal["response.custom_tool_call_input.done"] = "response.custom_tool_call_input.done"
    item_id: str
    input: str


McpEventType = Literal[
    "response.mcp_list_tools.in_progress",
    "response.mcp_list_tools.completed",
    "response.mcp_list_tools.failed",
    "response.mcp_call.in_progress",
    "response.mcp_call.completed",
    "response.mcp_call.failed",
]


class McpEvent(_ItemEvent, frozen=True, kw_only=True):
    """The beginning or the end of the listing of tools, or of a run of a tool."""

    type: McpEventType
    item_id: str


class McpArgumentsDelta(_ItemEvent, frozen=True, kw_only=True):
    """More arguments of a tool call that the gateway runs."""

    type: Literal["response.mcp_call_arguments.delta"] = "response.mcp_call_arguments.delta"
    item_id: str
    delta: str


class McpArgumentsDone(_ItemEvent, frozen=True, kw_only=True):
    """End of the arguments of a tool call that the gateway runs, with all of them."""

    type: Literal["response.mcp_call_arguments.done"] = "response.mcp_call_arguments.done"
    item_id: str
    arguments: str
