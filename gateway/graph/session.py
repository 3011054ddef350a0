"""A session: a scope of variable names. Its calls and variables form one directed acyclic graph.

Parrot (Lin et al., OSDI'24) has such a graph. Its GetProducer and GetConsumers are `Variable.producer` and
`Variable.consumers`; its PrefixHash is `prefix_hash.prefix_hashes`.
"""

import difflib
import itertools
import time
from collections import ChainMap
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from gateway.graph.budget import FREE, Budget, TokenPrice
from gateway.graph.call import Call, CallSpec, CallState, Times, Usage
from gateway.graph.call_gate import CallGate
from gateway.graph.call_size import CALL_BYTES, VARIABLE_BYTES, spec_bytes
from gateway.graph.dag import order_calls
from gateway.graph.errors import (
    Cycle,
    Failure,
    SessionClosed,
    UnknownVariable,
    VariableAlreadySet,
)
from gateway.graph.event_log import EventLog
from gateway.graph.events import (
    CallAddition,
    CallChanged,
    Exposure,
    FactSink,
    NullSink,
    SessionEnded,
    SlotText,
    ValueAssignment,
    VariableChanged,
    VariableDeleted,
)
from gateway.graph.forms.form import references_of
from gateway.graph.ids import new_id
from gateway.graph.limits import SessionLimits
from gateway.graph.references import MAX_NAME, check_name
from gateway.graph.resources import SessionResources
from gateway.graph.segments import Input, Slot
from gateway.graph.text import check_text, size_of
from gateway.graph.variable import Reader, Variable

_arrivals = itertools.count()
_SUGGESTION_POOL = 100
"""Number of names that are compared with an unknown name, to suggest similar ones."""
_NULL_SINK = NullSink()


@dataclass(frozen=True)
class VariableSpec:
    """A variable that a client creates: with a value, with a template, or only declared."""

    name: str
    value: str | None = None
    template: Sequence[str | Input] | None = None
    where: str = "name"


@dataclass(frozen=True)
class Addition:
    """Calls and values that joined a session in one step.

    Set the `values` with `Session.set_values` once the journal has stored them.
    """

    calls: Sequence[Call]
    values: Sequence[tuple[Variable, str]]


