"""Authentication by API keys."""

from collections.abc import Mapping

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer

from gateway.errors import RequestError
from gateway.http.middleware.auth import OPEN_ROUTES, TENANT, ApiKeys, authentication
from gateway.http.middleware.errors import errors


async def send(keys: list[str], headers: Mapping[str, str], path: str = "/v1/models") -> tuple[int, str]:
    async def handler(request: web.Request) -> web.StreamResponse:
        return web.Response(text=f"tenant {request[TENANT]}")

    app = web.Application(middlewares=[errors, authentication(ApiKeys(keys), {*OPEN_ROUTES, "/own/{id}"})])
    app.add_routes([web.get(path, handler) for path in ("/v1/models", "/health", "/own/{id}")])
    async with TestClient(TestServer(app)) as client, client.get(path, headers=headers) as response:
        return response.status, await response.text()


async def tenant(keys: list[str], headers: Mapping[str, str], path: str = "/v1/models") -> str:
    status, text = await send(keys, headers, path)
    assert status == 200
    return text.removeprefix("tenant ")


async def test_without_keys_all_clients_are_one_tenant() -> None:
    assert await tenant([], {}) == await tenant([], {"Authorization": "Bearer anything"})


async def test_each_key_is_a_separate_tenant() -> None:
    first, second = [await tenant(["one", "two"], {"Authorization": f"Bearer {key}"}) for key in ("one", "two")]
    assert first != second
    assert "one" not in first, "the tenant does not contain the key"
    assert await tenant(["one"], {"Authorization": "bearer  one "}) == first


@pytest.mark.parametrize("header", [None, "", "one", "Basic one", "Bearer", "Bearer ", "Bearer onetwo", "Bearer é"])
async def test_an_invalid_key_is_refused(header: str | None) -> None:
    status, text = await send(["one"], {} if header is None else {"Authorization": header})
    assert status == 401
    assert "invalid_api_key" in text


def test_an_admin_key_is_refused_by_name() -> None:
    keys = ApiKeys(["one"], ["the admin key"])
    with pytest.raises(RequestError, match="This is an admin key, which runs no models") as error:
        keys.authenticate("the admin key")
    assert (error.value.status, error.value.code) == (401, "invalid_api_key")


async def test_anthropics_header_has_the_key_as_well() -> None:
    expected = await tenant(["one", "two"], {"Authorization": "Bearer one"})
    assert await tenant(["one", "two"], {"x-api-key": " one "}) == expected
    assert await tenant(["one", "two"], {"x-api-key": "one", "Authorization": "Bearer login"}) == expected
    assert await tenant(["one", "two"], {"x-api-key": "two", "Authorization": "Bearer one"}) == expected
    assert await tenant(["one", "two"], {"x-api-key": "one", "Authorization": "Basic one"}) == expected
    for headers in ({"x-api-key": "three"}, {"x-api-key": ""}, {"x-api-key": "three", "Authorization": "Bearer four"}):
        assert (await send(["one", "two"], headers))[0] == 401


@pytest.mark.parametrize("path", ["/health", "/own/7"])
async def test_open_routes_need_no_key(path: str) -> None:
    assert await tenant(["one"], {}, path) == ""


@pytest.mark.parametrize("path", ["/own", "/own/7/more", "/health/x", "/nothing"])
async def test_a_path_similar_to_an_open_route_needs_a_key(path: str) -> None:
    assert (await send(["one"], {}, path))[0] == 401
