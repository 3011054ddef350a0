"""Compare policies on recorded sessions: each policy in each setting of engine, load and memory."""

import itertools
import multiprocessing
import random
import zlib
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from statistics import geometric_mean

from gateway.simulator.agents.policies.agentix import AgentixPolicy
from gateway.simulator.agents.policies.belady import BeladyPolicy
from gateway.simulator.agents.policies.continuum import ContinuumPolicy
from gateway.simulator.agents.policies.myna import MynaPolicy
from gateway.simulator.agents.policies.myna_before import MynaBeforePolicy
from gateway.simulator.agents.policies.sglang import SglangPolicy
from gateway.simulator.agents.policies.thunder import ThunderPolicy
from gateway.simulator.agents.policies.vllm import VllmPolicy
from gateway.simulator.agents.policy import AgentPolicy, EngineFacts
from gateway.simulator.agents.replay import SERVER, Outcome, replay, replay_on_server
from gateway.simulator.agents.server_engine import ServerSettings
from gateway.simulator.agents.sessions import RecordedSession, Recording, read_sessions, scale_tokens
from gateway.simulator.engine import TABLES
from gateway.simulator.trace import BadTrace

WINDOW = 131_072
"""Maximum number of tokens of a recorded prompt with its answer. Sessions are scaled from it to the window of each
table's model; times stay."""
TOGETHER = 0.0
"""Utilisation that stands for sessions that all arrive at once."""
UTILISATIONS = (0.7, 0.85, 0.95, TOGETHER)
OVERSUBSCRIPTIONS = (1.5, 2.0, 4.0)
SESSIONS = 60
"""Default number of sessions that are replayed."""
_UNLIMITED = 1 << 60

_POLICIES: dict[str, Callable[[EngineFacts], AgentPolicy]] = {
    policy.name: policy
    for policy in (
        VllmPolicy,
        SglangPolicy,
        AgentixPolicy,
        ContinuumPolicy,
        ThunderPolicy,
        BeladyPolicy,
        MynaBeforePolicy,
        MynaPolicy,
    )
}
POLICIES = tuple(_POLICIES)
REFERENCE = VllmPolicy.name
"""Policy to which the others are compared."""


def create(name: str, without: frozenset[str] = frozenset()) -> Callable[[EngineFacts], AgentPolicy]:
    """Return what creates a policy. `without`: parts of the policy `myna` that are turned off."""
    return partial(MynaPolicy, without=without) if name == MynaPolicy.name else _POLICIES[name]


@dataclass(frozen=True)
class Setting:
    """Setting of a comparison. `utilisation`: offered load as a share of capacity, or `TOGETHER`. Offered load assumes
    that a session reuses every prefix that it can. `oversubscription`: KV of live sessions divided by the KV pool."""

    table: str
    utilisation: float
    oversubscription: float


@dataclass(frozen=True)
class SettingResult:
    """Outcomes of the policies in one setting. `live_tokens`: mean KV of live sessions with unlimited memory.
    `capacity`: KV pool, in tokens. `is_smallest_pool`: whether it is the smallest one in which each call fits, and so
    larger than the oversubscription asks for."""

    setting: Setting
    live_tokens: float
    capacity: int
    is_smallest_pool: bool
    outcomes: dict[str, Outcome]


@dataclass(frozen=True)
class Comparison:
    """Results of all settings, and what was replayed."""

    recording: Recording
    sessions: int
    requests: int
    seed: int
    results: list[SettingResult] = field(default_factory=list)

    def ratios(self) -> dict[str, float]:
        """Return for each policy the geometric mean, over all settings, of the mean completion of `REFERENCE` divided
        by that of the policy."""
        return {
            name: geometric_mean(
                result.outcomes[REFERENCE].mean / result.outcomes[name].mean for result in self.results
            )
            for name in self.results[0].outcomes
        }

    def as_json(self) -> dict[str, object]:
        """Return all figures. Times are in seconds."""
        return {
            "sessions": self.sessions,
            "requests": self.requests,
            "seed": self.seed,
            "recording": {
                "sessions": len(self.recording.sessions),
                "cut": self.recording.cut,
                "left_out": self.recording.left_out,
                "requests_left_out": self.recording.requests_left_out,
            },
            "settings": [
                {
                    **asdict(result.setting),
                    "arrivals": "together" if result.setting.utilisation == TOGETHER else "poisson",
                    "live_tokens": round(result.live_tokens),
                    "kv_tokens": result.capacity,
                    "is_smallest_pool": result.is_smallest_pool,
                    "policies": {
                        name: {
                            "mean_s": outcome.mean,
                            "p99_s": outcome.p99,
                            "hit_rate": outcome.hit_rate,
                            "preemptions": outcome.preemptions,
                        }
                        for name, outcome in result.outcomes.items()
                    },
                }
                for result in self.results
            ],
            "mean_ratio_to_vllm": self.ratios(),
        }


