"""Accuracy of `myna simulate` on this machine: `python -m bench.simulator`.

It fits a table of step costs to this machine, runs the applications of `examples/workloads` on a server that records
them, and simulates the recording with that table. It prints both times side by side. `--table FILE` keeps the table,
for `myna simulate --table FILE`. Speculation is off: a recording does not show how often an answer repeats text.
"""

import argparse
import asyncio
import json
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path

import aiohttp

from bench.servers import started
from bench.workloads import Way, first_model, run_once
from engine import Engine, EngineConfig, SamplingParams
from examples.workloads.apps import WORKLOADS
from gateway.simulator.engine import Costs
from gateway.simulator.simulation import Scenario, simulate

_DECODING = (1, 2, 4, 6, 8, 12, 16, 24, 32, 64)
_READING = (128, 256, 512)
_STEPS = 30
_BEHIND = 2000
"""Tokens that are attended to, to find what that costs."""


def fit() -> Costs:
    """Return the step costs of the default engine on this machine, as medians."""
    engine = Engine(EngineConfig(kv_tokens=131_072, speculation="off"))
    rows = [(count, _decode(engine, count, 8)) for count in _DECODING]
    rows += [(count, _read(engine, count)) for count in _READING]
    few = 8
    long_step = _decode(engine, few, _BEHIND)
    return Costs(
        name="here",
        rows=tuple(rows),
        attention=max(0.0, long_step - dict(rows)[few]) / (few * _BEHIND),
        step_rows=engine.config.step_tokens,
        kv_tokens=engine.info.kv_tokens,
    )


def _tokens(count: int) -> list[int]:
    return [random.randrange(300, 40_000) for _ in range(count)]


def _decode(engine: Engine, streams: int, before: int) -> float:
    """Return the seconds of a step in which `contexts` contexts decode, each after `length` tokens."""
    for context in range(streams):
        engine.fill(context, _tokens(before), interactive=False)
    while engine.has_work:
        engine.step()
    for context in range(streams):
        engine.generate(context, SamplingParams(temperature=0.0, max_tokens=_STEPS, ignore_eos=True))
    durations = []
    while engine.has_work:
        began = time.perf_counter()
        updates = engine.step()
        if sum(bool(update.tokens) for update in updates) == streams:
            durations.append(time.perf_counter() - began)
    for context in range(streams):
        engine.free_context(context)
    return statistics.median(durations[1:])


def _read(engine: Engine, tokens: int) -> float:
    """Return the seconds of a step that prefills tokens of a prompt."""
    durations = []
    for _ in range(5):
        engine.fill(0, _tokens(tokens))
        began = time.perf_counter()
        while engine.has_work:
            engine.step()
        durations.append(time.perf_counter() - began)
        engine.free_context(0)
    return statistics.median(durations)


async def _run(way: Way, name: str, seed: int) -> float:
    """Return the seconds that an application takes."""
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as http:
        return (await run_once(http, way, WORKLOADS[name], seed, 0.0))[0]


def _simulated(lines: Sequence[str], costs: Costs) -> float:
    """Return the simulated seconds from the first call's arrival to the last one's end."""
    with tempfile.NamedTemporaryFile("w", suffix=".jsonl") as file:
        file.writelines(lines)
        file.flush()
        (outcome,) = simulate(Scenario(costs=costs, trace=Path(file.name)), ["myna"])
    return outcome.span


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="bench.simulator", description=__doc__, allow_abbrev=False)
    parser.add_argument("--only", nargs="+", choices=list(WORKLOADS), default=list(WORKLOADS))
    parser.add_argument("--modes", nargs="+", choices=("client", "graph"), default=["client", "graph"])
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--table", type=Path, help="file for the table")
    chosen = parser.parse_args()
    costs = fit()
    print(costs, file=sys.stderr)
    if chosen.table:
        chosen.table.write_text(json.dumps(asdict(costs)))
    seeds = iter(range(random.randrange(10**9), 10**12, 1000))
    print("| | measured | simulated | ratio |\n| --- | --- | --- | --- |")
    with ExitStack() as stack:
        trace = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "trace"
        command = [sys.executable, "-m", "gateway", "serve", "--journal", "memory", "--speculation", "off"]
        command += ["--record", str(trace)]
        url = stack.enter_context(started(command, port_option="--port")) + "/v1"
        model = asyncio.run(first_model(url))
        for mode in chosen.modes:
            way = Way(mode, url, model, mode)
            for name in chosen.only:
                measured, simulated = [], []
                for _ in range(chosen.runs):
                    before = len(trace.read_text().splitlines())
                    measured.append(asyncio.run(_run(way, name, next(seeds))))
                    lines = trace.read_text().splitlines(keepends=True)[before:]
                    simulated.append(_simulated(lines, costs))
                real, modelled = statistics.median(measured), statistics.median(simulated)
                print(f"| {name}, {mode} | {real:.2f} s | {modelled:.2f} s | {modelled / real:.2f} |", flush=True)


if __name__ == "__main__":
    main()
