"""The commands `myna sessions`, `myna programs` and `myna graph SESSION`: show the state of a running server."""

import argparse
import functools
import itertools
import json
import os
import sys
import urllib.parse
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any

from gateway.cli.server_client import DEFAULT_URL, RequestFailed, as_table, base_url, print_text, request_json

_MAX_DIFFERENCES = 50
"""Maximum number of differences between prompts that are printed for a program."""
_MAX_MISSING = 10
"""Maximum number of missing inputs that are printed for a call."""
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
    parser.add_argument("--fold", action="store_true", help="print each form as one line, without its calls")
    options = parser.parse_args(arguments)
    path = f"/sessions/{urllib.parse.quote(options.session, safe='')}/graph"
    return _print(options, path, functools.partial(graph_as_text, fold=options.fold))


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


def graph_as_text(graph: Mapping[str, Any], *, fold: bool = False) -> str:
    """Return a tree for each variable that no call reads. A variable that was printed before is not unfolded again, and
    neither is a form. The calls of a form are below it. `fold`: leave them out."""
    tree = _Tree(graph, fold=fold)
    lines = [line for name in tree.roots for line in tree.lines(name)]
    return "\n".join(lines) if lines else "the session is empty"


class _Tree:
    """The variables of a graph, each with the inputs of its call below it."""

    def __init__(self, graph: Mapping[str, Any], *, fold: bool) -> None:
        self._calls = {call["id"]: call for call in graph["calls"]}
        self._variables = {variable["name"]: variable for variable in graph["variables"]}
        self._fold = fold
        self._children: dict[str, list[Mapping[str, Any]]] = {}
        """Calls that a form has added, by the id of the form's call."""
        for call in self._calls.values():
            if call.get("parent") is not None:
                self._children.setdefault(call["parent"], []).append(call)
        self._seen: set[str] = set()
        """Names of variables that were printed, and ids of forms."""

    @property
    def roots(self) -> list[str]:
        """Names of the variables that no call reads."""
        read = {name for call in self._calls.values() for name in call["inputs"]}
        return [name for name in self._variables if name not in read]

    def lines(self, root: str) -> Iterator[str]:
        """Yield the lines of a tree, depth first. It has its own stack: chains may exceed Python's recursion limit."""
        stack = [(root, "", "")]
        while stack:
            name, before, below = stack.pop()
            variable = self._variables.get(name)
            producer = self._calls.get(variable["producer"]) if variable else None
            is_repeated = name in self._seen
            self._seen.add(name)
            if producer is not None and producer.get("form") is not None:
                is_repeated = is_repeated or producer["id"] in self._seen
                self._seen.add(producer["id"])
            state = _state(variable, producer, () if producer is None else self._children.get(producer["id"], ()))
            yield f"{before}{name}  {state}{'  (see above)' if is_repeated and producer else ''}"
            if producer is None or is_repeated:
                continue
            inputs = self._inputs_of(producer)
            for index, source in reversed(list(enumerate(inputs))):
                last = index == len(inputs) - 1
                stack.append((source, below + ("└─ " if last else "├─ "), below + ("   " if last else "│  ")))

    def _inputs_of(self, call: Mapping[str, Any]) -> Sequence[str]:
        """Return the names of a call's inputs. A form reads the calls that it has added, too."""
        if not self._fold:
            return list(call["inputs"])
        added = {child["output"] for child in self._children.get(call["id"], ())}
        added |= {slot for child in self._children.get(call["id"], ()) for slot in child.get("slots", ())}
        return [name for name in call["inputs"] if name not in added]


def _form(call: Mapping[str, Any], children: Sequence[Mapping[str, Any]]) -> str:
    """Return the kind and the progress of a form; "" for other calls."""
    form = call.get("form")
    if form is None:
        return ""
    if call.get("tool"):
        return f"{form} {call['tool'] if call['tool'].isprintable() else _quoted(call['tool'])}"
    states = Counter(child["state"] for child in children)
    broken = "".join(f", {states[state]} {state}" for state in ("failed", "cancelled") if states[state])
    progress = f"{states['done']} of {len(children)} done{broken}"
    if form == "agent":
        turns = sum(bool(child["model"]) for child in children)
        progress = f"{_plural(turns, 'answer')}, {_plural(len(children) - turns, 'tool call')}, {progress}"
    return f"{form}: {progress}"


def _plural(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _state(
    variable: Mapping[str, Any] | None, producer: Mapping[str, Any] | None, children: Sequence[Mapping[str, Any]]
) -> str:
    """Return the state of a variable and of the call that produces it. `children`: calls that the call's form has
    added."""
    if variable is None:
        return "deleted"
    words = [variable["state"]]
    if variable["error"]:
        words.append(f"{variable['error']['code']}: {variable['error']['message']}")
    if producer is None:
        return "  ".join([*words, "set by a client" if variable["state"] == "ready" else ""]).rstrip()
    words.append(_form(producer, children))
    words.append(f"{producer['id']} {producer['state']}")
    if missing := producer["waiting_on"]:
        more = f" and {len(missing) - _MAX_MISSING} more" if len(missing) > _MAX_MISSING else ""
        words.append(f"waits for {', '.join(missing[:_MAX_MISSING])}{more}")
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
