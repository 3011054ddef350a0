"""Run forms: one coroutine for each kind."""

import asyncio
from collections.abc import Callable, Sequence
from functools import partial

from gateway.graph.budget import Budget, BudgetExceeded
from gateway.graph.call import Call, CallSpec, Usage
from gateway.graph.errors import Failure, UnresolvedPath
from gateway.graph.forms.expansion import element_call, own_names, round_calls, round_name, side_calls, side_name
from gateway.graph.forms.form import Agent, Branch, Form, Map, Repeat, ToolRun
from gateway.graph.forms.list_scanner import BadList, ListScanner
from gateway.graph.forms.names import bind_condition
from gateway.graph.forms.results import result_json
from gateway.graph.segments import Input
from gateway.graph.text import has_surrogate, size_of
from gateway.graph.variable import Piece, ProducerRestarted, Variable
from gateway.runtime.fair_gate import FairGate
from gateway.scheduler.forms.agent_run import AgentPrompts, run_agent
from gateway.scheduler.forms.form_steps import FormSteps, Start
from gateway.scheduler.forms.tool_run import ToolRunner
from gateway.scheduler.input_reader import CallFailed, ParsingGate, upstream_failure

Fail = Callable[[Call, Failure], None]
"""Fails a call in the next turn of the event loop."""

_SCANNED = 4_000
"""Number of characters of a list that are read before other tasks of the event loop get a turn."""
_ADDED = 20
"""Number of elements of a list whose calls are added before other tasks of the event loop get a turn."""
_BATCH = 50
"""Number of results of a map that are joined before other tasks of the event loop get a turn."""


class FormRunner:
    """Runs the forms of all calls of a scheduler. It has no state of its own, except for a `FairGate`."""

    def __init__(
        self,
        start: Start,
        fail: Fail,
        parsing: ParsingGate,
        tools: ToolRunner | None,
        prompts: AgentPrompts | None,
        now: Callable[[], float],
    ) -> None:
        """`start`: starts the calls that a form adds. `fail`: ends a call. `parsing`: see `InputReader`. `tools`,
        `prompts`: None if the server runs no tools, no agents. `now`: clock of the pauses after long work, in
        seconds."""
        self._start = start
        self._fail = fail
        self._parsing = parsing
        self._tools = tools
        self._prompts = prompts
        self._expanding = FairGate(clock=now)

    async def run(self, call: Call, form: Form) -> None:
        """Run a form until its outputs are complete. Raises CallFailed and GraphError."""
        steps = FormSteps(call, self._start, self._parsing, self._expanding)
        match form:
            case Map():
                await _MapRun(steps, form).run()
            case Branch():
                await _run_branch(steps, form)
            case Repeat():
                await _run_repeat(steps, form)
            case ToolRun():
                if self._tools is None:  # the call was sent to a server with other settings
                    raise steps.failed("unknown_tool", "this server runs no tools")
                await self._tools.run(steps, form)
            case Agent():
                if self._prompts is None:
                    raise steps.failed("unknown_tool", "this server runs no agents")
                await self._run_agent(steps, form, self._prompts)
        call.usage = Usage()
        for child in call.children.values():
            if child.leader is None:
                call.usage.add(child.usage)

    async def _run_agent(self, steps: FormSteps, form: Agent, prompts: AgentPrompts) -> None:
        """Run an agent within its limits."""
        call, limits = steps.call, form.limits
        if limits is None:
            await run_agent(steps, form, prompts)
            return
        budget = call.budget = Budget(f"agent {call.output.name!r}", limits, call.session.price_of)
        for child in call.descendants():  # before a restart of the server
            budget.calls += child.spec.is_counted
            budget.charge(child)
        budget.on_exhausted = lambda: self._fail(call, Failure(BudgetExceeded.code, str(budget.error()), call.id))
        left = None if limits.seconds is None else limits.seconds - (call.session.clock() - call.times.created)
        timer = asyncio.timeout(left)
        try:
            async with timer:
                await run_agent(steps, form, prompts)
        except TimeoutError:
            if not timer.expired():
                raise
            budget.on_exhausted = lambda: None
            budget.end_time()
            raise budget.error() from None


