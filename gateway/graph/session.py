"""A session: a scope of variable names. Its calls and variables form one directed acyclic graph.

Parrot (Lin et al., OSDI'24) has such a graph. Its GetProducer and GetConsumers are `Variable.producer` and
`Variable.consumers`; its PrefixHash is `Session.prefix_hashes`.
"""

import asyncio
import bisect
import difflib
import itertools
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from gateway.graph.call import Call, CallSpec, CallState, Input, Slot, Text, Times, Usage
from gateway.graph.errors import (
    Cycle,
    Failure,
    GraphError,
    SessionClosed,
    TooLarge,
    TooManyWaiters,
    UnknownVariable,
    VariableAlreadySet,
)
from gateway.graph.events import (
    CallAddition,
    CallChanged,
    Change,
    Event,
    Exposure,
    Fact,
    Log,
    NoLog,
    SessionEnded,
    SlotText,
    ValueAssignment,
    VariableChanged,
    VariableDeleted,
)
from gateway.graph.ids import new_id
from gateway.graph.limits import SharedLimit
from gateway.graph.prefix_hash import prefix_keys
from gateway.graph.references import check_name
from gateway.graph.text import check_text, size_of
from gateway.graph.variable import Reader, Variable, VariableState

_arrivals = itertools.count()
_SUGGESTION_POOL = 100
"""Number of names that are compared with an unknown name, to suggest similar ones."""
_REFERENCE_BYTES, CALL_BYTES, _VARIABLE_BYTES, _SLOT_BYTES = 200, 4_000, 500, 500
"""Memory of a reference, of a call with its events, of a variable, and of a slot, in bytes, without texts."""
_TOKEN_BYTES, _BIAS_BYTES = 40, 110
"""Memory of a stop token, and of a token with a bias, in bytes."""
_NO_LOG = NoLog()


@dataclass(frozen=True)
class SessionLimits:
    """Limits of one session. `edges`: inputs of all calls. `depth`: calls on a path through the graph. `value_bytes`:
    bytes of one value. `bytes`: bytes of all values and prompts. `waiters`: waiting requests."""

    calls: int = 10_000
    variables: int = 20_000
    edges: int = 100_000
    value_bytes: int = 1 << 20
    bytes: int = 256 << 20
    depth: int = 1_000
    waiters: int = 10_000


