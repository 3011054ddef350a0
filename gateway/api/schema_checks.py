"""Check finished answers against schemas that the client sent without `strict`.

Without `strict`, keywords that llguidance cannot enforce are dropped, and arguments of tool calls that the model need
not make are not enforced at all. A violation does not change the answer: the response reports it in `schema_violation`.
"""

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from compat.openai import ChatCompletionRequest, CompletionRequest
from compat.openai.custom_tools import CustomFunction
from compat.openai.grammars import matches_lark
from gateway.graph.call import Call, CallState
from gateway.prompts.tool_calls.input_decoder import InputDecoder
from gateway.prompts.tool_calls.parser import ToolCallParser, parse_answer
from gateway.runtime.fair_gate import FairGate
from gateway.runtime.json_codec import BadJson, decode_json
from gateway.runtime.schema_checker.checker import SchemaChecker
from gateway.runtime.schema_checker.violation import MAX_MESSAGE
from gateway.runtime.schema_checker.work_budget import BudgetExceeded, NoVerdict, WorkBudget
from gateway.telemetry import metrics

log = logging.getLogger("myna.schemas")

MAX_STEPS = 50_000
"""Work budget of all checks for one request, in units of `WorkBudget`: about 0.1 s. Answers beyond it are not
checked."""
_IMMEDIATE_STEPS = 1_000
"""Part of this budget that may be spent on the event loop: about 2 ms."""
_IMMEDIATE_CHARACTERS = 10_000
"""Length of an answer from which it is checked in a thread."""
_CHARACTERS_PER_MATCHING_STEP = 3
"""Number of characters that are compared with a grammar for one unit of the budget."""
_CHARACTERS_PER_STEP = 16
"""Number of characters that are searched for tool calls for one unit of the budget."""


