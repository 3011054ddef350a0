"""Whole applications through HTTP: `python -m bench.workloads`. Starts its own server unless --base-url names one.

Every application of `examples/workloads` runs in each mode, in turns, so that the machine's moods fall on all of them;
the table has medians and ratios to the first way. `--peer vllm` measures vLLM's CPU build in the same run, first.
"""

import argparse
import asyncio
import html
import json
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from itertools import accumulate, count
from pathlib import Path
from typing import Any

import aiohttp

from bench.peer import vllm
from bench.servers import started
from examples.workloads.apps import OUT, WORKLOADS, Workload
from examples.workloads.client import MODES, App, Span
from examples.workloads.texts import Texts

_APPLICATION_SECONDS = 8.0
"""On average, between two applications in the mixed load: about four fifths of what two cores with AVX512 can do."""
_CHATS = 4
"""Messages of plain chat for each application in it."""


GRAPHS = ("chain", "map_reduce", "agents", "thoughts")
"""Applications that are work in the background; the others are people who ask, as plain chat is."""


@dataclass(frozen=True)
class Way:
    """A server and how applications use it.

    All ways are given the same texts, since how long an answer takes depends on what it says. `salt` keeps them from
    finding in a cache what another way has left there.
    """

    name: str
    url: str
    model: str
    mode: str
    salt: str = ""


@dataclass
class Result:
    """Of one workload in one way: seconds of each run, and the calls of the last one."""

    seconds: list[float] = field(default_factory=list)
    spans: Sequence[Span] = ()

    @property
    def median(self) -> float:
        """Seconds."""
        return statistics.median(self.seconds)


async def run_once(http: aiohttp.ClientSession, way: Way, work: Workload, seed: int, rtt: float) -> tuple[float, App]:
    """Seconds that one run takes, and the application it was."""
    app = App(http, way.url, way.model, way.mode, rtt, way.salt)
    began = time.perf_counter()
    await work(app, Texts(seed))
    seconds = time.perf_counter() - began
    await app.close()
    return seconds, app


async def mixed_once(
    http: aiohttp.ClientSession,
    way: Way,
    seed: int,
    rtt: float,
    apps: Sequence[str],
    apart: float = _APPLICATION_SECONDS,
    without: Sequence[str] = (),
) -> tuple[list[float], list[float]]:
    """Applications that come by chance, on average so many seconds `apart`, beside plain chat: seconds of each of them,
    and of each chat. `without`: applications that do not come, though all else does as with them.
    """
    if way.salt and without:
        way = replace(way, salt=f"{way.salt}, some")
    pick, come = random.Random(seed), random.Random(seed)
    chats: list[float] = []
    over = asyncio.Event()

    async def chat(at: int) -> None:
        app = App(http, way.url, way.model, "client", rtt, way.salt)
        began = time.perf_counter()
        await app.ask(f"{pick.random()}: {Texts(seed).chunk(1000 + at, 24)}", OUT, name=f"chat {at}")
        chats.append(time.perf_counter() - began)

    async def chatter() -> None:
        async with asyncio.TaskGroup() as group:
            for at in range(10**6):
                if over.is_set():
                    return
                group.create_task(chat(at))
                await asyncio.sleep(pick.expovariate(_CHATS / apart))

    async def one(number: int, name: str, at: float) -> float:
        await asyncio.sleep(at)
        return (await run_once(http, way, WORKLOADS[name], seed + number, rtt))[0]

    talk = asyncio.create_task(chatter())
    try:
        order = come.sample(apps, len(apps))
        times = accumulate(come.expovariate(1 / apart) for _ in order)
        coming = zip(count(), order, times, strict=False)
        seconds = await asyncio.gather(*(one(*each) for each in coming if each[1] not in without))
    finally:
        over.set()
        await talk
    return list(seconds), chats


