"""The command `myna simulate --agents`: replay recorded agent sessions on modelled engines, once for each policy."""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from gateway.simulator.agents.comparison import (
    OVERSUBSCRIPTIONS,
    POLICIES,
    REFERENCE,
    SESSIONS,
    TOGETHER,
    UTILISATIONS,
    WINDOW,
    Comparison,
    Replays,
    compare,
)
from gateway.simulator.agents.policies.myna import PARTS
from gateway.simulator.agents.replay import SERVER
from gateway.simulator.engine import TABLES
from gateway.simulator.trace import BadTrace


def main(arguments: Sequence[str]) -> int:
    """Print mean and 99th percentile of the completion of sessions for each policy. Return the exit status."""
    parser = argparse.ArgumentParser(
        prog="myna simulate",
        description="Replay recorded agent sessions on modelled engines in virtual time, and compare policies of "
        "ordering calls, admitting them and evicting KV.",
        allow_abbrev=False,
    )
    parser.add_argument("--agents", type=Path, required=True, metavar="FILE", help="sessions, JSON lines or gzip")
    parser.add_argument(
        "--sessions", type=int, default=SESSIONS, metavar="N", help=f"number of sessions (default: {SESSIONS})"
    )
    tables = tuple(TABLES)
    parser.add_argument("--tables", nargs="+", choices=tables, default=list(tables), help="engines (default: all)")
    parser.add_argument(
        "--utilisations",
        nargs="+",
        type=_utilisation,
        default=list(UTILISATIONS),
        metavar="SHARE",
        help="load relative to capacity, or `together` for sessions that all arrive at once "
        "(default: 0.7 0.85 0.95 together)",
    )
    parser.add_argument(
        "--oversubscriptions",
        nargs="+",
        type=float,
        default=list(OVERSUBSCRIPTIONS),
        metavar="RATIO",
        help="KV of live sessions divided by the KV pool (default: 1.5 2 4)",
    )
    parser.add_argument(
        "--policies",
        nargs="+",
        choices=(*POLICIES, SERVER),
        default=list(POLICIES),
        help=f"policies to compare; {SERVER}: the server's own code, which takes longer (default: all others)",
    )
    parser.add_argument(
        "--without", nargs="+", choices=PARTS, default=[], help="parts of the policy myna to turn off (default: none)"
    )
    parser.add_argument(
        "--keys",
        type=int,
        default=1,
        metavar="N",
        help=f"number of API keys that the sessions get in turn, for the policy {SERVER} (default: 1)",
    )
    parser.add_argument(
        "--half",
        type=int,
        choices=(0, 1),
        help="replay only sessions of this half of the file, by a hash of their ids (default: both halves)",
    )
    parser.add_argument("--seed", type=int, default=1, help="random seed (default: 1)")
    parser.add_argument(
        "--jobs", type=int, default=os.cpu_count() or 1, metavar="N", help="number of processes (default: one a core)"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args(arguments)
    counts = options.sessions, options.jobs, options.keys
    if min(counts) < 1 or not all(0 < x < 1000 for x in options.oversubscriptions):
        print("myna simulate: sessions, jobs and keys must be >= 1, oversubscriptions in (0, 1000)", file=sys.stderr)
        return 2
    replays = Replays(
        tables=options.tables,
        utilisations=options.utilisations,
        oversubscriptions=options.oversubscriptions,
        policies=options.policies,
        without=frozenset(options.without),
        sessions=options.sessions,
        seed=options.seed,
        jobs=options.jobs,
        keys=options.keys,
        half=options.half,
    )
    try:
        comparison = compare(options.agents, replays)
    except (BadTrace, OSError) as error:
        print(f"myna simulate: {error}", file=sys.stderr)
        return 2
    print(json.dumps(comparison.as_json()) if options.json else as_text(comparison))
    return 0


def _utilisation(text: str) -> float:
    """Return a share of capacity, or `TOGETHER`. Raises ArgumentTypeError."""
    if text == "together":
        return TOGETHER
    try:
        share = float(text)
    except ValueError:
        share = -1.0
    if not 0 < share < 2:
        raise argparse.ArgumentTypeError(f"{text!r} is neither `together` nor a number in (0, 2)")
    return share


def as_text(comparison: Comparison) -> str:
    """Return the figures as a table for each setting, and the ratios of all settings."""
    recording = comparison.recording
    lines = [
        f"{comparison.sessions} of {len(recording.sessions)} sessions, {comparison.requests} requests. "
        f"{recording.cut} sessions are cut before a request of more than {WINDOW} tokens, "
        f"{recording.left_out} are left out; {recording.requests_left_out} requests in all."
    ]
    for result in comparison.results:
        setting = result.setting
        load = "all at once" if setting.utilisation == TOGETHER else f"utilisation {setting.utilisation:.0%}"
        pool = f"KV pool {result.capacity} tokens"
        if result.is_smallest_pool:
            pool += ", the least that fits every call"
        lines += ["", f"{setting.table}, {load}, oversubscription {setting.oversubscription:g} ({pool})"]
        lines.append(
            f"  {'policy':12} {'mean':>10} {'p99':>10} {'hit rate':>9} {'preemptions':>12} {f'x {REFERENCE}':>8}"
        )
        for name, outcome in result.outcomes.items():
            ratio = result.outcomes[REFERENCE].mean / outcome.mean
            lines.append(
                f"  {name:12} {outcome.mean:9.1f}s {outcome.p99:9.1f}s {outcome.hit_rate:9.1%} "
                f"{outcome.preemptions:12} {ratio:8.2f}"
            )
    lines += ["", f"geometric mean over settings of the mean completion of {REFERENCE} divided by that of the policy"]
    lines += [f"  {name:12} {ratio:6.2f}" for name, ratio in comparison.ratios().items()]
    return "\n".join(lines)
