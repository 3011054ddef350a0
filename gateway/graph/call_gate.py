"""Interface of the limits that calls have to pass to join a session."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from gateway.graph.call import Call, CallSpec


class CallGate(Protocol):
    """Admits calls to sessions. All calls of all sessions pass it, so it is the one place that counts them."""

    def check(self, tenant: str, specs: "Sequence[CallSpec]") -> None:
        """Raise GraphError if the calls may not join a session of the tenant now."""

    def reserve(self, call: "Call") -> None:
        """Reserve an upper bound of what a call of a session may use. A second reservation of a call does nothing."""