class AnswerChecker:
    """Checker of the answers to one request, by index. The answers share a budget."""

    def __init__(
        self,
        gate: FairGate,
        tenant: str,
        schema: Any,
        tools: Mapping[str, Any],
        parser_factory: Callable[[], ToolCallParser] | None,
        *,
        may_stop: bool,
        inputs: Mapping[str, str] | None = None,
    ) -> None:
        """`schema`: the schema of an answer without tool calls, None if there is none.

        `tools`: schemas of arguments, by name of the tool. `parser_factory`: creates the parser that finds tool calls
        in an answer. `inputs`: grammars in Lark of the inputs of custom tools, by name of the tool. `may_stop`:
        whether a stop string or a stop token may cut off an answer; its finish reason does not show that.
        """
        self._gate = gate
        self._tenant = tenant
        self._schema = None if schema is None else SchemaChecker(schema)
        self._tools = {name: SchemaChecker(schema) for name, schema in tools.items()}
        self._inputs = inputs or {}
        self._parser_factory = parser_factory
        self._may_stop = may_stop
        self._immediate = WorkBudget(_IMMEDIATE_STEPS)
        self._steps = WorkBudget(MAX_STEPS)
        self._violations: dict[int, str] = {}

    def violation(self, index: int) -> str | None:
        """Return the violation that the check found, as a sentence; None if the answer is valid or was not checked."""
        return self._violations.get(index)

    def start(self, index: int, call: Call) -> Awaitable[None] | None:
        """Check the answer of a call. Return an awaitable if the check runs in a thread, else None. Raises nothing."""
        text = call.output.value
        if call.state is not CallState.DONE or text is None or (call.finish_reason or "stop") not in _COMPLETE:
            return None
        if len(text) <= _IMMEDIATE_CHARACTERS and self._immediate.left > 0:
            try:
                self._record(index, self._find_violation(text, self._immediate))
            except BudgetExceeded:
                pass
            else:
                return None
        return None if self._steps.left <= 0 else self._check_in_thread(index, text)

    async def _check_in_thread(self, index: int, text: str) -> None:
        async with self._gate.turn(self._tenant):
            try:
                self._record(index, await asyncio.to_thread(self._find_violation, text, self._steps))
            except BudgetExceeded:
                log.debug("an answer was not checked against its schema: the check takes too long")
            except asyncio.CancelledError:
                self._steps.left = -1  # ends the thread's work soon
                raise

    def _record(self, index: int, found: str | None) -> None:
        if found is not None:
            self._violations[index] = found
            metrics.count_schema_violation()

    def _matches(self, grammar: str, arguments: str, steps: WorkBudget) -> bool:
        """Return whether the input of a custom tool matches its grammar, or there is no verdict. Raises
        BudgetExceeded."""
        decoder = InputDecoder()
        text = decoder.push(arguments) + decoder.finish()
        steps.spend(len(text) // _CHARACTERS_PER_MATCHING_STEP)
        return matches_lark(grammar, text) is not False

    def _find_violation(self, text: str, steps: WorkBudget) -> str | None:
        """Return the first violation of an answer. Raises BudgetExceeded."""
        tool_calls: list[tuple[str, str]] = []
        if self._parser_factory is not None:
            steps.spend(len(text) // _CHARACTERS_PER_STEP)
            parser = self._parser_factory()
            text, tool_calls = parse_answer(parser, text)
            if not parser.whole:
                return None
        for name, arguments in tool_calls:
            if name in self._tools and (found := _violation(self._tools[name], arguments, steps)) is not None:
                return _crop(f"in a call of {name}: {found}")
            if name in self._inputs and not self._matches(self._inputs[name], arguments, steps):
                return _crop(f"in a call of {name}: the input does not match its grammar")
        if tool_calls or self._schema is None:
            return None
        if self._may_stop and text.lstrip()[:1] + text.rstrip()[-1:] not in ("{}", "[]"):
            return None  # it may be cut off
        return _violation(self._schema, text, steps)


_COMPLETE = ("stop", "tool_calls")
"""Finish reasons of complete answers."""


def _violation(checker: SchemaChecker, text: str, steps: WorkBudget) -> str | None:
    """Return the first violation of a schema by a JSON text. Raises BudgetExceeded."""
    try:
        value = decode_json(text.encode())
    except (BadJson, UnicodeError):
        return None if _may_be_json(text) else "$: the text is not JSON"
    try:
        found = checker.check(value, steps)
    except BudgetExceeded:
        raise
    except NoVerdict as reason:
        log.debug("an answer was not checked against its schema: %s", reason)
        return None
    except Exception:
        log.exception("an answer could not be checked against its schema")
        return None
    return None if found is None else str(found)


def _may_be_json(text: str) -> bool:
    """Return whether a text that the bounded decoder refuses may be JSON beyond its limits."""
    try:
        json.loads(text)
    except json.JSONDecodeError:
        return False
    except (ValueError, RecursionError):
        return True
    return True


def _crop(text: str) -> str:
    return text if len(text) <= MAX_MESSAGE else text[: MAX_MESSAGE - 1] + "…"


def answer_checker_of(
    body: ChatCompletionRequest | CompletionRequest,
    parser_factory: Callable[[], ToolCallParser] | None,
    gate: FairGate,
    tenant: str,
    *,
    checks_inputs: bool = False,
) -> AnswerChecker | None:
    """Return the checker of a request's answers; None if there is nothing to check.

    Only schemas that are not `strict` are checked, because strict ones are enforced. `parser_factory`: creates the
    parser of tool calls; None if the model may not call tools. `checks_inputs`: whether to check the inputs of custom
    tools, because the model's server does not enforce their formats.
    """
    if body.response_format is None and parser_factory is None:  # most requests
        return None
    inputs: dict[str, str] = {}
    schema, tools = None, dict[str, Any]()
    requested = None if body.response_format is None else body.response_format.json_schema
    if requested is not None and not requested.strict and requested.schema_ is not True:
        schema = requested.schema_
    if isinstance(body, ChatCompletionRequest):
        if body.continue_final_message:  # the text is only the end of an answer
            schema = None
        functions = [tool.function for tool in body.tools or ()] if parser_factory is not None else []
        tools = {
            function.name: function.parameters
            for function in functions
            if function.parameters is not None
            and (not function.strict or (checks_inputs and isinstance(function, CustomFunction)))
        }
        if checks_inputs:
            inputs = {
                function.name: function.input_lark
                for function in functions
                if isinstance(function, CustomFunction) and function.input_lark is not None
            }
    if schema is None and not tools and not inputs:
        return None
    if body.semantic is not None and (body.semantic.transform is not None or body.semantic.slots):
        return None  # the model did not write this text for the schema
    may_stop = bool(body.stop or body.stop_token_ids)
    return AnswerChecker(gate, tenant, schema, tools, parser_factory, may_stop=may_stop, inputs=inputs)
