"""Read JSON bodies, check them against a schema, and write JSON answers."""

import asyncio
import re
from collections.abc import Sequence
from typing import Any, TypeVar

from aiohttp import hdrs, web
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from compat.anthropic import REFUSED_BY_MESSAGES
from compat.openai import REFUSED
from compat.openai.base import FIELD_ERROR
from gateway.errors import RequestError, field_path
from gateway.graph.limits import SharedLimit
from gateway.http.middleware.auth import TENANT
from gateway.runtime.fair_gate import FairGate
from gateway.runtime.json_codec import BadJson, decode_json, encode_json

_Body = TypeVar("_Body", bound=BaseModel)

LARGE_BODY_GATE = web.AppKey("large_body_gate", FairGate)
"""Gate that large bodies pass one at a time: decoding and checking one may take 0.2 s."""

SCHEMA_CHECK_GATE = web.AppKey("schema_check_gate", FairGate)
"""Gate of checks that compile schemas, patterns and grammars in a thread."""

BODY_BYTES_LIMIT = web.AppKey("body_bytes_limit", SharedLimit)
"""Bytes of large bodies whose requests have not been answered."""

BODY_BYTES = web.RequestKey("body_bytes", int)
"""Bytes of a large body that the request holds."""
_LARGE_BYTES = 256 << 10

BODY_SECONDS = 60.0
"""Longest time from a request's headers to the end of its body, in seconds."""


def json_response(value: Any, status: int = 200) -> web.Response:
    """Return an answer with a JSON body."""
    return web.Response(status=status, body=encode_json(value), content_type="application/json")


async def read_body(request: web.Request) -> bytes:
    """Return the request's body. Raises RequestError if it is too large, broken, or does not arrive in time."""
    length = request.content_length
    if length is not None:
        if length > request.client_max_size:
            raise _too_large_error(request)  # before the server reads any of it
        if length <= _LARGE_BYTES and request.content.is_eof() and hdrs.CONTENT_ENCODING not in request.headers:
            return await request.read()  # the common case: a small body that has arrived completely
    try:
        if request.content.is_eof():
            return await _read_counted(request)
        async with asyncio.timeout(BODY_SECONDS):
            return await _read_counted(request)
    except TimeoutError:
        message = f"the request's body did not arrive within {BODY_SECONDS:g} s"
        raise RequestError(408, message, code="request_timeout", headers=_CLOSE) from None
    except web.RequestPayloadError as error:
        message = f"the body cannot be read: {' '.join(str(error).split())}"
        raise RequestError(400, message, code="invalid_json", headers=_CLOSE) from None
    except web.HTTPRequestEntityTooLarge:
        raise _too_large_error(request) from None


async def _read_counted(request: web.Request) -> bytes:
    """Read the body, and count it among the bytes in progress if it is large. Raises as `read_body`."""
    length = 0 if request.headers.get(hdrs.CONTENT_ENCODING) else request.content_length
    if request.can_read_body and length is not None and length > _LARGE_BYTES:
        reserve_bytes(request, length)
    elif request.can_read_body and length in (None, 0):  # the size shows only during arrival or decompression
        body, charged = bytearray(), 0
        while chunk := await request.content.readany():
            body += chunk
            if len(body) > request.client_max_size:
                raise _too_large_error(request)
            if len(body) - charged > _LARGE_BYTES:
                reserve_bytes(request, len(body) - charged)
                charged = len(body)
        request._read_bytes = bytes(body)  # where aiohttp's own `read` leaves it
    return await request.read()


def reserve_bytes(request: web.Request, size: int) -> None:
    """Count bytes that a request holds until it is answered. Raises RequestError if its API key uses too many."""
    hold_bytes(request, size)
    request[BODY_BYTES] = request.get(BODY_BYTES, 0) + size