async def measure(ways: Sequence[Way], chosen: argparse.Namespace) -> dict[str, dict[str, Result]]:
    """By workload and way. Runs take turns between the ways, after one to warm up."""
    found: dict[str, dict[str, Result]] = {}
    first = random.randrange(10**9) if chosen.seed is None else chosen.seed
    print(f"texts and times of seed {first}", file=sys.stderr)
    seeds = iter(range(first, 10**12, 1000))
    timeout = aiohttp.ClientTimeout(total=1800)
    async with aiohttp.ClientSession(timeout=timeout, connector=aiohttp.TCPConnector(limit=0)) as http:
        for way in ways:
            await run_once(http, way, WORKLOADS["map_reduce"], next(seeds), 0.0)
        for name in chosen.only:
            results = found[name] = {way.name: Result() for way in ways}
            for _ in range(chosen.runs):
                seed = next(seeds)
                for way in ways:
                    if name == "mixed":
                        apps = [one for one in WORKLOADS for _ in range(chosen.applications)]
                        _, without = await mixed_once(http, way, seed, chosen.rtt, apps, chosen.apart, without=GRAPHS)
                        seconds, chats = await mixed_once(http, way, seed, chosen.rtt, apps, chosen.apart)
                        results[way.name].seconds.append(statistics.mean(seconds))
                        for what, times in (("with", chats), ("without", without)):
                            row = found.setdefault(f"chat {what} graphs: p99", {})
                            row.setdefault(way.name, Result()).seconds.append(_slowest_percent(times))
                        slowest = (
                            f"{_slowest_percent(chats):.2f} s with graphs, {_slowest_percent(without):.2f} without"
                        )
                        print(f"{way.name}: {statistics.mean(seconds):.2f} s; chat's p99 {slowest}", file=sys.stderr)
                        continue
                    taken, app = await run_once(http, way, WORKLOADS[name], seed, chosen.rtt)
                    results[way.name].seconds.append(taken)
                    results[way.name].spans = app.spans
            row = "  ".join(f"{way} {result.median:.2f} s" for way, result in results.items())
            print(f"{name}: {row}", file=sys.stderr, flush=True)
    return found


