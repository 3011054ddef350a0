"""Messages of servers: parse them with bounds, and describe failures of the transport as JSON-RPC errors."""

import json
import re
from functools import partial
from typing import Any

from gateway.runtime.executors import offload
from gateway.runtime.json_codec import BadJson, decode_json
from gateway.tools.protocol import PROTOCOL_ERROR, TOO_LARGE, UNAVAILABLE
from gateway.tools.result_text import as_unicode

_MAX_VALUES = 100_000
"""Maximum number of values in a message. Each costs the event loop up to a microsecond in later stages."""
_MAX_LIST = 2_000
"""Maximum length of a list directly in a result, such as `content` or `tools`. Entries cost up to 50 microseconds."""
_STRING = re.compile(rb'"(?:[^"\\]|\\.)*"')
"""String of a JSON text."""
_INLINE_BYTES = 16_000
"""Size up to which a message is parsed on the event loop, in bytes."""
_LISTING_BYTES = 4 << 20
"""Lower bound of the maximum size of a message, in bytes, so that lists of tools fit."""
_ENVELOPE_BYTES = 64 << 10
"""Part of the maximum size of a message that is not for a result's text, in bytes."""
_MAX_LINE = 300
"""Length to which texts of servers are cut in messages, in characters."""
_CODES = {TOO_LARGE: -32950, UNAVAILABLE: -32951, PROTOCOL_ERROR: -32952}
"""Codes of JSON-RPC errors that stand for failures of the transport."""
_FAILURES = {number: code for code, number in _CODES.items()}


class BadMessage(ValueError):
    """The message is malformed or exceeds a limit. `code`: a code of ToolFailed. The text says why."""

    def __init__(self, code: str, reason: str, id: int | None = None) -> None:
        """`id`: the request that the message answers, if that is known."""
        super().__init__(reason)
        self.code = code
        self.id = id


def max_message_bytes(result_bytes: int) -> int:
    """Return the maximum size of a message in bytes, for results of a given size. JSON may escape each character, and
    servers often send a text twice: as content and as structured content."""
    return max(_LISTING_BYTES, 4 * result_bytes + _ENVELOPE_BYTES)


async def parse_message(raw: bytes) -> dict[str, Any]:
    """Return a JSON-RPC message. Invalid Unicode becomes U+FFFD. Large messages are parsed in a thread. Raises
    BadMessage."""
    if len(raw) <= _INLINE_BYTES:
        return _parse(raw)
    return await offload(partial(_parse, raw), len(raw))


def _parse(raw: bytes) -> dict[str, Any]:
    if _count_separators(raw) > _MAX_VALUES and _count_separators(_STRING.sub(b"", raw)) > _MAX_VALUES:
        raise BadMessage(TOO_LARGE, f"it sent a message of more than {_MAX_VALUES} values")
    try:
        message = decode_json(raw)
    except BadJson as error:
        message = _parse_bad_unicode(raw, error)
    if not isinstance(message, dict):
        raise BadMessage(PROTOCOL_ERROR, "it sent JSON that is not an object")
    result, id = message.get("result"), message.get("id")
    found_id = id if isinstance(id, int) and not isinstance(id, bool) else None
    lists = result.values() if isinstance(result, dict) else ()
    longest = max((len(value) for value in lists if isinstance(value, list)), default=0)
    if longest > _MAX_LIST:
        raise BadMessage(TOO_LARGE, f"it sent a list of {longest} entries; at most {_MAX_LIST} are allowed", found_id)
    return message


def _parse_bad_unicode(raw: bytes, error: BadJson) -> Any:
    """Return the document of a text with invalid bytes or lone surrogates. Raises BadMessage with the reason of `error`
    if this is not why it could not be parsed."""
    reason = BadMessage(PROTOCOL_ERROR, f"it sent a line that is {one_line(str(error))}")
    try:
        document = json.loads(raw.decode("utf-8", "replace"))
        return decode_json(as_unicode(json.dumps(document, ensure_ascii=False)).encode())
    except (ValueError, RecursionError):
        raise reason from None


def _count_separators(raw: bytes) -> int:
    """Return a number that is at most a little lower than the number of values of a JSON text, and higher if strings
    contain separators."""
    return raw.count(b",") + raw.count(b"[") + raw.count(b"{")


def failure_message(id: Any, code: str, reason: str) -> dict[str, Any]:
    """Return the JSON-RPC error that stands for a failure of the transport. See `failure_of`."""
    return {"jsonrpc": "2.0", "id": id, "error": {"code": _CODES[code], "message": reason}}


def failure_of(number: int) -> str | None:
    """Return the code of ToolFailed for a code of a JSON-RPC error; None if it is an error of the server."""
    return _FAILURES.get(number)


def one_line(text: str) -> str:
    """Return a text of a server for a message: one line, short, without control characters."""
    shown = "".join(character if character.isprintable() else " " for character in text[: _MAX_LINE + 1])
    line = as_unicode(" ".join(shown.split()))
    return line if len(line) <= _MAX_LINE else f"{line[: _MAX_LINE - 1]}…"
