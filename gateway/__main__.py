"""The command line: `myna COMMAND`, the same as `python -m gateway COMMAND`."""

import asyncio
import importlib.metadata
import logging
import sys
import tomllib

from pydantic import ValidationError
from pydantic_settings import SettingsError

_USAGE = """\
usage: myna COMMAND [options]

commands:
  serve      serve a model with an OpenAI-compatible API (myna serve --help)
  version    print the version
"""


def main(arguments: list[str] | None = None) -> int:
    """Runs one command. Returns the exit status."""
    command, *rest = (sys.argv[1:] if arguments is None else arguments) or ["--help"]
    match command:
        case "serve":
            return _serve(rest)
        case "version" | "--version" | "-V":
            print(f"myna {importlib.metadata.version('myna')}")
            return 0
        case "--help" | "-h" | "help":
            print(_USAGE, end="")
            return 0
    print(f"myna: there is no command {command!r}\n\n{_USAGE}", end="", file=sys.stderr)
    return 2


def _serve(arguments: list[str]) -> int:
    from gateway.app import serve  # after `--help` of other commands: it takes half a second to import
    from gateway.settings import ServeSettings, parse

    try:
        settings = parse(ServeSettings, arguments, "myna serve")
        settings.keys()
    except ValidationError as error:
        for problem in error.errors():
            name = ".".join(str(part) for part in problem["loc"]) or "settings"
            print(f"myna serve: {name}: {problem['msg'].removeprefix('Value error, ')}", file=sys.stderr)
        return 2
    except (SettingsError, OSError, ValueError, tomllib.TOMLDecodeError) as error:
        print(f"myna serve: {error}", file=sys.stderr)
        return 2
    logging.basicConfig(
        format="%(asctime)s %(name)s %(levelname)s %(message)s",
        level=settings.log_level.upper(),
        stream=sys.stderr,
    )
    return asyncio.run(serve(settings))


if __name__ == "__main__":
    sys.exit(main())
