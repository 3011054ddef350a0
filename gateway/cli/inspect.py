"""The commands `myna sessions`, `myna programs` and `myna graph SESSION`: show the state of a running server."""

import argparse
import itertools
import json
import os
import sys
import urllib.parse
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any

from gateway.cli.server_client import DEFAULT_URL, RequestFailed, as_table, base_url, print_text, request_json

_MAX_DIFFERENCES = 50
"""Maximum number of differences between prompts that are printed for a program."""
_ADVICE = {
    "billing_line": "the system prompt begins with a line that changes; start the server with --normalize-prompts on",
    "countdown": "a marker counts tokens or money down; turn it off in the client, or keep it at the end of the prompt",
    "date": "a date or time changes; move it to the end of the prompt, or send it only once",
    "reasoning": "the client drops or changes the reasoning of earlier answers; let it send them unchanged",
    "tools": "the tools or their order change; send the same tools in each turn",
    "unknown": "the client rewrites an earlier message; let it only append messages",
}
"""Advice for each known cause of a difference between the prompts of two turns."""


def sessions(arguments: Sequence[str]) -> int:
    """Print the sessions of the API key. Return the exit status."""
    parser = _parser("myna sessions", "List the sessions of a running server.")
    options = parser.parse_args(arguments)
    return _print(options, "/sessions", lambda answer: sessions_as_text(answer["data"]))


def graph(arguments: Sequence[str]) -> int:
    """Print a session's graph as a tree. Return the exit status."""
    parser = _parser("myna graph", "Print a session's graph: each result, and below it the inputs of its call.")
    parser.add_argument("session", help="id of the session")
    options = parser.parse_args(arguments)
    path = f"/sessions/{urllib.parse.quote(options.session, safe='')}/graph"
    return _print(options, path, graph_as_text)


def programs(arguments: Sequence[str]) -> int:
    """Print the programs of the API key, or one of them as a tree. Return the exit status."""
    parser = _parser("myna programs", "List the programs of a running server, or print one as a tree.")
    parser.add_argument("program", nargs="?", help="id of a program, to print its calls as a tree")
    parser.add_argument("--limit", type=int, default=100, help="maximum number of programs in the list (default: 100)")
    options = parser.parse_args(arguments)
    if options.program is not None:
        return _print(options, f"/programs/{urllib.parse.quote(options.program, safe='')}", program_as_text)
    return _print(options, f"/programs?limit={options.limit}", lambda answer: programs_as_text(answer["data"]))


def _parser(program: str, description: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=program, description=description, allow_abbrev=False)
    url = os.environ.get("MYNA_URL", DEFAULT_URL)
    parser.add_argument("--url", default=url, help=f"URL of the server (default: MYNA_URL, or {DEFAULT_URL})")
    key = os.environ.get("MYNA_API_KEY", "").split(",")[0]
    parser.add_argument("--api-key", default=key, help="API key, if required (default: the first one in MYNA_API_KEY)")
    parser.add_argument("--json", action="store_true", help="print the server's answer as JSON")
    return parser


def _print(options: argparse.Namespace, path: str, as_text: Any) -> int:
    try:
        answer = request_json("GET", base_url(options.url) + path, options.api_key)
    except RequestFailed as error:
        hint = "; set --api-key or MYNA_API_KEY" if error.code == "invalid_api_key" else ""
        print(f"myna: {error}{hint}", file=sys.stderr)
        return 1
    print_text(json.dumps(answer, indent=2) if options.json else as_text(answer))
    return 0


def sessions_as_text(found: Sequence[Mapping[str, Any]]) -> str:
    """Return the sessions as a table."""
    header = ("session", "state", "since", "expires", "calls", "shared", "prompt", "cached", "completion")
    usage = ("calls_run", "calls_shared", "prompt_tokens", "cached_tokens", "completion_tokens")
    return _table(found, header, ("id", "state", "created_at", "expires_at"), usage)


def programs_as_text(found: Sequence[Mapping[str, Any]]) -> str:
    """Return the programs as a table."""
    header = ("program", "state", "since", "last request", "session", "calls", "prompt", "cached", "completion")
    usage = ("calls", "prompt_tokens", "cached_tokens", "completion_tokens")
    return _table(found, header, ("id", "state", "created_at", "last_used_at", "session"), usage)


def _table(
    found: Sequence[Mapping[str, Any]], header: tuple[str, ...], fields: Sequence[str], usage: Sequence[str]
) -> str:
    """Return a table with these fields of each object and of its usage. Fields whose names end in `_at` are times."""
    rows = [header]
    for item in found:
        own = [_clock(item[name]) if name.endswith("_at") else item[name] or "-" for name in fields]
        rows.append((*own, *(str(item["usage"][name]) for name in usage)))
    return as_table(rows)


