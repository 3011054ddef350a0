"""CPU time of a plain request, by kind of API key: static, virtual, and virtual with all limits.

`python -m bench.keys` starts one gateway over a stub engine, and sends requests with each kind of key in turns.
"""

import argparse
import json
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from statistics import median
from typing import Any

import aiohttp
import psutil
import uvloop

from bench.load import Client, prompt
from bench.proxy import running

_ADMIN_KEY = "admin-key-of-the-benchmark"
_LIMITS = {"rpm": 10**9, "tpm": 10**12, "parallel": 1_000, "budget_tokens": 10**14, "budget_cost": 1e9}


async def _make_key(http: aiohttp.ClientSession, url: str, fields: dict[str, Any]) -> str:
    headers = {"Authorization": f"Bearer {_ADMIN_KEY}"}
    async with http.post(f"{url}/v1/admin/keys", json=fields, headers=headers) as answer:
        answer.raise_for_status()
        return str((await answer.json())["key"])


def _nanoseconds(process: int) -> int:
    """Return the CPU time of all threads of a process, in nanoseconds. `psutil` counts in hundredths of a second."""
    return sum(int(file.read_text().split()[0]) for file in Path(f"/proc/{process}/task").glob("*/schedstat"))


async def _microseconds(
    url: str, process: psutil.Process, rounds: int, requests: int, others: int
) -> dict[str, tuple[float, float]]:
    """Return for each kind of key the CPU time of a request in microseconds, and its ratio to that of the static key in
    the same round: medians over the rounds."""
    spent: dict[str, list[float]] = {}
    async with AsyncExitStack() as stack:
        admin = await stack.enter_async_context(aiohttp.ClientSession())
        for _ in range(others):
            await _make_key(admin, url, _LIMITS)
        keys = {
            "static": "static-key",
            "virtual": await _make_key(admin, url, {}),
            "virtual with all limits": await _make_key(admin, url, {**_LIMITS, "budget_period": "1d"}),
            "virtual with a model": await _make_key(admin, url, {"models": ["stub"]}),
        }
        clients = {}
        for kind, key in keys.items():
            headers = {"Authorization": f"Bearer {key}"}
            http = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), headers=headers)
            clients[kind] = Client(await stack.enter_async_context(http), f"{url}/v1", "stub", prompt(1, seed=0))
            await clients[kind].request_rate(500, 16)
        order = list(clients)
        for number in range(rounds):
            for kind in order[number % len(order) :] + order[: number % len(order)]:
                before = _nanoseconds(process.pid)
                await clients[kind].request_rate(requests, 16)
                spent.setdefault(kind, []).append((_nanoseconds(process.pid) - before) / 1_000 / requests)
    return {
        kind: (median(values), median([one / other for one, other in zip(values, spent["static"], strict=True)]))
        for kind, values in spent.items()
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the figures as JSON."""
    parser = argparse.ArgumentParser(prog="python -m bench.keys", description=__doc__)
    parser.add_argument(
        "--rounds", type=int, default=100, help="number of rounds; the medians are printed (default: 100)"
    )
    parser.add_argument("--requests", type=int, default=100, help="requests of each kind in a round (default: 100)")
    parser.add_argument("--keys", type=int, default=0, help="number of other keys that the gateway has (default: 0)")
    parser.add_argument("--journal", default="memory", help="journal of the gateway (default: memory)")
    chosen = parser.parse_args(arguments)
    options = ("--api-key", "static-key", "--admin-key", _ADMIN_KEY, "--journal", chosen.journal)
    with running("bench.overhead", "gateway", *options) as (process, url):
        found = uvloop.run(_microseconds(url, process, chosen.rounds, chosen.requests, chosen.keys))
    print(json.dumps({kind: {"us": round(us, 1), "ratio": round(ratio, 3)} for kind, (us, ratio) in found.items()}))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
