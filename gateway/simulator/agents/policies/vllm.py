"""vLLM's default policy (Kwon et al., SOSP'23, section 4.5; automatic prefix caching of vLLM V1).

Calls run in the order of arrival. A call that does not fit holds up later ones. The latest call is preempted first.
Cached blocks are evicted least recently used first, the end of a prompt before its beginning.
"""

from gateway.simulator.agents.policy import AgentPolicy


class VllmPolicy(AgentPolicy):
    """First come, first served; least recently used. See `AgentPolicy`."""

    name = "vllm"