def program_as_text(program: Mapping[str, Any]) -> str:
    """Return the calls of a program as a tree, and one line for each kind of difference between its turns' prompts."""
    lines = list(_differences_as_text(program["calls"]))
    return "\n".join(
        [graph_as_text(program), *(["", "Prompts that do not extend the earlier turn:"] if lines else []), *lines]
    )


def _differences_as_text(calls: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Yield one line for each cause and place of differences, with the texts of the latest one."""
    found: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
    for call in calls:
        if (difference := call.get("prompt_difference")) is not None:
            key = tuple(difference[name] for name in ("spoiler", "message", "role", "field"))
            found.setdefault(key, []).append(difference)
    for (spoiler, message, role, field), differences in itertools.islice(found.items(), _MAX_DIFFERENCES):
        place = "tools" if message is None else f"message {message} ({role if role.isprintable() else _quoted(role)})"
        tokens = sum(difference["lost_tokens"] or 0 for difference in differences)
        amount = f"{len(differences)} x" + (f", {tokens} tokens computed again" if tokens else "")
        earlier, later = (_quoted(differences[-1][name]) for name in ("earlier", "later"))
        where = f"{place}, {field if field.isprintable() else _quoted(field)}" if field else place
        yield f"{amount}: {where}: {earlier} -> {later}: {_ADVICE.get(spoiler, _ADVICE['unknown'])}"
    if len(found) > _MAX_DIFFERENCES:
        yield f"and {len(found) - _MAX_DIFFERENCES} more"


def _quoted(text: str) -> str:
    """Return a text in quotes, with escapes for what a terminal does not show."""
    return json.dumps(text, ensure_ascii=not text.replace("\n", "").isprintable())


def _clock(seconds: float) -> str:
    return datetime.fromtimestamp(seconds).strftime("%Y-%m-%d %H:%M:%S")


def graph_as_text(graph: Mapping[str, Any]) -> str:
    """Return a tree for each variable that no call reads. A variable that was printed before is not unfolded again."""
    calls = {call["id"]: call for call in graph["calls"]}
    variables = {variable["name"]: variable for variable in graph["variables"]}
    read = {name for call in calls.values() for name in call["inputs"]}
    lines: list[str] = []
    seen: set[str] = set()
    for name in variables:
        if name not in read:
            lines += _tree(name, variables, calls, seen)
    return "\n".join(lines) if lines else "the session is empty"


def _tree(root: str, variables: Mapping[str, Any], calls: Mapping[str, Any], seen: set[str]) -> Iterator[str]:
    """Yield the lines of a tree, depth first. It has its own stack: chains may exceed Python's recursion limit."""
    stack = [(root, "", "")]
    while stack:
        name, before, below = stack.pop()
        variable = variables.get(name)
        producer = calls.get(variable["producer"]) if variable else None
        is_repeated = name in seen
        seen.add(name)
        yield f"{before}{name}  {_state(variable, producer)}{'  (see above)' if is_repeated and producer else ''}"
        if producer is None or is_repeated:
            continue
        inputs = producer["inputs"]
        for index, source in reversed(list(enumerate(inputs))):
            last = index == len(inputs) - 1
            stack.append((source, below + ("└─ " if last else "├─ "), below + ("   " if last else "│  ")))


def _state(variable: Mapping[str, Any] | None, producer: Mapping[str, Any] | None) -> str:
    if variable is None:
        return "deleted"
    words = [variable["state"]]
    if variable["error"]:
        words.append(f"{variable['error']['code']}: {variable['error']['message']}")
    if producer is None:
        return "  ".join([*words, "set by a client" if variable["state"] == "ready" else ""]).rstrip()
    words.append(f"{producer['id']} {producer['state']}")
    if producer["waiting_on"]:
        words.append(f"waits for {', '.join(producer['waiting_on'])}")
    times = " ".join(f"{what} {seconds:.2f} s" for what, seconds in _times(producer))
    return "  ".join(filter(None, [*words, times, _prompt(producer)]))


def _prompt(call: Mapping[str, Any]) -> str:
    """Return how much of the prompt was cached, and the main reason why the rest was not."""
    tokens, cached, missed = call["prompt_tokens"], call["cached_tokens"], call["missed_tokens"]
    if not tokens:
        return ""
    why = f" ({max(missed, key=missed.get).replace('_', ' ')})" if missed else ""
    return f"{cached} of {tokens} tokens cached{why}"


def _times(call: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """Yield the phases of a call and their seconds: until the inputs are ready, until the first token, the rest."""
    before = call["created"]
    for what, mark in (("inputs", "queued"), ("first token", "first_token"), ("rest", "finished")):
        if (end := call[mark]) is not None:
            yield what, max(0.0, end - before)
            before = end
