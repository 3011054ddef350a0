"""The command line: `myna COMMAND`, the same as `python -m gateway COMMAND`."""

import argparse
import importlib.metadata
import logging
import sys
import time
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import msgspec
from pydantic import ValidationError
from pydantic_settings import SettingsError

from engine.config import default_cache
from gateway import show

if TYPE_CHECKING:  # it takes a while to import, and not every command needs it
    from gateway.settings import EngineSettings, ServeSettings

    Settings = TypeVar("Settings", ServeSettings, EngineSettings)

_USAGE = """\
usage: myna COMMAND [options]

commands:
  serve      serve a model with an OpenAI-compatible API (myna serve --help)
  engine     an engine for gateways on other machines (myna engine --help)
  sessions   the sessions of a running server
  graph      a session's graph as a tree, with states and times (myna graph SESSION)
  simulate   the scheduler on modelled engines and virtual time, against others (myna simulate --help)
  doctor     what this machine has, which kernels run on it and whether they are right (--json, --cache PATH)
  version    print the version
"""


def main(arguments: list[str] | None = None) -> int:
    """Runs one command. Returns the exit status."""
    command, *rest = (sys.argv[1:] if arguments is None else arguments) or ["--help"]
    match command:
        case "serve":
            return _serve(rest)
        case "engine":
            return _engine(rest)
        case "sessions":
            return show.sessions(rest)
        case "graph":
            return show.graph(rest)
        case "simulate":
            from gateway.simulate.run import main as simulate

            return simulate(rest)
        case "doctor":
            return _doctor(rest)
        case "version" | "--version" | "-V":
            print(f"myna {importlib.metadata.version('myna')}")
            return 0
        case "--help" | "-h" | "help":
            print(_USAGE, end="")
            return 0
    print(f"myna: there is no command {command!r}\n\n{_USAGE}", end="", file=sys.stderr)
    return 2


def _serve(arguments: list[str]) -> int:
    began = time.monotonic()
    import uvloop

    from gateway.settings import ServeSettings

    settings = _settings(ServeSettings, arguments, "myna serve")
    return 2 if settings is None else uvloop.run(_serving(settings, began))


async def _serving(settings: "ServeSettings", began: float) -> int:
    from gateway.engines.pool import EnginePool
    from gateway.fleet import Fleet

    pool = EnginePool(settings.engine_wait)
    try:
        fleet = Fleet(settings, pool)
    except OSError as error:  # TLS's among them
        print(f"myna: cannot trust {settings.engine_ca}: {error.strerror or error}", file=sys.stderr)
        return 1
    try:
        await fleet.begin()
        from gateway.app import serve  # takes half a second, in which the engine's process loads as well

        return await serve(settings, pool, fleet, began)
    finally:
        await fleet.close()  # a second time, unless `serve` did not come so far


def _settings(kind: "type[Settings]", arguments: list[str], program: str) -> "Settings | None":
    """What the command line says; None if it makes no sense, which has been said then. Logging is set up."""
    from gateway.settings import ServeSettings, parse

    try:
        settings = parse(kind, arguments, program)
        if isinstance(settings, ServeSettings):
            settings.keys()
    except ValidationError as error:
        for problem in error.errors():
            name = ".".join(str(part) for part in problem["loc"]) or "settings"
            print(f"{program}: {name}: {problem['msg'].removeprefix('Value error, ')}", file=sys.stderr)
        return None
    except (SettingsError, OSError, ValueError, tomllib.TOMLDecodeError) as error:
        print(f"{program}: {error}", file=sys.stderr)
        return None
    logging.basicConfig(
        format="%(asctime)s %(name)s %(levelname)s %(message)s",
        level=settings.log_level.upper(),
        stream=sys.stderr,
    )
    return settings


def _engine(arguments: list[str]) -> int:
    from gateway.remote import run
    from gateway.settings import EngineSettings

    settings = _settings(EngineSettings, arguments, "myna engine")
    return 2 if settings is None else run(settings)


def _doctor(arguments: list[str]) -> int:
    """Prints what was found. The exit status is 1 if a result was wrong."""
    parser = argparse.ArgumentParser(prog="myna doctor", description="Examines this machine; takes some ten seconds.")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--cache", type=Path, default=Path(default_cache()), help="folder for built kernels")
    wanted = parser.parse_args(arguments)
    from engine.doctor import as_text, examine  # it loads torch

    report = examine(wanted.cache.expanduser())
    print(msgspec.json.format(msgspec.json.encode(report)).decode() if wanted.json else as_text(report))
    return 0 if report.healthy else 1


if __name__ == "__main__":
    sys.exit(main())
