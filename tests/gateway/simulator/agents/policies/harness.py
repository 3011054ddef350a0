"""Calls, extents and facts with which a policy is asked one question at a time."""

from typing import Any

from gateway.simulator.agents.call import AgentCall
from gateway.simulator.agents.kv_pool import Extent, KvPool
from gateway.simulator.agents.policy import AgentPolicy, EngineFacts
from tests.gateway.simulator.agents.synthetic import request

FACTS = EngineFacts(row_seconds=0.001, token_seconds=0.001, key_seconds=1e-6, capacity=10_000, window=8_192)


class PolicyHarness:
    """Owner of a pool whose evictions the policy decides, and of the numbers of calls."""

    def __init__(self, policy: AgentPolicy, capacity: int = FACTS.capacity) -> None:
        self.policy = policy
        self.now = 0.0
        self.pool = KvPool(capacity, lambda candidates: policy.select(candidates, self.now))
        self._calls = 0

    def call(self, session: int, prompt: int = 1000, *, index: int = 0, **more: Any) -> AgentCall:
        """Return a call with a prompt of its own that arrives now."""
        call = AgentCall(session, index, request(prompt, **more), (Extent(None, prompt),), self.now)
        return self.arrive(call)

    def next(self, call: AgentCall, prompt: int, **more: Any) -> AgentCall:
        """Return the next call of the same agent that arrives now, and extends the earlier one."""
        last = call.path[-1]
        path = (*call.path, Extent(last, prompt - last.start - last.length))
        return self.arrive(AgentCall(call.session, call.index + 1, request(prompt, **more), path, self.now))

    def arrive(self, call: AgentCall) -> AgentCall:
        call.number = self._calls
        self._calls += 1
        self.policy.arrive(call, self.now)
        return call

    def serve(self, call: AgentCall, seconds: float = 1.0) -> AgentCall:
        """Let a call run and end after some seconds of service."""
        self.pool.acquire(call.path)
        self.policy.admit(call, self.now)
        self.pool.mark_computed(call.path, call.length)
        call.computed = call.length
        self.now += seconds
        call.service += seconds
        call.made = call.recorded.output
        self.pool.release(call.path, call.chain, self.now)
        self.policy.end(call, self.now)
        return call

    def order(self, *calls: AgentCall) -> list[int]:
        """Return the sessions of calls in the policy's order."""
        return [call.session for call in sorted(calls, key=lambda call: self.policy.order(call, self.pool, self.now))]

    def admits(self, call: AgentCall) -> bool:
        return self.policy.admits(call, [call], self.pool, self.now)

    def victim(self) -> int:
        """Return the session whose extent is evicted first."""
        return self.policy.select(self.pool.candidates, self.now).chain[0]
