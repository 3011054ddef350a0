"""What happens in a session, in order: told to whoever watches it, and kept by whoever keeps it.

Some events follow from the fact before them and are no facts of their own, though they are numbered: that an added call
waits and what it makes is pending, and that what a call makes ends with it.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from gateway.graph.errors import Failure

if TYPE_CHECKING:
    from gateway.graph.call import Call, CallState
    from gateway.graph.session import Session
    from gateway.graph.variable import Variable, VariableState


@dataclass(frozen=True, slots=True)
class VariableChanged:
    """A variable came to be or changed its state. `variable` goes on changing, as a call does in `CallChanged`."""

    variable: "Variable"
    state: "VariableState"
    failure: Failure | None


@dataclass(frozen=True, slots=True)
class VariableDeleted:
    """A variable lost its name."""

    variable: "Variable"


@dataclass(frozen=True, slots=True)
class CallChanged:
    """A call changed its state. `call` goes on changing; what it is now need not be what it was then."""

    call: "Call"
    state: "CallState"
    failure: Failure | None


@dataclass(frozen=True, slots=True)
class SessionEnded:
    """Nothing comes after it. `expired`: by itself; else it was deleted."""

    expired: bool


Change = VariableChanged | VariableDeleted | CallChanged | SessionEnded


@dataclass(frozen=True, slots=True)
class Event:
    """A change that watchers are told. `id` grows; `at` is in seconds of the Unix clock."""

    id: int
    at: float
    change: Change


@dataclass(frozen=True, slots=True)
class ValueAssignment:
    """A value that is about to become readable. No event: nobody is told before it is kept."""

    variable: "Variable"
    value: str


@dataclass(frozen=True, slots=True)
class CallAddition:
    """A call joined the graph."""

    call: "Call"


@dataclass(frozen=True, slots=True)
class SlotText:
    """A slot's text as it stands in the prompt, before its variable becomes readable."""

    call: "Call"
    slot: str
    text: str


@dataclass(frozen=True, slots=True)
class Exposure:
    """A client is about to be given part of a value that is not whole, and that would not come out the same again."""

    variable: "Variable"


Fact = Event | ValueAssignment | CallAddition | SlotText | Exposure


class Log(Protocol):
    """Where facts go. What is kept is always the beginning of all that was taken, in order."""

    def check(self) -> None:
        """Raises GraphError if facts cannot be kept now, so that nothing new should be begun."""

    def opened(self, session: "Session") -> None:
        """A new session."""

    def write(self, session: "Session", fact: Fact) -> None:
        """Takes a fact, the `session.facts`-th of its session; at once, and without fail."""

    async def flushed(self) -> None:
        """Returns when all that was taken before is kept. Raises GraphError if it cannot be."""


class NoLog:
    """Keeps nothing."""

    def check(self) -> None:
        """See `Log.check`."""

    def opened(self, session: "Session") -> None:
        """See `Log.opened`."""

    def write(self, session: "Session", fact: Fact) -> None:
        """See `Log.write`."""

    async def flushed(self) -> None:
        """See `Log.flushed`."""
