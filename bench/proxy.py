"""Latency and CPU time that a gateway adds in front of an upstream server.

`python -m bench.proxy` starts both, with a stub as the server. `--base-url URL` measures another gateway, in front of a
stub that `python -m bench.upstream` runs. `--floor` measures the minimum of any gateway on aiohttp.
"""

import argparse
import asyncio
import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import ExitStack, asynccontextmanager, contextmanager
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import cast
from urllib.parse import urlsplit

import aiohttp
import psutil
import uvloop

from bench.__main__ import Figure
from bench.load import Client, prompt

_BODY = '{"model":"stub","stream":true,"max_tokens":%d,"messages":[{"role":"user","content":"go on"}]}'
_SENT = re.compile(rb"(\d{13,20}) ")
"""A token of the stub's; several may come in one event."""


@contextmanager
def running(*command: str) -> Iterator[tuple[psutil.Process, str]]:
    """Start one of the bench programs. Yield the process and the address that it prints."""
    process = subprocess.Popen(
        [sys.executable, "-m", *command], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        assert process.stdin is not None
        found = re.search(r"https?://[^\s/]+:\d+", process.stdout.readline().rpartition(" at ")[2])
        if found is None:
            raise SystemExit(f"bench: {' '.join(command)} did not start")
        yield psutil.Process(process.pid), found[0]
        process.stdin.close()
    finally:
        process.terminate()
        process.wait(40)


@asynccontextmanager
async def _client(url: str, text: str) -> AsyncIterator[Client]:
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as http:
        yield Client(http, f"{url}/v1", "stub", text)


async def _added(gateway: str, stub: str, text: str, runs: int) -> list[Figure]:
    """Return the added latency, in milliseconds at the median, one request at a time."""
    through: list[float] = []
    direct: list[float] = []
    async with _client(gateway, text) as one, _client(stub, text) as other:
        for _ in range(runs):  # in turns, so that load on the machine affects both
            for client, delays in ((one, through), (other, direct)):
                await client.latency(50)
                delays.append(1e3 * await client.latency(400))
    return [
        Figure("added at the median", median(a - b for a, b in zip(through, direct, strict=True)), "ms", "≤ 0.5"),
        Figure("the stub alone, median", median(direct), "ms"),
    ]


async def _rate(gateway: str, process: psutil.Process | None, text: str, runs: int, requests: int) -> list[Figure]:
    """Return the requests per second of 32 clients, the CPU use of the gateway's process meanwhile, in cores, and its
    memory."""
    rates, own, grown = [], [], []
    async with _client(gateway, text) as client:
        await client.request_rate(2000, 32)
        for _ in range(runs):
            before = None if process is None else (process.cpu_times(), process.memory_info().rss)
            rates.append(await client.request_rate(requests, 32))
            if process is not None and before is not None:
                after = process.cpu_times()
                spent = after.user + after.system - before[0].user - before[0].system
                own.append(requests / spent)
                grown.append((process.memory_info().rss - before[1]) / 2**20)
    figures = [Figure("32 clients", median(rates), "requests/s")]
    if own:
        figures.append(Figure("… for each second of the gateway's CPU", median(own), "requests", "≥ 2000"))
        figures.append(Figure(f"memory grown over the last {requests} requests", grown[-1], "MiB", "0"))
    return figures


class _Stream(asyncio.Protocol):
    """One streamed answer, read with as little work as possible."""

    def __init__(self, body: str, delays: list[float], ended: "asyncio.Future[None]") -> None:
        self._request = (
            f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\n\r\n{body}"
        ).encode()
        self._delays = delays
        self._ended = ended
        self._rest = b""
        self.tokens = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        now = time.monotonic_ns()
        data, _, self._rest = (self._rest + data).rpartition(b"\n\n")
        for sent in _SENT.findall(data):
            self._delays.append((now - int(sent)) / 1e6)
            self.tokens += 1
        if b"[DONE]" in data and not self._ended.done():
            self._ended.set_result(None)
            self._transport.close()

    def connection_lost(self, error: Exception | None) -> None:
        if not self._ended.done():
            self._ended.set_exception(error or ConnectionError("the stream ended early"))


async def _streams(url: str, count: int, tokens: int, ramp: float = 1.0) -> tuple[float, float]:
    """Return the delay of tokens of many concurrent streams, in ms: median and 99th percentile. They begin within
    `ramp` seconds."""
    loop, where = asyncio.get_running_loop(), urlsplit(url)
    delays: list[float] = []
    ends = []
    protocols = []
    for index in range(count):
        ended = loop.create_future()
        ends.append(ended)
        _, protocol = await loop.create_connection(
            lambda ended=ended: _Stream(_BODY % tokens, delays, ended),  # type: ignore[misc]
            where.hostname,
            where.port,
        )
        protocols.append(protocol)
        if index % 10 == 9:
            await asyncio.sleep(10 * ramp / count)
    await asyncio.gather(*ends)
    if any(protocol.tokens != tokens for protocol in protocols):
        raise SystemExit("bench: a stream did not bring all its tokens")
    delays.sort()
    return median(delays), delays[int(0.99 * len(delays))]


def _delays(gateway: str, stub: str, count: int, ramp: float) -> list[Figure]:
    middle, late = uvloop.run(_streams(gateway, count, 100, ramp))
    direct, direct_late = uvloop.run(_streams(stub, count, 100, ramp))
    return [
        Figure(f"{count} streams of 100 tokens, delay at the median", middle, "ms"),
        Figure("… at the 99th percentile", late, "ms", "≤ 20"),
        Figure("… without a gateway, median", direct, "ms"),
        Figure("… without a gateway, 99th percentile", direct_late, "ms"),
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    """Print a table, or JSON."""
    parser = argparse.ArgumentParser(prog="python -m bench.proxy", description=__doc__)
    parser.add_argument("--base-url", help="gateway to measure, which serves a model `stub`")
    parser.add_argument("--stub", help="with --base-url: URL of the gateway's upstream stub")
    parser.add_argument("--floor", action="store_true", help="measure a minimal proxy instead of the gateway")
    parser.add_argument(
        "--words", type=int, default=1, help="number of words in each prompt, except for streams (default: 1)"
    )
    parser.add_argument(
        "--runs", type=int, default=3, help="number of runs of each measurement; the median is printed (default: 3)"
    )
    parser.add_argument(
        "--requests", type=int, default=10_000, help="number of requests in each run of 32 clients (default: 10000)"
    )
    parser.add_argument("--streams", type=int, default=1000, help="number of concurrent streams (default: 1000)")
    parser.add_argument("--ramp", type=float, default=1.0, help="seconds within which the streams begin (default: 1)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    chosen = parser.parse_args(arguments)
    text = prompt(chosen.words, seed=0)
    with ExitStack() as stack:
        process = None
        if chosen.base_url:
            gateway, stub = chosen.base_url.removesuffix("/v1").rstrip("/"), chosen.stub
        else:
            _, stub = stack.enter_context(running("bench.upstream"))
        if chosen.floor:
            process, gateway = stack.enter_context(running("bench.passthrough", stub))
        elif not chosen.base_url:
            file = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "myna.toml"
            file.write_text(f'[[engine]]\nkind = "vllm"\nurl = "{stub}"\nconcurrency = 100000\n')
            options = ("--config", str(file), "--port", "0", "--log-level", "warning")
            process, gateway = stack.enter_context(running("gateway", "serve", *options))
        figures = uvloop.run(_added(gateway, stub, text, chosen.runs))
        figures += uvloop.run(_rate(gateway, process, text, chosen.runs, chosen.requests))
        if chosen.streams:
            figures += _delays(gateway, stub, chosen.streams, chosen.ramp)
    if chosen.json:
        print(json.dumps([asdict(figure) for figure in figures], indent=1))
        return 0
    for figure in figures:
        print(f"{figure.what:<56} {figure.value:>10.2f} {figure.unit:<12} {figure.goal}".rstrip())
    return 0


if __name__ == "__main__":
    sys.exit(main())
