"""What happens in a session, in order: told to whoever watches it, and kept by whoever keeps it."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from gateway.graph.errors import Failure

if TYPE_CHECKING:
    from gateway.graph.call import Call, CallState
    from gateway.graph.session import Session
    from gateway.graph.variable import VariableState


@dataclass(frozen=True, slots=True)
class VariableChanged:
    """A variable came to be or changed its state."""

    name: str
    state: "VariableState"
    failure: Failure | None


@dataclass(frozen=True, slots=True)
class VariableDeleted:
    """A name is free again."""

    name: str


@dataclass(frozen=True, slots=True)
class CallChanged:
    """A call changed its state. `call` goes on changing; what it is now need not be what it was then."""

    call: "Call"
    state: "CallState"
    failure: Failure | None


@dataclass(frozen=True, slots=True)
class SessionEnded:
    """Deleted or expired; nothing comes after it."""


Change = VariableChanged | VariableDeleted | CallChanged | SessionEnded


@dataclass(frozen=True, slots=True)
class Event:
    """A change that watchers are told. `id` grows; `at` is in seconds of the Unix clock."""

    id: int
    at: float
    change: Change


@dataclass(frozen=True, slots=True)
class Assigned:
    """A value that is about to become readable. No event: nobody is told before it is kept."""

    name: str
    value: str


@dataclass(frozen=True, slots=True)
class Added:
    """A call joined the graph."""

    call: "Call"


@dataclass(frozen=True, slots=True)
class Made:
    """A slot's text as it stands in the prompt, before its variable becomes readable."""

    call: "Call"
    slot: str
    text: str


Fact = Event | Assigned | Added | Made


class Log(Protocol):
    """Where facts go. Facts of one session stay in order."""

    def opened(self, session: "Session") -> None:
        """A new session."""

    def write(self, session: "Session", fact: Fact) -> None:
        """Takes a fact; at once, and without fail."""

    async def flushed(self) -> None:
        """Returns when all that was taken before is kept. Raises GraphError `journal_failed` if it cannot be."""


class NoLog:
    """Keeps nothing."""

    def opened(self, session: "Session") -> None:
        """See `Log.opened`."""

    def write(self, session: "Session", fact: Fact) -> None:
        """See `Log.write`."""

    async def flushed(self) -> None:
        """See `Log.flushed`."""
