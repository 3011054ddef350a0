"""SGLang's policy (Zheng et al., NeurIPS'24, section 3: cache-aware scheduling; `--schedule-policy lpm`).

Of the waiting calls, the one with the longest cached prefix runs first. Cached extents are evicted least recently used
first, leaves before their parents. As in its scheduler, memory for a part of each answer is reserved at admission.
"""

from collections.abc import Sequence

from gateway.simulator.agents.call import AgentCall
from gateway.simulator.agents.kv_pool import KvPool
from gateway.simulator.agents.policy import AgentPolicy

_RESERVED_TOKENS = 512
"""Tokens of an answer for which memory must be free at admission."""


class SglangPolicy(AgentPolicy):
    """Longest cached prefix first; least recently used. See `AgentPolicy`."""

    name = "sglang"

    def order(self, call: AgentCall, pool: KvPool, now: float) -> tuple[float, ...]:
        """Return the length of the cached prefix, negated, then the order of arrival."""
        return (-pool.cached(call.path), call.number)

    def admits(self, call: AgentCall, waiting: Sequence[AgentCall], pool: KvPool, now: float) -> bool:
        """Return whether a part of the answer fits as well."""
        return pool.unpinned(call.path) + _RESERVED_TOKENS <= pool.available