@dataclass(frozen=True)
class Replays:
    """Settings and policies to replay. `without`: parts of the policy `myna` that are turned off. `jobs`: number of
    processes."""

    tables: Sequence[str] = tuple(TABLES)
    utilisations: Sequence[float] = UTILISATIONS
    oversubscriptions: Sequence[float] = OVERSUBSCRIPTIONS
    policies: Sequence[str] = POLICIES
    without: frozenset[str] = frozenset()
    sessions: int = SESSIONS
    seed: int = 1
    jobs: int = 1
    keys: int = 1
    """Number of API keys that the sessions get in turn. It only matters to the policy `SERVER`."""
    half: int | None = None
    """0 or 1: replay only sessions of this half, see `half_of`. None: replay sessions of both."""


def half_of(session: RecordedSession) -> int:
    """Return 0 or 1, by a hash of the session's id: so a policy can be designed on one half and judged on the other."""
    return zlib.crc32(session.id.encode()) & 1


def compare(path: Path, replays: Replays) -> Comparison:
    """Replay sessions of a file in all settings. Raises BadTrace, or OSError."""
    recording = read_sessions(path, WINDOW)
    if replays.half is not None:
        half = tuple(session for session in recording.sessions if half_of(session) == replays.half)
        if not half:
            raise BadTrace(f"{path} has no session of half {replays.half}")
        recording = replace(recording, sessions=half)
    count = min(replays.sessions, len(recording.sessions))
    sessions = random.Random(replays.seed).sample(recording.sessions, count)
    loads = list(itertools.product(replays.tables, replays.utilisations))
    names = list(dict.fromkeys((REFERENCE, *replays.policies)))
    work = partial(run_load, sessions, names, replays.without, replays.seed, replays.oversubscriptions, replays.keys)
    results = [result for of_load in _map(work, loads, replays.jobs) for result in of_load]
    return Comparison(recording, count, sum(len(session.requests) for session in sessions), replays.seed, results)


def _map(
    work: Callable[[tuple[str, float]], list[SettingResult]], loads: Sequence[tuple[str, float]], jobs: int
) -> Iterable[list[SettingResult]]:
    if min(jobs, len(loads)) <= 1:
        yield from map(work, loads)
        return
    with ProcessPoolExecutor(min(jobs, len(loads)), multiprocessing.get_context("spawn")) as pool:
        yield from pool.map(work, loads)


def run_load(
    recorded: Sequence[RecordedSession],
    names: Sequence[str],
    without: frozenset[str],
    seed: int,
    oversubscriptions: Sequence[float],
    keys: int,
    load: tuple[str, float],
) -> list[SettingResult]:
    """Replay the sessions once for each oversubscription and policy. `keys`: see `Replays`. `load`: table and
    utilisation.

    Capacity is measured by a trial: all sessions arrive together and memory is unlimited. A second trial, with the
    load's arrivals and unlimited memory, measures the KV of live sessions. Neither depends on the oversubscription.
    """
    table, utilisation = load
    costs = TABLES[table]
    sessions = [scale_tokens(session, costs.window / WINDOW) for session in recorded]
    trial = replay(sessions, [0.0] * len(sessions), costs, _UNLIMITED, VllmPolicy)
    arrivals = [0.0] * len(sessions)
    if utilisation != TOGETHER:
        rate = utilisation * len(sessions) / trial.busy
        chance = random.Random(seed + 1)
        arrivals = list(itertools.accumulate(chance.expovariate(rate) for _ in sessions))
        trial = replay(sessions, arrivals, costs, _UNLIMITED, VllmPolicy)
    largest = max(request.prompt + request.output for session in sessions for request in session.requests)
    results = []
    for oversubscription in oversubscriptions:
        wanted = int(trial.live_tokens / oversubscription)
        capacity = max(wanted, largest)
        outcomes = {
            name: replay_on_server(sessions, arrivals, costs, capacity, ServerSettings(keys=keys))
            if name == SERVER
            else replay(sessions, arrivals, costs, capacity, create(name, without))
            for name in names
        }
        setting = Setting(table, utilisation, oversubscription)
        results.append(SettingResult(setting, trial.live_tokens, capacity, wanted < largest, outcomes))
    return results