@dataclass(frozen=True)
class SharedLimits:
    """Limits of all sessions together: bytes of values and prompts, and waiting requests."""

    bytes: SharedLimit
    waiters: SharedLimit


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

    Set the `values` with `Session.settle` once the log has stored them.
    """

    calls: Sequence[Call]
    values: Sequence[tuple[Variable, str]]


@dataclass(eq=False)
class Session:
    """Owner of its variables and calls. A method that raises an error has changed nothing.

    `log` stores the session's facts. A session without an id belongs to one request: its facts are neither stored nor
    emitted as events.
    """

    id: str
    tenant: str
    created: float
    ttl: float
    metadata: dict[str, str] = field(default_factory=dict)
    bounds: SessionLimits = field(default_factory=SessionLimits)
    log: Log = _NO_LOG
    shared_bounds: SharedLimits | None = None
    """Limits that also count what this session holds, from `join_bounds` until `close`."""
    clock: Callable[[], float] = time.time
    """Current time in seconds: the Unix clock, or a clock of a simulation."""
    variables: dict[str, Variable] = field(default_factory=dict)
    calls: dict[str, Call] = field(default_factory=dict)
    closed: bool = False
    lost: GraphError | None = None
    """Error because of which the log cannot store the session, if there is one."""
    touched: float = field(default_factory=time.monotonic)
    unfinished: int = 0
    """Number of calls that have not ended."""
    waiters: int = 0
    """Number of requests that wait for the session's variables or watch its events."""
    named: int = 0
    """Number of variables that the session ever had, including deleted ones."""
    edges: int = 0
    """Number of inputs of all calls."""
    size: int = 0
    """Bytes of all values and prompts."""
    events: list[Event] = field(default_factory=list)
    retired: set[str] = field(default_factory=set)
    """Names of deleted variables that were ready. They cannot be used again, because a client may have read the
    value."""
    shared: dict[bytes, Call] = field(default_factory=dict)
    """Calls that may serve identical calls, by their digest."""
    facts: int = 0
    """Number of facts so far. It numbers the events."""
    ended: bool = False
    """Whether the last event was emitted."""
    _event_future: "asyncio.Future[None] | None" = None
    _joining: Call | None = None
    """The call that is being added. Events that follow from its addition are not stored."""

    # names of variables

    def variable(self, name: str, where: str | None = None) -> Variable:
        """Return the variable of that name. Raises UnknownVariable, which suggests similar names."""
        if name not in self.variables:
            raise self._unknown(name, reversed(self.variables), where)
        return self.variables[name]

    def _unknown(self, name: str, known: Iterable[str], where: str | None) -> UnknownVariable:
        matches = difflib.get_close_matches(name, itertools.islice(known, _SUGGESTION_POOL), n=3)
        hint = f"; did you mean {' or '.join(f'<<{n}>>' for n in matches)}?" if matches else ""
        return UnknownVariable(f"session {self.id} has no variable {name!r}{hint}", where)

    def _check_free(self, name: str, where: str) -> None:
        check_name(name, where)
        known = self.variables.get(name)
        if known is not None and known.is_assigned:
            raise VariableAlreadySet(f"{name!r} is {known.state} already; a name is assigned once", where)
        if name in self.retired:
            raise VariableAlreadySet(f"{name!r} had a value that was readable; the name cannot be used again", where)

    # additions

    def put(self, name: str, value: str | None = None, template: Sequence[str | Input] | None = None) -> Addition:
        """Add one variable. See `VariableSpec`."""
        return self.add_all((), [VariableSpec(name, value, template)])

    def add(self, spec: CallSpec) -> Call:
        """Add one call, and set its inputs. See `add_all`."""
        addition = self.add_all([spec])
        self.settle(addition)
        return addition.calls[0]

    def add_all(self, specs: Sequence[CallSpec], given: Sequence[VariableSpec] = ()) -> Addition:
        """Add variables and calls, which may refer to each other in any order. Add all of them, or raise an error.

        Raises UnknownVariable, BadReference, VariableAlreadySet, Cycle, TooLarge or SessionClosed.
        """
        if self.id:
            self.log.check()
        if self.lost is not None:
            raise self.lost
        if self.closed:  # the session ended after the request had found it in the store
            raise SessionClosed(f"session {self.id} has ended")
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
                self._add_value(values, name, value, spec.at(f"semantic.inputs.{name}"))
        for name, where in declared.items():
            self._check_free(name, where)
            if name in values:
                raise VariableAlreadySet(f"{name!r} is declared and set in the same request", where)
        produced: dict[str, int] = {}
        outputs = [self._output_names(spec, produced, index, values) for index, spec in enumerate(everything)]
        fresh = {name: None for name in (*produced, *values, *declared) if name not in self.variables}
        reads = [self._input_names(spec, fresh) for spec in everything]
        depths = self._check_order(everything, outputs, reads, produced)
        for spec in everything:
            for part in spec.parts or ():
                if isinstance(part, str):
                    check_text(part, "the text", spec.where or None)
        grown = sum(map(size_of, values.values())) + sum(map(spec_bytes, everything))
        objects = CALL_BYTES * len(everything) + _VARIABLE_BYTES * len(fresh)
        self._check_bounds(len(everything), len(fresh), sum(map(len, reads)), grown + objects)

        self._grow(grown)
        placed = []
        for name in (*declared, *values):
            variable = self._variable_or_new(name)
            if name in fresh:
                self._note_variable(variable)
            if name in values:
                variable.reserved = True
                self._write(ValueAssignment(variable, values[name]))
                placed.append((variable, values[name]))
        for name in produced:
            self._variable_or_new(name)
        calls = [self._join(spec, outputs[index], reads[index], depths[index]) for index, spec in enumerate(everything)]
        return Addition(calls, placed)

    def settle(self, addition: Addition, failure: Failure | None = None) -> None:
        """Set the values of an addition, or fail their variables because of `failure`."""
        for variable, value in addition.values:
            if failure is not None:
                variable.fail(failure)
            elif not variable.state.final:  # the session may have ended in the meantime
                variable.set(value)

    def _add_value(self, values: dict[str, str], name: str, value: str, where: str) -> None:
        self._check_free(name, where)
        check_text(value, f"the value of {name!r}", where)
        self._check_value_size(name, size_of(value), where)
        if name in values:
            raise VariableAlreadySet(f"{name!r} is set twice", where)
        values[name] = value

    def _output_names(
        self, spec: CallSpec, produced: dict[str, int], index: int, values: Mapping[str, object]
    ) -> list[str]:
        """Return the names that the call produces, its output last."""
        names = [(slot.name, slot.where) for slot in spec.slots if slot.name is not None]
        if spec.output:
            names.append((spec.output, spec.at("semantic.output") if spec.model else spec.where))
        for name, place in names:
            self._check_free(name, place)
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

    def _input_names(self, spec: CallSpec, fresh: Mapping[str, object]) -> dict[str, str]:
        """Return the names that the call reads, each with the field that reads it first. Its own slots are left out."""
        if not spec.references:
            return {}
        done: set[str] = set()
        own = {slot.name for slot in spec.slots}
        read: dict[str, str] = {}
        for segment in (*spec.segments, *(spec.parts or ())):
            if isinstance(segment, Slot) and segment.name is not None:
                done.add(segment.name)
            elif isinstance(segment, Input):
                name, where = segment.reference.name, segment.where
                if name in done:
                    continue
                if name in own:
                    raise Cycle(f"{segment.reference} is read before the place where it is generated", where)
                if name not in self.variables and name not in fresh:
                    raise self._unknown(name, itertools.chain(fresh, reversed(self.variables)), where)
                read.setdefault(name, where)
        return read

    def _check_order(
        self,
        specs: Sequence[CallSpec],
        outputs: Sequence[Sequence[str]],
        reads: Sequence[Mapping[str, str]],
        produced: Mapping[str, int],
    ) -> list[int]:
        """Return the depths of the calls. Raises Cycle if a call would wait for itself, TooLarge if a path is too long.

        An existing call can wait for a new one only through a name that was declared and read before, and is produced
        now. Without such a name, existing calls need not be visited.
        """
        adopts = bool(self.variables) and any(
            name in self.variables and self.variables[name].consumers for name in produced
        )
        if not adopts and not any(reads):
            return [1] * len(specs)
        depths: dict[int | str, int] = {}
        for start in range(len(specs)):
            if start in depths:
                continue
            # nodes: indexes of new calls, ids of existing calls; each with the inputs that were not visited yet
            path: list[tuple[int | str, Iterator[str]]] = [(start, iter(reads[start]))]
            entered: dict[int | str, str] = {start: outputs[start][-1]}
            depths[start] = 1
            while path:
                node, unread = path[-1]
                name = next(unread, None)
                if name is None:
                    path.pop()
                    del entered[node]
                    if path:
                        parent = path[-1][0]
                        depths[parent] = max(depths[parent], depths[node] + 1)
                    continue
                # an existing call keeps the variable that it read, even if the name was deleted and used again since
                variable = self.calls[node].inputs[name] if isinstance(node, str) else self.variables.get(name)
                gone = variable is not None and variable.deleted
                source: int | str | None = None if gone else produced.get(name)
                old = variable.producer if source is None and variable is not None else None
                if old is not None:
                    if not adopts:
                        depths[node] = max(depths[node], old.depth + 1)
                        continue
                    source = old.id
                if source is None:
                    continue
                if source in entered:
                    raise _cycle(entered, source, name, reads)
                if source in depths:
                    depths[node] = max(depths[node], depths[source] + 1)
                    continue
                depths[source] = 1
                entered[source] = name
                path.append((source, iter(reads[source] if isinstance(source, int) else self.calls[source].inputs)))
        for index, spec in enumerate(specs):
            self._check_depth(depths[index], spec)
        if adopts:
            self._deepen(specs, outputs, depths)
        return [depths[index] for index in range(len(specs))]

    def _check_depth(self, depth: int, spec: CallSpec) -> None:
        if depth > self.bounds.depth:
            raise TooLarge(
                f"{depth} calls would wait for one another in a row; the maximum is {self.bounds.depth}",
                spec.where or None,
            )

    def _deepen(
        self, specs: Sequence[CallSpec], outputs: Sequence[Sequence[str]], depths: Mapping[int | str, int]
    ) -> None:
        """Increase the depth of existing calls that read, directly or not, a variable that is produced now."""
        deeper: dict[str, int] = {}
        for index, spec in enumerate(specs):
            stack = [(self.variables[name], depths[index]) for name in outputs[index] if name in self.variables]
            while stack:
                variable, depth = stack.pop()
                for call in variable.consumers:
                    if max(call.depth, deeper.get(call.id, 0)) <= depth:
                        self._check_depth(depth + 1, spec)
                        deeper[call.id] = depth + 1
                        stack += [(output, depth + 1) for output in call.outputs]
        for id, depth in deeper.items():
            self.calls[id].depth = depth

    def _check_bounds(self, calls: int, variables: int, edges: int, grown: int) -> None:
        bounds = self.bounds
        if self.edges + edges > bounds.edges:
            raise TooLarge(
                f"the calls of session {self.id} read {self.edges + edges} inputs; the maximum is {bounds.edges}"
            )
        if len(self.calls) + calls > bounds.calls:
            raise TooLarge(f"session {self.id} has {len(self.calls)} calls; the maximum is {bounds.calls}")
        if self.named + variables > bounds.variables:
            raise TooLarge(f"session {self.id} has had {self.named} variables; the maximum is {bounds.variables}")
        self._check_size(grown)

    def check_held(self, calls: int, edges: int, grown: int) -> None:
        """Raise TooLarge if the session may not hold this many more calls, inputs of calls, and bytes."""
        self._check_bounds(calls, 0, edges, grown)

    def hold(self, size: int) -> None:
        """Count bytes that the session holds for calls that are not in its graph yet. A negative size releases them."""
        self._grow(size)

    def _variable_or_new(self, name: str) -> Variable:
        """Return the unassigned variable `name`; create it if there is none."""
        return self.variables.get(name) or self.place(name, self.named + 1)

    def place(self, name: str, number: int) -> Variable:
        """Create variable number `number` of the session."""
        self.named = max(self.named, number)
        self._grow(_VARIABLE_BYTES)
        variable = self.variables[name] = Variable(name, self._note_variable if self.id else None, number)
        return variable

    def _join(self, spec: CallSpec, outputs: Sequence[str], reads: Iterable[str], depth: int) -> Call:
        *slots, output = [self.variables[name] for name in outputs]
        call = Call(
            id=f"call_{new_id(16)}",
            spec=spec,
            inputs={name: self.variables[name] for name in reads},
            slots={slot.name: slot for slot in slots},
            output=output,
            times=Times(created=self.clock()),
            session=self,
            arrival=next(_arrivals),
            depth=depth,
        )
        if self.id:
            self._write(CallAddition(call))
        self._connect(call)
        return call

    def rejoin(self, call: Call) -> None:
        """Add a call that was part of the graph before a restart. The journal sets its state later."""
        call.arrival = next(_arrivals)
        self._grow(spec_bytes(call.spec))
        self._connect(call)

    def _connect(self, call: Call) -> None:
        """Connect a call with its variables and count it. A replay of the fact that the call was added repeats this."""
        call.note = self._note_call
        self.calls[call.id] = call
        self.edges += len(call.inputs)
        self._grow(CALL_BYTES)
        self.unfinished += 1
        for source in call.inputs.values():
            source.consumers.append(call)
            source.unfinished_consumers += 1
        self._joining = call
        self._note_call(call)
        for variable in call.outputs:
            variable.bind_producer(call)
        self._joining = None

    # facts and events

    async def flushed(self) -> None:
        """Wait until the log has stored all facts so far. Raises GraphError if it cannot store them."""
        await self.log.flushed()
        if self.lost is not None:
            raise self.lost

    def _write(self, fact: Fact) -> None:
        if self.id and not self.ended:
            self.facts += 1
            self.log.write(self, fact)

    def _emit(self, change: Change, at: float | None = None) -> None:
        """Emit an event and store it.

        `at`: time of the fact before, if the event follows from it. The log does not store such an event.
        """
        if not self.id or self.ended:
            return
        event = Event(self.facts + 1, self.clock() if at is None else at, change)
        self.events.append(event)
        if at is None:
            self._write(event)
        else:
            self.facts += 1
        future, self._event_future = self._event_future, None
        if future is not None and not future.done():
            future.set_result(None)

    def _note_variable(self, variable: Variable) -> None:
        if variable.deleted or not self.id:
            return
        change = VariableChanged(variable, variable.state, variable.failure)
        producer = variable.producer
        if producer is not None and (producer is self._joining or producer.state.final):
            self._emit(change, self.last_event_time)
        else:
            self._emit(change)

    def _note_call(self, call: Call) -> None:
        if call.state.final:
            self.call_ended(call)
        if not self.id:
            return
        joining = call is self._joining
        self._emit(CallChanged(call, call.state, call.failure), call.times.created if joining else None)

    def call_ended(self, call: Call) -> None:
        """Count a call that has just reached a final state."""
        self.unfinished -= 1
        for source in call.inputs.values():
            source.unfinished_consumers -= 1
        if call.leader is not None:
            call.leader.unfinished_followers -= 1

    def record_value(self, variable: Variable, value: str) -> None:
        """Record the value that a variable is about to get. Raises BadText or TooLarge."""
        check_text(value, f"the value of {variable.name!r}")
        self.check_room(variable.name, size_of(value))
        self.grow(value)
        self._write(ValueAssignment(variable, value))

    def check_room(self, name: str, size: int) -> None:
        """Raise TooLarge if a value of `size` bytes is too large by itself, or together with what is held already.

        Call it before a value is built from other values: few small values can form a large one.
        """
        self._check_value_size(name, size, None)
        self._check_size(size)

    def _check_value_size(self, name: str, size: int, where: str | None) -> None:
        if size > self.bounds.value_bytes:
            raise TooLarge(f"the value of {name!r} has {size} bytes; the maximum is {self.bounds.value_bytes}", where)

    def _check_size(self, grown: int) -> None:
        if self.size + grown > self.bounds.bytes:
            raise TooLarge(f"session {self.id} holds {self.size} bytes; the maximum is {self.bounds.bytes}")
        shared = self.shared_bounds
        if shared is not None and not shared.bytes.has_room(self.tenant, grown):
            held = shared.bytes.held(self.tenant)
            raise TooLarge(f"the sessions of this key hold {held} bytes, the current maximum; delete some or wait")

    def grow(self, value: str) -> None:
        """Count a value that the session holds."""
        self._grow(size_of(value))

    def _grow(self, size: int) -> None:
        self.size += size
        if self.shared_bounds is not None and not self.ended:  # `close` has removed all that it held
            self.shared_bounds.bytes.add(self.tenant, size)

    def join_bounds(self, bounds: SharedLimits) -> None:
        """Count what the session holds in the bounds for all sessions."""
        self.shared_bounds = bounds
        bounds.bytes.add(self.tenant, self.size)

    def record_slot_text(self, call: Call, slot: str, text: str) -> None:
        """Record the text of a slot, before it becomes part of the prompt. Raises BadText or TooLarge."""
        check_text(text, f"the text of slot {slot!r}")
        self._check_value_size(slot, size_of(text), None)
        call.slot_texts[slot] = text
        self._write(SlotText(call, slot, text))

    @property
    def last_event_time(self) -> float:
        """Time of the last event, in seconds of the Unix clock; the session's creation if there was none."""
        return self.events[-1].at if self.events else self.created

    @property
    def last_event(self) -> int:
        """Id of the last event; 0 if there was none."""
        return self.events[-1].id if self.events else 0

    def read(self, variable: Variable) -> Reader:
        """Return a reader for a client. The part that the client gets is never generated again with another text, also
        not after a restart of the process."""
        return variable.read(self._expose)

    async def _expose(self, variable: Variable) -> None:
        random = variable.producer is not None and not variable.producer.spec.deterministic
        if not variable.is_exposed:
            variable.is_exposed = True
            if random:
                self._write(Exposure(variable))
        if random and self.id:  # a second reader waits for the flush as well
            await self.flushed()
        variable.exposure_persisted = True

    async def more_events(self, after: int) -> Sequence[Event]:
        """Wait for events numbered above `after`, and return them once they are stored. Return none after the last
        one."""
        while True:
            index = bisect.bisect_right(self.events, after, key=lambda event: event.id)
            if index < len(self.events):
                last = len(self.events)
                await self.flushed()
                return self.events[index:last]
            if self.closed:
                return []
            if self._event_future is None:
                self._event_future = asyncio.get_running_loop().create_future()
            await asyncio.shield(self._event_future)

    def enter(self) -> None:
        """Count a request that waits or watches. Raises TooManyWaiters. Pair it with `leave`."""
        if self.waiters >= self.bounds.waiters:
            raise TooManyWaiters(f"{self.waiters} requests wait for session {self.id}, the maximum; try again later")
        if self.shared_bounds is not None:
            if not self.shared_bounds.waiters.has_room(self.tenant):
                raise TooManyWaiters("too many requests of this key wait for values; try again later")
            self.shared_bounds.waiters.add(self.tenant)
        self.waiters += 1

    def leave(self) -> None:
        """Uncount a request that has its result or lost its client. Restart the session's time to live."""
        self.waiters -= 1
        if self.shared_bounds is not None:
            self.shared_bounds.waiters.remove(self.tenant)
        self.touched = time.monotonic()

    # queries

    def prefix_hashes(self, call: Call) -> list[str]:
        """Return the hashes of the prompt up to each border of segments, in order."""
        return prefix_hashes(call)

    @property
    def active(self) -> bool:
        """Whether a call is unfinished."""
        return self.unfinished > 0

    @property
    def in_use(self) -> bool:
        """Whether a call is unfinished or a request waits."""
        return self.active or self.waiters > 0

    @property
    def is_blocked(self) -> bool:
        """Whether there are unfinished calls that can make no progress until a client sets a variable.

        A graph has no cycles. So if every unfinished call has an input that is not final, the first calls of the graph
        wait for variables that are only declared.
        """
        unfinished = [call for call in self.calls.values() if not call.state.final]
        return bool(unfinished) and all(call.waiting_on for call in unfinished)

    def usage(self) -> dict[str, int]:
        """Return the sums of tokens and calls. A call that another one served has no tokens of its own."""
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
        }

    # ends

    def delete(self, name: str) -> Variable:
        """Delete a variable. Its name becomes free, unless its value was readable. Raises UnknownVariable.

        Calls that wait for it still get what its producer generates. Without a producer they fail, as it will never
        have a value.
        """
        variable = self.variable(name)
        self.remove_name(variable)
        self._emit(VariableDeleted(variable))
        if variable.producer is None:
            variable.cancel(Failure("cancelled", f"variable {name!r} was deleted"))
        return variable

    def remove_name(self, variable: Variable) -> None:
        """Remove the variable's name. The name becomes free, unless the variable was ready under it."""
        del self.variables[variable.name]
        if variable.state is VariableState.READY:
            self.retired.add(variable.name)
        variable.deleted = True

    def close(self, cancel: Callable[[Call, Failure], None], *, expired: bool = False) -> None:
        """End the session. Cancel its unfinished calls and its unassigned variables."""
        self.closed = True
        if self.lost is not None:
            failure = Failure(self.lost.code, str(self.lost))
        else:
            failure = Failure("cancelled", f"session {self.id} {'has expired' if expired else 'was deleted'}")
        for call in self.calls.values():
            if not call.state.final:
                cancel(call, failure)
        for variable in self.variables.values():
            if variable.producer is None:
                variable.cancel(failure)
        self._emit(SessionEnded(expired))
        self.ended = True
        if self.shared_bounds is not None:
            self.shared_bounds.bytes.remove(self.tenant, self.size)

    def dissolve(self) -> bool:
        """Remove all calls and variables, which form reference cycles, once no client reads them any more.

        Otherwise they stay in memory until the cycle collector runs, which pauses the whole process. Do nothing, and
        return False, while a call is unfinished or a client reads.
        """
        if self.in_use or any(variable.subscribers for call in self.calls.values() for variable in call.outputs):
            return False
        for call in self.calls.values():
            call.note = call.leader = None
            call.followers.clear()
            call.unfinished_followers = 0
            for variable in (*call.outputs, *call.inputs.values()):
                variable.producer = None
                variable.consumers.clear()
                variable.unfinished_consumers = 0
        self.calls.clear()
        self.variables.clear()
        self.shared.clear()
        self.events.clear()
        return True


