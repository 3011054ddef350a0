"""Agents over HTTP: `python -m bench.agents FILE`.

FILE has recorded sessions of agents: sizes, times and common beginnings, as gzip or plain JSON lines. Each agent is a
stock OpenAI client: it sends a request with `tools`, waits for the answer, waits for the scaled time of the tool, and
sends the next request, which contains the answer. Tokens are divided by --tokens, times by --seconds.

All servers are measured in one run, in turns, with the same texts: `myna serve`, `myna serve --order arrival
--retention lru`, the servers of --url, and with --peer vLLM's CPU build. Each round replays other sessions, because the
figures depend on which ones run together, and starts its own servers. These have a small KV pool: the longest prompts
of all sessions of the round together need --oversubscription times its size. With --through, the program measures each
server of --url and --peer, or one of our own if there is none, alone and behind a gateway.
"""

import argparse
import asyncio
import json
import math
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import aiohttp

from bench.agent_sessions import (
    CALL_LIMIT,
    MARGIN,
    AgentSession,
    BadSessions,
    Conversation,
    Scale,
    choose,
    peak_tokens,
    read_sessions,
    tool_for,
    tools_of,
    without_tool_calls,
)
from bench.peer import vllm
from bench.servers import started
from bench.workloads import first_model

_ARRIVAL = ("--order", "arrival", "--retention", "lru")
"""Options of `myna serve` for the policies of most servers: calls in the order of arrival, LRU eviction."""
_BLOCK = 16
"""Size of a block of our KV pool, in tokens."""
_REQUEST_SECONDS = 600.0
"""Time limit of one request."""


class UnexpectedAnswer(RuntimeError):
    """A server refused a request, or its answer is not the one that the request asks for."""


@dataclass(frozen=True, slots=True)
class Server:
    """A server to measure. `salt`: part of the seed of its texts. Servers that share a cache have different salts."""

    name: str
    url: str
    model: str
    salt: str = ""


@dataclass(frozen=True, slots=True)
class Run:
    """Result of one replay. Times are in seconds.

    `sessions`: duration of each session, without the time of the main agent's tools. `requests`: duration of each
    request. `tools`: time of all tools. `prompt`, `cached`, `completion`: tokens; `cached` is None if the server does
    not report it. `wanted`: prompt tokens of the scaled recording.
    """

    sessions: Sequence[float]
    requests: Sequence[float]
    tools: float
    wall: float
    prompt: int
    cached: int | None
    completion: int
    wanted: int

    @property
    def mean(self) -> float:
        """Mean duration of a session, in seconds."""
        return statistics.mean(self.sessions)

    @property
    def hit_rate(self) -> float | None:
        """Share of the prompt tokens that were in the cache."""
        return None if self.cached is None else self.cached / max(1, self.prompt)


