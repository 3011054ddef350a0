"""Benchmark a server over HTTP: `python -m bench`. It starts its own server unless --base-url names a running one."""

import argparse
import asyncio
import json
import platform
import re
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import aiohttp
import psutil

from bench.load import Client

_STOP_SECONDS = 40


@dataclass(frozen=True)
class Figure:
    """One measurement. `goal` is for a machine with bfloat16 matrix units; see docs/benchmarks.md."""

    what: str
    value: float
    unit: str
    goal: str = ""


@contextmanager
def _started(*command: str) -> Iterator[tuple[subprocess.Popen[str], str, float]]:
    """Start a process that prints its address in its first line. Return the process, and the seconds until it did."""
    began = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-m", *command], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        seconds = time.perf_counter() - began
        address = re.search(r"http://[^/\s]+", line)
        if address is None:
            raise SystemExit(f"bench: {command[0]} did not start")
        print(line.strip(), file=sys.stderr, flush=True)
        yield process, address[0], seconds
    finally:
        process.terminate()
        process.wait(_STOP_SECONDS)


@asynccontextmanager
async def _client(url: str, model: str | None = None) -> AsyncIterator[Client]:
    timeout = aiohttp.ClientTimeout(total=600)
    async with aiohttp.ClientSession(timeout=timeout, connector=aiohttp.TCPConnector(limit=0)) as http:
        if model is None:
            async with http.get(f"{url}/models") as response:
                model = (await response.json())["data"][0]["id"]
        yield Client(http, url, model)


