"""GET /openapi.json: one OpenAPI 3.1 document, from the description beside each route's handler."""

import importlib.metadata
import re
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

import msgspec
from aiohttp import hdrs, web
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from compat.openai import ErrorBody
from gateway.http.json_body import json_response
from gateway.http.middleware.auth import KEY_HEADER, OPEN_ROUTES

PATH = "/openapi.json"
EVENTS = "text/event-stream"

_EVENT = {
    "type": "object",
    "properties": {"data": {"type": "string"}, "event": {"type": "string"}, "id": {"type": "string"}},
}
"""Schema of one server-sent event."""
_VERSION = re.compile(r"/(v\d+)/")
"""Pattern of paths with a version."""
_REF = "#/components/schemas/{%s}"
_AnyHandler = TypeVar("_AnyHandler", bound=Callable[[web.Request], Awaitable[web.StreamResponse]])

_STATUS_TEXTS = {
    400: "Invalid request.",
    401: "Missing or invalid API key.",
    403: "Pages of this origin may not do this.",
    404: "Not found, or owned by another API key.",
    409: "Conflict: the name or id is already used, or the awaited variable was cancelled.",
    410: "The session has expired.",
    413: "Too large: the request exceeds a configured limit.",
    422: "A transform or a grammar failed on the generated text.",
    424: "A variable that this call depends on has failed.",
    426: "Not an upgrade to a WebSocket.",
    429: "Too many requests in progress. See Retry-After.",
    503: "Unavailable: the model is loading, its engine was lost, or the server is stopping. See Retry-After.",
    529: "Unavailable: the model is loading, its engine was lost, or the server is stopping.",
    504: "Timeout: the variable has no final state yet. Its call continues.",
}
"""Descriptions of the statuses of errors."""


@dataclass(frozen=True)
class Operation:
    """Description of a route.

    `answers`: types of answers by their media type, None for plain text. `media_type`: that of the body. `query` and
    `headers`: JSON schemas of parameters by name. `errors`: statuses besides those that every route of its kind has.
    `error`: type of the bodies of errors.
    """

    answers: Mapping[str, Any]
    body: type[BaseModel] | None = None
    media_type: str = "application/json"
    status: int = 200
    query: Mapping[str, Any] = field(default_factory=dict)
    headers: Mapping[str, Any] = field(default_factory=dict)
    errors: Collection[int] = ()
    error: Any = ErrorBody


_operations: dict[Any, Operation] = {}
"""Description of each route, by its handler."""


def operation(
    answer: Any = None,
    *,
    body: type[BaseModel] | None = None,
    others: Mapping[str, Any] | None = None,
    **fields: Any,
) -> Callable[[_AnyHandler], _AnyHandler]:
    """Return a decorator that describes a handler. `answer`: type of its JSON answers; `others`: types of answers with
    other media types, as in `Operation.answers`; `fields`: other fields of `Operation`."""
    answers = {**({} if answer is None else {"application/json": answer}), **(others or {})}

    def describe(handler: _AnyHandler) -> _AnyHandler:
        _operations[handler] = Operation(answers, body, **fields)
        return handler

    return describe


def document(routes: Iterable[web.AbstractRoute], open_routes: Collection[str] = OPEN_ROUTES) -> dict[str, Any]:
    """Return the document. Raises KeyError for a route without a description."""
    paths: dict[str, dict[str, Any]] = {}
    described: list[Operation] = []
    for route in routes:
        if route.method == hdrs.METH_HEAD:
            continue
        assert route.resource is not None
        path = route.resource.canonical
        spec = _operations[route.handler]
        described.append(spec)
        paths.setdefault(path, {})[route.method.lower()] = _path_item(route, path, spec, path not in open_routes)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "myna",
            "version": importlib.metadata.version("myna"),
            "description": "The OpenAI API, with Semantic Variables across the calls of a session.",
        },
        "paths": paths,
        "components": {
            "schemas": _schemas(described),
            "securitySchemes": {
                "key": {"type": "http", "scheme": "bearer"},
                "x_api_key": {"type": "apiKey", "in": "header", "name": KEY_HEADER},
            },
        },
    }


def _path_item(route: web.AbstractRoute, path: str, spec: Operation, secured: bool) -> dict[str, Any]:
    handler = route.handler
    summary, _, details = (handler.__doc__ or "").partition("\n")
    name = f"{handler.__module__.rpartition('.')[2]}_{handler.__name__}"
    errors = {*spec.errors, *([401] if secured else []), *([400, 413] if spec.body else [])}
    parameters = [
        {"name": part.strip("{}"), "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}
        for part in path.split("/")
        if part.startswith("{")
    ]
    for place, schemas in (("query", spec.query), ("header", spec.headers)):
        parameters += [{"name": name, "in": place, "schema": schema} for name, schema in schemas.items()]
    success = {
        kind: {"schema": (_EVENT if kind == EVENTS else {"type": "string"}) if answer is None else _reference(answer)}
        for kind, answer in spec.answers.items()
    }
    failure = {"application/json": {"schema": _reference(spec.error)}}
    described: dict[str, Any] = {
        "operationId": name + (f"_{version[1]}" if (version := _VERSION.match(path)) else ""),
        "tags": [handler.__module__.rpartition(".")[2]],
        "summary": summary,
        "parameters": parameters,
        "responses": {
            str(spec.status): {"description": "success", "content": success},
            **{str(status): {"description": _STATUS_TEXTS[status], "content": failure} for status in sorted(errors)},
        },
        "security": [{"key": []}, {"x_api_key": []}] if secured else [],
    }
    if details.strip():
        described["description"] = " ".join(details.split())
    if spec.body is not None:
        described["requestBody"] = {
            "required": True,
            "content": {spec.media_type: {"schema": _reference(spec.body)}},
        }
    return described


def _reference(answer: Any) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{answer.__name__}"}


def _schemas(operations: Iterable[Operation]) -> dict[str, Any]:
    """Return the schemas of all bodies and answers. Raises ValueError if two types have the same name."""
    bodies = {spec.body: None for spec in operations if spec.body is not None}
    answers = {
        kind: None
        for spec in operations
        for kind in (*spec.answers.values(), *([spec.error] if spec.errors else []))
        if kind
    }
    answers[ErrorBody] = None
    _, sent = models_json_schema([(body, "validation") for body in bodies], ref_template=_REF % "model")
    _, answered = msgspec.json.schema_components(answers, ref_template=_REF % "name")
    schemas: dict[str, Any] = sent["$defs"]
    if repeated := schemas.keys() & answered.keys():
        raise ValueError(f"two schemas are called {min(repeated)}")
    return schemas | answered


def add_openapi_route(app: web.Application, open_routes: Collection[str]) -> None:
    """Add the document's route. Call it after all other routes were added."""
    routes = list(app.router.routes())
    cached: list[Any] = []

    async def openapi(request: web.Request) -> web.Response:
        if not cached:
            cached.append(document(routes, open_routes))
        return json_response(cached[0])

    app.router.add_get(PATH, openapi)
