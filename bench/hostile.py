"""Attack a server with one API key, and measure the latency of plain requests with another key meanwhile.

`python -m bench.hostile` starts its own server with two keys, a journal, Parrot's API, and besides the embedded engine
one that answers nonsense (`bench/hostile_engine.py`). For each attack it measures the latency of
plain requests for four tokens, before and during the attack. Afterwards it checks memory, KV blocks and unfinished
calls. The exit status is 1 if an attack gets a 5xx answer (except 503 and 504 with a code), restarts an engine, ends
the server, leaves work or memory behind, or delays the other key by more than the bound.

`--only WORD` runs the attacks whose name contains the word, `--short` leaves out the long ones; `--copies N` runs N
copies of each in parallel. `--rounds N
--together K` runs K random attacks in parallel, N times. `--requests N` sends N random requests to all routes of
/openapi.json. The attacks are in `bench/attacks.py`.
"""

import argparse
import asyncio
import json
import random
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
import psutil

from bench.attacks import ATTACKER, ATTACKS, LONG, PATIENCE_SECONDS, Attack, Attacker
from bench.random_requests import RandomRequests
from bench.servers import free_port

VICTIM = "victim-key"
BOUND_SECONDS = 1.0
"""Bound on the p99 latency of plain requests, in seconds, on top of twice their latency without an attack."""
GROWTH_MIB = 100
"""Largest growth of the gateway's memory after an attack, in MiB."""
_IDLE_SECONDS = 20
"""Seconds within which memory is given back: the cycle collector runs while the server is idle."""
_SETTLE_SECONDS = 30.0
"""Longest time after an attack until its work has ended, in seconds."""


@dataclass
class Row:
    """Result of an attack, or of several in parallel."""

    name: str
    seconds: float
    requests: int
    answers: dict[str, int]
    alone: float
    """Median latency of the other key's plain requests before the attack, in seconds."""
    waits: list[float]
    """Latencies of the other key's plain requests during the attack, in seconds."""
    grown_mib: float
    faults: list[str] = field(default_factory=list)

    @property
    def p99(self) -> float:
        """99th percentile of `waits`, in seconds."""
        return sorted(self.waits)[int(len(self.waits) * 0.99)] if self.waits else 0.0


class Target:
    """Server under attack, with two keys and its engine processes."""

    def __init__(self, arguments: Sequence[str], folder: Path) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.log = folder / "log"
        command = [sys.executable, "-m", "gateway", "serve", "--port", str(self.port)]
        self.elsewhere = subprocess.Popen(
            [sys.executable, "-m", "bench.hostile_engine"], stdout=subprocess.PIPE, text=True
        )
        assert self.elsewhere.stdout is not None
        engine = f"openai={self.elsewhere.stdout.readline().strip()}"
        command += ["--parrot-api", "--engine", "embedded", "--engine", engine]
        command += ["--api-key", ATTACKER, "--api-key", VICTIM, "--journal", str(folder / "journal.sqlite")]
        with self.log.open("w") as log:
            self.process = subprocess.Popen([*command, *arguments], stdout=subprocess.PIPE, stderr=log, text=True)
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        served = re.search(r"myna serves (\S+)", line)
        if served is None:
            self._stop_elsewhere()
            raise SystemExit(f"bench: the server did not start: {self.log.read_text()}")
        self.model = served[1]
        self.engines = self._engines()

    def _engines(self) -> set[int]:
        return {
            child.pid
            for child in psutil.Process(self.process.pid).children()
            if child.status() != psutil.STATUS_ZOMBIE and "engine.server.worker" in child.cmdline()
        }

    def _stop_elsewhere(self) -> None:
        """Stop the engine that answers nonsense."""
        self.elsewhere.kill()
        self.elsewhere.wait()
        assert self.elsewhere.stdout is not None
        self.elsewhere.stdout.close()

    @property
    def memory_mib(self) -> float:
        """Resident memory of the gateway, in MiB."""
        return float(psutil.Process(self.process.pid).memory_info().rss / 2**20)

    def metric(self, name: str) -> float:
        """Return the sum of a metric over its labels."""
        with urllib.request.urlopen(f"{self.url}/metrics", timeout=30) as answer:
            text = answer.read().decode()
        return sum(float(value) for value in re.findall(rf"^{name}(?:{{[^}}]*}})? (\S+)$", text, re.MULTILINE))

    def problems(self) -> list[str]:
        """Return what an attack has done to the processes: the server ended, or an engine was restarted."""
        if self.process.poll() is not None:
            return [f"the server ended with {self.process.returncode}"]
        found = [] if self._engines() == self.engines else ["an engine was restarted"]
        self.engines = self._engines()
        return found

    def stop(self) -> list[str]:
        """Stop the server with SIGTERM, and return what went wrong, errors in its log included."""
        self._stop_elsewhere()
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            return ["SIGTERM did not end the server within 60 s"]
        finally:
            assert self.process.stdout is not None
            self.process.stdout.close()
        lines = self.log.read_text().splitlines()
        bad = [
            number for number, line in enumerate(lines) if re.search(r"Exception in|never retrieved|Traceback", line)
        ]
        return ["\n".join(["logged:", *lines[max(0, number - 2) : number + 60]]) for number in bad[:1]]


