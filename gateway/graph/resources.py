"""Resources of one session, counted against its own limits and against the limits that all sessions share."""

from dataclasses import dataclass

from gateway.graph.errors import TooLarge, TooManyWaiters
from gateway.graph.limits import SessionLimits, SharedLimits


@dataclass(eq=False)
class SessionResources:
    """Counters of the resources that one session uses. A check that raises an error counts nothing."""

    session: str
    """Id of the session, for messages."""
    tenant: str
    limits: SessionLimits
    calls: int = 0
    edges: int = 0
    """Number of inputs of all calls."""
    variables: int = 0
    """Number of variables that the session ever had, including deleted ones."""
    bytes: int = 0
    """Bytes of all values and prompts."""
    waiters: int = 0
    """Number of requests that wait for the session's variables or watch its events."""
    _shared: SharedLimits | None = None
    _shares_bytes: bool = False
    """Whether the session's bytes count in the shared limits."""

    def check(self, *, calls: int = 0, variables: int = 0, edges: int = 0, size: int = 0) -> None:
        """Raise TooLarge if the session may not have so many more calls, variables, inputs of calls, and bytes."""
        limits = self.limits
        if self.edges + edges > limits.edges:
            raise TooLarge(
                f"the calls of session {self.session} read {self.edges + edges} inputs; the maximum is {limits.edges}"
            )
        if self.calls + calls > limits.calls:
            raise TooLarge(f"session {self.session} has {self.calls} calls; the maximum is {limits.calls}")
        if self.variables + variables > limits.variables:
            raise TooLarge(
                f"session {self.session} has had {self.variables} variables; the maximum is {limits.variables}"
            )
        self.check_bytes(size)

    def check_value(self, name: str, size: int, where: str | None = None) -> None:
        """Raise TooLarge if a value of `size` bytes is too large by itself."""
        if size > self.limits.value_bytes:
            raise TooLarge(f"the value of {name!r} has {size} bytes; the maximum is {self.limits.value_bytes}", where)

    def check_bytes(self, size: int) -> None:
        """Raise TooLarge if the session, or its tenant over all sessions, may not hold `size` more bytes."""
        if self.bytes + size > self.limits.bytes:
            raise TooLarge(f"session {self.session} holds {self.bytes} bytes; the maximum is {self.limits.bytes}")
        shared = self._shared
        if shared is not None and not shared.bytes.has_room(self.tenant, size):
            held = shared.bytes.amount(self.tenant)
            raise TooLarge(f"the sessions of this key hold {held} bytes, the current maximum; delete some or wait")

    def add_bytes(self, size: int) -> None:
        """Count bytes. A negative size removes them."""
        self.bytes += size
        if self._shared is not None and self._shares_bytes:
            self._shared.bytes.add(self.tenant, size)

    def join(self, shared: SharedLimits) -> None:
        """Count the resources of the session in the limits that all sessions share, until `leave`."""
        self._shared, self._shares_bytes = shared, True
        shared.bytes.add(self.tenant, self.bytes)

    def leave(self) -> None:
        """Remove the session's bytes from the shared limits. Its waiters stay counted until they leave."""
        if self._shared is not None and self._shares_bytes:
            self._shares_bytes = False
            self._shared.bytes.remove(self.tenant, self.bytes)

    def add_waiter(self) -> None:
        """Count a request that waits or watches. Raises TooManyWaiters. Pair it with `remove_waiter`."""
        if self.waiters >= self.limits.waiters:
            raise TooManyWaiters(
                f"{self.waiters} requests wait for session {self.session}, the maximum; try again later"
            )
        if self._shared is not None:
            if not self._shared.waiters.has_room(self.tenant):
                raise TooManyWaiters("too many requests of this key wait for values; try again later")
            self._shared.waiters.add(self.tenant)
        self.waiters += 1

    def remove_waiter(self) -> None:
        """Uncount a request that has its result or lost its client."""
        self.waiters -= 1
        if self._shared is not None:
            self._shared.waiters.remove(self.tenant)