def hold_bytes(request: web.Request, size: int) -> None:
    """Count bytes that a client has sent, until `drop_bytes`. Raises RequestError if its API key uses too many."""
    limit = request.app.get(BODY_BYTES_LIMIT)
    if limit is None:
        return
    tenant = request.get(TENANT, "")
    if not limit.has_room(tenant, size):
        message = (
            f"requests in progress of this API key have {limit.amount(tenant)} bytes, the current maximum; try again"
        )
        raise RequestError(429, message, code="overloaded", headers=_CLOSE)
    limit.add(tenant, size)


def drop_bytes(request: web.Request, size: int) -> None:
    """Stop counting bytes that `hold_bytes` counts."""
    limit = request.app.get(BODY_BYTES_LIMIT)
    if limit is not None:
        limit.remove(request.get(TENANT, ""), size)


def release_body(request: web.Request) -> None:
    """Release the bytes of a request, and stop counting them. Call it when the request is answered."""
    request._read_bytes = None  # aiohttp keeps a connection's last request until the next one arrives
    release_bytes(request)


def release_bytes(request: web.Request) -> None:
    """Stop counting the bytes that a request holds."""
    held = request.get(BODY_BYTES)
    if held:
        drop_bytes(request, held)
        request[BODY_BYTES] = 0


_CLOSE = {"Connection": "close"}
"""Headers of a refusal without the whole body: the server does not wait for the rest."""


def _too_large_error(request: web.Request) -> RequestError:
    message = f"the body has more than {request.client_max_size} bytes, the maximum of this server"
    return RequestError(413, message, code="too_large", headers=_CLOSE)


async def read_json(request: web.Request, schema: type[_Body]) -> _Body:
    """Return the request's body, checked against the schema. Raises RequestError; `param` is the path of the field."""
    raw = await read_body(request)
    gate = request.app.get(LARGE_BODY_GATE) if len(raw) > _LARGE_BYTES else None
    if gate is None:
        return await _decode_and_check(request, raw, schema)
    async with gate.turn(request.get(TENANT, "")):
        return await _decode_and_check(request, raw, schema)


async def _decode_and_check(request: web.Request, raw: bytes, schema: type[_Body]) -> _Body:
    try:
        content = decode_json(raw)
    except BadJson as error:
        raise RequestError(400, f"invalid body: {error}", code="invalid_json") from None
    if not isinstance(content, dict):
        raise RequestError(400, "the body must be a JSON object", code="invalid_json")
    return await validate_async(request, content, schema, raw)


_PATTERNS = (b'"structured_outputs"', b'"guided_', b'"regex"', b'"pattern"', b'"multipleOf"')
"""Fields whose values may take long to compile, even if they are short."""
_SCHEMAS = (b'"response_format"', b'"tools"', b'"format"', b'"output_format"')
"""Fields whose values are compiled while the body is checked."""
_LONG_SCHEMA = 2_000
"""Size in bytes above which a body with a schema is checked in a thread."""
_MANY_OBJECTS = 5_000
"""Number of objects above which a large body is checked in a thread. The check of 60,000 parts takes 0.5 s."""
_has_pattern = re.compile(b"|".join(_PATTERNS)).search


async def validate_async(request: web.Request, content: Any, schema: type[_Body], raw: bytes, where: str = "") -> _Body:
    """Check a body, in a thread if that may take long; see `validate`. `raw`: the body's JSON.

    Long checks are done one at a time, in turns between keys.
    """
    if _has_pattern(raw) if len(raw) <= _LONG_SCHEMA else any(field in raw for field in (*_PATTERNS, *_SCHEMAS)):
        gate = request.app.get(SCHEMA_CHECK_GATE)
        if gate is None:
            return await asyncio.to_thread(validate, content, schema, where)
        async with gate.turn(request.get(TENANT, "")):
            return await asyncio.to_thread(validate, content, schema, where)
    if len(raw) > _LARGE_BYTES and raw.count(b"{") > _MANY_OBJECTS:
        return await asyncio.to_thread(validate, content, schema, where)
    return validate(content, schema, where)


def validate(content: Any, schema: type[_Body], where: str = "") -> _Body:
    """Return a body, or the part of one that is at path `where`, as an instance of the schema.

    Raises RequestError with the path of the invalid field in `param`.
    """
    try:
        return schema.model_validate(content)
    except ValidationError as error:
        raise _validation_error(error, content, where) from None


