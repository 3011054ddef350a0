"""Whole applications over HTTP: `python -m bench.workloads`.

It starts its own server unless --base-url names one. Every application of `examples/workloads` runs in each mode, in
turns, so that load on the machine affects all of them. The table has medians, ratios to the first way, and the number
of answers with the same text: all of them, if the server's kernels do not depend on the batch. `--peer vllm` measures
vLLM's CPU build in the same run, first.
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
    """A server and the mode in which applications use it. All ways get the same texts, because the duration of an
    answer depends on the text. `salt` prevents cache hits on texts of another way."""

    name: str
    url: str
    model: str
    mode: str
    salt: str = ""


@dataclass
class Result:
    """Result of one workload in one way.

    `seconds` of each run; the calls of the last one; the number of answers whose text is the first way's; and the
    number of all.
    """

    seconds: list[float] = field(default_factory=list)
    spans: Sequence[Span] = ()
    equal: int = 0
    answers: int = 0

    @property
    def median(self) -> float:
        """Median of the runs, in seconds."""
        return statistics.median(self.seconds)


async def run_once(http: aiohttp.ClientSession, way: Way, work: Workload, seed: int, rtt: float) -> tuple[float, App]:
    """Return the seconds of one run, and the application."""
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
    """Run applications that arrive at random, on average `apart` seconds after another, next to plain chat.

    `without`: applications that do not run, while everything else stays the same. Returns the seconds of each
    application, and of each chat.
    """
    if way.salt and without:
        way = replace(way, salt=f"{way.salt}, some")
    pick, come = random.Random(seed), random.Random(seed)
    chats: list[float] = []
    over = asyncio.Event()

    async def chat(index: int) -> None:
        app = App(http, way.url, way.model, "client", rtt, way.salt)
        began = time.perf_counter()
        await app.ask(f"{pick.random()}: {Texts(seed).chunk(1000 + index, 24)}", OUT, name=f"chat {index}")
        chats.append(time.perf_counter() - began)

    async def chatter() -> None:
        async with asyncio.TaskGroup() as group:
            for index in range(10**6):
                if over.is_set():
                    return
                group.create_task(chat(index))
                await asyncio.sleep(pick.expovariate(_CHATS / apart))

    async def one(number: int, name: str, index: float) -> float:
        await asyncio.sleep(index)
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
    """Return results by workload and way. Runs take turns between the ways, after a warm-up run."""
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
                expected: dict[str, str] = {}
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
                    duration, app = await run_once(http, way, WORKLOADS[name], seed, chosen.rtt)
                    results[way.name].seconds.append(duration)
                    results[way.name].spans = app.spans
                    expected = expected or app.answers
                    results[way.name].equal += sum(expected.get(call) == text for call, text in app.answers.items())
                    results[way.name].answers += len(expected)
            row = "  ".join(
                f"{way} {result.median:.2f} s ({result.equal} of {result.answers} texts are the first way's)"
                for way, result in results.items()
            )
            print(f"{name}: {row}", file=sys.stderr, flush=True)
    return found


def _slowest_percent(seconds: Sequence[float]) -> float:
    return sorted(seconds)[max(0, -(-99 * len(seconds) // 100) - 1)]


def table(found: dict[str, dict[str, Result]]) -> str:
    """Return a Markdown table: seconds of each way, its ratio to the first, and how many texts are the first way's."""
    ways = list(next(iter(found.values())))
    lines = [
        "| | " + " | ".join([ways[0], *(cell for way in ways[1:] for cell in (way, "ratio", "same texts"))]) + " |",
        "| --- " * (3 * len(ways) - 1) + "|",
    ]
    for name, results in found.items():
        first = results[ways[0]].median
        cells = [f"{first:.2f} s"]
        for way in ways[1:]:
            result = results[way]
            same = f"{result.equal} of {result.answers}" if result.answers else ""
            cells += [f"{result.median:.2f} s", f"{first / result.median:.2f}", same]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def timeline(found: dict[str, dict[str, Result]]) -> str:
    """Return an SVG with a bar for each call of the last runs; the part before the first token is lighter."""
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
                begin, end = ((index - zero) / longest * width for index in (span.begin, span.end))
                first = begin if span.first is None else (span.first - zero) / longest * width
                rows.append(f'<text x="{left - 6}" y="{y + bar - 1}" class="name">{html.escape(span.name)}</text>')
                for index, until, kind in ((begin, first, "wait"), (first, end, "run")):
                    place = f'x="{left + index:.1f}" y="{y}" width="{max(0.5, until - index):.1f}" height="{bar}"'
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
"""Features that `--ablation` can leave out, each with the mode of the applications and the server's options."""


def _own(stack: ExitStack, *settings: str) -> str:
    """Start a server of this project that stops with the stack. Return its address."""
    folder = stack.enter_context(tempfile.TemporaryDirectory())
    command = [sys.executable, "-m", "gateway", "serve", "--journal", f"{folder}/journal", *settings]
    return stack.enter_context(started(command, port_option="--port")) + "/v1"


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="bench.workloads", description=__doc__, allow_abbrev=False)
    everything = [*WORKLOADS, "mixed"]
    parser.add_argument("--base-url", help="an OpenAI-compatible server, with /v1; client mode unless it is myna's")
    parser.add_argument(
        "--before",
        metavar="KIND=URL",
        help="upstream server: client mode uses it directly, other modes a gateway in front of it",
    )
    parser.add_argument("--model", help="model of that server (default: the first it lists)")
    parser.add_argument("--modes", nargs="+", choices=MODES, default=list(MODES))
    parser.add_argument("--only", nargs="+", choices=everything, default=everything)
    parser.add_argument("--rtt", type=float, default=0.0, help="network round-trip time to simulate, in seconds")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--seed", type=int, help="seed of texts, orders and times (default: random)")
    parser.add_argument(
        "--apart", type=float, default=_APPLICATION_SECONDS, help="seconds between two applications of the mixed load"
    )
    parser.add_argument(
        "--applications", type=int, default=2, help="number of applications of each kind in the mixed load"
    )
    parser.add_argument("--peer", choices=["vllm"])
    parser.add_argument("--peer-python", default=sys.executable, help="Python interpreter with the peer installed")
    parser.add_argument(
        "--peer-dtype",
        choices=["bfloat16", "float32"],
        default="bfloat16",
        help="dtype of the peer's weights; float32 may be faster on CPUs without bfloat16 instructions",
    )
    parser.add_argument(
        "--peer-quantize",
        choices=["none", "int8"],
        default="none",
        help="quantization of the peer: linear layers in 8 bits, with a scale for each output and each token",
    )
    parser.add_argument(
        "--ablation",
        nargs="*",
        choices=_WITHOUT,
        metavar="PART",
        help="graph mode without some features",
    )
    parser.add_argument(
        "--settings", nargs=argparse.REMAINDER, default=[], help="options of `myna serve`, to the end of the line"
    )
    parser.add_argument("--svg", type=Path, help="file for a timeline of every call, as SVG")
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
                index = _own(stack, *chosen.settings, *flags) if flags else url
                ways.append(Way(f"no {part}", index, model, mode, part))
        else:
            direct = f"{chosen.before.partition('=')[2].removesuffix('/v1')}/v1" if chosen.before else url
            salts = chosen.modes if len(chosen.modes) > 1 else [""]  # not supported by all servers
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
    """Return the id of the first model that a server lists."""
    async with aiohttp.ClientSession() as http, http.get(f"{url}/models") as response:
        answer: Any = await response.json()
        return str(answer["data"][0]["id"])


if __name__ == "__main__":
    main()
