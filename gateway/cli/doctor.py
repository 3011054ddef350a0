"""The command `myna doctor`: examine this machine and try the kernels."""

import argparse
from pathlib import Path

import msgspec

from engine.config import default_cache


def main(arguments: list[str]) -> int:
    """Print the report. Return the exit status: 1 if a kernel computed a wrong result."""
    parser = argparse.ArgumentParser(prog="myna doctor", description="Examine this machine. Takes about ten seconds.")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--cache", type=Path, default=Path(default_cache()), help="folder for built kernels")
    options = parser.parse_args(arguments)
    from engine.doctor import examine, format_report  # loads torch

    report = examine(options.cache.expanduser())
    print(msgspec.json.format(msgspec.json.encode(report)).decode() if options.json else format_report(report))
    return 0 if report.is_healthy else 1
