"""Cost of graphs in the gateway, over an engine that answers immediately: `python -m bench.rates [--json]`.

It measures deferred calls per second with and without a journal, in turns; a call's cost as its session grows; a graph
of 10,000 calls in one request; and the memory of many sessions.
"""

import argparse
import asyncio
import itertools
import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any, Self
from urllib.parse import urlsplit

import aiohttp
import psutil

_CONNECTIONS = 64
_names = itertools.count()


@contextmanager
def stub_server(*settings: str) -> Iterator[tuple[str, psutil.Process]]:
    """Start the gateway over a stub engine. Yield its address and its process."""
    command = [sys.executable, "-m", "bench.overhead", "gateway", *settings]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        address = re.match(r"http://\S+", process.stdout.readline())
        if address is None:
            raise SystemExit("bench.rates: the server did not start")
        yield f"{address[0]}/v1", psutil.Process(process.pid)
    finally:
        process.stdin.close()
        process.wait(60)
        process.stdout.close()


def _call(text: str, output: str, **semantic: Any) -> dict[str, Any]:
    return {
        "model": "stub",
        "messages": [{"role": "user", "content": text}],
        "max_tokens": 2,
        "semantic": {"output": output, **semantic},
    }


class Wire:
    """A persistent connection with minimal work: the client shares the machine with the server."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._host, self._port, self._path = parts.hostname, parts.port, parts.path
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None

    async def __aenter__(self) -> Self:
        self._reader, self._writer = await asyncio.open_connection(self._host, self._port)
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._writer is not None
        self._writer.close()
        await self._writer.wait_closed()

    async def post(self, path: str, body: Any, session: str) -> bytes:
        """Send a request and return the body of the answer."""
        assert self._reader is not None
        assert self._writer is not None
        data = json.dumps(body).encode()
        self._writer.write(
            f"POST {self._path}{path} HTTP/1.1\r\nHost: x\r\nX-Semantic-Session: {session}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n".encode()
            + data
        )
        head = await self._reader.readuntil(b"\r\n\r\n")
        length = re.search(rb"Content-Length: (\d+)", head)
        assert length is not None
        answer = await self._reader.readexactly(int(length[1]))
        if not head.startswith(b"HTTP/1.1 200"):
            raise SystemExit(f"bench.rates: {answer.decode()}")
        return answer


async def deferred_rate(url: str, calls: int, session_calls: int, home: str | None = None) -> float:
    """Return the deferred calls accepted per second, in sessions of `calls` calls, each a chain. `home`: address of the
    sessions' server, if it is another one."""
    names = [f"rate-{next(_names)}" for _ in range(calls // session_calls)]
    if home is not None:
        async with Wire(home) as wire:
            for name in names:
                await wire.post("/chat/completions", _call("Hi", "begin", defer=True), name)
    work = iter(names)

    async def client() -> None:
        async with Wire(url) as wire:
            for session in work:
                before = "Begin."
                for index in range(session_calls):
                    body = _call(f"Go on: {before}", f"v{index}", defer=True)
                    answer = await wire.post("/chat/completions", body, session)
                    if b'"content":"<<v%d>>"' % index not in answer:
                        raise SystemExit(f"bench.rates: {answer.decode()}")
                    before = f"<<v{index}>>"

    began = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(_CONNECTIONS)))
    return calls / (time.perf_counter() - began)


async def growing_cost(url: str, sizes: list[int]) -> dict[int, float]:
    """Return the milliseconds of a deferred call in a session of each size, one call after another."""
    session = f"grow-{next(_names)}"
    costs, count = {}, 0
    async with Wire(url) as wire:
        for size in sizes:
            took = []
            while count < size:
                began = time.perf_counter()
                await wire.post("/chat/completions", _call("Hi", f"v{count}", defer=True), session)
                took.append(1e3 * (time.perf_counter() - began))
                count += 1
            costs[size] = median(took[-100:])
    return costs


