"""`myna sessions` and `myna graph SESSION`: what a running server knows, for people to read."""

import argparse
import json
import os
import sys
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any

_SECONDS = 10.0


class CannotAsk(Exception):
    """The server does not answer, or with an error; the message says which."""


def sessions(arguments: Sequence[str]) -> int:
    """Prints the key's sessions. Returns the exit status."""
    parser = _parser("myna sessions", "Lists the sessions of a running server.")
    chosen = parser.parse_args(arguments)
    return _print(chosen, "/sessions", lambda answer: sessions_as_text(answer["data"]))


def graph(arguments: Sequence[str]) -> int:
    """Prints a session's graph as a tree. Returns the exit status."""
    parser = _parser("myna graph", "Prints a session's graph: each result, and below it what it is made of.")
    parser.add_argument("session", help="the session's id")
    chosen = parser.parse_args(arguments)
    path = f"/sessions/{urllib.parse.quote(chosen.session, safe='')}/graph"
    return _print(chosen, path, graph_as_text)


def _parser(program: str, description: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=program, description=description, allow_abbrev=False)
    parser.add_argument("--url", default=os.environ.get("MYNA_URL", "http://127.0.0.1:8000/v1"), help="of the server")
    key = os.environ.get("MYNA_API_KEY", "").split(",")[0]
    parser.add_argument("--api-key", default=key, help="if the server wants one (default: the first in MYNA_API_KEY)")
    parser.add_argument("--json", action="store_true", help="print what the server says")
    return parser


def _print(chosen: argparse.Namespace, path: str, as_text: Any) -> int:
    base = chosen.url.rstrip("/")
    if not urllib.parse.urlsplit(base).path:  # the server's own address, as it says it
        base += "/v1"
    try:
        answer = _ask(base + path, chosen.api_key)
    except CannotAsk as error:
        print(f"myna: {error}", file=sys.stderr)
        return 1
    print(json.dumps(answer, indent=2) if chosen.json else as_text(answer))
    return 0


def _ask(url: str, key: str) -> Any:
    """Raises CannotAsk."""
    try:
        request = urllib.request.Request(url, headers={"Authorization": f"Bearer {key}"} if key else {})
        with urllib.request.urlopen(request, timeout=_SECONDS) as response:
            return json.load(response)
    except urllib.error.HTTPError as error:
        with error:
            body = error.read()
        try:
            message = json.loads(body)["error"]["message"]
        except (ValueError, LookupError, TypeError):
            message = f"{url} answered {error.code} {error.reason}"
        raise CannotAsk(message) from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        raise CannotAsk(f"{url} does not answer: {reason}") from None


def sessions_as_text(found: Sequence[Mapping[str, Any]]) -> str:
    """A table."""
    rows = [("session", "state", "since", "expires", "calls", "shared", "prompt", "cached", "completion")]
    for session in found:
        usage = session["usage"]
        rows.append(
            (
                session["id"],
                session["state"],
                _clock(session["created_at"]),
                _clock(session["expires_at"]),
                *(str(usage[key]) for key in ("calls_run", "calls_shared")),
                *(str(usage[f"{key}_tokens"]) for key in ("prompt", "cached", "completion")),
            )
        )
    widths = [max(len(row[at]) for row in rows) for at in range(len(rows[0]))]
    padded = [[cell.ljust(width) for cell, width in zip(row, widths, strict=True)] for row in rows]
    return "\n".join("  ".join(row).rstrip() for row in padded)


def _clock(seconds: float) -> str:
    return datetime.fromtimestamp(seconds).strftime("%Y-%m-%d %H:%M:%S")


def graph_as_text(graph: Mapping[str, Any]) -> str:
    """A tree for each variable that no call reads; what was printed before is not unfolded again."""
    calls = {call["id"]: call for call in graph["calls"]}
    variables = {variable["name"]: variable for variable in graph["variables"]}
    read = {name for call in calls.values() for name in call["inputs"]}
    lines: list[str] = []
    seen: set[str] = set()
    for name in variables:
        if name not in read:
            lines += _tree(name, variables, calls, seen)
    return "\n".join(lines) if lines else "nothing has been asked in this session"


def _tree(root: str, variables: Mapping[str, Any], calls: Mapping[str, Any], seen: set[str]) -> Iterator[str]:
    """Depth first, with a stack of its own: chains may be longer than Python's."""
    stack = [(root, "", "")]
    while stack:
        name, before, below = stack.pop()
        variable = variables.get(name)
        producer = calls.get(variable["producer"]) if variable else None
        again = name in seen
        seen.add(name)
        yield f"{before}{name}  {_state(variable, producer)}{'  (see above)' if again and producer else ''}"
        if producer is None or again:
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
        return "  ".join([*words, "given" if variable["state"] == "ready" else ""]).rstrip()
    words.append(f"{producer['id']} {producer['state']}")
    if producer["waiting_on"]:
        words.append(f"waits for {', '.join(producer['waiting_on'])}")
    times = " ".join(f"{what} {seconds:.2f} s" for what, seconds in _times(producer))
    return "  ".join(filter(None, [*words, times, _prompt(producer)]))


def _prompt(call: Mapping[str, Any]) -> str:
    """How much of its prompt was in the cache, and what most of the rest was not there for."""
    tokens, cached, missed = call["prompt_tokens"], call["cached_tokens"], call["missed_tokens"]
    if not tokens:
        return ""
    why = f" ({max(missed, key=missed.get).replace('_', ' ')})" if missed else ""
    return f"{cached} of {tokens} tokens cached{why}"


def _times(call: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """Where the time went: until the inputs were there, until the first token, until the end."""
    before = call["created"]
    for what, mark in (("inputs", "queued"), ("first token", "first_token"), ("rest", "finished")):
        if (at := call[mark]) is not None:
            yield what, max(0.0, at - before)
            before = at
