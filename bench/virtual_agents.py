"""The load of `bench.agents` in virtual time: `python -m bench.virtual_agents FILE`.

It replays the same sessions as `bench.agents`, with the same options for the load, on the server's own code: step
scheduler, KV cache, pauses, and the order of programs. A table of step costs replaces the model. Therefore 20 rounds
take less than a minute, and no other work on the machine disturbs them. By default the table is measured first, with
the default model on this machine; `--table` names a built-in one (`cpu`, `h100`), or a file that `python -m
bench.simulator --table FILE` wrote.

Gateway, HTTP and tokenizer are left out as well. Each tool call has the expected length, the KV of answers is not
reused, and the engine does not draft tokens. The table hardly charges for attention to long contexts, so long prompts
are faster than on a real CPU.
"""

import argparse
import itertools
import random
import statistics
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path

from bench.agent_sessions import (
    AgentSession,
    BadSessions,
    Scale,
    choose,
    peak_tokens,
    prompt_tokens,
    read_sessions,
    tool_for,
)
from bench.agents import add_load, pool_tokens
from bench.simulator import fit
from gateway.simulator.agents.replay import Outcome, replay_on_server
from gateway.simulator.agents.server_engine import ServerSettings
from gateway.simulator.agents.sessions import RecordedRequest, RecordedSession
from gateway.simulator.engine import TABLES, BadTable, Costs, read_costs

_SERVERS = {
    "myna": ServerSettings(is_interactive=True),
    "`--no-pause-programs`": ServerSettings(is_interactive=True, pauses=False, order="deadlines"),
    "arrival order, LRU": ServerSettings(is_interactive=True, pauses=False, order="arrival", learns=False),
}


def recorded(session: AgentSession) -> RecordedSession:
    """Return a session as the simulator reads it, with the sizes of its replay."""
    latest: dict[str, int] = {}
    """Latest request of each agent."""
    requests: list[RecordedRequest] = []
    for index, (turn, prompt) in enumerate(zip(session.turns, prompt_tokens(session), strict=True)):
        shared = 0
        if turn.of >= 0:
            before = requests[turn.of].prompt
            shared = min(prompt, before, before if turn.extends else turn.shared)
        after = latest.get(turn.agent, latest.get("", -1))  # a sub-agent begins after an answer to the main agent
        is_first = turn.agent not in latest
        latest[turn.agent] = index
        requests.append(
            RecordedRequest(
                prompt=prompt,
                output=turn.answer_tokens,
                source=turn.of,
                shared=shared,
                stop=tool_for(turn.completion) if turn.calls_tool else "end_turn",
                agent=turn.agent,
                after=after,
                pause=0.0 if is_first else turn.think,
                extends=turn.extends,
            )
        )
    return RecordedSession(session.name, session.tools, session.system, tuple(requests))


def play(sessions: Sequence[AgentSession], apart: float, costs: Costs, pool: int) -> dict[str, Outcome]:
    """Return the outcome of each server. `apart`: mean time between arrivals, in seconds. `pool`: tokens of the KV
    pool."""
    pick = random.Random(len(sessions))
    arrivals = [0.0, *itertools.accumulate(pick.expovariate(1 / apart) if apart else 0.0 for _ in sessions[1:])]
    converted = [recorded(session) for session in sessions]
    return {name: replay_on_server(converted, arrivals, costs, pool, settings) for name, settings in _SERVERS.items()}


def table(rounds: Sequence[dict[str, Outcome]]) -> str:
    """Return a Markdown table of the means over the rounds. A ratio above 1 means that the first server is faster: the
    geometric mean of the rounds' ratios, the lowest and the highest."""
    lines = [
        "| server | session, mean | hit rate | ratio | lowest | highest |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    first = next(iter(rounds[0]))
    for name in rounds[0]:
        mean = statistics.mean(outcomes[name].mean for outcomes in rounds)
        hits = statistics.mean(outcomes[name].hit_rate for outcomes in rounds)
        ratios = [outcomes[name].mean / outcomes[first].mean for outcomes in rounds]
        figures = [statistics.geometric_mean(ratios), min(ratios), max(ratios)]
        lines.append(f"| {name} | {mean:.2f} s | {hits:.1%} | {' | '.join(f'{figure:.2f}' for figure in figures)} |")
    return "\n".join(lines)


def _costs(name: str | None) -> Costs:
    if name is None:
        return fit()
    return TABLES.get(name) or read_costs(Path(name))


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="bench.virtual_agents", description=__doc__, allow_abbrev=False)
    add_load(parser, rounds=20)
    parser.add_argument("--table", help="step costs: cpu, h100, or a file (default: measure this machine)")
    chosen = parser.parse_args(arguments)
    scale = Scale(chosen.tokens, chosen.seconds, chosen.longest_tool, chosen.turns, chosen.window)
    try:
        found = list(read_sessions(chosen.file, scale))
        costs = replace(_costs(chosen.table), window=chosen.window)
    except (BadSessions, BadTable, OSError) as error:
        raise SystemExit(f"bench.virtual_agents: {error}") from None
    if not found:
        raise SystemExit(f"bench.virtual_agents: {chosen.file} has no session that fits into {chosen.window} tokens")
    rounds = [choose(found, chosen.agents, chosen.turns, chosen.seed + number) for number in range(chosen.rounds)]
    pools = [chosen.kv or pool_tokens(sessions, chosen.oversubscription) for sessions in rounds]
    largest = max(peak_tokens(session) for sessions in rounds for session in sessions)
    if chosen.kv and chosen.kv < largest:
        raise SystemExit(f"bench.virtual_agents: --kv {chosen.kv} is too small: a call needs {largest} tokens")
    requests = sum(len(session.turns) for sessions in rounds for session in sessions)
    sizes = f"{min(pools)} to {max(pools)} tokens"
    print(f"{chosen.rounds} x {chosen.agents} sessions, {requests} requests, KV of {sizes}", file=sys.stderr)
    with ProcessPoolExecutor() as processes:
        work = partial(play, apart=chosen.apart, costs=costs)
        played = [processes.submit(work, sessions, pool=pool) for sessions, pool in zip(rounds, pools, strict=True)]
        print(table([future.result() for future in played]))


if __name__ == "__main__":
    main()
