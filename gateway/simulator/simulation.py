"""Simulate applications on simulated engines, once for each policy. Command `myna simulate`."""

import asyncio
import dataclasses
import gc
import itertools
import random
import statistics
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from gateway.engines.protocol import Engine
from gateway.graph.limits import SessionLimits
from gateway.graph.session import Session
from gateway.graph.variable import Variable
from gateway.scheduler import Scheduler
from gateway.simulator import clock
from gateway.simulator.engine import TABLES, Costs, SimulatedEngine
from gateway.simulator.policies import Policy, policy
from gateway.simulator.trace import read_applications
from gateway.simulator.workload import Application, Applications, arrivals

_LIMITS = SessionLimits()
_TRIAL_APPLICATIONS = 200
"""Number of applications that arrive together in a trial, which measures the capacity of the engines."""
_GC_THRESHOLDS = (50_000, 20, 100)


@dataclass(frozen=True)
class Scenario:
    """Workload and engines of a simulation. `utilisation`: offered load as a share of the engines' capacity."""

    engines: int = 1
    costs: Costs = TABLES["cpu"]
    mix: str = "mixed"
    applications: int = 1000
    utilisation: float = 0.8
    bursts: bool = False
    seed: int = 1
    trace: Path | None = None
    """Recorded applications and arrival times, in place of mix, number and utilisation."""


@dataclass
class Outcome:
    """Result of one policy. Times are virtual, except `real`: the seconds that the simulation took."""

    policy: str
    seconds: list[float] = field(default_factory=list)
    """Seconds from each application's arrival to its end."""
    by_kind: dict[str, list[float]] = field(default_factory=dict)
    calls: int = 0
    prompt: int = 0
    cached: int = 0
    busy: float = 0.0
    span: float = 0.0
    real: float = 0.0

    def summary(self, engines: int) -> dict[str, float | str]:
        """Return the reported figures. Times are in seconds."""
        ordered = sorted(self.seconds)
        return {
            "policy": self.policy,
            "mean_s": statistics.fmean(ordered),
            "p50_s": ordered[len(ordered) // 2],
            "p99_s": _percentile(ordered),
            "cached": self.cached / max(1, self.prompt),
            "busy": self.busy / max(1e-9, self.span * engines),
            "calls": self.calls,
            "us_per_call": 1e6 * self.real / max(1, self.calls),
            **{f"{kind}_mean_s": statistics.fmean(seconds) for kind, seconds in sorted(self.by_kind.items())},
            **{f"{kind}_p99_s": _percentile(seconds) for kind, seconds in sorted(self.by_kind.items())},
        }


def _percentile(seconds: Sequence[float], percent: int = 99) -> float:
    return sorted(seconds)[max(0, -(-percent * len(seconds) // 100) - 1)]


class _Pool:
    def __init__(self, engines: Sequence[SimulatedEngine]) -> None:
        self._engines = engines

    async def find_ready(self, model: str, *, wait: bool = True) -> Sequence[Engine]:
        return self._engines


class _Simulation:
    """Owner of one run of a scenario under one policy: of its scheduler, its simulated engines and its outcome."""

    def __init__(self, scenario: Scenario, policy: Policy) -> None:
        loop = asyncio.get_running_loop()
        self.outcome = Outcome(policy.name)
        self.engines = [SimulatedEngine(f"engine-{index}", scenario.costs) for index in range(scenario.engines)]
        self._loop = loop
        self._scheduler = Scheduler(
            _Pool(self.engines),
            10**9,
            priorities=policy.priorities,
            fill_ahead=policy.fill_ahead,
            place=policy.place,
            now=loop.time,
        )

    async def run(self, load: Iterable[tuple[Application, float]]) -> Outcome:
        """Run all applications. `load`: applications, each with the seconds since the arrival of the previous one."""
        began = time.perf_counter()
        async with asyncio.TaskGroup() as group:
            for number, (application, gap) in enumerate(load):
                if gap:
                    await asyncio.sleep(gap)
                group.create_task(self._application(number, application))
        outcome = self.outcome
        outcome.real = time.perf_counter() - began
        outcome.span = self._loop.time()
        outcome.busy = sum(engine.busy for engine in self.engines)
        return outcome

    async def _application(self, number: int, application: Application) -> None:
        began = self._loop.time()
        session = Session(
            id="", tenant="", created=began, ttl=1.0, limits=_LIMITS, clock=self._loop.time
        )  # without an id, so that no events are stored
        async with asyncio.TaskGroup() as group:
            for step in application.steps:
                if step.after is not None:
                    await session.variable(step.after).wait_final()
                since = began if step.after is None else self._loop.time()
                if (wait := since + step.seconds - self._loop.time()) > 0:
                    await asyncio.sleep(wait)
                addition = session.add_all(step.calls)
                awaited = [session.variable(name) for name in step.awaited]
                interactive = len(awaited) == 1
                for variable in awaited:
                    self._scheduler.subscribe(variable, interactive=interactive)
                await self._scheduler.start(session, addition)
                for variable in awaited:
                    name = f"application {number} ({application.kind})"
                    group.create_task(self._read(variable, name, interactive))
        seconds = self._loop.time() - began
        self.outcome.seconds.append(seconds)
        self.outcome.by_kind.setdefault(application.kind, []).append(seconds)
        for call in session.calls.values():
            self.outcome.calls += 1
            self.outcome.prompt += call.usage.prompt
            self.outcome.cached += call.usage.cached

    async def _read(self, variable: Variable, name: str, interactive: bool) -> None:
        await variable.wait_final()
        self._scheduler.unsubscribe(variable, interactive=interactive)
        if variable.failure is not None:
            raise RuntimeError(f"{name} failed: {variable.failure.message}")


def simulate(scenario: Scenario, policies: Sequence[str]) -> list[Outcome]:
    """Simulate the same applications at the same times, once for each policy. Raises BadTrace, or OSError."""
    if scenario.trace is not None:
        recorded = read_applications(scenario.trace)
        return [_simulate_policy(scenario, zip(*recorded, strict=True), policy(name)) for name in policies]
    rate = _rate(scenario)
    return [_simulate_policy(scenario, _load(scenario, rate), policy(name)) for name in policies]


def _load(scenario: Scenario, rate: float) -> Iterator[tuple[Application, float]]:
    """Yield applications with the gaps before them. There may be many, so each is generated when it arrives."""
    source = Applications(random.Random(scenario.seed)).of(scenario.mix)
    gaps = arrivals(random.Random(scenario.seed + 1), rate, bursts=scenario.bursts)
    return itertools.islice(zip(source, gaps, strict=False), scenario.applications)


def _rate(scenario: Scenario) -> float:
    """Return the applications per second that lead to the scenario's utilisation, measured by a trial on one engine."""
    single = dataclasses.replace(scenario, engines=1)
    source = Applications(random.Random(scenario.seed + 2)).of(scenario.mix)
    outcome = _simulate_policy(single, ((next(source), 0.0) for _ in range(_TRIAL_APPLICATIONS)), policy("myna"))
    return scenario.utilisation * scenario.engines * _TRIAL_APPLICATIONS / outcome.busy


def _simulate_policy(scenario: Scenario, load: Iterable[tuple[Application, float]], policy: Policy) -> Outcome:
    async def work() -> Outcome:
        return await _Simulation(scenario, policy).run(load)

    # sessions are reference cycles: with default thresholds, the collector would take a third of the time
    before = gc.get_threshold()
    gc.set_threshold(*_GC_THRESHOLDS)
    try:
        return clock.run(work())
    finally:
        gc.set_threshold(*before)
