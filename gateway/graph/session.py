"""A session: the scope of names. Its calls and variables form one DAG.

Parrot (Lin et al., OSDI'24) calls the questions asked of it GetProducer, GetConsumers and PrefixHash.
"""

import difflib
import hashlib
import itertools
import secrets
import time
from array import array
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from gateway.graph.call import Call, CallSpec, CallState, Input, Text, Times
from gateway.graph.errors import Cycle, Failure, TooLarge, UnknownVariable, VariableAlreadySet
from gateway.graph.references import check_name
from gateway.graph.variable import Variable, VariableState

_arrivals = itertools.count()


@dataclass(frozen=True)
class Bounds:
    """How large one session may grow."""

    calls: int = 10_000
    variables: int = 20_000
    value_bytes: int = 1 << 20


@dataclass
class Session:
    """Owner of its variables and calls. Changes are all or nothing: whatever raises has changed nothing."""

    id: str
    tenant: str
    created: float
    ttl: float
    metadata: dict[str, str] = field(default_factory=dict)
    bounds: Bounds = field(default_factory=Bounds)
    variables: dict[str, Variable] = field(default_factory=dict)
    calls: dict[str, Call] = field(default_factory=dict)
    closed: bool = False
    touched: float = field(default_factory=time.monotonic)

    # names

    def variable(self, name: str, where: str | None = None) -> Variable:
        """The variable of that name. Raises UnknownVariable, which names the nearest known ones."""
        if name not in self.variables:
            raise UnknownVariable(self._unknown(name), where)
        return self.variables[name]

    def _unknown(self, name: str) -> str:
        near = difflib.get_close_matches(name, self.variables, n=3)
        hint = f"; did you mean {' or '.join(f'<<{n}>>' for n in near)}?" if near else ""
        return f"session {self.id} has no variable {name!r}{hint}"

    def declare(self, name: str) -> Variable:
        """A variable without a value yet; the one that is there, if it is only declared."""
        return self._place(name, "name")

    def set(self, name: str, value: str) -> Variable:
        """Sets a variable, declared before or not. Raises VariableAlreadySet, BadReference, TooLarge."""
        self._check_value(name, value, "value")
        variable = self._place(name, "name")
        variable.set(value)
        return variable

    def _check_value(self, name: str, value: str, where: str) -> None:
        size = len(value.encode())
        if size > self.bounds.value_bytes:
            raise TooLarge(f"the value of {name!r} has {size} bytes; at most {self.bounds.value_bytes} are kept", where)

    def _place(self, name: str, where: str) -> Variable:
        """The unassigned variable `name`, made if need be."""
        self._check_free(name, where)
        if name not in self.variables:
            self.variables[name] = Variable(name)
        return self.variables[name]

    def _check_free(self, name: str, where: str) -> None:
        check_name(name, where)
        known = self.variables.get(name)
        if known is not None and known.assigned:
            raise VariableAlreadySet(f"{name!r} is {known.state} already; a name is assigned once", where)
        if known is None and len(self.variables) >= self.bounds.variables:
            raise TooLarge(f"session {self.id} has {len(self.variables)} variables, as many as it may", where)

    # calls

    def add(self, spec: CallSpec, inputs: Mapping[str, str] | None = None) -> Call:
        """Joins a call to the graph, with variables set by value before it.

        Raises UnknownVariable, BadReference, VariableAlreadySet, Cycle or TooLarge.
        """
        inputs = inputs or {}
        if len(self.calls) >= self.bounds.calls:
            raise TooLarge(f"session {self.id} has {len(self.calls)} calls, as many as it may")
        for name, value in inputs.items():
            self._check_free(name, f"semantic.inputs.{name}")
            self._check_value(name, value, f"semantic.inputs.{name}")
        output = spec.output or self._generated_name()
        self._check_free(output, "semantic.output")
        if output in inputs:
            raise VariableAlreadySet(f"{output!r} is set in inputs and named as output", "semantic.output")
        read: dict[str, str] = {}
        for segment in spec.segments:
            if isinstance(segment, Input):
                name = segment.reference.name
                if name not in inputs and name != output:
                    self.variable(name, segment.where)
                read.setdefault(name, segment.where)
        self._check_cycle(output, read)

        for name, value in inputs.items():
            self._place(name, f"semantic.inputs.{name}").set(value)
        variable = self._place(output, "semantic.output")
        call = Call(
            id=f"call_{secrets.token_hex(8)}",
            spec=spec,
            inputs={name: self.variables[name] for name in read},
            output=variable,
            times=Times(created=time.time()),
            scope=self.tenant,
            arrival=next(_arrivals),
        )
        variable.produced_by(call)
        for source in call.inputs.values():
            source.consumers.append(call)
        self.calls[call.id] = call
        return call

    def _generated_name(self) -> str:
        while (name := f"v_{secrets.token_hex(6)}") in self.variables:
            pass
        return name

    def _check_cycle(self, output: str, read: Mapping[str, str]) -> None:
        """Refuses a call whose inputs wait, through other calls, for its own output."""
        for start, where in read.items():
            path = self._path_back(start, output)
            if path:
                raise Cycle(f"this call would wait for itself: {' <- '.join([output, *path])}", where)

    def _path_back(self, start: str, goal: str) -> list[str]:
        """Names from `start` back to `goal` along producers' inputs; empty if there is no such way."""
        came_from: dict[str, str | None] = {start: None}
        stack = [start]
        while stack:
            name = stack.pop()
            if name == goal:
                path = []
                at: str | None = name
                while at is not None:
                    path.append(at)
                    at = came_from[at]
                return path[::-1]
            producer = self.variables[name].producer if name in self.variables else None
            for source in producer.inputs if producer is not None else ():
                if source not in came_from:
                    came_from[source] = name
                    stack.append(source)
        return []

    # questions

    def producer(self, name: str) -> Call | None:
        """The call that makes the variable, if any."""
        return self.variable(name).producer

    def consumers(self, name: str) -> list[Call]:
        """The calls that read the variable."""
        return list(self.variable(name).consumers)

    def prefix_hash(self, call: Call, segments: int) -> str:
        """Identifies the first `segments` segments of the prompt: equal for equal text and equal sources."""
        digest = hashlib.blake2b(digest_size=16)
        for segment in call.spec.segments[:segments]:
            if isinstance(segment, Text):
                digest.update(b"t" + array("i", segment.tokens).tobytes())
            else:
                digest.update(f"v{self.id}\0{segment.reference}\0".encode())
        return digest.hexdigest()

    @property
    def active(self) -> bool:
        """Whether any call is unfinished."""
        return any(not call.state.final for call in self.calls.values())

    @property
    def in_use(self) -> bool:
        """Whether any call is unfinished or anybody waits for a variable."""
        return self.active or any(variable.readers for variable in self.variables.values())

    # endings

    def close(self, cancel: Callable[[Call, Failure], None]) -> None:
        """Ends the session: every unfinished call is cancelled, every unassigned variable as well."""
        self.closed = True
        failure = Failure("cancelled", f"session {self.id} was deleted")
        for call in self.calls.values():
            if not call.state.final:
                cancel(call, failure)
        for variable in self.variables.values():
            if variable.state is VariableState.DECLARED:
                variable.cancel(failure)

    def usage(self) -> dict[str, int]:
        """Tokens and calls, summed."""
        calls = self.calls.values()
        return {
            "prompt_tokens": sum(call.usage.prompt for call in calls),
            "cached_tokens": sum(call.usage.cached for call in calls),
            "completion_tokens": sum(call.usage.completion for call in calls),
            "calls_run": sum(call.state is CallState.DONE for call in calls),
            "calls_shared": 0,
        }
