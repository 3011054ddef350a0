"""Steps that all forms share: add calls, read texts, decide conditions, copy values."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import AbstractAsyncContextManager

from gateway.graph.call import Call, CallSpec
from gateway.graph.errors import Failure, GraphError
from gateway.graph.forms.conditions import UndecidedCondition, holds
from gateway.graph.forms.form import Condition, Template
from gateway.graph.segments import Input
from gateway.graph.session import Addition, Session
from gateway.graph.text import size_of
from gateway.graph.variable import Piece, ProducerRestarted, Variable
from gateway.runtime.fair_gate import FairGate
from gateway.scheduler.input_reader import CallFailed, InputReader, ParsingGate, upstream_failure
from gateway.scheduler.transforms import TransformFailed

_SMALL = 64 << 10
"""Maximum size of JSON that is parsed without a turn of the gate, in characters."""

Start = Callable[[Session, Addition], Awaitable[None]]
"""Starts the calls of an addition, see `Scheduler.start`."""


class FormSteps:
    """The steps of one form's call."""

    def __init__(self, call: Call, start: Start, parsing: ParsingGate, expanding: FairGate) -> None:
        """`parsing`: see `InputReader`. `expanding`: gate of steps that block the event loop for a few milliseconds.
        Many forms may become able to run in the same turn of the loop."""
        self.call = call
        self._start = start
        self._parsing = parsing
        self._expanding = expanding
        self._inputs = InputReader(call, parsing)

    def turn(self) -> AbstractAsyncContextManager[None]:
        """Return a context manager that waits for the form's turn to block the event loop for some milliseconds."""
        return self._expanding.turn(self.call.session.tenant)

    async def add(self, make: Callable[[], Sequence[CallSpec]]) -> None:
        """Start the calls whose specs `make` returns, except for those that the form has added before. Raises
        GraphError, and CallFailed if a call was made from other data before a restart."""
        async with self.turn():
            addition = self._add(make())
        if addition is not None:
            await self._start(self.call.session, addition)

    def _add(self, specs: Sequence[CallSpec]) -> Addition | None:
        call = self.call
        new = []
        for spec in specs:
            assert spec.origin is not None, "a form's calls have an origin"
            known = call.children.get(spec.origin.place)
            if known is None:
                new.append(spec)
            elif known.spec.origin is not None and known.spec.origin.digest != spec.origin.digest:
                raise self.failed("interrupted", f"{known.output.name!r} was made from data that has changed since")
        for budget in (*call.budgets, *([] if call.budget is None else [call.budget])):
            budget.check_calls(sum(spec.is_counted for spec in new))
        return call.session.add_all(new) if new else None

    def check_calls(self, count: int) -> None:
        """Raise CallFailed if the session has no room for so many calls. It is cheaper than making their specs."""
        try:
            self.call.session.resources.check(calls=count)
        except GraphError as error:
            raise self.failed(error.code, str(error)) from error

    async def text(self, template: Template) -> str:
        """Wait for the variables of a template, and return its text. Raises CallFailed."""
        texts = []
        size = 0
        for part in template:
            text = await self.value(part) if isinstance(part, Input) else part
            size += size_of(text)
            self.check_size(size)
            texts.append(text)
        return "".join(texts)

    async def value(self, part: Input) -> str:
        """Wait for the text that a reference stands for, and return it. Raises CallFailed."""
        source = self.source(part)
        await self._inputs.until_readable(source, part.reference)
        return await self._inputs.read(source, part.reference)

    def source(self, part: Input) -> Variable:
        """Return the variable that a reference reads. Raises CallFailed if it was deleted."""
        name = part.reference.name
        source = self.call.inputs.get(name)
        if source is None:
            raise self.failed("unknown_variable", f"variable {name!r} was deleted")
        return source

    def check_size(self, size: int) -> None:
        """Raise CallFailed if the output would be too large with `size` bytes."""
        try:
            self.call.session.check_room(self.call.output.name, size)
        except GraphError as error:
            raise self.failed(error.code, str(error)) from error

    def failed(self, code: str, message: str) -> CallFailed:
        """Return the error that ends the form."""
        return CallFailed(Failure(code, message, self.call.id))

    async def decide(self, condition: Condition, where: str) -> bool:
        """Return whether a condition holds, once its variables are ready. Raises CallFailed. `where`: place of the
        condition in the form."""
        text = await self.text(condition.value)
        try:
            if condition.operator == "matches":
                return await self._inputs.search(condition.pattern, 0, text) is not None
            if len(text) <= _SMALL:
                return holds(condition, text)
            async with self._parsing.turn(self.call.session.tenant):
                return holds(condition, text)
        except (TransformFailed, UndecidedCondition) as error:
            raise self.failed("condition_failed", f"{self.call.spec.field_path(where)}: {error}") from error

    async def until_final(self, child: Call) -> Variable:
        """Wait until the output of a call that the form has added is final, and return it. Raises CallFailed if it has
        no value."""
        output = child.output
        await self.call.until_final(output)
        if not output.has_value:
            raise CallFailed(upstream_failure(output))
        return output

    async def copy_all(self, pairs: Iterable[tuple[Variable, Variable]]) -> None:
        """Copy variables to outputs. An output whose variable has no value fails, and the others get theirs. Raises
        CallFailed if one has failed."""
        for source, target in pairs:
            try:
                await self.copy(source, target)
            except CallFailed as error:
                target.fail(error.failure)
        for output in self.call.outputs:
            if output.failure is not None and output.failure.code != SKIPPED:
                raise CallFailed(output.failure)

    async def copy(self, source: Variable, target: Variable) -> None:
        """Copy the value of a variable that the form's calls generate to an output, and store it. The output grows with
        the variable if the variable gets the same text again after a restart of the server. Raises CallFailed."""
        call = self.call
        if target.state.is_final:  # before a restart of the server
            return
        if source.producer is not None and source.producer.spec.is_deterministic:
            await self._grow(source, target)
        elif target.subscribers:
            await self._grow(source, target, is_exposed=True)
        else:
            await call.until_final(source)
            if source.has_value and source.value:
                target.append(Piece(source.value))
        if source.value is None and source.failure is not None and source.failure.code == SKIPPED:
            target.skip(None, source.failure)
            return
        if not source.has_value:
            raise CallFailed(upstream_failure(source))
        call.session.record_value(target, target.text)
        await call.session.event_log.flush()
        target.complete()

    async def _grow(self, source: Variable, target: Variable, *, is_exposed: bool = False) -> None:
        while True:
            reader = self.call.session.read(source) if is_exposed else source.read()
            try:
                with reader:
                    while pieces := await self.call.next_pieces(reader, source):
                        for piece in pieces:
                            target.append(piece)
                return
            except ProducerRestarted:
                if not target.restart():
                    raise self.failed(
                        "engine_failed", f"{source.name!r} is generated again, but a client has read part of it"
                    ) from None

    async def skip(self, target: Variable, value: str | None, reason: str) -> None:
        """Make an output skipped. `value`: text that its readers get; None: they fail because of `reason`."""
        if target.state.is_final:
            return
        if value is not None:
            self.call.session.record_value(target, value)
        # in the same turn as the value: a restart between both would find a value of the other side, which is ready
        target.skip(value, Failure(SKIPPED, reason, self.call.id))
        await self.call.session.event_log.flush()

    async def pause(self) -> None:
        """Let other tasks of the event loop have a turn."""
        await asyncio.sleep(0)


SKIPPED = "skipped"
"""Code of the failure of a variable whose calls are on the side of a branch that does not run, without a default."""
