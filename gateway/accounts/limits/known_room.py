"""Room that the limits of one key certainly have, so that most requests need no look at each meter."""

import math
from collections.abc import Iterable

from gateway.accounts.limits.meter import LocalMeter


class KnownRoom:
    """Lower bounds of the room in the meters of one key, as of the last look at them.

    What requests take is subtracted. What they give back, and what time refills, is not added. So the real room is
    never smaller, and the meters are looked at again once a bound is used up. Without a look, there is no room.
    """

    __slots__ = ("cost", "requests", "tokens")

    def __init__(self) -> None:
        self.requests = 0.0
        """Number of requests that may enter; a request needs 1."""
        self.tokens = 0.0
        """Number of tokens that calls may reserve; a call needs 1, and may then reserve more."""
        self.cost = 0.0
        """Cost that calls may reserve; a call needs more than 0, and may then reserve more."""

    def forget(self) -> None:
        """Forget the bounds, because the limits or the use have changed in another way."""
        self.requests = self.tokens = self.cost = 0.0

    def measure(self, meters: Iterable[tuple[str, LocalMeter]], now: float) -> None:
        """Set the bounds from all meters of the key."""
        self.requests = self.tokens = self.cost = math.inf
        for kind, meter in meters:
            left = meter.remaining(now)
            if kind in ("requests", "parallel"):
                self.requests = min(self.requests, left)
            elif kind == "budget_cost":
                self.cost = left
            else:
                self.tokens = min(self.tokens, left)