class Session:
    """Owner of its variables and calls. A method that raises an error has changed nothing.

    A session without an id belongs to one request: its facts are neither stored nor emitted as events.
    """

    def __init__(
        self,
        id: str,
        tenant: str,
        created: float,
        ttl: float,
        *,
        metadata: dict[str, str] | None = None,
        limits: SessionLimits | None = None,
        sink: FactSink = _NULL_SINK,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """`sink` stores the facts. `clock`: current time in seconds, of the Unix clock or of a simulation."""
        self.id = id
        self.tenant = tenant
        self.created = created
        self.ttl = ttl
        self.metadata = metadata if metadata is not None else {}
        self.clock = clock
        self.resources = SessionResources(id, tenant, limits or SessionLimits())
        self.event_log = EventLog(self, sink, clock)
        self.variables: dict[str, Variable] = {}
        self.calls: dict[str, Call] = {}
        self.unfinished_calls = 0
        self.budget: Budget | None = None
        """Limits of what the calls may use; None if there are none."""
        self.price_of: Callable[[str], TokenPrice] = lambda model: FREE
        """Returns the price of a model."""
        self.is_closed = False
        self.last_used = time.monotonic()
        """Time of the last request, in seconds of the monotonic clock."""
        self.reusable_calls: dict[bytes, Call] = {}
        """Calls that may serve identical calls, by their digest."""
        self._retired_names: set[str] = set()
        """Names of deleted variables that were ready, because a client may have read the value, and of those that forms
        have made. They cannot be used again."""
        self._expanded_names: set[str] = set()
        """Names of deleted outputs of forms. Variables of the calls that these forms add are named after them."""
        self.call_gate: CallGate | None = None
        """Gate that calls pass to join; None if there is none."""
        self._joining: Call | None = None
        """The call that is being added. Events that follow from its addition are not stored."""

    # names of variables

    def variable(self, name: str, where: str | None = None) -> Variable:
        """Return the variable of that name. Raises UnknownVariable, which suggests similar names."""
        if name not in self.variables:
            raise self._unknown(name, reversed(self.variables), where)
        return self.variables[name]

    def is_taken(self, name: str) -> bool:
        """Return whether no new variable can have this name."""
        return name in self.variables or name in self._retired_names

    def _unknown(self, name: str, known: Iterable[str], where: str | None) -> UnknownVariable:
        if len(name) > MAX_NAME:  # not a name: to compare it would take long
            return UnknownVariable(f"the session has no variable {name[:MAX_NAME]!r}…", where)
        matches = difflib.get_close_matches(name, itertools.islice(known, _SUGGESTION_POOL), n=3)
        hint = "; declare it, or first send the call that generates it"
        if matches:
            hint = f"; did you mean {' or '.join(f'<<{n}>>' for n in matches)}?"
        return UnknownVariable(f"the session has no variable {name!r}{hint}", where)

    def _check_free(self, name: str, where: str, *, is_derived: bool = False) -> None:
        """Raise BadReference or VariableAlreadySet if a new variable cannot have this name. `is_derived`: a form has
        made the name, so it may have characters that clients cannot use."""
        if not is_derived:
            check_name(name, where)
            if name in self._expanded_names:
                message = f"{name!r} was a form's output, after which variables of its calls are named; choose another"
                raise VariableAlreadySet(message, where)
        known = self.variables.get(name)
        if known is not None and known.is_assigned:
            raise VariableAlreadySet(f"{name!r} is {known.state} already; a name is assigned once in a session", where)
        if name in self._retired_names:
            raise VariableAlreadySet(f"{name!r} had a value that was readable; the name cannot be used again", where)

    # additions

    def add_variable(
        self, name: str, value: str | None = None, template: Sequence[str | Input] | None = None
    ) -> Addition:
        """Add one variable. See `VariableSpec`."""
        return self.add_all((), [VariableSpec(name, value, template)])

    def add(self, spec: CallSpec) -> Call:
        """Add one call, and set its inputs. See `add_all`."""
        addition = self.add_all([spec])
        self.set_values(addition)
        return addition.calls[0]

    def add_all(self, specs: Sequence[CallSpec], given: Sequence[VariableSpec] = ()) -> Addition:
        """Add variables and calls, which may refer to each other in any order. Add all of them, or raise an error.

        Raises UnknownVariable, BadReference, VariableAlreadySet, Cycle, TooLarge, SessionClosed, BudgetExceeded, or the
        error of the call gate.
        """
        self.event_log.check()
        if self.is_closed:  # the session ended after the request had found it in the store
            raise SessionClosed(f"session {self.id} has ended")
        if self.budget is not None and self.budget.is_exhausted and specs:
            raise self.budget.error()
        values: dict[str, str] = {}
        declared: dict[str, str] = {}
        everything = list(specs)
        for assigned in given:
            if assigned.value is not None:
                self._add_value(values, assigned.name, assigned.value, assigned.where)
            elif assigned.template is not None:
                everything.append(
                    CallSpec(
                        model="",
                        output=assigned.name,
                        parts=assigned.template,
                        deferred=True,
                        where=assigned.where,
                    )
                )
            else:
                declared[assigned.name] = assigned.where
        for spec in specs:
            for name, value in spec.inputs.items():
                self._add_value(values, name, value, spec.field_path(f"semantic.inputs.{name}"))
        for name, where in declared.items():
            self._check_free(name, where)
            if name in values:
                raise VariableAlreadySet(f"{name!r} is declared and set in the same request", where)
        produced: dict[str, int] = {}
        outputs = [self._output_names(spec, produced, index, values) for index, spec in enumerate(everything)]
        fresh = {name: None for name in (*produced, *values, *declared) if name not in self.variables}
        readable = self._readable(specs)
        reads = [self._input_names(spec, fresh, readable) for spec in everything]
        depths = order_calls(everything, outputs, reads, produced, readable, self.resources.limits.depth)
        for spec in everything:
            for part in spec.parts or ():
                if isinstance(part, str):
                    check_text(part, "the text", spec.where or None)
        grown = sum(map(size_of, values.values())) + sum(map(spec_bytes, everything))
        objects = CALL_BYTES * len(everything) + VARIABLE_BYTES * len(fresh)
        self.resources.check(
            calls=len(everything), variables=len(fresh), edges=sum(map(len, reads)), size=grown + objects
        )

        if self.budget is not None:
            self.budget.check_calls(sum(spec.is_counted for spec in specs))
        gate = self.call_gate
        if gate is not None:
            gate.check(self.tenant, everything)  # last, because nothing may fail between the check and the reservations

        self.resources.add_bytes(grown)
        for call, depth in depths.deeper.items():
            call.depth = depth
        placed = []
        for name in (*declared, *values):
            variable = self._variable_or_new(name)
            if name in fresh:
                self._on_variable_change(variable)
            if name in values:
                variable.reserved = True
                self.event_log.write(ValueAssignment(variable, values[name]))
                placed.append((variable, values[name]))
        for name in produced:
            self._variable_or_new(name)
        calls = [
            self._join(spec, outputs[index], {name: readable[name] for name in reads[index]}, depths.new[index])
            for index, spec in enumerate(everything)
        ]
        if gate is not None:
            for call in calls:
                gate.reserve(call)
        return Addition(calls, placed)

    def set_values(self, addition: Addition, failure: Failure | None = None) -> None:
        """Set the values of an addition, or fail their variables because of `failure`."""
        for variable, value in addition.values:
            if failure is not None:
                variable.fail(failure)
            elif not variable.state.is_final:  # the session may have ended in the meantime
                variable.set(value)

    def _add_value(self, values: dict[str, str], name: str, value: str, where: str) -> None:
        self._check_free(name, where)
        check_text(value, f"the value of {name!r}", where)
        self.resources.check_value(name, size_of(value), where)
        if name in values:
            raise VariableAlreadySet(f"{name!r} is set twice", where)
        values[name] = value

    def _output_names(
        self, spec: CallSpec, produced: dict[str, int], index: int, values: Mapping[str, object]
    ) -> list[str]:
        """Return the names that the call produces, its output last."""
        names = [(slot.name, slot.where) for slot in spec.slots if slot.name is not None]
        names += [(name, spec.output_path) for name in [*spec.more_outputs, spec.output] if name]
        for name, place in names:
            self._check_free(name, place, is_derived=spec.origin is not None)
            if name in values:
                raise VariableAlreadySet(f"{name!r} has a value in the request and is also an output", place)
            if name in produced:
                raise VariableAlreadySet(f"{name!r} is the output of two calls", place)
            produced[name] = index
        outputs = [name for name, _ in names]
        if not spec.output:
            outputs.append(self._generated_name())
            produced[outputs[-1]] = index
        return outputs

    def _generated_name(self) -> str:
        while (name := f"v_{new_id(12)}") in self.variables:
            pass
        return name

    def _readable(self, specs: Sequence[CallSpec]) -> Mapping[str, Variable]:
        """Return the variables that new calls can read, by name. Calls that a form adds read what the form has read
        since it was added, also if a client has deleted it or used its name again."""
        origin = specs[0].origin if specs else None
        return self.variables if origin is None else ChainMap(self.calls[origin.call].inputs, self.variables)

    def _input_names(
        self, spec: CallSpec, fresh: Mapping[str, object], readable: Mapping[str, Variable]
    ) -> dict[str, str]:
        """Return the names that the call reads, each with the field that reads it first. Its own slots are left out."""
        if not spec.references:
            return {}
        done: set[str] = set()
        own = {slot.name for slot in spec.slots}
        read: dict[str, str] = {}
        form = () if spec.form is None else references_of(spec.form)
        for segment in (*spec.segments, *(spec.parts or ()), *form):
            if isinstance(segment, Slot) and segment.name is not None:
                done.add(segment.name)
            elif isinstance(segment, Input):
                name, where = segment.reference.name, segment.where
                if name in done:
                    continue
                if name in own:
                    raise Cycle(f"{segment.reference} is read before the place where it is generated", where)
                if name not in readable and name not in fresh:
                    raise self._unknown(name, itertools.chain(fresh, reversed(self.variables)), where)
                read.setdefault(name, where)
        return read

    def _variable_or_new(self, name: str) -> Variable:
        """Return the unassigned variable `name`; create it if there is none."""
        return self.variables.get(name) or self.create_variable(name, self.resources.variables + 1)

    def create_variable(self, name: str, number: int) -> Variable:
        """Create variable number `number` of the session."""
        self.resources.variables = max(self.resources.variables, number)
        self.resources.add_bytes(VARIABLE_BYTES)
        variable = self.variables[name] = Variable(name, self._on_variable_change if self.id else None, number)
        return variable

    def _join(self, spec: CallSpec, outputs: Sequence[str], inputs: dict[str, Variable], depth: int) -> Call:
        *slots, output = [self.variables[name] for name in outputs]
        call = Call(
            id=f"call_{new_id(16)}",
            spec=spec,
            inputs=inputs,
            slots={slot.name: slot for slot in slots},
            output=output,
            times=Times(created=self.clock()),
            session=self,
            arrival=next(_arrivals),
            depth=depth,
        )
        self.event_log.write(CallAddition(call))
        self._connect(call)
        return call

    def restore_call(self, call: Call) -> None:
        """Add a call that was part of the graph before a restart. The journal sets its state later."""
        call.arrival = next(_arrivals)
        self.resources.add_bytes(spec_bytes(call.spec))
        self._connect(call)

    def _connect(self, call: Call) -> None:
        """Connect a call with its variables and count it. A replay of the fact that the call was added repeats this."""
        call.on_change = self._on_call_change
        self.calls[call.id] = call
        self.resources.calls += 1
        for budget in call.budgets:
            budget.calls += call.spec.is_counted
        self.resources.edges += len(call.inputs)
        self.resources.add_bytes(CALL_BYTES)
        self.unfinished_calls += 1
        for source in call.inputs.values():
            source.consumers.append(call)
            source.unfinished_consumers += 1
        if call.spec.origin is not None:
            self.calls[call.spec.origin.call].adopt(call)
            self.resources.edges += len(call.outputs)
        self._joining = call
        self._on_call_change(call)
        for variable in call.outputs:
            variable.bind_producer(call)
        self._joining = None

    # changes of state

    def _on_variable_change(self, variable: Variable) -> None:
        if variable.is_deleted or not self.id:
            return
        change = VariableChanged(variable, variable.state, variable.failure)
        producer = variable.producer
        if producer is not None and (producer is self._joining or producer.state.is_final):
            self.event_log.emit(change, self.event_log.last_time)
        else:
            self.event_log.emit(change)

    def _on_call_change(self, call: Call) -> None:
        if call.state.is_final:
            self.count_call_end(call)
        if self.id:
            time = call.times.created if call is self._joining else None
            self.event_log.emit(CallChanged(call, call.state, call.failure), time)

    def count_call_end(self, call: Call) -> None:
        """Count a call that has just reached a final state."""
        self.unfinished_calls -= 1
        for source in call.inputs.values():
            source.unfinished_consumers -= 1
        if call.leader is not None:
            call.leader.unfinished_followers -= 1

    # values and texts of running calls

    def record_value(self, variable: Variable, value: str) -> None:
        """Record the value that a variable is about to get. Raises BadText or TooLarge if the value is not Unicode or
        exceeds a limit."""
        check_text(value, f"the value of {variable.name!r}")
        size = size_of(value)
        self.check_room(variable.name, size)
        self.resources.add_bytes(size)
        self.event_log.write(ValueAssignment(variable, value))

    def check_room(self, name: str, size: int) -> None:
        """Raise TooLarge if a value of `size` bytes is too large by itself, or together with the session's other bytes.

        Call it before a value is built from other values: few small values can form a large one.
        """
        self.resources.check_value(name, size)
        self.resources.check_bytes(size)

    def record_slot_text(self, call: Call, slot: str, text: str) -> None:
        """Record the text of a slot, before it becomes part of the prompt. Raises BadText or TooLarge if the text is
        not Unicode or exceeds a limit."""
        check_text(text, f"the text of slot {slot!r}")
        self.resources.check_value(slot, size_of(text))
        call.slot_texts[slot] = text
        self.event_log.write(SlotText(call, slot, text))

    # clients

    def read(self, variable: Variable) -> Reader:
        """Return a reader for a client. The part that the client gets is never generated again with another text, also
        not after a restart of the process."""
        return variable.read(self._expose)

    async def _expose(self, variable: Variable) -> None:
        random = variable.producer is not None and not variable.producer.spec.is_deterministic
        if not variable.is_exposed:
            variable.is_exposed = True
            if random:
                self.event_log.write(Exposure(variable))
        if random and self.id:  # a second reader waits for the flush as well
            await self.event_log.flush()
        variable.exposure_persisted = True

    def add_waiter(self) -> None:
        """Count a request that waits or watches. Raises TooManyWaiters. Pair it with `remove_waiter`."""
        self.resources.add_waiter()

    def remove_waiter(self) -> None:
        """Uncount a request that has its result or lost its client. Restart the session's time to live."""
        self.resources.remove_waiter()
        self.last_used = time.monotonic()

    # queries

    @property
    def is_running(self) -> bool:
        """Whether a call is unfinished."""
        return self.unfinished_calls > 0

    @property
    def is_in_use(self) -> bool:
        """Whether a call is unfinished or a request waits."""
        return self.is_running or self.resources.waiters > 0

    @property
    def is_blocked(self) -> bool:
        """Whether there are unfinished calls that can make no progress until a client sets a variable.

        A graph has no cycles. So if every unfinished call has an input that is not final, the first calls of the graph
        wait for variables that are only declared.
        """
        unfinished = [call for call in self.calls.values() if not call.state.is_final]
        return bool(unfinished) and all(call.waiting_on for call in unfinished)

    def usage(self) -> dict[str, int]:
        """Return the session's token counts, the numbers of done calls that were run and that were shared, and the
        number of runs of tools.

        A shared call is a follower. It adds no tokens, because its leader generated them.
        """
        run = [call for call in self.calls.values() if call.leader is None and call.spec.model]
        total = Usage()
        for call in run:
            total.prompt += call.usage.prompt
            total.cached += call.usage.cached
            total.completion += call.usage.completion
        return {
            "prompt_tokens": total.prompt,
            "cached_tokens": total.cached,
            "completion_tokens": total.completion,
            "calls_run": sum(call.state is CallState.DONE for call in run),
            "calls_shared": sum(
                call.leader is not None and call.state is CallState.DONE for call in self.calls.values()
            ),
            "tool_calls": sum(call.has_run_tool for call in self.calls.values()),
        }

    # ends

    def delete(self, name: str) -> Variable:
        """Delete a variable. Its name becomes free, unless its value was readable. Raises UnknownVariable.

        Calls that wait for it still get what its producer generates. Without a producer they fail, as it will never
        have a value.
        """
        variable = self.variable(name)
        self.remove_name(variable)
        self.event_log.emit(VariableDeleted(variable))
        if variable.producer is None:
            variable.cancel(Failure("cancelled", f"variable {name!r} was deleted"))
        return variable

    def remove_name(self, variable: Variable) -> None:
        """Remove the variable's name. The name becomes free, unless the variable was ready under it."""
        del self.variables[variable.name]
        producer = variable.producer
        if variable.has_value or (producer is not None and producer.spec.origin is not None):
            self._retired_names.add(variable.name)
        if producer is not None and producer.spec.form is not None:
            self._expanded_names.add(variable.name)
        variable.is_deleted = True

    def close(self, cancel: Callable[[Call, Failure], None], *, expired: bool = False) -> None:
        """End the session. Cancel its unfinished calls and its unassigned variables."""
        self.is_closed = True
        if (error := self.event_log.error) is not None:
            failure = Failure(error.code, str(error))
        else:
            failure = Failure("cancelled", f"session {self.id} {'has expired' if expired else 'was deleted'}")
        for call in self.calls.values():
            if not call.state.is_final:
                cancel(call, failure)
        for variable in self.variables.values():
            if variable.producer is None:
                variable.cancel(failure)
        self.event_log.emit(SessionEnded(expired))
        self.event_log.close()
        self.resources.leave()

    def dissolve(self) -> bool:
        """Remove all calls and variables, which form reference cycles, once no client reads them any more.

        Otherwise they stay in memory until the cycle collector runs, which pauses the whole process. Do nothing, and
        return False, while a call is unfinished or a client reads.
        """
        if self.is_in_use or any(variable.subscribers for call in self.calls.values() for variable in call.outputs):
            return False
        for call in self.calls.values():
            call.on_change = call.leader = None
            call.followers.clear()
            call.children.clear()
            call.unfinished_followers = 0
            for variable in (*call.outputs, *call.inputs.values()):
                variable.producer = None
                variable.consumers.clear()
                variable.unfinished_consumers = 0
        self.calls.clear()
        self.variables.clear()
        self.reusable_calls.clear()
        self.event_log.close()
        self.event_log.events.clear()
        return True