def _slowest_percent(seconds: Sequence[float]) -> float:
    return sorted(seconds)[max(0, -(-99 * len(seconds) // 100) - 1)]


def table(found: dict[str, dict[str, Result]]) -> str:
    """Markdown: seconds of each way, and how many times as long the first takes."""
    ways = list(next(iter(found.values())))
    lines = [
        "| | " + " | ".join([ways[0], *(cell for way in ways[1:] for cell in (way, "ratio"))]) + " |",
        "| --- " * (2 * len(ways)) + "|",
    ]
    for name, results in found.items():
        first = results[ways[0]].median
        cells = [f"{first:.2f} s"]
        for way in ways[1:]:
            cells += [f"{results[way].median:.2f} s", f"{first / results[way].median:.2f}"]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def timeline(found: dict[str, dict[str, Result]]) -> str:
    """SVG: a bar for each call of the last runs, its part before the first token lighter."""
    bar, gap, width, left = 9, 3, 760, 150
    rows: list[str] = []
    y = 10
    for name, results in found.items():
        longest = max((_extent(result.spans) for result in results.values()), default=0.0)
        if not longest:
            continue
        for way, result in results.items():
            if not result.spans:
                continue
            zero = min(span.begin for span in result.spans)
            y += 22
            title = html.escape(f"{name}, {way}: {result.median:.2f} s")
            rows.append(f'<text x="{left}" y="{y - 6}" class="title">{title}</text>')
            for span in sorted(result.spans, key=lambda span: (span.begin, span.name)):
                begin, end = ((at - zero) / longest * width for at in (span.begin, span.end))
                first = begin if span.first is None else (span.first - zero) / longest * width
                rows.append(f'<text x="{left - 6}" y="{y + bar - 1}" class="name">{html.escape(span.name)}</text>')
                for at, until, kind in ((begin, first, "wait"), (first, end, "run")):
                    place = f'x="{left + at:.1f}" y="{y}" width="{max(0.5, until - at):.1f}" height="{bar}"'
                    rows.append(f'<rect {place} class="{kind}"/>')
                y += bar + gap
    style = (
        "text{font:9px sans-serif;fill:#222}.name{text-anchor:end;font-size:8px}.title{font-weight:bold;font-size:11px}"
        ".wait{fill:#c9d6e8}.run{fill:#3b6ea8}"
    )
    size = f'width="{left + width + 10}" height="{y + 10}"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {size}><style>{style}</style>'
    return "\n".join([head, '<rect width="100%" height="100%" fill="#fff"/>', *rows, "</svg>\n"])


def _extent(spans: Sequence[Span]) -> float:
    return max((span.end for span in spans), default=0.0) - min((span.begin for span in spans), default=0.0)


_WITHOUT = {
    "deferral": ("client", ()),
    "rank": ("graph", ("--order", "arrival")),
    "rank-and-deferral": ("client", ("--order", "arrival")),
    "fill-ahead": ("graph", ("--no-fill-ahead",)),
    "prefix-sharing": ("graph", ("--no-prefix-sharing",)),
    "retention": ("graph", ("--retention", "lru")),
}
"""What `--ablation` leaves out: how applications are run then, and what the server is told."""


def _own(stack: ExitStack, *settings: str) -> str:
    """The address of a server of ours that ends with the stack."""
    folder = stack.enter_context(tempfile.TemporaryDirectory())
    command = [sys.executable, "-m", "gateway", "serve", "--journal", f"{folder}/journal", *settings]
    return stack.enter_context(started(command, port_option="--port")) + "/v1"


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="bench.workloads", description=__doc__, allow_abbrev=False)
    everything = [*WORKLOADS, "mixed"]
    parser.add_argument("--base-url", help="an OpenAI-compatible server, with /v1; client mode unless it is myna's")
    parser.add_argument(
        "--before",
        metavar="KIND=URL",
        help="a server elsewhere: client mode asks it itself, other modes a gateway before it",
    )
    parser.add_argument("--model", help="of that server; left out, the first it has")
    parser.add_argument("--modes", nargs="+", choices=MODES, default=list(MODES))
    parser.add_argument("--only", nargs="+", choices=everything, default=everything)
    parser.add_argument("--rtt", type=float, default=0.0, help="seconds added to each exchange, as a network would")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--seed", type=int, help="of texts, orders and times; left out, another one each time")
    parser.add_argument(
        "--apart", type=float, default=_APPLICATION_SECONDS, help="seconds between two applications of the mixed load"
    )
    parser.add_argument("--applications", type=int, default=2, help="of each kind in the mixed load")
    parser.add_argument("--peer", choices=["vllm"])
    parser.add_argument("--peer-python", default=sys.executable, help="python that has the peer installed")
    parser.add_argument(
        "--peer-dtype",
        choices=["bfloat16", "float32"],
        default="bfloat16",
        help="of the peer's weights; float32 may be faster for it on CPUs that have no instructions for bfloat16",
    )
    parser.add_argument(
        "--peer-quantize",
        choices=["none", "int8"],
        default="none",
        help="of the peer: linear layers in 8 bits, with a scale for each output and each token",
    )
    parser.add_argument(
        "--ablation",
        nargs="*",
        choices=_WITHOUT,
        metavar="PART",
        help="graph mode, without parts of ours",
    )
    parser.add_argument(
        "--settings", nargs=argparse.REMAINDER, default=[], help="of myna serve, to the end of the line"
    )
    parser.add_argument("--svg", type=Path, help="file for a picture of every call")
    parser.add_argument("--json", action="store_true")
    chosen = parser.parse_args()
    with ExitStack() as stack:
        ways = []
        if chosen.peer:
            ways.append(
                Way(
                    "vllm",
                    *stack.enter_context(vllm(chosen.peer_python, chosen.peer_dtype, quantize=chosen.peer_quantize)),
                    "client",
                )
            )
        before = ("--engine", chosen.before) if chosen.before else ()
        url = chosen.base_url or _own(stack, *before, *chosen.settings)
        model = chosen.model or asyncio.run(first_model(url))
        if chosen.ablation is not None:
            ways.append(Way("everything", url, model, "graph", "everything"))
            for part in chosen.ablation or _WITHOUT:
                mode, flags = _WITHOUT[part]
                at = _own(stack, *chosen.settings, *flags) if flags else url
                ways.append(Way(f"no {part}", at, model, mode, part))
        else:
            direct = f"{chosen.before.partition('=')[2].removesuffix('/v1')}/v1" if chosen.before else url
            salts = chosen.modes if len(chosen.modes) > 1 else [""]  # which not all servers know
            ways += [
                Way(mode, direct if mode == "client" else url, model, mode, salt)
                for mode, salt in zip(chosen.modes, salts, strict=True)
            ]
        found = asyncio.run(measure(ways, chosen))
    if chosen.svg:
        chosen.svg.write_text(timeline(found))
    if chosen.json:
        print(json.dumps({name: {way: one.seconds for way, one in ways.items()} for name, ways in found.items()}))
    else:
        print(table(found))


async def first_model(url: str) -> str:
    """The id of the first model that a server lists."""
    async with aiohttp.ClientSession() as http, http.get(f"{url}/models") as response:
        answer: Any = await response.json()
        return str(answer["data"][0]["id"])


if __name__ == "__main__":
    main()
