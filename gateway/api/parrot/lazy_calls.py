"""Calls that join their session when a client asks for their outputs."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from gateway.graph.call import CallSpec
from gateway.graph.call_size import CALL_BYTES, spec_bytes
from gateway.graph.errors import GraphError, VariableAlreadySet
from gateway.graph.session import Addition, Session, VariableSpec


@dataclass
class LazyCalls:
    """Lazy calls of one session. The variables that they assign are declared in the session from the beginning."""

    _calls_by_output: dict[str, CallSpec] = field(default_factory=dict)
    """Calls by the name of each of their outputs."""
    count: int = 0
    """Number of calls that have not joined."""
    edges: int = 0
    """Number of inputs of these calls."""

    def add(self, session: Session, spec: CallSpec, values: Sequence[VariableSpec] = ()) -> Addition:
        """Add a lazy call whose output has a name. Its outputs and the variables of `values` join the session now.

        The call counts in the session's limits, as if it had joined. Raises GraphError; then nothing has changed.
        """
        names = output_names(spec)
        if len(set(names)) < len(names):
            raise VariableAlreadySet("two outputs of the call are the same variable", spec.where or None)
        duplicate = next((value for value in values if value.name in self._calls_by_output), None)
        if duplicate is not None:
            message = f"{duplicate.name!r} is the output of a call; a name is assigned once"
            raise VariableAlreadySet(message, duplicate.where)
        for name in names:
            if name in self._calls_by_output or (name in session.variables and session.variables[name].is_assigned):
                raise VariableAlreadySet(f"{name!r} is already assigned; a name is assigned once", spec.where or None)
        edges, size = _edges(spec), _size(spec)
        session.resources.check(calls=self.count + 1, edges=self.edges + edges, size=size)
        declared = [VariableSpec(name, where=spec.where) for name in names if name not in session.variables]
        addition = session.add_all((), [*values, *declared])
        self._calls_by_output |= dict.fromkeys(names, spec)
        self.count += 1
        self.edges += edges
        session.resources.add_bytes(size)
        return addition

    def produces(self, name: str) -> bool:
        """Return whether a lazy call assigns the variable."""
        return name in self._calls_by_output

    def join(self, session: Session, names: Iterable[str]) -> Addition:
        """Add the calls that assign these variables to the session, and the calls that assign the variables that these
        read.

        Raises GraphError; then the calls stay lazy.
        """
        found: dict[int, CallSpec] = {}
        stack = list(names)
        while stack:
            spec = self._calls_by_output.get(stack.pop())
            if spec is not None and id(spec) not in found:
                found[id(spec)] = spec
                stack += [part.reference.name for part in spec.references]
        size = sum(map(_size, found.values()))
        session.resources.add_bytes(-size)
        try:
            addition = session.add_all(list(found.values()))
        except GraphError:
            session.resources.add_bytes(size)
            raise
        self.count -= len(found)
        self.edges -= sum(map(_edges, found.values()))
        for spec in found.values():
            for name in output_names(spec):
                del self._calls_by_output[name]
        return addition


def _edges(spec: CallSpec) -> int:
    """Return the number of variables that a call reads, at most."""
    return len({part.reference.name for part in spec.references})


def _size(spec: CallSpec) -> int:
    """Return the memory of a call, in bytes."""
    return CALL_BYTES + spec_bytes(spec)


def output_names(spec: CallSpec) -> list[str]:
    """Return the names of a call's outputs; that of the answer is the last."""
    assert spec.output is not None
    return [*(slot.name for slot in spec.slots if slot.name is not None), spec.output]
