"""gateway/http/middleware/key_limits.py: limits of keys, through all packages."""

import asyncio
import re
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from gateway.accounts.keys.virtual_key import MAX_PREVIOUS
from gateway.http.middleware.key_limits import MODEL_ROUTES
from tests.fakes.keyed_gateway import KeyedGateway, keyed_gateway

HEADERS = {f"x-ratelimit-{a}-{b}" for a in ("limit", "remaining", "reset") for b in ("requests", "tokens")}
UNLIMITED = {
    "/v1/admin/keys",
    "/v1/admin/keys/{id}/rotate",
    "/v1/conversations",
    "/v1/conversations/{id}",
    "/v1/conversations/{id}/items",
    "/v1/messages/count_tokens",
    "/v1/responses/input_tokens",
    "/v1/responses/{id}/cancel",
    "/v1/sessions",
    "/tokenize",
    "/v1/tokenize",
    "/detokenize",
    "/v1/detokenize",
}
"""Routes with POST that run no model."""


def assert_idle(gateway: KeyedGateway, id: str) -> None:
    """Check that nothing stays reserved."""
    limits = gateway.services.accounts.limits_of(id)
    assert limits is not None
    assert {kind: meter.reserved for kind, meter in limits.meters.items()} == dict.fromkeys(limits.meters, 0)
    assert (limits.reservations, limits.waiting_requests) == (0, 0)


def used(gateway: KeyedGateway, id: str) -> int:
    limits = gateway.services.accounts.limits_of(id)
    assert limits is not None
    return int(limits.meters["budget_tokens"].used_at(0.0))


async def test_each_route_is_limited_or_runs_no_model() -> None:
    async with keyed_gateway() as gateway:
        assert gateway.client.app is not None
        routes = {
            route.resource.canonical
            for route in gateway.client.app.router.routes()
            if route.method == "POST" and route.resource is not None
        }
        assert routes == MODEL_ROUTES | UNLIMITED, "decide for each new route"


async def test_answers_describe_the_limits_of_a_minute() -> None:
    async with keyed_gateway(cors_origin=["*"]) as gateway:
        _, key = await gateway.make_key(rpm=2, tpm=1_000)
        _, plain = await gateway.make_key()
        status, _, headers = await gateway.chat(key)
        assert status == 200
        assert headers.keys() >= HEADERS
        assert headers["x-ratelimit-limit-requests"] == "2"
        assert headers["x-ratelimit-remaining-requests"] == "1"
        assert headers["x-ratelimit-limit-tokens"] == "1000"
        assert 900 < int(headers["x-ratelimit-remaining-tokens"]) < 1_000
        for name in ("x-ratelimit-reset-requests", "x-ratelimit-reset-tokens"):
            assert re.fullmatch(r"(\d+h)?(\d+m)?[\d.]+m?s", headers[name])
        body = {"model": "fake", "messages": [{"role": "user", "content": "hi"}], "stream": True}
        status, _, streamed = await gateway.send("POST", "/v1/chat/completions", key, body, Origin="http://a")
        assert status == 200
        assert streamed.keys() >= HEADERS
        exposed = set(streamed["Access-Control-Expose-Headers"].split(", "))
        assert exposed >= HEADERS
        status, answer, refused = await gateway.chat(key)
        assert (status, answer["error"]["code"]) == (429, "rate_limit_exceeded")
        assert refused.keys() >= HEADERS
        assert 1 <= int(refused["Retry-After"]) <= 30
        assert not (await gateway.chat(plain))[2].keys() & HEADERS
        assert not (await gateway.send("GET", "/v1/models", key))[2].keys() & HEADERS


async def test_anthropics_clients_get_their_shape() -> None:
    async with keyed_gateway() as gateway:
        _, key = await gateway.make_key(rpm=1)
        body = {"model": "fake", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 5}
        assert (await gateway.send("POST", "/v1/messages", key, body))[0] == 200
        status, answer, headers = await gateway.send("POST", "/v1/messages", key, body)
        assert (status, answer["type"], answer["error"]["type"]) == (429, "error", "rate_limit_error")
        assert headers["x-ratelimit-remaining-requests"] == "0"


