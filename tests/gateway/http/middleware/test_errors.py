"""gateway/http/middleware/errors.py: every exception becomes an answer in OpenAI's format."""

import re
from typing import Any

import pytest
from aiohttp import ClientConnectionResetError, web
from aiohttp.test_utils import TestClient, TestServer

from gateway.errors import RequestError
from gateway.graph.errors import TooLarge, UnknownVariable
from gateway.http.middleware.errors import as_request_error, error_body, errors
from gateway.http.slow_client import SlowClient
from gateway.http.sse import REQUEST_ID
from gateway.scheduler import Overloaded, Stopping


async def answer_to(error: Exception, **headers: str) -> tuple[int, Any, Any]:
    """Return status, headers and body of the answer of a route that raises an error."""

    async def fail(request: web.Request) -> web.StreamResponse:
        raise error

    app = web.Application(middlewares=[errors])
    app.router.add_post("/fail", fail)
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    async with TestClient(TestServer(app)) as client, client.post("/fail", headers=named) as response:
        return response.status, response.headers, await response.json()


@pytest.mark.parametrize(
    ("error", "status", "code", "param"),
    [
        (RequestError(418, "no tea", code="teapot", param="model"), 418, "teapot", "model"),
        (UnknownVariable("no x", "messages.0"), 400, "unknown_variable", "messages.0"),
        (TooLarge("too many"), 413, "too_large", None),
        (web.HTTPRequestEntityTooLarge(max_size=1, actual_size=2), 413, "too_large", None),
        (web.HTTPNotFound(), 404, "unknown_route", None),
        (web.HTTPConflict(text="taken"), 409, "http_error", None),
        (Stopping("the server is stopping"), 503, "stopping", None),
        (ZeroDivisionError("secret detail"), 500, "internal_error", None),
    ],
)
async def test_errors_are_in_openais_format(error: Exception, status: int, code: str, param: str | None) -> None:
    answered, headers, body = await answer_to(error)
    assert answered == status
    assert set(body) == {"error"}
    assert (body["error"]["code"], body["error"]["param"]) == (code, param)
    assert "secret detail" not in body["error"]["message"]
    assert headers["Content-Type"] == "application/json"
    assert re.fullmatch(r"req_\w{24}", headers["x-request-id"])


async def test_clients_of_anthropics_api_get_its_format() -> None:
    status, headers, body = await answer_to(Stopping("the server is stopping"), anthropic_version="2023-06-01")
    assert (status, body["type"], body["error"]["type"]) == (529, "error", "overloaded_error")
    assert body["request_id"] == headers["request-id"] == headers["x-request-id"]
    assert headers["Retry-After"] == "5"
    long = RequestError(400, "x" * 10_000, param="y" * 1_000)
    _, _, body = await answer_to(long, anthropic_version="2023-06-01")
    assert (len(body["error"]["message"]), len(body["error"]["details"]["param"])) == (2_000, 200)


async def test_an_overload_says_when_to_try_again() -> None:
    status, headers, body = await answer_to(Overloaded("full", 7))
    assert (status, headers["Retry-After"], body["error"]["type"]) == (429, "7", "rate_limit_error")


async def test_an_unexpected_error_is_logged_with_its_traceback(caplog: pytest.LogCaptureFixture) -> None:
    await answer_to(ZeroDivisionError("secret detail"))
    assert "secret detail" in caplog.text
    assert "Traceback" in caplog.text


@pytest.mark.parametrize(
    ("offered", "kept"),
    [("my-id_1.2", True), ("a" * 128, True), ("a" * 129, False), ("two words", False), ("ä", False), ("", False)],
)
async def test_a_valid_request_id_is_returned(offered: str, kept: bool) -> None:
    _, headers, _ = await answer_to(RequestError(400, "no"), X_Request_Id=offered)
    assert (headers["x-request-id"] == offered) == kept


async def test_handlers_see_the_request_id() -> None:
    async def show(request: web.Request) -> web.StreamResponse:
        return web.Response(text=request[REQUEST_ID])

    app = web.Application(middlewares=[errors])
    app.router.add_get("/", show)
    async with TestClient(TestServer(app)) as client, client.get("/", headers={"x-request-id": "mine"}) as response:
        assert await response.text() == response.headers["x-request-id"] == "mine"


async def test_a_wrong_method_gets_the_allowed_ones_and_options_an_answer() -> None:
    app = web.Application(middlewares=[errors])

    async def greet(request: web.Request) -> web.StreamResponse:
        return web.Response(text="hello")

    app.add_routes([web.get("/", greet), web.delete("/", greet)])
    async with TestClient(TestServer(app)) as client:
        async with client.put("/") as refused:
            assert (refused.status, refused.headers["Allow"]) == (405, "DELETE, GET, HEAD")
            assert (await refused.json())["error"]["code"] == "method_not_allowed"
        async with client.options("/") as options:
            assert (options.status, options.headers["Allow"]) == (204, "DELETE, GET, HEAD, OPTIONS")
            assert "x-request-id" in options.headers


@pytest.mark.parametrize("lost", [ClientConnectionResetError("gone"), SlowClient("slow")])
async def test_a_client_that_has_gone_is_no_fault_of_the_server(
    lost: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    async def fail(request: web.Request) -> web.StreamResponse:
        raise lost

    app = web.Application(middlewares=[errors])
    app.router.add_get("/", fail)
    async with TestClient(TestServer(app)) as client, client.get("/") as response:
        assert response.status == 499
    assert "internal error" not in caplog.text


def test_long_messages_and_params_are_cut() -> None:
    body = error_body(RequestError(400, "m" * 10_000, param="p" * 10_000)).error
    assert (len(body.message), body.message[-1]) == (2_000, "…")
    assert body.param is not None
    assert (len(body.param), body.param[-1]) == (200, "…")


def test_a_request_error_stays_the_same_object() -> None:
    error = RequestError(400, "no")
    assert as_request_error(error) is error
