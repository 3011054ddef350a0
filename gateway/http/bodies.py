"""JSON in, checked against a schema; JSON out."""

from typing import Any, TypeVar

import msgspec
from aiohttp import web
from pydantic import BaseModel, ValidationError

from gateway.errors import RequestError

_Body = TypeVar("_Body", bound=BaseModel)
_encoder = msgspec.json.Encoder()


def encode_json(value: Any) -> bytes:
    """Structs, dicts and lists as JSON."""
    return _encoder.encode(value)


def json_response(value: Any, status: int = 200) -> web.Response:
    """An answer with a JSON body."""
    return web.Response(status=status, body=encode_json(value), content_type="application/json")


async def read_json(request: web.Request, schema: type[_Body]) -> _Body:
    """The request's body. Raises RequestError with the offending field's path in `param`."""
    raw = await request.read()
    try:
        content = msgspec.json.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise RequestError(400, f"the body is not JSON: {error}", code="invalid_json") from None
    if not isinstance(content, dict):
        raise RequestError(400, "the body must be a JSON object", code="invalid_json")
    try:
        return schema.model_validate(content)
    except ValidationError as error:
        raise _refusal(error, content) from None


def _refusal(error: ValidationError, content: dict[str, Any]) -> RequestError:
    """The first complaint, in words; complaints about one alternative of a union are told as one."""
    first = error.errors(include_url=False, include_input=False)[0]
    place = _place(first["loc"], content)
    param = ".".join(place) or None
    if first["type"] == "extra_forbidden":
        return RequestError(400, f"{param!r} is not supported", code="unsupported_parameter", param=param)
    message = first["msg"].removeprefix("Value error, ")
    code = "unsupported_value" if first["type"] == "literal_error" else "invalid_value"
    if first["type"] == "missing":
        code, message = "missing_required_parameter", "this field is required"
    return RequestError(400, f"{param}: {message}" if param else message, code=code, param=param)


def _place(location: tuple[int | str, ...], content: Any) -> list[str]:
    """The path as far as it names fields of the request; pydantic adds the names of a union's alternatives."""
    place: list[str] = []
    at = content
    for index, step in enumerate(location):
        last = index + 1 == len(location)
        if isinstance(at, dict) and (step in at or last):
            place.append(str(step))
            at = at.get(step)
        elif isinstance(at, list) and isinstance(step, int) and step < len(at):
            place.append(str(step))
            at = at[step]
    return place
