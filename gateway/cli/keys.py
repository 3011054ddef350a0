"""The command `myna keys`: make, list, change, rotate and delete the virtual API keys of a running server."""

import argparse
import json
import math
import os
import sys
import urllib.parse
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from gateway.cli.server_client import DEFAULT_URL, RequestFailed, as_table, base_url, print_text, request_json

_NONE = "none"
_PAGE = 100
_HINTS: Mapping[str, str] = {
    "invalid_api_key": "; set --admin-key or MYNA_ADMIN_KEY to an admin key of the server (myna serve --admin-key)",
    "unknown_route": "; /v1/admin/keys exists only on a server with an admin key (myna serve --admin-key)",
}
"""Remarks for the operator about errors of the server, by code."""
_LIMITS: Mapping[str, tuple[str, str]] = {
    "parallel": ("N", "maximum number of requests at a time"),
    "rpm": ("N", "maximum number of requests a minute"),
    "tpm": ("N", "maximum number of tokens a minute"),
    "budget_cost": ("AMOUNT", "maximum cost of a period, in the currency of the prices"),
    "budget_tokens": ("N", "maximum number of tokens of a period"),
    "budget_period": ("PERIOD", "period of the budgets: month, or a number of hours or days such as 1h or 30d"),
    "expires_at": ("TIME", "end of the key: 2030-01-31, 2030-01-31T12:00+00:00, or seconds of the Unix clock"),
}
_DEFAULTS: Mapping[str, str] = {"budget_period": "one period without an end", "expires_at": "no end"}
"""Meaning of options that are left out; of the others, that there is no limit."""
_FORMS: Mapping[str, str] = {
    "budget_cost": "a number",
    "expires_at": "a date such as 2030-01-31, a time such as 2030-01-31T12:00+00:00, or seconds of the Unix clock",
}
"""Forms of the values of options; of the others, a whole number."""


def keys(arguments: Sequence[str]) -> int:
    """Run one of the commands. Return the exit status."""
    options = _parser().parse_args(arguments)
    try:
        answer = _run(options)
    except RequestFailed as error:
        print(f"myna: {error}{_HINTS.get(error.code, '')}", file=sys.stderr)
        return 1
    print_text(json.dumps(answer, indent=2) if options.json else _as_text(answer))
    return 0


def _parser() -> argparse.ArgumentParser:
    url = os.environ.get("MYNA_URL", DEFAULT_URL)
    key = os.environ.get("MYNA_ADMIN_KEY", "").split(",")[0]
    parser = argparse.ArgumentParser(
        prog="myna keys",
        description="Make, list, change, rotate and delete the virtual API keys of a running server.",
        parents=[_common_options()],
        allow_abbrev=False,
    )
    parser.set_defaults(url=url, admin_key=key, json=False)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def add(name: str, help: str) -> argparse.ArgumentParser:
        command = commands.add_parser(
            name, help=help, description=help, parents=[_common_options()], allow_abbrev=False
        )
        if name not in ("create", "list"):
            command.add_argument("id", help="id of the key: key_…")
        return command

    _add_fields(add("create", "make a key, and print it once"), is_new=True)
    add("list", "list all keys")
    add("show", "show a key, and what it has used of its budgets")
    _add_fields(add("update", "change a key; fields without an option keep their values"), is_new=False)
    add("disable", "refuse requests with a key, and cancel its calls")
    add("enable", "accept requests with a key again")
    add("delete", "delete a key, its calls and its sessions")
    grace = "seconds for which the previous key is still accepted (default: 0)"
    add("rotate", "replace the secret of a key, and print it once").add_argument(
        "--grace", type=float, default=0.0, metavar="SECONDS", help=grace
    )
    return parser


def _common_options() -> argparse.ArgumentParser:
    """Return a parser of the options that may be before and after the command. It sets no defaults: those of the
    command would replace values that are before it."""
    common = argparse.ArgumentParser(add_help=False, argument_default=argparse.SUPPRESS)
    common.add_argument("--url", help=f"URL of the server (default: MYNA_URL, or {DEFAULT_URL})")
    common.add_argument("--admin-key", metavar="KEY", help="admin key (default: the first one in MYNA_ADMIN_KEY)")
    common.add_argument("--json", action="store_true", help="print the server's answer as JSON")
    return common


def _add_fields(parser: argparse.ArgumentParser, *, is_new: bool) -> None:
    """Add the options of a key's fields. `is_new`: whether the command makes a key; otherwise, it changes one."""

    def add(option: str, help: str, otherwise: str = "", **arguments: Any) -> None:
        if otherwise:
            help += f" (default: {otherwise})" if is_new else f"; {_NONE!r}: {otherwise}"
        parser.add_argument(option, help=help, **arguments)

    add("--name", "name of the key, for people")
    model = "model that the key may use; * stands for any text; may be repeated"
    add("--model", model, "all models", action="append")
    weight = "share of the engines under load, relative to other keys"
    add("--weight", f"{weight} (default: 1)" if is_new else weight, type=float)
    for name, (metavar, help) in _LIMITS.items():
        add(f"--{name.replace('_', '-')}", help, _DEFAULTS.get(name, "no limit"), dest=name, metavar=metavar)
    add("--tag", "tag that the ledger stores with the key's calls; may be repeated", "no tags", action="append")


