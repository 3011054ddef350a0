"""Decode and encode JSON. Documents beyond fixed limits are refused here, so no later code has to check them.

A document that is legal JSON can still be expensive: nesting exhausts the stack of every recursive function, and a
million small values cost far more to validate than to receive.
"""

import json
from typing import Any

import msgspec
from pydantic_core import from_json

MAX_DEPTH = 200
"""Maximum nesting of arrays and objects, in levels. It is the fixed limit of pydantic's own JSON parser."""

MAX_VALUES = 2_000_000
"""Maximum number of array elements and object members in one document."""

MAX_KEYS = 200_000
"""Maximum number of object members in one document. Validation costs about 4 µs for each unknown member."""

_encoder = msgspec.json.Encoder()


class BadJson(ValueError):
    """The document is not JSON, or exceeds a limit. The message gives the client the reason."""


def decode_json(raw: bytes) -> Any:
    """Return the document as dicts, lists, strings, numbers, booleans and None. Raises BadJson if it is not JSON or
    exceeds a limit."""
    try:
        value = msgspec.json.decode(raw)
    except RecursionError:
        raise BadJson(_TOO_DEEP) from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BadJson(f"not JSON: {error}") from None
    _check_size(raw, value)
    return value


_TOO_DEEP = f"arrays and objects are nested too deeply; at most {MAX_DEPTH} levels are allowed"


def _check_size(raw: bytes, value: Any) -> None:
    """Raise BadJson if the document is too deep or has too many values."""
    # Counting bytes is fast and never too low, so most documents need no second pass.
    containers = raw.count(b"[") + raw.count(b"{")
    if containers > MAX_DEPTH:
        try:
            from_json(raw, cache_strings="none")
        except ValueError as error:
            raise BadJson(_TOO_DEEP if "recursion" in str(error) else f"not JSON: {error}") from None
    separators = raw.count(b",")
    if separators + containers > MAX_KEYS:
        members = elements = 0
        rest = [value]
        while rest:
            node = rest.pop()
            if isinstance(node, dict):
                members += len(node)
                rest += [child for child in node.values() if isinstance(child, (dict, list))]
            elif isinstance(node, list):
                elements += len(node)
                rest += [child for child in node if isinstance(child, (dict, list))]
        if members > MAX_KEYS:
            raise BadJson(f"{members} object members; at most {MAX_KEYS} are allowed")
        if members + elements > MAX_VALUES:
            raise BadJson(f"{members + elements} values; at most {MAX_VALUES} are allowed")


def encode_json(value: Any) -> bytes:
    """Return structs, dicts, lists and scalars as compact JSON. Integers may have any size.

    Lone surrogates become question marks. Texts are checked when they arrive, so there should be none here.
    """
    try:
        return _encoder.encode(value)
    except (OverflowError, UnicodeEncodeError):  # msgspec writes integers of 64 bits; JSON has no such bound
        builtin = msgspec.to_builtins(value, builtin_types=(int,))
        return json.dumps(builtin, ensure_ascii=False, separators=(",", ":")).encode(errors="replace")
