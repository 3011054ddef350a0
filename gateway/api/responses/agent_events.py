"""Follow an agent that answers a request with MCP servers: the events of its answers and tools, as they arrive."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any

from compat.openai import ChatCompletionRequest
from gateway.api.openai.tools import ToolCallParserFactory, tool_call_parser_factory
from gateway.api.responses.builder import Event, ResponseBuilder
from gateway.api.semantic.agent_prompts import agent_request
from gateway.graph.call import Call, CallState
from gateway.graph.errors import GraphError
from gateway.graph.forms.form import Agent
from gateway.graph.variable import Piece, Reader
from gateway.prompts.served_models import ServedModel
from gateway.runtime.executors import offload

_LONG = 50_000
"""Length of an agent's request, in characters, from which it is read in a thread."""
_RETRY_SECONDS = 1.0
"""Interval between attempts to store that a client reads an answer, in seconds."""


async def agent_events(
    builder: ResponseBuilder, call: Call, model: ServedModel, *, retries: bool = False
) -> AsyncIterator[Sequence[Event]]:
    """Yield the events of an agent's answers and tool calls, until the agent ends or fails. `call`: the agent's call.
    `retries`: whether to wait while the journal cannot store that an answer is read; otherwise, raise GraphError."""
    form, items = call.spec.form, builder.agent_items
    assert isinstance(form, Agent)
    yield [*builder.open(), *items.list_tools(), *items.begin_approved()]
    size = len(form.body)
    parsers = _parsers(form, model) if size < _LONG else await offload(lambda: _parsers(form, model), size)
    number = 0
    while True:
        for position in items.running:
            tool = await call.until_child(f"{number}.{position}")
            if tool is None:
                return
            await tool.output.wait_final()
            if tool.state is not CallState.DONE:
                return
            yield items.end_run(position, tool)
        number += 1
        child = await call.until_child(str(number))
        if child is None:
            return
        is_able = form.has_tools(number, items.calls)
        builder.begin_answer(parsers[min(number, 2) - 1] if is_able else None)
        with call.session.read(child.output) as reader:
            while pieces := await _next_pieces(reader, retries=retries):
                text = "".join([piece.text for piece in pieces])
                yield builder.grow(text, pieces)
        if child.state is not CallState.DONE:
            return
        yield builder.end_answer(child)


async def _next_pieces(reader: Reader, *, retries: bool) -> Sequence[Piece]:
    while True:
        try:
            return await reader.next_pieces()
        except GraphError:
            if not retries:
                raise
            await asyncio.sleep(_RETRY_SECONDS)


def _parsers(form: Agent, model: ServedModel) -> list[ToolCallParserFactory | None]:
    """Return the parsers of the first answer, and of later ones."""
    found = []
    for is_first in (True, False):
        request: dict[str, Any] = agent_request(form, is_first=is_first)
        request["messages"] = [{"role": "user", "content": ""}]
        found.append(tool_call_parser_factory(ChatCompletionRequest.model_validate(request), model))
    return found
