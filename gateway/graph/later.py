"""Calls that join a session only once somebody asks for what they make."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from gateway.graph.call import CallSpec
from gateway.graph.errors import TooLarge, VariableAlreadySet
from gateway.graph.session import Addition, Given, Session


@dataclass
class Later:
    """What is kept for one session. The names that its calls make are declared there from the beginning."""

    _makers: dict[str, CallSpec] = field(default_factory=dict)
    """Calls by each name that they make."""
    kept: int = 0
    """Calls that nobody has asked for."""

    def add(self, session: Session, spec: CallSpec, given: Sequence[Given] = ()) -> Addition:
        """Keeps a call whose output is named; what is `given`, and the names it makes, are the session's now.

        Raises GraphError; then nothing has changed.
        """
        names = makes(spec)
        taken = next((one for one in given if one.name in self._makers), None)
        if taken is not None:
            raise VariableAlreadySet(f"{taken.name!r} is made by a call; a name is assigned once", taken.where)
        for name in names:
            if name in self._makers or (name in session.variables and session.variables[name].assigned):
                raise VariableAlreadySet(f"{name!r} is made already; a name is assigned once", spec.where or None)
        if len(session.calls) + self.kept >= session.bounds.calls:
            raise TooLarge(f"session {session.id} has as many calls as may be in one, {session.bounds.calls}")
        declared = [Given(name, where=spec.where) for name in names if name not in session.variables]
        addition = session.add_all((), [*given, *declared])
        self._makers |= dict.fromkeys(names, spec)
        self.kept += 1
        return addition

    def makes(self, name: str) -> bool:
        """Whether a call that is kept makes the variable."""
        return name in self._makers

    def join(self, session: Session, names: Iterable[str]) -> Addition:
        """The calls that make these variables, and those that make what they read, become the session's.

        Raises GraphError; then they are kept on.
        """
        found: dict[int, CallSpec] = {}
        stack = list(names)
        while stack:
            spec = self._makers.get(stack.pop())
            if spec is not None and id(spec) not in found:
                found[id(spec)] = spec
                stack += [part.reference.name for part in spec.references]
        addition = session.add_all(list(found.values()))
        self.kept -= len(found)
        for spec in found.values():
            for name in makes(spec):
                del self._makers[name]
        return addition


def makes(spec: CallSpec) -> list[str]:
    """The names that a call with a named output makes, that one last."""
    assert spec.output is not None
    return [*(slot.name for slot in spec.slots if slot.name is not None), spec.output]
