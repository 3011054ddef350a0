"""Run an agent: a model and tools in turn, until an answer has no tool call."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

from gateway.graph.budget import BudgetExceeded
from gateway.graph.call import Call, CallSpec
from gateway.graph.forms.expansion import result_reference, tool_call, turn_call
from gateway.graph.forms.form import Agent, AgentTool, ToolRun
from gateway.graph.variable import Piece
from gateway.scheduler.forms.form_steps import FormSteps

_MAX_TOOL_CALLS = 64
"""Maximum number of tool calls in one answer."""
_NO_ROOM = "error: the maximum number of tool calls is reached"


@dataclass(frozen=True)
class AgentAnswer:
    """An answer of an agent's model: its text, and the functions that it calls, with their arguments as text."""

    text: str
    calls: Sequence[tuple[str, str]]


class TurnRefused(Exception):
    """The prompt of a turn cannot be built. `code`: as in an error of the API."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class AgentPrompts(Protocol):
    """Builder of an agent's prompts, and reader of its answers."""

    async def turn(
        self, form: Agent, history: Sequence[Mapping[str, Any]], tenant: str, *, has_tools: bool
    ) -> CallSpec:
        """Return the call for the next answer. `history`: messages after those of the request. `has_tools`: whether the
        model may call tools in it. It must call one only in the first answer. Raises TurnRefused."""
        ...

    async def answer(
        self, form: Agent, text: str, finish_reason: str | None, tenant: str, *, is_first: bool
    ) -> AgentAnswer:
        """Return the text and the tool calls of an answer. Raises TurnRefused if the server no longer serves the
        model."""
        ...


async def run_agent(steps: FormSteps, form: Agent, prompts: AgentPrompts) -> None:
    """Run the turns of an agent. The last answer's text becomes the call's output, with its calls of the client's
    functions as the model wrote them. Raises CallFailed.

    The call for the next answer is added when the tools begin, so that the known part of its prompt stays in an engine
    and results are prefilled as they arrive. Tools of one answer run at the same time.
    """
    call, tenant = steps.call, steps.call.session.tenant
    history: list[Mapping[str, Any]] = []
    await steps.add(partial(_first_calls, form, call))
    calls = len(form.first)
    for number in range(1, form.max_turns + 1):
        has_tools = form.has_tools(number, calls)
        try:
            if str(number) not in call.children:
                turn = await prompts.turn(form, history, tenant, has_tools=has_tools)
                await steps.add(partial(_turn_calls, form, call, number, turn))
            child = call.children[str(number)]
            await steps.call.until_final(child.output)
            if child.failure is not None and child.failure.code == BudgetExceeded.code:
                raise steps.failed(child.failure.code, child.failure.message)
            value = await steps.until_final(child)
            answer = AgentAnswer(value.value or "", ())
            if has_tools:
                answer = await prompts.answer(form, answer.text, child.finish_reason, tenant, is_first=not history)
        except TurnRefused as error:
            raise steps.failed(error.code, f"answer {number} of the agent: {error}") from error
        if not answer.calls:
            call.finish_reason = child.finish_reason
            call.output.append(Piece(answer.text))
            return
        if len(answer.calls) > _MAX_TOOL_CALLS:
            message = f"answer {number} has {len(answer.calls)} tool calls; the maximum is {_MAX_TOOL_CALLS}"
            raise steps.failed("too_large", message)
        is_last = any(function in form.final for function, _ in answer.calls)
        if number == form.max_turns and not is_last:
            break
        await steps.add(partial(_tool_calls, form, call, number, answer, calls))
        runs = [index for index, (function, _) in enumerate(answer.calls) if function not in form.final]
        calls += len(runs)
        if is_last:
            for index in runs:
                await steps.until_final(call.children[f"{number}.{index}"])
            call.finish_reason = child.finish_reason
            call.output.append(Piece(value.value or ""))
            return
        history += _messages(form, number, answer)
    message = f"answer {form.max_turns} of the agent still calls tools, and max_turns is {form.max_turns}"
    raise steps.failed("max_turns_reached", message)


def _first_calls(form: Agent, call: Call) -> list[CallSpec]:
    return [tool_call(call.id, call.output.name, 0, index, run) for index, run in enumerate(form.first)]


def _turn_calls(form: Agent, call: Call, number: int, turn: CallSpec) -> list[CallSpec]:
    return [turn_call(form, call.id, call.output.name, number, turn)]


def _tool_calls(form: Agent, call: Call, number: int, answer: AgentAnswer, calls: int) -> list[CallSpec]:
    """Return the calls for the tools that an answer calls. `calls`: number of tool calls before it."""
    specs = []
    for index, (function, arguments) in enumerate(answer.calls):
        if function not in form.final:
            run = _run(form, function, arguments) if form.has_room(calls) else _NO_ROOM
            specs.append(tool_call(call.id, call.output.name, number, index, run))
            calls += 1
    return specs


def agent_tool_run(tool: AgentTool, arguments: str) -> ToolRun | str:
    """Return the run of a tool with the arguments that a model wrote. If they are invalid, return the reason, for the
    model."""
    try:
        value = json.loads(arguments or "{}")
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        return f"error: the arguments of {tool.function} are not a JSON object"
    return ToolRun(tool.server, tool.name, arguments or "{}", reports_errors=True)


def _run(form: Agent, function: str, arguments: str) -> ToolRun | str:
    """Return the run of a tool that an answer calls. If there is none, return the reason, for the model."""
    tool = next((tool for tool in form.tools if tool.function == function), None)
    return f"error: there is no tool {function!r}" if tool is None else agent_tool_run(tool, arguments)


def _messages(form: Agent, number: int, answer: AgentAnswer) -> list[Mapping[str, Any]]:
    """Return an answer and the results of its tool calls as messages of the next turn's request."""
    ids = [f"c{number:04d}{index:04d}" for index in range(len(answer.calls))]  # some templates need nine characters
    tool_calls = [
        {"id": id, "type": "function", "function": {"name": function, "arguments": arguments}}
        for id, (function, arguments) in zip(ids, answer.calls, strict=True)
    ]
    results: list[Mapping[str, Any]] = [
        {"role": "tool", "tool_call_id": id, "content": result_reference(form, number, index)}
        for index, id in enumerate(ids)
    ]
    return [{"role": "assistant", "content": answer.text or None, "tool_calls": tool_calls}, *results]
