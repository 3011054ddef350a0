"""The command `myna simulate`: run applications on modelled engines, once for each policy."""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from gateway.simulator.engine import TABLES, BadTable, read_costs
from gateway.simulator.policies import POLICIES
from gateway.simulator.simulation import Outcome, Scenario, simulate
from gateway.simulator.trace import BadTrace
from gateway.simulator.workload import MIXES


def main(arguments: Sequence[str]) -> int:
    """Print what each policy achieved. Return the exit status."""
    parser = argparse.ArgumentParser(
        prog="myna simulate",
        description="Runs applications on modelled engines, on virtual time, through the scheduler itself; compares "
        "ways to order and place their calls.",
        allow_abbrev=False,
    )
    parser.add_argument("--engines", type=int, default=1, metavar="N", help="1 to 1,024 (default: 1)")
    tables = f"{' or '.join(sorted(TABLES))}, or a file that `python -m bench.simulator --table` wrote"
    parser.add_argument("--table", default="cpu", help=f"what an engine's steps cost: {tables} (default: cpu)")
    parser.add_argument("--mix", choices=MIXES, default="mixed", help="which applications come")
    parser.add_argument(
        "--trace", type=Path, metavar="FILE", help="what `myna serve --record` wrote, in place of a mix"
    )
    parser.add_argument("--applications", type=int, default=1000, metavar="N")
    parser.add_argument("--utilisation", type=float, default=0.8, metavar="SHARE", help="of what engines can do")
    parser.add_argument("--bursts", action="store_true", help="ten come nearly at once")
    parser.add_argument("--policies", nargs="+", choices=POLICIES, default=list(POLICIES))
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    chosen = parser.parse_args(arguments)
    if not 1 <= chosen.engines <= 1024 or chosen.applications < 1 or not 0 < chosen.utilisation < 2:
        print("myna simulate: engines are 1 to 1024, applications at least 1, utilisation in (0, 2)", file=sys.stderr)
        return 2
    try:
        costs = TABLES.get(chosen.table) or read_costs(Path(chosen.table))
    except (BadTable, OSError) as error:
        print(f"myna simulate: {error}", file=sys.stderr)
        return 2
    scenario = Scenario(
        engines=chosen.engines,
        costs=costs,
        mix=chosen.mix,
        applications=chosen.applications,
        utilisation=chosen.utilisation,
        bursts=chosen.bursts,
        seed=chosen.seed,
        trace=chosen.trace,
    )
    try:
        outcomes = simulate(scenario, chosen.policies)
    except (BadTrace, OSError) as error:
        print(f"myna simulate: {error}", file=sys.stderr)
        return 2
    if chosen.json:
        print(json.dumps([outcome.summary(chosen.engines) for outcome in outcomes]))
    else:
        print(as_text(outcomes, chosen.engines))
    return 0


def as_text(outcomes: Sequence[Outcome], engines: int) -> str:
    """A table."""
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