async def _decode_and_prefill(url: str, runs: int) -> list[Figure]:
    async with _client(url) as client:
        await client.decode_rate(8, 16, 1)  # warm
        figures = []
        for streams, goal in ((1, "≥ 72"), (8, "≥ 550"), (32, "≥ 1500")):
            rate = await client.decode_rate(streams, 128, runs)
            figures.append(Figure(f"{streams} streams, 128 out", rate, "tok/s", goal))
        rate = await client.rate_behind(16, 590, 128, runs, shared=False)
        figures.append(Figure("16 streams, each behind 600 tokens", rate, "tok/s", "≥ 500"))
        rate = await client.rate_behind(16, 1950, 128, runs, shared=True)
        figures.append(Figure("16 streams behind one 2,000-token prefix", rate, "tok/s", "≥ 700"))
        rate, wait = await client.prefill_rate(1960, runs)
        figures.append(Figure("2,000-token prompt, prefill", rate, "tok/s"))
        figures.append(Figure("2,000-token prompt, first token", wait, "s", "≤ 0.45"))
        figures.append(Figure("… with the prefix cached", await client.cached_first_token(1960, runs), "s", "≤ 0.03"))
        mixed = [await client.mixed(8, 4, 1960) for _ in range(runs)]
        share, gap, wait = (sorted(values)[runs // 2] for values in zip(*mixed, strict=True))
        figures.append(Figure("8 streams keep, while four 2,000-token prompts arrive", 100 * share, "%", "≥ 60"))
        figures.append(Figure("… longest gap between two tokens", 1e3 * gap, "ms", "≤ 150"))
        figures.append(Figure("… until all four had their first token", wait, "s"))
    return figures


async def _one_stream(url: str, runs: int) -> float:
    async with _client(url) as client:
        await client.decode_rate(1, 16, 1)
        return await client.decode_rate(1, 128, runs)


async def _pressed(url: str) -> float:
    async with _client(url) as client:
        await client.decode_rate(8, 16, 1)
        return await client.decode_rate(200, 64, 1)


def _idle(process: subprocess.Popen[str], seconds: float = 5.0) -> float:
    """Return the idle CPU use, in percent of a core."""

    def spent() -> float:
        everyone = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
        return sum(sum(one.cpu_times()[:2]) for one in everyone)

    time.sleep(1.0)
    before = spent()
    time.sleep(seconds)
    return 100 * (spent() - before) / seconds


async def _overhead(runs: int) -> list[Figure]:
    medians: dict[str, list[float]] = {"gateway": [], "bare": []}
    rates: dict[str, list[float]] = {"gateway": [], "bare": []}
    with _started("bench.overhead", "gateway") as (_, gateway, _), _started("bench.overhead", "bare") as (_, bare, _):
        async with _client(f"{gateway}/v1", "stub") as through, _client(f"{bare}/v1", "stub") as direct:
            for _ in range(runs):  # in turns, so that load on the machine affects both
                for name, client in (("gateway", through), ("bare", direct)):
                    await client.latency(50)
                    medians[name].append(await client.latency(400))
                    rates[name].append(await client.request_rate(1600, 32))
    middle = {name: sorted(values)[len(values) // 2] for name, values in medians.items()}
    rate = {name: sorted(values)[len(values) // 2] for name, values in rates.items()}
    return [
        Figure("gateway over a stub engine, added", 1e3 * (middle["gateway"] - middle["bare"]), "ms", "≤ 1"),
        Figure("a bare handler, median", 1e3 * middle["bare"], "ms"),
        Figure("gateway over a stub engine, 32 clients", rate["gateway"], "requests/s"),
        Figure("a bare handler, 32 clients", rate["bare"], "requests/s"),
    ]


def _memory(process: subprocess.Popen[str]) -> float:
    everyone = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    return sum(one.memory_info().rss for one in everyone) / 2**20


def _floor() -> list[Figure]:
    done = subprocess.run([sys.executable, "-m", "bench.floor"], capture_output=True, text=True, check=True)
    floor = json.loads(done.stdout)
    figures = []
    for rows, actual in floor["ours"].items():
        figures.append(Figure(f"floor: linear layers alone, {rows} rows, {floor['kernels']}", actual, "ms"))
        figures.append(Figure(f"floor: linear layers alone, {rows} rows, torch packed", floor["torch"][rows], "ms"))
    return figures


def _serve(*flags: str) -> AbstractContextManager[tuple[subprocess.Popen[str], str, float]]:
    return _started("gateway", "serve", "--port", "0", *flags)


def _measure(base_url: str | None, runs: int) -> list[Figure]:
    if base_url is not None:
        return asyncio.run(_decode_and_prefill(base_url.rstrip("/"), runs))
    starts = []
    for _ in range(runs):
        with _serve() as (_, _, seconds):
            starts.append(seconds)
    figures = [Figure("start to ready, model cached", sorted(starts)[len(starts) // 2], "s", "≤ 3")]
    with _serve() as (process, address, _):
        figures.append(Figure("resident memory after start", _memory(process), "MiB", "≤ 1200"))
        figures.append(Figure("CPU when idle", _idle(process), "%", "0"))
        figures += asyncio.run(_decode_and_prefill(f"{address}/v1", runs))
    with _serve("--quantize", "int8") as (_, address, _):
        rate = asyncio.run(_one_stream(f"{address}/v1", runs))
        figures.append(Figure("1 stream, --quantize int8", rate, "tok/s", "≥ 100"))
    roomy, pressed = [], []
    for _ in range(
        runs
    ):  # in turns; 200 streams of about 45 + 64 tokens need ten times the KV pool of the second server
        for flags, rates in (((), roomy), (("--kv-tokens", "2176"), pressed)):
            with _serve(*flags) as (_, address, _):
                rates.append(asyncio.run(_pressed(f"{address}/v1")))
    part = sorted(less / more for less, more in zip(pressed, roomy, strict=True))[runs // 2]
    figures.append(Figure("200 streams, 64 out", sorted(roomy)[runs // 2], "tok/s"))
    figures.append(Figure("… in a tenth of the KV they want, of that", 100 * part, "%", "≥ 80"))
    return figures + asyncio.run(_overhead(runs)) + _floor()


def _table(figures: list[Figure]) -> str:
    width = max(len(figure.what) for figure in figures)
    rows = [f"{f.what:<{width}}  {f.value:>9.2f} {f.unit:<10} {f.goal}".rstrip() for f in figures]
    return "\n".join(rows)


def main() -> int:
    """Print a table, or JSON."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--base-url", help="server to measure, such as http://127.0.0.1:8001/v1")
    parser.add_argument(
        "--runs", type=int, default=3, help="number of runs of each measurement; the median is printed (default: 3)"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    arguments = parser.parse_args()
    figures = _measure(arguments.base_url, arguments.runs)
    if arguments.json:
        machine: dict[str, Any] = {"cores": psutil.cpu_count(), "machine": platform.machine()}
        print(json.dumps({"machine": machine, "figures": [asdict(figure) for figure in figures]}, indent=1))
    else:
        print(_table(figures))
    return 0


if __name__ == "__main__":
    sys.exit(main())
