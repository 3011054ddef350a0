"""Requests of commands to a running server, and tables of its answers."""

import json
import os
import sys
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Sequence
from typing import Any

DEFAULT_URL = "http://127.0.0.1:8000/v1"
_TIMEOUT_SECONDS = 10.0


class RequestFailed(Exception):
    """The server does not answer, or answers with an error. The message says which.

    `code`: code of the server's error; empty if there is none.
    """

    def __init__(self, message: str, code: str = "") -> None:
        super().__init__(message)
        self.code = code


def base_url(url: str) -> str:
    """Return the base URL of the API. The address may have no path, as the server prints it. Raises RequestFailed if it
    is no URL."""
    if not url.startswith(("http://", "https://")):
        raise RequestFailed(f"{url!r} is not a URL such as {DEFAULT_URL}")
    base = url.rstrip("/")
    return base if urllib.parse.urlsplit(base).path else f"{base}/v1"


def request_json(method: str, url: str, key: str, body: Any = None) -> Any:
    """Return the parsed JSON that the server answers. `body`: sent as JSON; None: no body.

    Raises RequestFailed if the server cannot be reached or answers with an error.
    """
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    data = None
    if body is not None:
        headers["Content-Type"] = "application/json"
        data = json.dumps(body).encode()
    try:
        request = urllib.request.Request(url, data, headers, method=method)
        with urllib.request.urlopen(request, timeout=_TIMEOUT_SECONDS) as response:
            return json.load(response)
    except urllib.error.HTTPError as error:
        with error:
            answer = error.read()
        try:
            problem = json.loads(answer)["error"]
            message, code = problem["message"], str(problem.get("code") or "")
        except (ValueError, LookupError, TypeError, AttributeError):
            message, code = f"{url} answered {error.code} {error.reason}", ""
        raise RequestFailed(message, code) from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        raise RequestFailed(f"{url} does not answer: {reason}") from None


def as_table(rows: Sequence[Sequence[str]]) -> str:
    """Return rows of cells as a table with aligned columns."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    padded = [[cell.ljust(width) for cell, width in zip(row, widths, strict=True)] for row in rows]
    return "\n".join("  ".join(row).rstrip() for row in padded)


def print_text(text: str) -> None:
    """Print a text. If the reader of the pipe has ended, such as `head`, the rest is dropped without an error."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes stdout again when it exits
