"""gateway/http/auth.py"""

from collections.abc import Mapping

import pytest
from aiohttp import web
from aiohttp.test_utils import make_mocked_request

from gateway.errors import RequestError
from gateway.http.auth import TENANT, authentication


async def tenant(keys: list[str], headers: Mapping[str, str], path: str = "/v1/models") -> str:
    request = make_mocked_request("GET", path, headers=headers)

    async def handler(request: web.Request) -> web.StreamResponse:
        return web.Response(text=request[TENANT])

    response = await authentication(keys)(request, handler)
    assert isinstance(response, web.Response)
    return response.text or ""


async def test_without_keys_everybody_is_one_tenant() -> None:
    assert await tenant([], {}) == await tenant([], {"Authorization": "Bearer anything"})


async def test_each_key_is_a_tenant_of_its_own() -> None:
    one, two = [await tenant(["one", "two"], {"Authorization": f"Bearer {key}"}) for key in ("one", "two")]
    assert one != two
    assert "one" not in one, "the key itself is not passed on"
    assert await tenant(["one"], {"Authorization": "bearer  one "}) == one


@pytest.mark.parametrize("header", [None, "", "one", "Basic one", "Bearer", "Bearer ", "Bearer onetwo", "Bearer é"])
async def test_what_is_no_key_is_refused(header: str | None) -> None:
    with pytest.raises(RequestError) as refusal:
        await tenant(["one"], {} if header is None else {"Authorization": header})
    assert (refusal.value.status, refusal.value.code) == (401, "invalid_api_key")


async def test_health_needs_no_key() -> None:
    assert await tenant(["one"], {}, "/health") == ""