def _validation_error(error: ValidationError, content: Any, where: str) -> RequestError:
    """Return the error for the problem with the longest path.

    If a value is invalid for all alternatives of a union, the longest path belongs to the alternative that the client
    most probably intended. If all alternatives fail at the same field, the message lists all expected types.
    """
    problems = [(_find_path(problem, content), problem) for problem in error.errors(include_url=False)]
    # Of several deepest problems, take the first; "the list is too long" says more than "it is not a string".
    parts, problem = max(problems, key=lambda each: (len(each[0]), each[1]["type"] == "too_long"))
    param = field_path(where, ".".join(parts)) or None
    if problem["type"] == "extra_forbidden":
        reason = f": {_REASONS[parts[-1]]}" if parts[-1] in _REASONS else ""
        return RequestError(400, f"{param!r} is not supported{reason}", code="unsupported_parameter", param=param)
    if problem["type"] in ("missing", "union_tag_not_found"):
        return RequestError(400, f"{param}: this field is required", code="missing_required_parameter", param=param)
    message = problem["msg"].removeprefix("Value error, ")
    if problem["type"].endswith("_type"):
        same = (other for path, other in problems if path == parts and other["type"].endswith("_type"))
        expected = dict.fromkeys(other["msg"].removeprefix("Input should be ") for other in same)
        message = f"Input should be {' or '.join(expected)}"
    elif problem["type"] == "union_tag_invalid":
        *expected_tags, last = problem["ctx"]["expected_tags"].split(", ")
        message = f"Input should be {' or '.join([', '.join(expected_tags), last])}"
    code = "unsupported_value" if problem["type"] == "literal_error" else "invalid_value"
    return RequestError(400, f"{param}: {message}" if param else message, code=code, param=param)


_REASONS = {**REFUSED_BY_MESSAGES, **REFUSED}
"""Reasons for which known fields are refused."""

_MAX_SEARCHED_STEPS = 24
"""Number of elements from which `_find_path` does not try all ways to read pydantic's path: n elements may have 2**n
ways."""


def _find_path(problem: ErrorDetails, content: Any) -> list[str]:
    """Return the path of the field at fault in the request.

    pydantic's path also has the names of a union's alternatives, which may be names of fields as well: the alternative
    of a text part is `text`. So the function searches for a way to read the path that ends at a field of the request,
    or at a field that is missing from its object.
    """
    steps, missing = problem["loc"], problem["type"] == "missing"
    path = _match_path(steps, content, missing) if len(steps) < _MAX_SEARCHED_STEPS else None
    if path is None:
        path = _match_fields(steps, content)
    if problem["type"] == FIELD_ERROR and isinstance(problem["input"], dict | BaseModel):
        path.append(problem["ctx"]["field"])
    elif problem["type"] in ("union_tag_invalid", "union_tag_not_found"):
        discriminator = problem["ctx"]["discriminator"]
        path.append("type" if discriminator.endswith("()") else discriminator.strip("'"))  # functions read `type`
    return path


def _match_path(steps: Sequence[str | int], content: Any, missing: bool) -> list[str] | None:
    """Return the elements of pydantic's path that are fields, if the last element can be one; otherwise None."""
    if len(steps) == 1:
        (last,) = steps
        is_field = isinstance(content, dict) and last not in content if missing else _has_step(content, last)
        return [str(last)] if is_field else None
    if not steps:
        return None
    step, *others = steps
    if _has_step(content, step) and (read := _match_path(others, content[step], missing)) is not None:
        return [str(step), *read]
    return _match_path(others, content, missing)


def _match_fields(steps: Sequence[str | int], content: Any) -> list[str]:
    """Return the elements of pydantic's path that are fields, if the last one is the name of an alternative."""
    path: list[str] = []
    for step in steps:
        if _has_step(content, step):
            content = content[step]
            path.append(str(step))
    return path


def _has_step(content: Any, step: str | int) -> bool:
    return step in content if isinstance(content, dict) else isinstance(content, list) and step in range(len(content))