def _cycle(entered: Mapping[int | str, str], source: int | str, name: str, reads: Sequence[Mapping[str, str]]) -> Cycle:
    """Return the error for a cycle. `entered`: the current path, each call with the name through which it was reached.
    `name` leads from its end back to `source`."""
    cycle = list(entered)[list(entered).index(source) :]
    names = [name, *(entered[node] for node in cycle[1:]), name]
    index, new_call = next((index, node) for index, node in enumerate(cycle) if isinstance(node, int))
    where = reads[new_call].get(names[index + 1])
    return Cycle(f"a call would wait for itself: {' <- '.join(names)}", where)


def spec_bytes(spec: CallSpec) -> int:
    """Return the memory of a call's prompts, template and parameters, in bytes. A token of a prompt has four bytes."""
    tokens = sum([len(segment.tokens) for segment in spec.segments if isinstance(segment, Text)])
    texts = sum([size_of(part) for part in spec.parts or () if isinstance(part, str)])
    for rendering in spec.fallbacks:
        tokens += sum([len(segment.tokens) for segment in rendering.segments if isinstance(segment, Text)])
    slots = _SLOT_BYTES * (len(spec.slots) - 1) if spec.slots else 0
    return 4 * tokens + texts + slots + _REFERENCE_BYTES * len(spec.references) + _parameter_bytes(spec.slots)


def _parameter_bytes(slots: Sequence[Slot]) -> int:
    """Return the memory of the slots' parameters of variable size, in bytes. Parameters that slots share count once."""
    seen: set[int] = set()
    size = 0
    for slot in slots:
        sampling = slot.sampling
        if id(sampling) in seen:
            continue
        seen.add(id(sampling))
        for text in (sampling.regex, sampling.json_schema, sampling.grammar, sampling.prediction, *sampling.stop):
            if text and id(text) not in seen:
                seen.add(id(text))
                size += size_of(text)
        for items, each in ((sampling.logit_bias, _BIAS_BYTES), (sampling.stop_token_ids, _TOKEN_BYTES)):
            if items and id(items) not in seen:
                seen.add(id(items))
                size += each * len(items)
        if slot.transform is not None:
            size += len(slot.transform.regex or "") + len(slot.transform.json or "")
    return size


def prefix_hashes(call: Call) -> list[str]:
    """Return hashes of the prompt at each border of segments: equal for equal text and equal sources, in one tenant."""
    return [f"{border.key % 2**64:016x}" for border in prefix_keys(call) if border.ends]
