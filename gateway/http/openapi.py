"""GET /openapi.json: what each route says of itself, beside its handler, as one document (OpenAPI 3.1)."""

import importlib.metadata
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

import msgspec
from aiohttp import hdrs, web
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from compat.openai import ErrorBody
from gateway.http.json_body import json_response
from gateway.http.middleware.auth import OPEN_ROUTES

PATH = "/openapi.json"
EVENTS = "text/event-stream"

_EVENT = {
    "type": "object",
    "properties": {"data": {"type": "string"}, "event": {"type": "string"}, "id": {"type": "string"}},
}
"""Of each of a stream."""
_REF = "#/components/schemas/{%s}"
_AnyHandler = TypeVar("_AnyHandler", bound=Callable[[web.Request], Awaitable[web.StreamResponse]])

_MEANS = {
    400: "something in the request cannot be",
    401: "the API key is missing or unknown",
    404: "there is no such thing, or it is another key's",
    409: "a name or an id is taken, or what was waited for was cancelled",
    410: "the session has expired",
    413: "over a configured bound",
    422: "the answer holds nothing of what the transform looks for",
    424: "a variable that this reads has failed",
    429: "as much is under way as may be; see Retry-After",
    503: "the model is still loading, its engine was lost, or the server is stopping; see Retry-After",
    504: "the wait ended, the work did not",
}
"""Statuses other than success."""


@dataclass(frozen=True)
class Operation:
    """A route. `answers`: types of answers by their media type, None for plain text; `query` and `headers`: JSON
    schemas of parameters by name; `errors`: statuses besides those that every route of its kind has; `error`: the
    type of their bodies."""

    answers: Mapping[str, Any]
    body: type[BaseModel] | None = None
    status: int = 200
    query: Mapping[str, Any] = field(default_factory=dict)
    headers: Mapping[str, Any] = field(default_factory=dict)
    errors: Collection[int] = ()
    error: Any = ErrorBody


_operations: dict[Any, Operation] = {}
"""By handler."""


def operation(
    answer: Any = None,
    *,
    body: type[BaseModel] | None = None,
    others: Mapping[str, Any] | None = None,
    **said: Any,
) -> Callable[[_AnyHandler], _AnyHandler]:
    """Says of the handler below what it answers, as JSON; `others` and `said`: as in `Operation`."""
    answers = {**({} if answer is None else {"application/json": answer}), **(others or {})}

    def describe(handler: _AnyHandler) -> _AnyHandler:
        _operations[handler] = Operation(answers, body, **said)
        return handler

    return describe


def document(routes: Iterable[web.AbstractRoute], open_routes: Collection[str] = OPEN_ROUTES) -> dict[str, Any]:
    """The document. Raises KeyError for a route that says nothing of itself."""
    paths: dict[str, dict[str, Any]] = {}
    told: list[Operation] = []
    for route in routes:
        if route.method == hdrs.METH_HEAD:
            continue
        assert route.resource is not None
        path = route.resource.canonical
        one = _operations[route.handler]
        told.append(one)
        paths.setdefault(path, {})[route.method.lower()] = _described(route, path, one, path not in open_routes)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "myna",
            "version": importlib.metadata.version("myna"),
            "description": "The OpenAI API, with Semantic Variables across the calls of a session.",
        },
        "paths": paths,
        "components": {
            "schemas": _schemas(told),
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
    }


def _described(route: web.AbstractRoute, path: str, one: Operation, secured: bool) -> dict[str, Any]:
    handler = route.handler
    summary, _, more = (handler.__doc__ or "").partition("\n")
    name = f"{handler.__module__.rpartition('.')[2]}_{handler.__name__}"
    errors = {*one.errors, *([401] if secured else []), *([400, 413] if one.body else [])}
    parameters = [
        {"name": part.strip("{}"), "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}
        for part in path.split("/")
        if part.startswith("{")
    ]
    for place, known in (("query", one.query), ("header", one.headers)):
        parameters += [{"name": name, "in": place, "schema": schema} for name, schema in known.items()]
    success = {
        kind: {"schema": (_EVENT if kind == EVENTS else {"type": "string"}) if answer is None else _reference(answer)}
        for kind, answer in one.answers.items()
    }
    failure = {"application/json": {"schema": _reference(one.error)}}
    described: dict[str, Any] = {
        "operationId": f"{name}{'_v1' if path.startswith('/v1/') else ''}",
        "tags": [handler.__module__.rpartition(".")[2]],
        "summary": summary,
        "parameters": parameters,
        "responses": {
            str(one.status): {"description": "success", "content": success},
            **{str(status): {"description": _MEANS[status], "content": failure} for status in sorted(errors)},
        },
        "security": [{"key": []}] if secured else [],
    }
    if more.strip():
        described["description"] = " ".join(more.split())
    if one.body is not None:
        described["requestBody"] = {"required": True, "content": {"application/json": {"schema": _reference(one.body)}}}
    return described


def _reference(kind: Any) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{kind.__name__}"}


def _schemas(told: Iterable[Operation]) -> dict[str, Any]:
    """Of all that is sent and answered. Raises ValueError if two things have one name."""
    bodies = {one.body: None for one in told if one.body is not None}
    answers = {
        kind: None for one in told for kind in (*one.answers.values(), *([one.error] if one.errors else [])) if kind
    }
    answers[ErrorBody] = None
    _, sent = models_json_schema([(body, "validation") for body in bodies], ref_template=_REF % "model")
    _, answered = msgspec.json.schema_components(answers, ref_template=_REF % "name")
    schemas: dict[str, Any] = sent["$defs"]
    if twice := schemas.keys() & answered.keys():
        raise ValueError(f"two schemas are called {min(twice)}")
    return schemas | answered


def serving(app: web.Application, open_routes: Collection[str]) -> None:
    """Adds the document's route, once all others are there."""
    routes = list(app.router.routes())
    found: list[Any] = []

    async def openapi(request: web.Request) -> web.Response:
        if not found:
            found.append(document(routes, open_routes))
        return json_response(found[0])

    app.router.add_get(PATH, openapi)