class _MapRun:
    """Owner of the children of a map. Element `index` has the call at place `str(index)`, or an error."""

    def __init__(self, steps: FormSteps, form: Map) -> None:
        self._steps = steps
        self._form = form
        self._count = 0
        """Number of elements so far."""
        self._errors: set[int] = set()
        """Elements for which no call can be made."""

    async def run(self) -> None:
        over = self._form.over
        if isinstance(over, str):
            scanner = ListScanner()
            await self._scan(scanner, over)
            self._close(scanner, over)
        else:
            source = self._steps.source(over)
            while not await self._read(source, over):
                pass
        await self._join()

    async def _read(self, source: Variable, over: Input) -> bool:
        """Add a call for each element of a list while it grows. Return False if the model begins the list again."""
        session, scanner = self._steps.call.session, ListScanner(over.reference.path)
        self._count = 0
        self._errors.clear()
        # a reader of a client: the elements that have calls must not change after a restart
        with session.read(source) as reader:
            try:
                while pieces := await self._steps.call.next_pieces(reader, source):
                    await self._scan(scanner, "".join([piece.text for piece in pieces]))
            except ProducerRestarted:
                return False
        if not source.has_value:
            raise CallFailed(upstream_failure(source))
        self._close(scanner, source.value or "")
        return True

    async def _scan(self, scanner: ListScanner, text: str) -> None:
        """Read more text of the list, and add the calls of the elements that it completes."""
        for begin in range(0, len(text), _SCANNED):
            try:
                async with self._steps.turn():
                    elements = scanner.push(text[begin : begin + _SCANNED])
            except BadList as error:
                raise self._bad_list(error) from error
            for first in range(0, len(elements), _ADDED):
                batch = elements[first : first + _ADDED]
                await self._steps.add(partial(self._specs, batch))

    def _close(self, scanner: ListScanner, value: str) -> None:
        try:
            scanner.close(value)
        except BadList as error:
            raise self._bad_list(error) from error

    def _bad_list(self, error: BadList) -> CallFailed:
        over = self._form.over
        name = "the list" if isinstance(over, str) else str(over.reference)
        where = self._steps.call.spec.field_path("map.over")
        return self._steps.failed("invalid_value", f"{where}: the map cannot run over {name}: {error}")

    def _specs(self, elements: Sequence[str]) -> Sequence[CallSpec]:
        """Return the calls of the next elements. Raises CallFailed."""
        call, form = self._steps.call, self._form
        specs: list[CallSpec] = []
        places = map(str, range(self._count, self._count + len(elements)))
        if call.children.keys().isdisjoint(places):  # otherwise they were added before a restart of the server
            self._steps.check_calls(1)
        for element in elements:
            index = self._count
            self._count += 1
            if index >= form.max_items:
                message = f"the list has more than {form.max_items} elements, the maximum of this map (max_items)"
                raise self._steps.failed("too_large", message)
            try:
                if has_surrogate(element):
                    raise UnresolvedPath("it has a lone surrogate, so it is not Unicode text")
                specs.append(element_call(form, call.id, call.output.name, index, element))
            except UnresolvedPath as error:
                if form.on_error == "fail":
                    raise self._steps.failed(error.code, f"element {index} of the list: {error}") from error
                self._errors.add(index)
        return specs

    async def _join(self) -> None:
        """Join the results of all elements to the value of the map, a JSON list."""
        call, size = self._steps.call, 2
        call.output.append(Piece("["))
        is_first = True
        for index in range(self._count):
            if index % _BATCH == _BATCH - 1:
                await self._steps.pause()
            result = await self._result(index)
            if result is None:
                continue
            size += size_of(result) + 1
            self._steps.check_size(size)
            call.output.append(Piece(result if is_first else f",{result}"))
            is_first = False
        call.output.append(Piece("]"))

    async def _result(self, index: int) -> str | None:
        """Return the result of an element as JSON; None if it is left out."""
        on_error = self._form.on_error
        if index not in self._errors:
            output = self._steps.call.children[str(index)].output
            await self._steps.call.until_final(output)
            if output.has_value:
                return result_json(self._form, output.value or "")
            if on_error == "fail":
                raise CallFailed(upstream_failure(output))
        return "null" if on_error == "null" else None


async def _run_branch(steps: FormSteps, form: Branch) -> None:
    """Add the calls of the side that the condition selects, and copy their values to the branch's outputs."""
    call = steps.call
    holds = await steps.decide(form.condition, "if")
    side = "then" if holds else "else"
    await steps.add(partial(side_calls, form, call.id, side))
    names = own_names(form.then if holds else form.otherwise)
    state, skipped = ("holds", "else") if holds else ("does not hold", "then")
    reason = (
        f"{call.spec.field_path('if')}: the condition {state}, so the calls in `{skipped}` are not run, and the branch "
        "has no `default`"
    )
    outputs = {output.name: output for output in call.outputs}
    for name, output in outputs.items():
        if name not in names:
            await steps.skip(output, form.default, reason)
    await steps.copy_all((call.inputs[side_name(name, side)], outputs[name]) for name in names)


async def _run_repeat(steps: FormSteps, form: Repeat) -> None:
    """Add rounds of calls until the condition holds, and copy the values of the last round to the repeat's outputs."""
    call = steps.call
    own = [*own_names(form.calls), *form.carry]
    number = 0
    while True:
        number += 1
        # the scope is found in the form's turn: other repeats add calls before
        await steps.add(partial(_round, call, form, own, number))
        scope = _scope_of_rounds(call, own)
        names = {name: round_name(scope, name, number) for name in own}
        if await steps.decide(bind_condition(form.until, names, {}), "repeat.until"):
            break
        if number >= form.max_rounds:
            if form.on_max == "last":
                break
            where = call.spec.field_path("repeat.until")
            raise steps.failed("max_rounds_reached", f"{where} does not hold after {number} rounds, the maximum")
    sources = [call.inputs[round_name(scope, name, number)] for name in form.exports]
    await steps.copy_all(zip(sources, call.outputs, strict=True))


def _round(call: Call, form: Repeat, names: Sequence[str], number: int) -> list[CallSpec]:
    """Return the calls of a round. `names`: names that the rounds generate or carry."""
    return round_calls(form, call.id, _scope_of_rounds(call, names), number)


def _scope_of_rounds(call: Call, names: Sequence[str]) -> str:
    """Return the beginning of the names in the rounds of a repeat: none, unless such names are taken."""
    scope = f"{call.output.name}."
    if call.children:  # before a restart of the server
        has_scope = any(child.output.name.startswith(scope) for child in call.children.values())
    else:
        has_scope = call.spec.origin is not None or any(
            call.session.is_taken(round_name("", name, 1)) for name in names
        )
    return scope if has_scope else ""