async def test_refusals_are_counted_by_the_id_of_the_key() -> None:
    async with keyed_gateway() as gateway:
        id, key = await gateway.make_key(rpm=1)
        await gateway.chat(key)
        await gateway.chat(key)
        _, metrics, _ = await gateway.send("GET", "/metrics")
        assert f'myna_key_requests_limited_total{{code="rate_limit_exceeded",key="{id}"}} 1.0' in metrics
        assert key not in metrics


async def test_a_budget_counts_all_ways_to_run_a_call() -> None:
    async with keyed_gateway() as gateway:
        id, key = await gateway.make_key(budget_tokens=1_000_000, tpm=1_000_000, parallel=10)
        message = {"role": "user", "content": "hi"}
        chat = {"model": "fake", "messages": [message], "max_tokens": 5}
        call = {**chat, "semantic": {"output": "a"}}
        before = 0
        for path, body, calls in (
            ("/v1/chat/completions", chat, 1),
            ("/v1/chat/completions", {**chat, "stream": True}, 1),
            ("/v1/chat/completions", {**chat, "n": 3}, 3),
            ("/v1/completions", {"model": "fake", "prompt": ["a", "b"]}, 2),
            ("/v1/messages", chat, 1),
            ("/v1/responses", {"model": "fake", "input": "hi"}, 1),
            ("/v1/responses", {"model": "fake", "input": "hi", "background": True}, 1),
            ("/v1/responses/compact", {"model": "fake", "input": "hi"}, 1),
            ("/v1/graphs", {"calls": [call, {**call, "semantic": {"output": "b"}}]}, 2),
        ):
            status, answer, _ = await gateway.send("POST", path, key, body)
            assert status == 200, (path, answer)
            await gateway.services.scheduler.wait_idle()
            assert used(gateway, id) - before >= 5 * calls, path
            before = used(gateway, id)
            assert_idle(gateway, id)