class Replay:
    """Owner of one replay of sessions on a server. `ignore_eos`: whether the server accepts this field."""

    def __init__(self, http: aiohttp.ClientSession, server: Server, salt: str, *, ignore_eos: bool) -> None:
        self._http = http
        self._server = server
        self._salt = f"{server.salt}{salt}"
        self._ignore_eos = ignore_eos
        self._requests: list[float] = []
        self._prompt = self._completion = self._cached = 0
        self._tools = 0.0
        self._reports_cached = True

    async def run(self, sessions: Sequence[AgentSession], apart: float) -> Run:
        """Replay the sessions, which arrive at random, on average `apart` seconds after each other."""
        pick = random.Random(len(sessions))
        arrivals = [0.0]
        for _ in sessions[1:]:
            arrivals.append(arrivals[-1] + (pick.expovariate(1 / apart) if apart else 0.0))
        began = time.perf_counter()
        async with asyncio.TaskGroup() as group:
            tasks = [
                group.create_task(self._session(session, arrival))
                for session, arrival in zip(sessions, arrivals, strict=True)
            ]
        return Run(
            sessions=[task.result() for task in tasks],
            requests=self._requests,
            tools=self._tools,
            wall=time.perf_counter() - began,
            prompt=self._prompt,
            cached=self._cached if self._reports_cached else None,
            completion=self._completion,
            wanted=sum(turn.prompt for session in sessions for turn in session.turns),
        )

    async def _session(self, session: AgentSession, arrival: float) -> float:
        """Replay one session. Return its seconds without those of the main agent's tools.

        A sub-agent begins when the main agent's request before it has been answered, and runs beside it.
        """
        await asyncio.sleep(arrival)
        began = time.perf_counter()
        conversation = Conversation(session, self._salt)
        asked = [asyncio.Event() for _ in session.turns]
        answered = [asyncio.Event() for _ in session.turns]
        agents: dict[str, list[int]] = {}
        for index, turn in enumerate(session.turns):
            agents.setdefault(turn.agent, []).append(index)

        async def agent(name: str, indices: Sequence[int]) -> float:
            first = indices[0]
            main = [index for index in agents.get("", ()) if index < first]
            if name and main:
                await answered[main[-1]].wait()
            waited = 0.0
            for index in indices:
                turn = session.turns[index]
                if index != first:
                    await asyncio.sleep(turn.think)
                    waited += turn.think
                if turn.of >= 0:
                    await asked[turn.of].wait()
                messages = conversation.messages(index)
                asked[index].set()
                answer, prompt, completion = await self._ask(session, index, messages)
                conversation.record(index, answer, prompt, completion)
                answered[index].set()
            self._tools += waited
            return waited

        async with asyncio.TaskGroup() as group:
            tasks = {name: group.create_task(agent(name, indices)) for name, indices in agents.items()}
        return time.perf_counter() - began - (tasks[""].result() if "" in tasks else 0.0)

    async def _ask(
        self, session: AgentSession, index: int, messages: list[dict[str, Any]]
    ) -> tuple[dict[str, Any], int, int]:
        """Return the message of the answer, and the number of prompt and completion tokens."""
        turn = session.turns[index]
        body = {"model": self._server.model, "messages": messages, "tools": tools_of(session), "temperature": 0}
        if turn.calls_tool:
            function = {"name": tool_for(turn.completion)}
            body |= {"max_tokens": CALL_LIMIT, "tool_choice": {"type": "function", "function": function}}
        else:
            body |= {"max_tokens": turn.completion, **({"ignore_eos": True} if self._ignore_eos else {})}
        began = time.perf_counter()
        async with self._http.post(f"{self._server.url}/chat/completions", json=body) as response:
            if response.status != 200:
                raise UnexpectedAnswer(f"{self._server.name}: {response.status}: {(await response.text())[:500]}")
            answer = await response.json()
        self._requests.append(time.perf_counter() - began)
        message, usage = answer["choices"][0]["message"], answer["usage"]
        if turn.calls_tool and not message.get("tool_calls"):
            raise UnexpectedAnswer(
                f"{self._server.name}: the answer has no tool call, although tool_choice names a tool"
            )
        self._prompt += usage["prompt_tokens"]
        self._completion += usage["completion_tokens"]
        cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens")
        self._reports_cached = self._reports_cached and cached is not None
        self._cached += cached or 0
        return message, usage["prompt_tokens"], usage["completion_tokens"]


async def measure(
    servers: Sequence[Server], sessions: Sequence[AgentSession], number: int, chosen: argparse.Namespace
) -> dict[str, Run]:
    """Return the run of each server in one round. `number`: of the round. The servers take turns, in another order each
    round."""
    found: dict[str, Run] = {}
    timeout = aiohttp.ClientTimeout(total=_REQUEST_SECONDS)
    async with aiohttp.ClientSession(timeout=timeout, connector=aiohttp.TCPConnector(limit=0)) as http:
        for server in servers:  # the first requests of a server are slower
            warm_up = Replay(http, server, f"warm-up {number}", ignore_eos=chosen.ignore_eos)
            await warm_up.run(sessions[:1], 0.0)
        first = number % len(servers)
        for server in (*servers[first:], *servers[:first]):
            replay = Replay(http, server, f"{chosen.seed}/{number}", ignore_eos=chosen.ignore_eos)
            run = found[server.name] = await replay.run(sessions, chosen.apart)
            hits = "" if run.hit_rate is None else f", hit rate {run.hit_rate:.1%}"
            print(f"round {number + 1}, {server.name}: {run.mean:.2f} s a session{hits}", file=sys.stderr)
    return {server.name: found[server.name] for server in servers}


