"""State of one replayed request."""

from gateway.simulator.agents.kv_pool import Extent, Path
from gateway.simulator.agents.sessions import RecordedRequest


class AgentCall:
    """Request of a session that waits, runs or has ended.

    `session`: number of its session in the replay. `chain`: session and agent. `issued`: time of its arrival, in
    seconds. `number`: position in the order of arrival. `rows`: prompt tokens to compute. `made`: tokens of its answer.
    `grown`: those that were made since it was last admitted. `service`: seconds of engine time that it received.

    A policy must not read `recorded.output`, `recorded.pause` or later requests. Only `belady` does.
    """

    __slots__ = (
        "answers", "chain", "computed", "grown", "hits", "index", "issued", "made", "number", "path", "prompt_rows",
        "recorded", "rows", "service", "session", "started",
    )  # fmt: skip

    def __init__(self, session: int, index: int, recorded: RecordedRequest, path: Path, issued: float) -> None:
        self.session = session
        self.index = index
        self.recorded = recorded
        self.chain = (session, recorded.agent)
        self.path = path
        self.issued = issued
        self.number = -1
        self.rows = 0
        self.prompt_rows = 0
        """Tokens to compute when it was last admitted."""
        self.computed = 0
        """Tokens of its path that are computed."""
        self.made = 0
        self.grown = 0
        self.hits = 0
        """Cached prompt tokens when it was first admitted."""
        self.started = -1.0
        """Time of its first admission, in seconds, or -1."""
        self.service = 0.0
        self.answers: list[Extent] = []
        """Extents of the parts of its answer before it was preempted."""

    @property
    def length(self) -> int:
        """Number of tokens of its path."""
        return self.path[-1].start + self.path[-1].length

    @property
    def context(self) -> int:
        """Number of tokens with computed keys and values."""
        return self.computed + self.grown
