"""The command `myna simulate`: run applications on modelled engines, once for each policy."""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from gateway.cli import simulate_agents
from gateway.simulator.engine import TABLES, BadTable, read_costs
from gateway.simulator.policies import POLICIES
from gateway.simulator.simulation import Outcome, Scenario, simulate
from gateway.simulator.trace import BadTrace
from gateway.simulator.workload import MIXES


def main(arguments: Sequence[str]) -> int:
    """Print the times that each policy achieved. Return the exit status."""
    if any(argument.partition("=")[0] == "--agents" for argument in arguments):
        return simulate_agents.main(arguments)
    parser = argparse.ArgumentParser(
        prog="myna simulate",
        description="Run applications on modelled engines in virtual time, with the real scheduler, and compare "
        "policies of ordering and placing their calls.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--agents", metavar="FILE", help="recorded agent sessions to replay; see `myna simulate --agents FILE --help`"
    )
    parser.add_argument("--engines", type=int, default=1, metavar="N", help="number of engines, 1 to 1024 (default: 1)")
    tables = f"{' or '.join(sorted(TABLES))}, or a file written by `python -m bench.simulator --table`"
    parser.add_argument("--table", default="cpu", help=f"cost model of engine steps: {tables} (default: cpu)")
    parser.add_argument("--mix", choices=MIXES, default="mixed", help="kinds of applications (default: mixed)")
    parser.add_argument(
        "--trace", type=Path, metavar="FILE", help="file written by `myna serve --record`, instead of a mix"
    )
    parser.add_argument(
        "--applications", type=int, default=1000, metavar="N", help="number of applications (default: 1000)"
    )
    parser.add_argument(
        "--utilisation", type=float, default=0.8, metavar="SHARE", help="load relative to capacity (default: 0.8)"
    )
    parser.add_argument("--bursts", action="store_true", help="ten applications arrive almost together")
    parser.add_argument(
        "--policies", nargs="+", choices=POLICIES, default=list(POLICIES), help="policies to compare (default: all)"
    )
    parser.add_argument("--seed", type=int, default=1, help="random seed (default: 1)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args(arguments)
    if not 1 <= options.engines <= 1024 or options.applications < 1 or not 0 < options.utilisation < 2:
        print("myna simulate: engines must be 1 to 1024, applications >= 1, utilisation in (0, 2)", file=sys.stderr)
        return 2
    try:
        costs = TABLES.get(options.table) or read_costs(Path(options.table))
    except (BadTable, OSError) as error:
        print(f"myna simulate: {error}", file=sys.stderr)
        return 2
    scenario = Scenario(
        engines=options.engines,
        costs=costs,
        mix=options.mix,
        applications=options.applications,
        utilisation=options.utilisation,
        bursts=options.bursts,
        seed=options.seed,
        trace=options.trace,
    )
    try:
        outcomes = simulate(scenario, options.policies)
    except (BadTrace, OSError) as error:
        print(f"myna simulate: {error}", file=sys.stderr)
        return 2
    if options.json:
        print(json.dumps([outcome.summary(options.engines) for outcome in outcomes]))
    else:
        print(as_text(outcomes, options.engines))
    return 0


def as_text(outcomes: Sequence[Outcome], engines: int) -> str:
    """Return the outcomes as a table."""
    rows = [outcome.summary(engines) for outcome in outcomes]
    lines = [f"{'policy':8} {'mean':>9} {'median':>9} {'p99':>9} {'cached':>7} {'busy':>6} {'us a call':>10}"]
    for row in rows:
        lines.append(
            f"{row['policy']:8} {row['mean_s']:8.2f}s {row['p50_s']:8.2f}s {row['p99_s']:8.2f}s "
            f"{row['cached']:7.0%} {row['busy']:6.0%} {row['us_per_call']:10.0f}"
        )
    kinds = sorted({kind for outcome in outcomes for kind in outcome.by_kind})
    if len(kinds) > 1:
        for what in ("mean", "p99"):
            lines += ["", f"{what + ' of':8} " + " ".join(f"{kind:>11}" for kind in kinds)]
            for row in rows:
                cells = " ".join(f"{row[f'{kind}_{what}_s']:10.2f}s" for kind in kinds)
                lines.append(f"{row['policy']:8} {cells}")
    return "\n".join(lines)