def _run(options: argparse.Namespace) -> Any:
    """Send the requests of a command. Return the answer. Raises RequestFailed."""
    base = f"{base_url(options.url)}/admin/keys"

    def send(method: str, path: str = "", body: Any = None) -> Any:
        return request_json(method, base + path, options.admin_key, body)

    path = f"/{urllib.parse.quote(options.id, safe='')}" if "id" in options else ""
    match options.command:
        case "create":
            return send("POST", "", _fields(options))
        case "list":
            return _all_pages(send)
        case "update":
            if not (fields := _fields(options)):
                raise RequestFailed("nothing to change: set an option such as --rpm; see myna keys update --help")
            return send("PATCH", path, fields)
        case "disable" | "enable":
            return send("PATCH", path, {"disabled": options.command == "disable"})
        case "delete":
            return send("DELETE", path)
        case "rotate":
            return send("POST", f"{path}/rotate", {"grace_seconds": options.grace})
    return send("GET", path)


def _all_pages(send: Any) -> Any:
    """Return a list of all keys."""
    found: list[Any] = []
    after = ""
    while True:
        page = send("GET", f"?limit={_PAGE}{after}")
        found += page["data"]
        if not page["has_more"]:
            return {**page, "data": found, "first_id": found[0]["id"] if found else None}
        after = f"&after={urllib.parse.quote(page['last_id'], safe='')}"


def _fields(options: argparse.Namespace) -> dict[str, Any]:
    """Return the fields that the options specify. Raises RequestFailed if a value has the wrong form."""
    fields: dict[str, Any] = {}
    if options.name is not None:
        fields["name"] = options.name
    if options.model is not None:
        fields["models"] = None if options.model == [_NONE] else options.model
    if options.weight is not None:
        fields["weight"] = options.weight
    if options.tag is not None:
        fields["tags"] = [] if options.tag == [_NONE] else options.tag
    for name in _LIMITS:
        if (text := getattr(options, name)) is not None:
            fields[name] = _value(name, text)
    return fields


def _value(name: str, text: str) -> Any:
    if text == _NONE:
        return None
    if name == "budget_period":
        return text
    try:
        if name == "expires_at":
            return _seconds(text)
        if name == "budget_cost":
            return _finite(text)
        return int(text)
    except (ValueError, OverflowError):
        option = name.replace("_", "-")
        raise RequestFailed(f"--{option}: {text!r} is not {_FORMS.get(name, 'a whole number')}") from None


def _finite(text: str) -> float:
    """Return a number. Raises ValueError if it is infinite or no number."""
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(text)
    return number


def _seconds(text: str) -> int:
    """Return a time in seconds of the Unix clock. Without a time zone, it is in UTC. Raises ValueError."""
    if text.isascii() and text.isdigit():
        return int(text)
    time = datetime.fromisoformat(text)
    return int((time if time.tzinfo is not None else time.replace(tzinfo=UTC)).timestamp())


def _as_text(answer: Mapping[str, Any]) -> str:
    if "data" in answer:
        return keys_as_text(answer["data"])
    if answer["object"] == "api_key.deleted":
        return f"{answer['id']} is deleted"
    return key_as_text(answer)


def keys_as_text(found: Sequence[Mapping[str, Any]]) -> str:
    """Return the keys as a table."""
    rows = [("key", "name", "state", "models", "weight", "parallel", "rpm", "tpm", "tokens", "cost", "period")]
    for key in found:
        rows.append(
            (
                key["id"],
                key["name"],
                _state(key),
                _models(key),
                f"{key['weight']:g}",
                *(_limit(key[name]) for name in ("parallel", "rpm", "tpm")),
                _share(key, "tokens"),
                _share(key, "cost"),
                key["budget_period"] or "-",
            )
        )
    return as_table(rows)


def key_as_text(key: Mapping[str, Any]) -> str:
    """Return one key as a table of its fields. The key itself is the last line, if the answer has it."""
    rows = [
        ("id", key["id"]),
        ("name", key["name"]),
        ("state", _state(key)),
        ("created", _clock(key["created_at"])),
        ("expires", "-" if key["expires_at"] is None else _clock(key["expires_at"])),
        ("models", _models(key)),
        ("weight", f"{key['weight']:g}"),
        *((name, _limit(key[name])) for name in ("parallel", "rpm", "tpm")),
        ("tokens used", _share(key, "tokens")),
        ("cost used", _share(key, "cost")),
        ("period", key["budget_period"] or "-"),
        ("tags", ", ".join(key["tags"]) or "-"),
    ]
    if "key" in key:
        rows.append(("key", f"{key['key']}  (shown only now)"))
    return as_table(rows)


def _state(key: Mapping[str, Any]) -> str:
    if key["disabled"]:
        return "disabled"
    expires = key["expires_at"]
    return "expired" if expires is not None and expires <= datetime.now(UTC).timestamp() else "enabled"


def _models(key: Mapping[str, Any]) -> str:
    return "all" if key["models"] is None else ", ".join(key["models"])


def _limit(value: float | None) -> str:
    return "-" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def _share(key: Mapping[str, Any], what: str) -> str:
    """Return how much of a budget is used."""
    budget, used = key[f"budget_{what}"], key["usage"][what]
    return "-" if budget is None else f"{used or 0:.10g} of {budget:.10g}"


def _clock(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