@asynccontextmanager
async def target(arguments: Sequence[str]) -> AsyncIterator[Target]:
    """Start a server for attacks, and stop it at the end."""
    with tempfile.TemporaryDirectory(prefix="hostile-") as folder:
        server = await asyncio.to_thread(Target, arguments, Path(folder))
        try:
            yield server
        finally:
            if server.process.poll() is None:
                await asyncio.to_thread(server.stop)


async def measure(server: Target, name: str, attacks: Sequence[Attack], seed: int) -> Row:
    """Run the attacks in parallel and return the result."""
    timeout = aiohttp.ClientTimeout(total=PATIENCE_SECONDS)
    async with aiohttp.ClientSession(timeout=timeout, connector=aiohttp.TCPConnector(limit=0)) as http:
        alone = statistics.median([await _plain(http, server) for _ in range(5)])
        before = server.memory_mib
        waits: list[float] = []
        watch = asyncio.create_task(_watch(http, server, waits))
        attackers = [
            Attacker(http, server.url, server.model, random.Random(f"{seed} {n}")) for n in range(len(attacks))
        ]
        began = time.perf_counter()
        faults: list[str] = []
        ends = await asyncio.gather(
            *(run(by) for run, by in zip(attacks, attackers, strict=True)), return_exceptions=True
        )
        faults += [f"the attack broke: {end!r}" for end in ends if isinstance(end, BaseException)]
        seconds = time.perf_counter() - began
        if len(waits) < 5:
            await asyncio.sleep(1)
        watch.cancel()
        with suppress(asyncio.CancelledError):
            await watch
        for by in attackers:
            await by.leave()
            faults += by.faults
        faults += await _settled(server)
        answers = sum((by.answers for by in attackers), Counter())
        grown = await _grown(server, before)
        return Row(name, seconds, answers.total(), dict(answers), alone, waits, grown, faults)


async def _settled(server: Target) -> list[str]:
    """Wait until the work of an attack has ended. Return faults: work that is left, and problems of the processes."""
    left: dict[str, float] = {}
    for _ in range(int(_SETTLE_SECONDS / 0.25)):
        if server.process.poll() is not None:
            break
        names = ("myna_calls_unfinished", "myna_kv_blocks_in_use")
        left = {name: value for name in names if (value := await asyncio.to_thread(server.metric, name))}
        if not left:
            break
        await asyncio.sleep(0.25)
    return [*server.problems(), *(f"{name} stays at {value:g}" for name, value in left.items())]


async def _grown(server: Target, before: float) -> float:
    """Return by how many MiB the gateway has grown, once it has had time to give memory back."""
    for _ in range(_IDLE_SECONDS):
        if server.process.poll() is not None:
            return 0.0
        grown = server.memory_mib - before
        if grown <= GROWTH_MIB:
            return grown
        await asyncio.sleep(1)
    return grown


async def _watch(http: aiohttp.ClientSession, server: Target, waits: list[float]) -> None:
    while True:
        waits.append(await _plain(http, server))
        await asyncio.sleep(0.05)


