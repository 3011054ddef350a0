"""Traces of a whole server: what a collector gets, and what upstream servers are told."""

import asyncio
from typing import Any

import aiohttp

from tests.e2e.test_servers import gateway
from tests.fakes.scripted_server import ScriptedServer, says
from tests.gateway.engines.generation import until
from tests.gateway.telemetry.test_span_exporter import collector
from tests.gateway.telemetry.test_spans import attributes

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


async def test_calls_are_spans_and_traceparent_is_passed_on() -> None:
    told: list[str | None] = []

    async def records(request: aiohttp.web.Request, body: dict[str, Any]) -> Any:
        told.append(request.headers.get("traceparent"))
        return await says("secret answer")(request, body)

    async with ScriptedServer() as upstream, collector() as (found, url):
        upstream.always = records
        arguments = ("--engine", f"openai={upstream.url}", "--otlp-endpoint", url)
        async with gateway(*arguments) as server, aiohttp.ClientSession(server.address) as http:
            plain = {"model": "fake", "messages": [{"role": "user", "content": "secret question"}], "temperature": 0.5}
            headers = {"traceparent": f"00-{TRACE}-{SPAN}-01"}
            async with http.post("/v1/chat/completions", json=plain, headers=headers) as response:
                assert response.status == 200
            reads = {**plain, "messages": [{"role": "user", "content": "<<a>>"}]}
            calls = [{**plain, "semantic": {"output": "a"}}, {**reads, "semantic": {"output": "b"}}]
            async with http.post("/v1/graphs", json={"calls": calls, "outputs": ["b"]}) as response:
                assert response.status == 200
                session = (await response.json())["session"]
            await until(lambda: len([span for span in found.spans if span["name"] == "chat fake"]) == 3)
            async with http.get("/metrics") as response:
                assert 'myna_trace_spans_total{result="sent"}' in await response.text()
    joined, first, second = sorted(
        (span for span in found.spans if span["name"] == "chat fake"), key=lambda span: int(span["startTimeUnixNano"])
    )
    assert (joined["traceId"], joined["parentSpanId"]) == (TRACE, SPAN)
    if not second.get("links"):
        first, second = second, first
    assert first["traceId"] == second["traceId"] != TRACE
    assert second["links"] == [{"traceId": first["traceId"], "spanId": first["spanId"]}]
    assert attributes(second)["gen_ai.conversation.id"] == session
    assert {f"00-{span['traceId']}-{span['spanId']}-01" for span in (joined, first, second)} == set(told)
    names = {span["name"] for span in found.spans}
    assert {"prefill", "decode", "wait for inputs"} <= names
    assert "secret" not in str(found.spans)


async def test_without_a_collector_nothing_is_passed_on() -> None:
    async with ScriptedServer() as upstream:
        told: list[bool] = []

        async def records(request: aiohttp.web.Request, body: dict[str, Any]) -> Any:
            told.append("traceparent" in request.headers)
            return await says("answer")(request, body)

        upstream.always = records
        async with (
            gateway("--engine", f"openai={upstream.url}") as server,
            aiohttp.ClientSession(server.address) as http,
        ):
            body = {"model": "fake", "messages": [{"role": "user", "content": "question"}]}
            headers = {"traceparent": f"00-{TRACE}-{SPAN}-01"}
            async with http.post("/v1/chat/completions", json=body, headers=headers) as response:
                assert response.status == 200
            await asyncio.sleep(0)
        assert told == [False]
