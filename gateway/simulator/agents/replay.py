"""Replay sessions on a modelled engine under one policy."""

import heapq
import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from gateway.simulator.agents.call import AgentCall
from gateway.simulator.agents.kv_pool import Path, build_paths
from gateway.simulator.agents.modelled_engine import ModelledEngine, facts_of
from gateway.simulator.agents.policy import AgentPolicy, EngineFacts
from gateway.simulator.agents.server_engine import ServerEngine, ServerSettings
from gateway.simulator.agents.sessions import RecordedSession
from gateway.simulator.engine import Costs

SERVER = "server"
"""Name under which the server's own code is compared with policies."""
LIVE_PAUSE = 600.0
"""Longest pause, in seconds, in which a session counts as live."""


class SimulatedAgentEngine(Protocol):
    """Engine in virtual time. Times are in seconds.

    `busy`: time in steps. `prompt`, `hits`: tokens of prompts, and those that were cached when they began.
    """

    now: float
    busy: float
    preemptions: int
    prompt: int
    hits: int

    @property
    def has_work(self) -> bool:
        """Whether a call waits or runs."""

    def submit(self, call: AgentCall) -> None:
        """Let a call wait. Raises ValueError if it is larger than the KV pool."""

    def advance(self, until: float) -> list[AgentCall]:
        """Run steps, the last of which may end after `until`. Return the calls that ended."""


@dataclass
class Outcome:
    """Result of one policy. `seconds`: completion of each session: the time from its arrival to its last answer,
    without the pauses between. `hit_rate`: share of prompt tokens that were cached. `busy`: seconds in steps. `span`:
    seconds until the last answer. `live_tokens`: mean KV of live sessions, in tokens; a session is live while a call
    waits or runs, and in pauses up to `LIVE_PAUSE`."""

    policy: str
    seconds: list[float] = field(default_factory=list)
    hit_rate: float = 0.0
    preemptions: int = 0
    busy: float = 0.0
    span: float = 0.0
    live_tokens: float = 0.0
    calls: int = 0

    @property
    def mean(self) -> float:
        """Mean completion, in seconds."""
        return sum(self.seconds) / len(self.seconds)

    @property
    def p99(self) -> float:
        """99th percentile of completion, in seconds: the smallest value that 99% of the sessions do not exceed."""
        return sorted(self.seconds)[max(0, math.ceil(0.99 * len(self.seconds)) - 1)]


def replay(
    sessions: Sequence[RecordedSession],
    arrivals: Sequence[float],
    costs: Costs,
    capacity: int,
    create_policy: Callable[[EngineFacts], AgentPolicy],
) -> Outcome:
    """Replay sessions that arrive at the given times, in seconds. `capacity`: tokens of the KV pool.

    A request follows the answer before it after the recorded pause. A sub-agent starts after the answer to the request
    before it, and runs beside its parent.
    """
    paths = build_paths(sessions)
    policy = create_policy(facts_of(costs, capacity))
    policy.prepare(sessions, paths, arrivals)
    engine = ModelledEngine(costs, capacity, policy)
    return replay_on(engine, policy.name, sessions, paths, arrivals, lambda session: policy.leave(session, engine.now))


def replay_on_server(
    sessions: Sequence[RecordedSession],
    arrivals: Sequence[float],
    costs: Costs,
    capacity: int,
    settings: ServerSettings | None = None,
) -> Outcome:
    """Replay sessions on the server's own code; see `ServerEngine`. Other arguments as in `replay`."""
    engine = ServerEngine(costs, capacity, settings)
    return replay_on(engine, SERVER, sessions, build_paths(sessions), arrivals, engine.leave)


def replay_on(
    engine: SimulatedAgentEngine,
    name: str,
    sessions: Sequence[RecordedSession],
    paths: Sequence[Sequence[Path]],
    arrivals: Sequence[float],
    leave: Callable[[int], None],
) -> Outcome:
    """Replay sessions on an engine. `name`: policy of the outcome. `paths`: extents of each prompt. `leave` is called
    with each session that ends. See `replay`."""
    followers = [_followers(session) for session in sessions]
    left = [len(session.requests) for session in sessions]
    ended: list[float] = [0.0] * len(sessions)
    pauses: dict[tuple[int, int], float] = {}
    """Seconds of pauses before a request, by session and index."""
    events: list[tuple[float, int, int]] = [(time, number, 0) for number, time in enumerate(arrivals)]
    heapq.heapify(events)
    live: list[tuple[float, float, int]] = []
    departures: list[float] = []
    outcome = Outcome(name)
    while events or engine.has_work:
        if not engine.has_work:
            engine.now = max(engine.now, events[0][0])
        while events and events[0][0] <= engine.now:
            time, session, index = heapq.heappop(events)
            recorded = sessions[session].requests[index]
            engine.submit(AgentCall(session, index, recorded, paths[session][index], time))
        for call in engine.advance(events[0][0] if events else math.inf):
            session, index = call.session, call.index
            path_pauses = pauses.pop((session, index), 0.0)
            ended[session] = max(ended[session], engine.now - path_pauses)
            left[session] -= 1
            until = engine.now
            for follower in followers[session][index]:
                pause = sessions[session].requests[follower].pause
                pauses[session, follower] = path_pauses + pause
                heapq.heappush(events, (engine.now + pause, session, follower))
                if sessions[session].requests[follower].agent == call.recorded.agent and pause <= LIVE_PAUSE:
                    until += pause
            live.append((call.issued, until, call.recorded.prompt + call.recorded.output))
            if not left[session]:
                departures.append(engine.now)
                leave(session)
    outcome.seconds = [end - arrival for end, arrival in zip(ended, arrivals, strict=True)]
    outcome.hit_rate = engine.hits / max(1, engine.prompt)
    outcome.preemptions = engine.preemptions
    outcome.busy, outcome.span = engine.busy, engine.now
    outcome.live_tokens = _mean_tokens(live, *_steady_window(arrivals, departures))
    outcome.calls = sum(len(session.requests) for session in sessions)
    return outcome


def _steady_window(arrivals: Sequence[float], departures: Sequence[float]) -> tuple[float, float]:
    """Return the time, in seconds, in which the number of live sessions counts: the last two thirds of the arrivals, or
    for sessions that arrive together the time until half of them have ended."""
    last = max(arrivals)
    return (last / 3, last) if last else (0.0, departures[(len(departures) - 1) // 2])


def _mean_tokens(live: Sequence[tuple[float, float, int]], begin: float, end: float) -> float:
    """Return the mean number of tokens between two times. `live`: begin, end and tokens of intervals."""
    return sum(max(0.0, min(end, until) - max(begin, since)) * tokens for since, until, tokens in live) / (end - begin)


def _followers(session: RecordedSession) -> dict[int, list[int]]:
    followers: dict[int, list[int]] = defaultdict(list)
    for index, request in enumerate(session.requests):
        if index:
            followers[request.after].append(index)
    return followers