async def graph_seconds(http: aiohttp.ClientSession, url: str, calls: int) -> tuple[float, float]:
    """Return the seconds until a large graph is rejected for its last call, and until the first event of one that
    runs."""
    bodies = [_call("Begin.", "v0")]
    bodies += [_call(f"Go on: <<v{max(0, position - 10)}>>", f"v{position}") for position in range(1, calls)]
    wrong = [*bodies[:-1], _call("<<nobody>>", "last")]
    began = time.perf_counter()
    async with http.post(f"{url}/graphs", json={"calls": wrong}) as response:
        if response.status != 400:
            raise SystemExit(f"bench.rates: {response.status}: {await response.text()}")
    checked = time.perf_counter() - began
    began = time.perf_counter()
    async with http.post(f"{url}/graphs", json={"calls": bodies, "stream": True}) as response:
        await response.content.readline()
        begun = time.perf_counter() - began
        await response.read()
    return checked, begun


async def memory(http: aiohttp.ClientSession, url: str, process: psutil.Process, sessions: int, variables: int) -> int:
    """Return the bytes of each of `sessions` sessions with small variables."""
    before = process.memory_info().rss
    work = iter(range(sessions))

    async def client() -> None:
        for _ in work:
            given = {f"v{index}": f"the value number {index}, a line of ordinary text" for index in range(variables)}
            async with http.post(f"{url}/graphs", json={"variables": given}) as response:
                if response.status != 200:
                    raise SystemExit(f"bench.rates: {response.status}: {await response.text()}")

    await asyncio.gather(*(client() for _ in range(_CONNECTIONS)))
    return process.memory_info().rss - before


async def _shared(url: str, runs: int) -> dict[str, float]:
    """Return the deferred calls per second of two gateways that share a database: sent to the session's gateway, and to
    the other one."""
    report = {}
    with stub_server("--journal", url) as (one, _), stub_server("--journal", url) as (other, _):
        for what, asked in (("deferred_per_s_postgres", one), ("deferred_per_s_passed_on", other)):
            rates = [await deferred_rate(asked, 4000, 10, one) for _ in range(runs + 1)]
            report[what] = median(rates[1:])
    return report


async def _measure(runs: int, postgres: str | None) -> dict[str, Any]:
    report: dict[str, Any] = {}
    timeout = aiohttp.ClientTimeout(total=600)
    with tempfile.TemporaryDirectory() as folder:
        async with aiohttp.ClientSession(timeout=timeout, connector=aiohttp.TCPConnector(limit=0)) as http:
            with (
                stub_server() as (plain, _),
                stub_server("--journal", str(Path(folder) / "rates")) as (journaled, _),
            ):
                pairs = []
                for url in (plain, journaled):
                    await deferred_rate(url, 500, 10)
                for _ in range(runs):
                    pairs.append([await deferred_rate(url, 4000, 10) for url in (plain, journaled)])
                report["deferred_per_s"] = median(pair[0] for pair in pairs)
                report["deferred_per_s_journal"] = median(pair[1] for pair in pairs)
                report["journal_cost"] = 1 - median(pair[1] / pair[0] for pair in pairs)
                report["ms_by_session_calls"] = await growing_cost(journaled, [100, 1000, 10_000])
            with stub_server("--max-calls", "20000", "--journal", str(Path(folder) / "graphs")) as (url, _):
                checks = [await graph_seconds(http, url, 10_000) for _ in range(runs)]
                report["graph_10k_refused_s"] = median(checked for checked, _ in checks)
                report["graph_10k_begun_s"] = median(begun for _, begun in checks)
            settings = ("--max-sessions", "10000", "--journal", str(Path(folder) / "many"))
            with stub_server(*settings) as (url, process):
                report["mb_5000_sessions"] = await memory(http, url, process, 5000, 20) / 1e6
    if postgres is not None:
        report |= await _shared(postgres, runs)
    return report


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="bench.rates", description=__doc__, allow_abbrev=False)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--postgres", metavar="URL", help="measure sessions in this database as well")
    chosen = parser.parse_args()
    report = asyncio.run(_measure(chosen.runs, chosen.postgres))
    if chosen.json:
        print(json.dumps(report))
        return
    for what, value in report.items():
        print(f"{what:28} {value if isinstance(value, dict) else round(value, 3)}")


if __name__ == "__main__":
    main()