def _last_percent(seconds: Sequence[float]) -> float:
    return sorted(seconds)[max(0, -(-99 * len(seconds) // 100) - 1)]


def summary(runs: Sequence[Run], first: Sequence[Run]) -> dict[str, float | None]:
    """Return the medians over the rounds of one server. `first`: runs of the first server.

    `ratio`: in a round, this server's mean divided by that of the first server; above 1: the first server is faster.
    """
    rates = [run.hit_rate for run in runs if run.hit_rate is not None]
    return {
        "session_seconds": statistics.median(run.mean for run in runs),
        "session_p99_seconds": statistics.median(_last_percent(run.sessions) for run in runs),
        "request_seconds": statistics.median(statistics.mean(run.requests) for run in runs),
        "hit_rate": statistics.median(rates) if rates else None,
        "uncached_tokens": statistics.median(run.prompt - run.cached for run in runs if run.cached is not None)
        if rates
        else None,
        "ratio": statistics.median(run.mean / other.mean for run, other in zip(runs, first, strict=True)),
        "lowest_ratio": min(run.mean / other.mean for run, other in zip(runs, first, strict=True)),
    }


def table(found: dict[str, list[Run]]) -> str:
    """Return a Markdown table of the medians. A ratio above 1 means that the first server is faster."""
    lines = [
        "| server | session, mean | p99 | request, mean | hit rate | uncached tokens | ratio | lowest ratio |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    first = next(iter(found.values()))
    for name, runs in found.items():
        row = summary(runs, first)
        times = [f"{row[key]:.2f} s" for key in ("session_seconds", "session_p99_seconds", "request_seconds")]
        hits = "" if row["hit_rate"] is None else f"{row['hit_rate']:.1%}"
        tokens = "" if row["uncached_tokens"] is None else f"{row['uncached_tokens']:.0f}"
        ratios = [f"{row['ratio']:.2f}", f"{row['lowest_ratio']:.2f}"]
        lines.append(f"| {' | '.join([name, *times, hits, tokens, *ratios])} |")
    return "\n".join(lines)


def pool_tokens(sessions: Sequence[AgentSession], oversubscription: float) -> int:
    """Return the size of a KV pool, in tokens.

    The longest prompts of all sessions together need `oversubscription` times this size; less, if the pool is larger
    because it must have room for the longest session, with a margin for answers that are longer than expected.
    """
    peaks = [peak_tokens(session) for session in sessions]
    largest = max(peaks) * MARGIN + CALL_LIMIT
    return math.ceil(max(sum(peaks) / oversubscription, largest) / _BLOCK) * _BLOCK


def _serve(stack: ExitStack, *settings: str) -> str:
    """Start a server of this project that stops with the stack. Return its address."""
    folder = stack.enter_context(tempfile.TemporaryDirectory())
    command = [sys.executable, "-m", "gateway", "serve", "--log-level", "warning", "--journal", f"{folder}/journal"]
    return stack.enter_context(started([*command, *settings], port_option="--port")) + "/v1"


def _base_url(url: str) -> str:
    return f"{url.rstrip('/').removesuffix('/v1')}/v1"


def start_servers(stack: ExitStack, chosen: argparse.Namespace, kv_tokens: int) -> list[Server]:
    """Start the servers that the command line asks for, and return all servers to measure."""
    named = [(name, _base_url(url)) for name, _, url in (text.partition("=") for text in chosen.url)]
    if chosen.peer:
        url, _ = stack.enter_context(vllm(chosen.peer_python, "bfloat16", kv_tokens=kv_tokens))
        named.append((chosen.peer, url))
    own = [*chosen.settings, "--kv-tokens", str(kv_tokens)]
    addresses: list[tuple[str, str, str]] = []
    if chosen.through:
        upstreams = named or [("server", _serve(stack, *own, *_ARRIVAL))]
        for name, url in upstreams:
            front = _serve(stack, "--engine", f"{chosen.through}={url.removesuffix('/v1')}")
            addresses += [(f"gateway before {name}", front, "gateway, "), (name, url, "")]
    else:
        if chosen.own:
            addresses.append(("myna", _serve(stack, *own), ""))
            addresses.append(("arrival order, LRU", _serve(stack, *own, *_ARRIVAL), ""))
        addresses += [(name, url, "") for name, url in named]
    if not addresses:
        raise SystemExit("bench.agents: --no-own needs a server: --url NAME=URL or --peer")
    names = [name for name, _, _ in addresses]
    if len(set(names)) < len(names):
        raise SystemExit(f"bench.agents: two servers have the same name: {', '.join(names)}")
    return [Server(name, url, chosen.model or asyncio.run(first_model(url)), salt) for name, url, salt in addresses]


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """Return the first exception in a group, or in the groups inside it."""
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def _positive(text: str) -> float:
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError("must be a number above 0")
    return value


def _seconds(text: str) -> float:
    value = float(text)
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError("must be a number of seconds, 0 or more")
    return value


def _count(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return value


def _named_url(text: str) -> str:
    name, _, url = text.partition("=")
    if not name or not url.startswith(("http://", "https://")):
        raise argparse.ArgumentTypeError(f"must be NAME=URL with http:// or https://, not {text!r}")
    return text


def add_load(parser: argparse.ArgumentParser, *, rounds: int) -> None:
    """Add the options that define the load. `rounds`: default of `--rounds`."""
    parser.add_argument(
        "file", type=Path, metavar="FILE", help="recorded sessions, as JSON lines or JSON lines in gzip"
    )
    parser.add_argument("--agents", type=_count, default=6, help="number of concurrent sessions (default: 6)")
    parser.add_argument("--turns", type=_count, default=6, help="maximum number of requests of a session (default: 6)")
    parser.add_argument(
        "--rounds", type=_count, default=rounds, help=f"number of replays on each server (default: {rounds})"
    )
    parser.add_argument("--tokens", type=_positive, default=64.0, help="divisor of recorded tokens (default: 64)")
    parser.add_argument("--seconds", type=_positive, default=20.0, help="divisor of recorded tool times (default: 20)")
    parser.add_argument(
        "--longest-tool", type=_positive, default=4.0, help="maximum time of a tool, in scaled seconds (default: 4)"
    )
    parser.add_argument(
        "--apart", type=_seconds, default=0.3, help="mean time between arrivals of sessions, in seconds (default: 0.3)"
    )
    parser.add_argument("--window", type=_count, default=8192, help="context window of the model (default: 8192)")
    parser.add_argument(
        "--oversubscription",
        type=_positive,
        default=2.0,
        help="tokens of the live sessions, relative to the KV pool of our own servers (default: 2)",
    )
    parser.add_argument("--kv", type=_count, help="KV pool of our own servers in tokens, instead of --oversubscription")
    parser.add_argument(
        "--seed",
        type=int,
        default=1,
        help="seed of texts and of the choice of sessions; round n uses seed + n - 1 for this choice (default: 1)",
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="bench.agents", description=__doc__, allow_abbrev=False)
    add_load(parser, rounds=2)
    parser.add_argument(
        "--url",
        type=_named_url,
        action="append",
        default=[],
        metavar="NAME=URL",
        help="another OpenAI-compatible server; may be repeated",
    )
    parser.add_argument(
        "--own", action=argparse.BooleanOptionalAction, default=True, help="start and measure our own servers"
    )
    parser.add_argument(
        "--through",
        choices=["vllm", "sglang", "llamacpp", "openai"],
        help="measure a gateway that uses the servers of --url and --peer, or one of our own, as engines of this kind",
    )
    parser.add_argument(
        "--peer", choices=["vllm"], help="start and measure vLLM's CPU build too, with a KV pool of the same size"
    )
    parser.add_argument("--peer-python", default=sys.executable, help="Python interpreter with the peer installed")
    parser.add_argument("--model", help="model of the servers (default: the first that each of them lists)")
    parser.add_argument(
        "--ignore-eos",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="send ignore_eos with requests for text, which fixes the length of answers (default: on)",
    )
    parser.add_argument(
        "--tool-calls",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="send tool_choice where the recorded answer is a tool call (default: on); off: request a text of the "
        "recorded length, for servers that ignore a tool_choice that names a tool",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument(
        "--settings",
        nargs=argparse.REMAINDER,
        default=[],
        help="options of `myna serve` for our own servers, to the end of the line",
    )
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    chosen = _parser().parse_args(arguments)
    scale = Scale(chosen.tokens, chosen.seconds, chosen.longest_tool, chosen.turns, chosen.window)
    try:
        recorded = list(read_sessions(chosen.file, scale))
    except (BadSessions, OSError) as error:
        raise SystemExit(f"bench.agents: {error}") from None
    if not chosen.tool_calls:
        recorded = [without_tool_calls(session) for session in recorded]
    if not recorded:
        raise SystemExit(f"bench.agents: {chosen.file} has no session that fits into {chosen.window} tokens")
    found: dict[str, list[Run]] = {}
    pools, requests = [], 0
    refused: BaseException | None = None
    for number in range(chosen.rounds):
        sessions = choose(recorded, chosen.agents, chosen.turns, chosen.seed + number)
        pool = chosen.kv or pool_tokens(sessions, chosen.oversubscription)
        count = sum(len(session.turns) for session in sessions)
        print(f"round {number + 1}: {len(sessions)} sessions, {count} requests, KV of {pool} tokens", file=sys.stderr)
        with ExitStack() as stack:
            try:
                runs = asyncio.run(measure(start_servers(stack, chosen, pool), sessions, number, chosen))
            except* (UnexpectedAnswer, aiohttp.ClientError, TimeoutError, SystemExit) as group:
                refused = _first(group)
        if refused is not None:
            break
        for name, run in runs.items():
            found.setdefault(name, []).append(run)
        pools.append(pool)
        requests += count
    if found and chosen.json:
        first = next(iter(found.values()))
        settings = {"agents": chosen.agents, "requests": requests, "kv_tokens": pools, "scale": asdict(scale)}
        results = {
            name: {**summary(runs, first), "runs": [asdict(run) for run in runs]} for name, runs in found.items()
        }
        print(json.dumps({**settings, "seed": chosen.seed, "servers": results}, indent=1))
    elif found:
        print(table(found))
    if refused is not None:  # the rounds before it are worth showing
        raise SystemExit(f"bench.agents: {str(refused).removeprefix('bench.agents: ') or repr(refused)}")


if __name__ == "__main__":
    main()
