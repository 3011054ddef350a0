"""gateway/http/openapi.py: the document follows from the routes and the descriptions of their handlers."""

from typing import Any

import msgspec
import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer
from pydantic import BaseModel

from gateway.http.openapi import EVENTS, PATH, add_openapi_route, document, operation


class Thing(msgspec.Struct):
    name: str


class MakeThing(BaseModel):
    name: str


@operation(Thing, body=MakeThing, status=201, errors=(409,))
async def make(request: web.Request) -> web.Response:
    """Make a thing.

    Its name must be
    new.
    """
    return web.Response()


@operation(others={EVENTS: None, "text/plain": None}, query={"wait": {"type": "boolean"}}, errors=(404,))
async def watch(request: web.Request) -> web.Response:
    """Watch a thing."""
    return web.Response()


async def undescribed(request: web.Request) -> web.Response:
    return web.Response()


def app(*routes: web.RouteDef) -> web.Application:
    app = web.Application()
    app.add_routes(routes or [web.post("/v1/things", make), web.get("/things/{id}", watch)])
    return app


def described(*routes: web.RouteDef, open_routes: tuple[str, ...] = ()) -> dict[str, Any]:
    return document(app(*routes).router.routes(), open_routes)


def test_a_handler_is_described_by_its_docstring_and_types() -> None:
    post = described()["paths"]["/v1/things"]["post"]
    assert (post["summary"], post["description"]) == ("Make a thing.", "Its name must be new.")
    assert post["operationId"] == "test_openapi_make_v1"
    assert sorted(post["responses"]) == ["201", "400", "401", "409", "413"], "a body may be invalid or too large"
    assert post["requestBody"]["content"]["application/json"]["schema"] == {"$ref": "#/components/schemas/MakeThing"}
    assert post["responses"]["201"]["content"]["application/json"]["schema"] == {"$ref": "#/components/schemas/Thing"}


def test_parameters_of_path_and_query() -> None:
    get = described()["paths"]["/things/{id}"]["get"]
    assert [(one["name"], one["in"], one.get("required", False)) for one in get["parameters"]] == [
        ("id", "path", True),
        ("wait", "query", False),
    ]
    assert set(get["responses"]["200"]["content"]) == {EVENTS, "text/plain"}
    assert "head" not in described()["paths"]["/things/{id}"]


def test_open_routes_need_no_key() -> None:
    paths = described(open_routes=("/things/{id}",))["paths"]
    assert paths["/things/{id}"]["get"]["security"] == []
    assert "401" not in paths["/things/{id}"]["get"]["responses"]
    assert paths["/v1/things"]["post"]["security"] == [{"key": []}, {"x_api_key": []}]


def test_all_references_have_a_schema() -> None:
    whole = described()
    names = set(whole["components"]["schemas"])
    assert {"Thing", "MakeThing", "ErrorBody"} <= names

    def references(value: Any) -> set[str]:
        if isinstance(value, dict):
            own = {value["$ref"].rpartition("/")[2]} if "$ref" in value else set()
            return own.union(*map(references, value.values()))
        return set().union(*map(references, value)) if isinstance(value, list) else set()

    assert references(whole) <= names


def test_a_route_without_a_description_is_an_error() -> None:
    with pytest.raises(KeyError):
        described(web.get("/other", undescribed))


def test_two_types_of_one_name_are_an_error() -> None:
    other = type("Thing", (BaseModel,), {"__annotations__": {"x": int}})

    @operation(Thing, body=other)
    async def clash(request: web.Request) -> web.Response:
        """Clash."""
        return web.Response()

    with pytest.raises(ValueError, match="two schemas are called Thing"):
        described(web.post("/clash", clash))


async def test_the_document_is_served_without_describing_itself() -> None:
    served = app()
    add_openapi_route(served, ())
    async with TestClient(TestServer(served)) as client:
        for _ in range(2):
            async with client.get(PATH) as answer:
                assert set((await answer.json())["paths"]) == {"/v1/things", "/things/{id}"}
