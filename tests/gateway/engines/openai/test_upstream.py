"""gateway/engines/openai/upstream.py: connections, refusals, health checks and discovery of a server."""

import asyncio
from typing import Any

import pytest

from gateway.engines.local.client import EngineStartFailed
from gateway.engines.openai import OpenAIEngine, Upstream, UpstreamConfig
from gateway.engines.protocol import (
    ContextRefused,
    EngineBusy,
    EngineFailure,
    EngineLost,
)
from tests.fakes.scripted_server import ScriptedServer, hangs, refuses
from tests.gateway.engines.generation import text, until
from tests.gateway.engines.openai.upstream_requests import ask, connected


async def test_api_keys_and_salts(server: ScriptedServer) -> None:
    upstream = await connected(server, "vllm", key="sk-1")
    for scope in ("a", "b", "a", ""):
        await ask(upstream, scope=scope)
    await upstream.close()
    assert server.keys == ["Bearer sk-1"] * 4
    salts = [body.get("cache_salt") for body in server.asked]
    assert salts[0] == salts[2] != salts[1]
    assert salts[3] is None
    assert len(salts[0]) == 64, "it cannot be guessed"


async def test_connections_that_the_server_closed_are_no_failure(server: ScriptedServer, upstream: Upstream) -> None:
    await asyncio.gather(*(ask(upstream) for _ in range(8)))
    server.once = True
    answers = await asyncio.gather(*(ask(upstream) for _ in range(4)))
    assert [text(told) for told in answers] == ["fake"] * 4


async def test_a_redirect_is_not_followed_with_the_api_key(server: ScriptedServer) -> None:
    async with ScriptedServer() as other:
        server.script = [refuses(307, headers={"Location": f"{other.url}/v1/chat/completions"})]
        upstream = await connected(server, key="sk-1")
        with pytest.raises(ContextRefused, match="answered 307"):
            await ask(upstream)
        assert not other.asked
        await upstream.close()


async def test_a_refused_connection(server: ScriptedServer) -> None:
    changes = []
    upstream = Upstream(UpstreamConfig("there", "openai", server.url), lambda: changes.append(upstream.is_ready))
    await upstream.start()
    await server.stop()
    with pytest.raises(EngineLost, match="cannot be reached") as lost:
        await ask(upstream)
    assert not lost.value.suspect
    assert not upstream.is_ready
    with pytest.raises(EngineLost, match="accepts no work now"):
        await ask(upstream)
    await server.start()
    await until(lambda: upstream.is_ready)
    assert text(await ask(upstream)) == "fake"
    assert changes == [True, False, True]
    await upstream.close()


async def test_too_many_requests(server: ScriptedServer, upstream: Upstream) -> None:
    server.script = [refuses(429, "slow down", {"Retry-After": "0.3"})]
    with pytest.raises(EngineBusy, match="slow down") as busy:
        await ask(upstream)
    assert busy.value.pause == 0.3
    assert not upstream.is_ready, "other requests are not sent either"
    await until(lambda: upstream.is_ready)
    assert text(await ask(upstream)) == "fake"


async def test_an_overloaded_server_of_anthropics_kind(server: ScriptedServer, upstream: Upstream) -> None:
    server.script = [refuses(529, "overloaded", {"Retry-After": "0.2"})]
    with pytest.raises(EngineBusy) as error:
        await ask(upstream)
    assert error.value.pause == 0.2
    assert not upstream.is_ready


async def test_an_exhausted_quota_gets_no_other_attempt(server: ScriptedServer, upstream: Upstream) -> None:
    server.script = [refuses(429, "you exceeded your quota", code="insufficient_quota")]
    with pytest.raises(EngineFailure, match="exceeded your quota") as failure:
        await ask(upstream)
    assert not isinstance(failure.value, EngineLost)


async def test_server_errors_may_be_tried_again(server: ScriptedServer, upstream: Upstream) -> None:
    server.script = [refuses(500, "oh dear"), refuses(502, "oh dear")]
    for status in (500, 502):
        with pytest.raises(EngineLost, match=f"answered {status}: oh dear"):
            await ask(upstream)
        assert upstream.is_ready, "one or two failures do not bring the server down"
    await ask(upstream)
    server.script = [refuses(503)] * 3
    for _ in range(3):
        with pytest.raises(EngineLost):
            await ask(upstream)
    assert not upstream.is_ready
    await until(lambda: upstream.is_ready)
    server.script = [refuses(503)]
    with pytest.raises(EngineLost):
        await ask(upstream)
    assert not upstream.is_ready, "after a recovery, one more failure is enough"


