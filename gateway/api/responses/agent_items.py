"""Build the items of a response with MCP servers: those of several answers, and of the tools that run between them."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import msgspec

from compat.openai import TokenLogprob
from compat.openai.responses import FlatTool, ItemStatus, McpApprovalRequest, McpCall
from gateway.api.responses.items import (
    PREFIXES,
    Event,
    Items,
    arguments_done,
    begin_run_events,
    end_run_events,
    item_id,
    mcp_event,
    mcp_events,
)
from gateway.api.responses.mcp_setup import McpSetup
from gateway.graph.call import Call
from gateway.graph.forms.form import Agent
from gateway.prompts.tool_calls.parser import AnswerText, ToolCallArguments, ToolCallEvent, ToolCallStart

_PROTOCOL_ERROR = -32603
"""Code of JSON-RPC for an internal error."""


class AgentItems(Items):
    """Items of the answers of an agent. A call of a tool is an item that grows with its arguments, and stays open while
    the tool runs; meanwhile, other items may grow."""

    def __init__(
        self,
        numbers: Iterator[int],
        id: str,
        tools: Mapping[str, FlatTool],
        setup: McpSetup,
        form: Agent,
        *,
        encrypts: bool = False,
    ) -> None:
        super().__init__(numbers, id, tools, encrypts=encrypts)
        self._setup = setup
        self._form = form
        self._calls = len(form.first)
        """Number of tool calls so far that the agent runs."""
        self._is_dropped = False
        """Whether the tool call that grows is not shown: it is not run."""
        self._position = 0
        """Position of the tool call that grows in its answer."""
        self._running: dict[int, int] = {}
        """Calls that run: indexes of their items by their positions in the answer."""
        self.has_items = False
        """Whether the current answer has text or tool calls."""

    @property
    def calls(self) -> int:
        """Number of tool calls so far that the agent runs."""
        return self._calls

    @property
    def running(self) -> list[int]:
        """Positions in their answer of the calls that run."""
        return sorted(self._running)

    def begin_answer(self) -> None:
        """Begin the next answer of the model. All calls of the answer before have ended."""
        self._running.clear()
        self.has_items = self._is_dropped = False

    def list_tools(self) -> list[Event]:
        """Add the lists of the servers' tools."""
        events: list[Event] = []
        for listed in self._setup.lists:
            index = len(self.done)
            item = msgspec.structs.replace(listed, id=item_id("mcpl", self._id, index))
            self.done.append(item)
            events += mcp_events(item, index, self._numbers)
        return events

    def begin_approved(self) -> list[Event]:
        """Add the calls that the client has approved, and which now run."""
        events: list[Event] = []
        for position, call in enumerate(self._setup.pending):
            index = len(self.done)
            item = McpCall(
                id=item_id("mcp", self._id, index),
                server_label=call.label,
                name=call.name,
                arguments=call.arguments,
                approval_request_id=call.id,
                status="calling",
            )
            self.done.append(item)
            self._running[position] = index
            events += begin_run_events(item, index, self._numbers)
        return events

    def add(self, found: ToolCallEvent, logprobs: Sequence[TokenLogprob] = ()) -> list[Event]:
        """See `Items.add`. A call that the agent does not run has no item."""
        self.has_items = True
        match found:
            case AnswerText():
                self._is_dropped = False
            case ToolCallStart(position, name):
                before = self.end()  # with its own position
                is_final, is_known = name in self._form.final, name in self._setup.functions
                self._is_dropped = not is_final and not (is_known and self._form.has_room(self._calls))
                self._calls += not is_final
                self._position = position
                return before if self._is_dropped else [*before, *super().add(found, logprobs)]
            case ToolCallArguments() if self._is_dropped:
                return []
        return super().add(found, logprobs)

    def end(self, status: ItemStatus = "completed") -> list[Event]:
        """See `Items.end`. A tool call stays open until `end_run`, unless it is cut off."""
        text = "".join(self._texts)
        match self._growing:
            case McpCall() as call:
                index = len(self.done)
                whole = status == "completed"
                item = msgspec.structs.replace(call, arguments=text, status="calling" if whole else "incomplete")
                events = [arguments_done(item, index, self._numbers)]
                if whole:
                    self._running[self._position] = index
                else:
                    events += end_run_events(item, index, self._numbers)
                self.done.append(item)
            case McpApprovalRequest() as request:
                if status == "completed":
                    request = msgspec.structs.replace(request, arguments=text or "{}")
                    events = mcp_events(request, len(self.done), self._numbers)
                    self.done.append(request)
                else:
                    events = []
            case _:
                return super().end(status)
        self._growing, self._texts = None, []
        return events

    def end_run(self, position: int, tool: Call) -> list[Event]:
        """End a call whose tool has run. `tool`: its call in the graph."""
        index = self._running.pop(position)
        item = self.done[index]
        assert isinstance(item, McpCall)
        value, code = tool.output.value or "", tool.finish_reason
        if tool.spec.form is not None and code is None:
            item = msgspec.structs.replace(item, status="completed", output=value)
        else:
            item = msgspec.structs.replace(item, status="failed", error=_error(value, code, tool, item))
        self.done[index] = item
        return end_run_events(item, index, self._numbers)

    def interrupt(self) -> list[Event]:
        """End all items of an answer that has failed."""
        events = self.end("incomplete")
        for position in self.running:
            index = self._running.pop(position)
            item = self.done[index]
            assert isinstance(item, McpCall)
            item = self.done[index] = msgspec.structs.replace(item, status="incomplete")
            events += end_run_events(item, index, self._numbers)
        return events

    def _start_tool_call(self, name: str) -> list[Event]:
        function = self._setup.functions.get(name)
        if function is None:
            return super()._start_tool_call(name)
        fields = {"server_label": function.label, "name": function.name, "arguments": ""}
        if not function.asks:
            events = self._start_item(McpCall, **fields)
            assert isinstance(self._growing, McpCall)
            index = len(self.done)
            return [*events, mcp_event("response.mcp_call.in_progress", self._growing.id, index, self._numbers)]
        events = self.end()
        id = item_id(PREFIXES[McpApprovalRequest], self._id, len(self.done))
        self._growing = McpApprovalRequest(id=id, **fields)
        return events

    def _append_arguments(self, text: str) -> list[Event]:
        if isinstance(self._growing, McpApprovalRequest):  # it is emitted once it is complete
            self._texts.append(text)
            return []
        return super()._append_arguments(text)


def _error(value: str, code: str | None, tool: Call, item: McpCall) -> dict[str, Any]:
    """Return the error of a call, as OpenAI's API has it. `value`: error text that the model reads."""
    message = value.removeprefix("error: ")
    form = tool.spec.form
    server = getattr(form, "server", None)
    if server is not None:
        message = message.replace(f"tool {server}/", f"tool {item.server_label}/", 1)
    if code == "tool_failed":
        return {"type": "mcp_tool_execution_error", "content": [{"type": "text", "text": message}]}
    return {"type": "mcp_protocol_error", "code": _PROTOCOL_ERROR, "message": message}
