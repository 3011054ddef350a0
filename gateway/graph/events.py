"""Events of a session, in order. Clients watch them, and a sink stores them as facts.

Some events follow from the fact before them. They have a number, but the sink does not store them: a new call is
waiting, its outputs are pending, and the outputs of a call end with the call.
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
    """A variable was created or changed its state. `variable` keeps changing, so `state` may differ from its state."""

    variable: "Variable"
    state: "VariableState"
    failure: Failure | None


@dataclass(frozen=True, slots=True)
class VariableDeleted:
    """A variable was deleted: it lost its name."""

    variable: "Variable"


@dataclass(frozen=True, slots=True)
class CallChanged:
    """A call changed its state. `call` keeps changing, so `state` may differ from its current state."""

    call: "Call"
    state: "CallState"
    failure: Failure | None


@dataclass(frozen=True, slots=True)
class SessionEnded:
    """The last event of a session. `expired`: its time to live ended; otherwise a client deleted it."""

    expired: bool


Change = VariableChanged | VariableDeleted | CallChanged | SessionEnded


@dataclass(frozen=True, slots=True)
class Event:
    """A change that clients can watch. `id` grows; `time` is in seconds of the Unix clock."""

    id: int
    time: float
    change: Change


@dataclass(frozen=True, slots=True)
class ValueAssignment:
    """A value that is about to become readable. It is not an event: no client may learn it before it is stored."""

    variable: "Variable"
    value: str


@dataclass(frozen=True, slots=True)
class CallAddition:
    """A call joined the graph."""

    call: "Call"


@dataclass(frozen=True, slots=True)
class SlotText:
    """Text of a slot as it stands in the prompt, recorded before the slot's variable becomes readable."""

    call: "Call"
    slot: str
    text: str


@dataclass(frozen=True, slots=True)
class Exposure:
    """A client is about to get part of an unfinished value that sampling would not reproduce."""

    variable: "Variable"


Fact = Event | ValueAssignment | CallAddition | SlotText | Exposure


class FactSink(Protocol):
    """Destination of facts: the journal. The stored facts are always a prefix of the written facts, in order."""

    def check(self) -> None:
        """Raise GraphError if the sink cannot store facts now, so that no new work may begin."""

    def open_session(self, session: "Session") -> None:
        """Record a new session."""

    def write(self, session: "Session", fact: Fact) -> None:
        """Append the fact with the number `session.event_log.fact_count`. It does not wait and does not raise."""

    async def flush(self) -> None:
        """Wait until all facts written before are stored. Raises GraphError if they cannot be stored."""


class NullSink:
    """A sink that stores nothing."""

    def check(self) -> None:
        """Do nothing. See `FactSink.check`."""

    def open_session(self, session: "Session") -> None:
        """Do nothing. See `FactSink.open_session`."""

    def write(self, session: "Session", fact: Fact) -> None:
        """Do nothing. See `FactSink.write`."""

    async def flush(self) -> None:
        """Return immediately. See `FactSink.flush`."""
