"""The command `myna`: run the command that the first argument names."""

import importlib.metadata
import sys

_USAGE = """\
usage: myna COMMAND [options]

commands:
  serve      serve a model with an OpenAI-compatible API (myna serve --help)
  engine     run an engine for gateways on other machines (myna engine --help)
  sessions   list the sessions of a running server
  programs   list the programs of a running server, or print one as a tree (myna programs PROGRAM)
  graph      print a session's graph as a tree, with states and times (myna graph SESSION)
  keys       make, list, change, rotate and delete virtual API keys (myna keys --help)
  tools      show whether the MCP servers in a file are reachable, and their allowed tools (myna tools FILE)
  simulate   compare scheduling policies on modelled engines in virtual time (myna simulate --help)
  doctor     show this machine's hardware, try the kernels and check their results (--json, --cache PATH)
  version    print the version
"""


def main(arguments: list[str] | None = None) -> int:
    """Run one command and return the exit status. `arguments`: default is the arguments of the process.

    Each command imports what it needs: torch and pydantic take a while to load.
    """
    command, *rest = (sys.argv[1:] if arguments is None else arguments) or ["--help"]
    match command:
        case "serve":
            from gateway.cli.serve import main as serve

            return serve(rest)
        case "engine":
            from gateway.cli.engine import main as engine

            return engine(rest)
        case "sessions":
            from gateway.cli.inspect import sessions

            return sessions(rest)
        case "programs":
            from gateway.cli.inspect import programs

            return programs(rest)
        case "graph":
            from gateway.cli.inspect import graph

            return graph(rest)
        case "keys":
            from gateway.cli.keys import keys

            return keys(rest)
        case "tools":
            from gateway.cli.tools import tools

            return tools(rest)
        case "simulate":
            from gateway.cli.simulate import main as simulate

            return simulate(rest)
        case "doctor":
            from gateway.cli.doctor import main as doctor

            return doctor(rest)
        case "version" | "--version" | "-V":
            print(f"myna {importlib.metadata.version('myna')}")
            return 0
        case "--help" | "-h" | "help":
            print(_USAGE, end="")
            return 0
    print(f"myna: unknown command {command!r}\n\n{_USAGE}", end="", file=sys.stderr)
    return 2
