"""Agentix's policy for programs, earlier called Autellix (Luo et al., 2025, section 4: PLAS).

The priority of a call is the service that its program has attained over all its earlier calls, in seconds of engine
time: least first. Priorities are quantised into queues of doubling size. Within a queue, calls run in the order of
arrival. A call that has waited much longer than it was served moves up to the first queue (section 4.3). Preemption
follows the same order. Eviction is the engine's: least recently used.
"""

import math

from gateway.simulator.agents.call import AgentCall
from gateway.simulator.agents.kv_pool import KvPool
from gateway.simulator.agents.policy import AgentPolicy, EngineFacts

_FIRST_QUEUE = 2.0
"""Attained seconds up to which a program is in the first queue."""
_STARVATION_RATIO = 10.0
"""Ratio of a call's waiting time to its program's service beyond which it moves to the first queue."""


class AgentixPolicy(AgentPolicy):
    """Program-level attained service: least first. See `AgentPolicy`."""

    name = "agentix"

    def __init__(self, facts: EngineFacts) -> None:
        super().__init__(facts)
        self._attained: dict[int, float] = {}

    def end(self, call: AgentCall, now: float) -> None:
        """Add the call's service to that of its program."""
        self._attained[call.session] = self._attained.get(call.session, 0.0) + call.service

    def leave(self, session: int, now: float) -> None:
        """Forget a program."""
        self._attained.pop(session, None)

    def order(self, call: AgentCall, pool: KvPool, now: float) -> tuple[float, ...]:
        """Return the number of the program's queue, then the order of arrival."""
        attained = self._attained.get(call.session, 0.0) + call.service
        if now - call.issued > _STARVATION_RATIO * max(_FIRST_QUEUE, attained):
            return (0, call.number)
        return (math.ceil(math.log2(max(1.0, attained / _FIRST_QUEUE))), call.number)
