"""Order of embeddings on one engine: start-time fair queueing (Goyal, Vin and Cheng 1996) between tenants.

Each text gets the virtual time at which it would start if all tenants with work shared the engine equally. The engine
computes the texts in this order.
"""

_MAX_IDLE = 10_000
"""Maximum number of tenants without work whose clocks are remembered."""


class EmbeddingQueue:
    """Owner of the tenants' clocks. Work is counted in tokens."""

    def __init__(self) -> None:
        self._now = 0.0
        """Start time of the latest text that is done."""
        self._clocks: dict[str, float] = {}
        self._waiting: dict[str, int] = {}
        """Number of texts that are not done, of each tenant that has some."""

    def request(self, tenant: str, tokens: int) -> float:
        """Count a new text of the tenant, and return its rank: the lowest goes first."""
        start = max(self._now, self._clocks.get(tenant, 0.0))
        self._clocks[tenant] = start + tokens
        self._waiting[tenant] = self._waiting.get(tenant, 0) + 1
        return start

    def finish(self, tenant: str, rank: float) -> None:
        """Count a text that has ended, by its rank."""
        self._now = max(self._now, rank)
        self._waiting[tenant] -= 1
        if not self._waiting[tenant]:
            del self._waiting[tenant]
        if len(self._clocks) - len(self._waiting) > _MAX_IDLE:
            self._clocks = {
                name: clock for name, clock in self._clocks.items() if clock > self._now or name in self._waiting
            }
            if len(self._clocks) - len(self._waiting) > _MAX_IDLE:  # all of them are ahead: forget who they are
                self._clocks = {name: self._clocks[name] for name in self._waiting}