async def test_failures_of_one_tenant_do_not_bring_a_server_down_for_others(
    server: ScriptedServer, upstream: Upstream
) -> None:
    await ask(upstream, scope="other")
    server.script = [refuses(500, "this cannot be computed")] * 10
    for number in range(9):
        with pytest.raises(EngineLost):
            await ask(upstream, scope=f"attacker\0salt {number}")
    assert upstream.is_ready
    with pytest.raises(EngineLost):
        await ask(upstream, scope="other")
    assert not upstream.is_ready, "it fails for other tenants too"


async def test_refusals_do_not_bring_a_server_down(server: ScriptedServer, upstream: Upstream) -> None:
    server.script = [
        refuses(400, "This model's maximum context length is 16 tokens. Shorten.", code=400),
        refuses(400, "too much", code="context_length_exceeded"),
        refuses(422, "temperature is odd"),
        refuses(404, "no such model"),
    ]
    for code in ("context_length_exceeded", "context_length_exceeded", "engine_refused", "engine_refused"):
        with pytest.raises(ContextRefused) as refusal:
            await ask(upstream)
        assert refusal.value.code == code
    assert upstream.is_ready


async def test_a_rejected_api_key(server: ScriptedServer, upstream: Upstream) -> None:
    server.script = [refuses(401, "who are you")]
    with pytest.raises(EngineFailure, match="does not accept the API key") as failure:
        await ask(upstream)
    assert not isinstance(failure.value, EngineLost), "another attempt would not help"


async def test_silence_before_an_answer_and_within_one(server: ScriptedServer, upstream: Upstream) -> None:
    server.script = [hangs(), hangs("some")]
    for _ in range(2):
        with pytest.raises(EngineLost, match=r"sent no data for 0\.5 s"):
            await ask(upstream)
    await until(lambda: server.aborted == 2)


async def test_a_server_with_a_failing_health_check_gets_no_work(
    server: ScriptedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.engines.openai.upstream._PROBE_SECONDS", 0.1)
    upstream = await connected(server, "vllm")
    server.metrics = 'vllm:num_requests_running{model="a"} 3.0\nvllm:num_requests_waiting{model="a"} 4.0\nother 9\n'
    await until(lambda: upstream.external_requests == 7)
    assert OpenAIEngine("there", upstream, "fake").load == 7
    server.health = 503
    await until(lambda: not upstream.is_ready)
    await upstream.close()


@pytest.mark.parametrize(
    "schema",
    [
        {
            "paths": {
                "/v1/chat/completions": {
                    "post": {"requestBody": {"content": {"application/json": {"schema": {"$ref": []}}}}}
                }
            }
        },
        {"paths": {"/v1/chat/completions": 5}},
        [],
    ],
)
async def test_a_server_with_invalid_descriptions_is_still_watched(
    server: ScriptedServer, schema: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.engines.openai.upstream._PROBE_SECONDS", 0.1)
    server.schema, server.window = schema, -5
    server.metrics = "vllm:num_requests_running e\nvllm:num_requests_waiting 1e999\n" + "vllm:num_requests_running{" * 9
    upstream = await connected(server, "vllm")
    assert upstream.models[0].window is None
    await until(lambda: upstream.external_requests > 0)
    server.metrics = ""
    await until(lambda: upstream.external_requests == 0)
    server.health = 503
    await until(lambda: not upstream.is_ready)
    server.health = 200
    await until(lambda: upstream.is_ready)
    server.script = [refuses(429, "wait", {"Retry-After": "nan"})]
    with pytest.raises(EngineBusy):
        await ask(upstream)
    await upstream.close()


async def test_a_server_that_starts_later(server: ScriptedServer) -> None:
    await server.stop()
    with pytest.raises(EngineStartFailed, match="cannot be reached"):
        await Upstream(UpstreamConfig("there", "vllm", server.url), lambda: None).start()
    upstream = await connected(server, models=("fake",))
    assert not upstream.is_ready
    await server.start()
    await until(lambda: upstream.is_ready)
    assert upstream.models[0].window == 4096
    await upstream.close()


@pytest.mark.parametrize("suffix", ["", "/", "/v1", "/v1/"])
async def test_urls_with_and_without_their_version(server: ScriptedServer, suffix: str) -> None:
    upstream = Upstream(UpstreamConfig("there", "openai", server.url + suffix), lambda: None)
    await upstream.start()
    assert upstream.url == server.url
    await upstream.close()