async def test_a_failed_call_frees_its_reservation() -> None:
    async with keyed_gateway() as gateway:
        id, key = await gateway.make_key(budget_tokens=1_000_000, parallel=10)

        async def fail(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
            return web.json_response({"error": {"message": "no"}}, status=400)

        gateway.server.script = [fail]
        assert (await gateway.chat(key))[0] == 400
        assert (await gateway.chat(key, model="unknown"))[0] == 404
        assert (await gateway.chat(key, messages=[]))[0] == 400
        await gateway.services.scheduler.wait_idle()
        assert_idle(gateway, id)


async def test_a_hundred_clients_exceed_a_budget_by_one_request_at_most() -> None:
    async with keyed_gateway() as gateway:
        id, key = await gateway.make_key(budget_tokens=100)
        statuses = []
        while not statuses or 200 in statuses[-100:]:
            answers = await asyncio.gather(*(gateway.chat(key) for _ in range(100)))
            statuses += [status for status, _, _ in answers]
        assert set(statuses) == {200, 429}
        assert 100 <= used(gateway, id) < 100 + 30, "a request has less than 30 tokens"
        assert_idle(gateway, id)


async def test_a_hundred_clients_get_as_many_places_as_there_are() -> None:
    async with keyed_gateway() as gateway:
        id, key = await gateway.make_key(parallel=7)
        release, running, most = asyncio.Event(), 0, 0

        async def hold(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
            nonlocal running, most
            running += 1
            most = max(most, running)
            await release.wait()
            running -= 1
            return web.json_response({"choices": [{"message": {"content": "x"}, "finish_reason": "stop"}]})

        gateway.server.always = hold
        tasks = [asyncio.create_task(gateway.chat(key)) for _ in range(100)]
        while sum(task.done() for task in tasks) < 93:
            await asyncio.sleep(0.01)
        release.set()
        statuses = [status for status, _, _ in await asyncio.gather(*tasks)]
        assert (most, statuses.count(200), statuses.count(429)) == (7, 7, 93)
        assert_idle(gateway, id)


async def test_requests_wait_where_the_operator_wants_it() -> None:
    async with keyed_gateway(over_limit="wait", over_limit_wait=100.0) as gateway:
        id, key = await gateway.make_key(parallel=2)
        answers = await asyncio.gather(*(gateway.chat(key) for _ in range(20)))
        assert [status for status, _, _ in answers] == [200] * 20
        assert_idle(gateway, id)


async def test_a_deferred_call_counts_until_its_answer_only() -> None:
    async with keyed_gateway() as gateway:
        id, key = await gateway.make_key(parallel=1, budget_tokens=100_000)
        release = asyncio.Event()

        async def hold(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
            await release.wait()
            return web.json_response({"choices": [{"message": {"content": "x"}, "finish_reason": "stop"}]})

        gateway.server.always = hold
        await gateway.send("POST", "/v1/sessions", key, {"id": "s"})
        for number in range(3):
            semantic = {"session": "s", "defer": True, "output": f"v{number}"}
            assert (await gateway.chat(key, semantic=semantic))[0] == 200
        limits = gateway.services.accounts.limits_of(id)
        assert limits is not None
        assert (limits.meters["parallel"].reserved, limits.reservations) == (0, 3)
        assert (await gateway.send("DELETE", "/v1/sessions/s", key))[0] == 200
        assert_idle(gateway, id)
        release.set()


async def turn(socket: aiohttp.ClientWebSocketResponse) -> dict[str, Any]:
    """Ask for a response over a WebSocket, and return its last event."""
    await socket.send_json({"type": "response.create", "model": "fake", "input": "hi"})
    while True:
        event: dict[str, Any] = await socket.receive_json()
        if event["type"] in ("response.completed", "error"):
            return event


async def test_a_websocket_counts_each_turn() -> None:
    async with keyed_gateway() as gateway:
        id, key = await gateway.make_key(rpm=2)
        headers = {"Authorization": f"Bearer {key}"}
        async with gateway.client.ws_connect("/v1/responses", headers=headers) as socket:
            assert [(await turn(socket))["type"] for _ in range(3)] == [
                "response.completed",
                "response.completed",
                "error",
            ]
            event = await turn(socket)
            assert (event["status"], event["error"]["code"]) == (429, "rate_limit_exceeded")
            await gateway.admin("DELETE", f"/{id}")
            event = await turn(socket)
            assert (event["status"], event["error"]["code"]) == (401, "invalid_api_key")


@pytest.mark.parametrize("header", ["Authorization", "x-api-key"])
@pytest.mark.parametrize("limits", [{}, {"rpm": 100}])
async def test_a_websocket_of_a_rotated_key_is_refused(header: str, limits: dict[str, int]) -> None:
    async with keyed_gateway() as gateway:
        id, key = await gateway.make_key(**limits)
        headers = {header: f"Bearer {key}" if header == "Authorization" else key}
        async with gateway.client.ws_connect("/v1/responses", headers=headers) as socket:
            assert (await turn(socket))["type"] == "response.completed"
            await gateway.admin("POST", f"/{id}/rotate", {"grace_seconds": 60})
            assert (await turn(socket))["type"] == "response.completed"
            for _ in range(MAX_PREVIOUS + 1):  # more than the earlier keys that are accepted at a time
                await gateway.admin("POST", f"/{id}/rotate", {"grace_seconds": 60})
            event = await turn(socket)
            assert (event["status"], event["error"]["code"]) == (401, "invalid_api_key")


@pytest.mark.parametrize("stream", [False, True])
async def test_a_request_that_crosses_a_budget_is_answered_in_full(stream: bool) -> None:
    async with keyed_gateway() as gateway:
        _, key = await gateway.make_key(budget_tokens=1)
        assert (await gateway.chat(key, stream=stream))[0] == 200
        status, answer, _ = await gateway.chat(key, stream=stream)
        assert (status, answer["error"]["code"]) == (429, "insufficient_quota")