async def _plain(http: aiohttp.ClientSession, server: Target) -> float:
    """Return the latency of a plain request of the other key, in seconds; `PATIENCE_SECONDS` if it failed."""
    body = {"model": server.model, "max_tokens": 4, "temperature": 0, "messages": [{"role": "user", "content": "Hi"}]}
    began = time.perf_counter()
    try:
        headers = {"Authorization": f"Bearer {VICTIM}"}
        async with http.post(f"{server.url}/v1/chat/completions", json=body, headers=headers) as answer:
            await answer.read()
            return time.perf_counter() - began if answer.status == 200 else PATIENCE_SECONDS
    except (aiohttp.ClientError, TimeoutError):
        return PATIENCE_SECONDS


async def hostile(
    arguments: Sequence[str],
    *,
    only: str = "",
    short: bool = False,
    copies: int = 1,
    rounds: int = 0,
    together: int = 3,
    requests: int = 0,
    seed: int = 1,
) -> tuple[list[Row], list[str]]:
    """Run the attacks whose name contains `only`, then `rounds` of several in parallel, then random requests.

    `short`: leave out the attacks that take long. `copies`: number of copies of each attack that run in parallel.
    Return a row for each, and what went wrong when the server ended.
    """
    rng = random.Random(seed)
    chosen = {name: run for name, run in ATTACKS.items() if only in name and not (short and name in LONG)}
    plans: list[tuple[str, list[Attack]]] = [(name, [run] * copies) for name, run in chosen.items()]
    for _ in range(rounds):
        names = rng.sample(sorted(chosen), min(together, len(chosen)))
        plans.append((" + ".join(names), [chosen[name] for name in names]))
    if requests:
        plans.append((f"{requests} random requests", [RandomRequests(requests).run]))
    rows: list[Row] = []
    async with target(arguments) as server:
        for name, attacks in plans:
            rows.append(await measure(server, name, attacks, seed))
            _show(rows[-1])
            if server.process.poll() is not None:
                return rows, [server.log.read_text()[-4000:]]
        return rows, await asyncio.to_thread(server.stop)


def slow(row: Row) -> list[str]:
    """Return in words which bounds of time and memory a row exceeds."""
    found = []
    if row.p99 > BOUND_SECONDS + 2 * row.alone:
        found.append(f"the other key's p99 was {row.p99:.2f} s, alone {row.alone:.2f} s")
    if row.grown_mib > GROWTH_MIB:
        found.append(f"{row.grown_mib:.0f} MiB stay")
    return found


def _show(row: Row) -> None:
    faults = [*row.faults, *slow(row)]
    state = "FAULT" if faults else "ok"
    waits = f"other key {row.alone:.2f} s alone, p99 {row.p99:.2f}, worst {max(row.waits, default=0):.2f}"
    print(
        f"{row.name[:60]:60s} {state:5s} {row.seconds:6.1f} s {row.requests:6d} requests, {waits}, "
        f"{row.grown_mib:+.0f} MiB",
        *faults[:5],
        sep="\n    ",
        flush=True,
    )


def main() -> int:
    """Run the command line. Return the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", default="", help="run only attacks whose name contains this word")
    parser.add_argument("--copies", type=int, default=1, help="number of copies of each attack that run in parallel")
    parser.add_argument("--rounds", type=int, default=0, help="number of rounds of several random attacks in parallel")
    parser.add_argument("--together", type=int, default=3, help="number of attacks in a round")
    parser.add_argument("--requests", type=int, default=0, help="number of random requests to all routes")
    parser.add_argument("--short", action="store_true", help="leave out the attacks that take over 15 seconds")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", action="store_true", help="print the rows as JSON as well")
    parser.add_argument("server", nargs="*", help="options of `myna serve`, after --")
    options = parser.parse_args()
    arguments = options.server or ["--kv-tokens", "16384"]
    rows, ends = asyncio.run(
        hostile(
            arguments,
            only=options.only,
            short=options.short,
            copies=options.copies,
            rounds=options.rounds,
            together=options.together,
            requests=options.requests,
            seed=options.seed,
        )
    )
    if options.json:
        print(json.dumps([{**vars(row), "p99": row.p99} for row in rows]))
    for end in ends:
        print(f"FAULT when the server ended: {end}")
    good = sum(not row.faults and not slow(row) for row in rows)
    print(f"{good} of {len(rows)} without a fault, {sum(row.requests for row in rows)} requests")
    return int(good < len(rows) or bool(ends))


if __name__ == "__main__":
    sys.exit(main())
