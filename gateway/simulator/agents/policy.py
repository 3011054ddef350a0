"""Interface of the policies that the replay compares: the order of calls, their admission, and eviction."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from gateway.simulator.agents.call import AgentCall
from gateway.simulator.agents.kv_pool import Extent, KvPool, Path
from gateway.simulator.agents.sessions import RecordedSession


class EngineFacts(NamedTuple):
    """Facts about the engine that a policy may use.

    `row_seconds`: time of one prompt row. `token_seconds`: time that one more decoding call adds to a step, without
    attention. `key_seconds`: time to attend to one token. `capacity`: tokens of the KV pool. `window`: tokens of the
    model's window.
    """

    row_seconds: float
    token_seconds: float
    key_seconds: float
    capacity: int
    window: int


class AgentPolicy:
    """Policy of one engine: first come, first served, and least recently used. Other policies override its methods."""

    name = ""
    is_timed = False
    """Whether `admits` can change its answer by time alone."""
    skips = False
    """Whether a call that does not fit lets later calls go first."""

    def __init__(self, facts: EngineFacts) -> None:
        self.facts = facts

    def prepare(
        self, sessions: Sequence[RecordedSession], paths: Sequence[Sequence[Path]], arrivals: Sequence[float]
    ) -> None:
        """Look at what will happen. Only a clairvoyant policy overrides it, and none that a server could run."""

    def arrive(self, call: AgentCall, now: float) -> None:
        """Record a call that starts to wait."""

    def admit(self, call: AgentCall, now: float) -> None:
        """Record a call that starts to run, or resumes."""

    def preempt(self, call: AgentCall, now: float) -> None:
        """Record a call that lost its memory and waits again."""

    def end(self, call: AgentCall, now: float) -> None:
        """Record a call whose answer is complete."""

    def leave(self, session: int, now: float) -> None:
        """Record a session that has ended, for policies whose clients say so."""

    def order(self, call: AgentCall, pool: KvPool, now: float) -> tuple[float, ...]:
        """Return the sort key of a call. The lowest goes first; the highest is preempted first."""
        return (call.number,)

    def rank(self, call: AgentCall) -> float:
        """Return the rank of an admitted call for the step policy, in seconds. Equal ranks share steps."""
        return 0.0

    def admits(self, call: AgentCall, waiting: Sequence[AgentCall], pool: KvPool, now: float) -> bool:
        """Return whether a call that fits may run now. An engine that would be idle runs the first one in any case.

        `waiting`: all waiting calls in order.
        """
        return True

    def select(self, candidates: Mapping[Extent, None], now: float) -> Extent:
        """Return the extent whose end is evicted first."""
        return min(candidates, key=_release)


def _release(extent: Extent) -> tuple[float, int]:
    return extent.released, -extent.start
