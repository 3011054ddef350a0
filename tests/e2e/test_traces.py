"""Traces of a whole server: what a collector gets, and what upstream servers are told."""

import asyncio
import itertools
import json
from pathlib import Path
from typing import Any

import aiohttp

from tests.e2e.test_servers import gateway
from tests.fakes.media_server import MediaServer
from tests.fakes.scripted_server import ScriptedServer, refuses, says
from tests.fakes.tool_servers import real
from tests.gateway.engines.generation import until
from tests.gateway.telemetry.test_span_exporter import collector
from tests.gateway.telemetry.test_spans import attributes, seconds

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


async def test_attempts_and_fallbacks_are_spans() -> None:
    told: dict[str, list[str | None]] = {"first": [], "second": []}

    async def records(request: aiohttp.web.Request, body: dict[str, Any]) -> Any:
        told[body["model"]].append(request.headers.get("traceparent"))
        behave = refuses(503) if body["model"] == "first" else says("answer")
        return await behave(request, body)

    async with ScriptedServer("first", "second") as upstream, collector() as (found, url):
        upstream.always = records
        arguments = ("--engine", f"openai={upstream.url}", "--fallback", "first=second", "--otlp-endpoint", url)
        async with gateway(*arguments) as server, aiohttp.ClientSession(server.address) as http:
            body = {"model": "first", "messages": [{"role": "user", "content": "question"}]}
            async with http.post("/v1/chat/completions", json=body) as response:
                assert (await response.json())["model"] == "second"
            await until(lambda: any(span["name"] == "chat first" for span in found.spans))
    (call,) = (span for span in found.spans if span["name"] == "chat first")
    attempts = [span for span in found.spans if span["name"].startswith("attempt ")]
    assert {attempt["parentSpanId"] for attempt in attempts} == {call["spanId"]}
    assert [attributes(attempt).get("error.type") for attempt in attempts] == ["engine_failed"] * 3 + [None]
    assert [attributes(attempt)["gen_ai.request.model"] for attempt in attempts] == ["first"] * 3 + ["second"]
    assert [attributes(attempt).get("myna.fallback") for attempt in attempts] == [None] * 3 + [True]
    assert all(attributes(attempt)["myna.engine"].startswith("openai") for attempt in attempts)
    ends = [seconds(attempt) for attempt in attempts]
    assert all(before[1] == after[0] for before, after in itertools.pairwise(ends)), "they follow each other"
    assert (ends[0][0], ends[-1][1]) == seconds(call)
    parents = [call, *attempts[1:]]  # when the first attempt is sent, there is no other attempt
    assert [f"00-{span['traceId']}-{span['spanId']}-01" for span in parents] == told["first"] + told["second"]
    phases = [span for span in found.spans if span not in (call, *attempts)]
    assert {phase["parentSpanId"] for phase in phases} <= {attempt["spanId"] for attempt in attempts}
    last = {phase["name"] for phase in phases if phase["parentSpanId"] == attempts[-1]["spanId"]}
    assert {"queue", "prefill", "decode"} <= last


async def test_texts_are_sent_if_a_setting_says_so() -> None:
    async with ScriptedServer() as upstream, collector() as (found, url):
        upstream.always = says("An ", "answer")
        arguments = ("--engine", f"openai={upstream.url}", "--otlp-endpoint", url, "--otlp-texts")
        async with gateway(*arguments) as server, aiohttp.ClientSession(server.address) as http:
            messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "question"}]
            async with http.post("/v1/chat/completions", json={"model": "fake", "messages": messages}) as response:
                assert response.status == 200
            await until(lambda: any(span["name"] == "chat fake" for span in found.spans))
    (call,) = (span for span in found.spans if span["name"] == "chat fake")
    assert json.loads(attributes(call)["gen_ai.input.messages"]) == [
        {"role": message["role"], "parts": [{"type": "text", "content": message["content"]}]} for message in messages
    ]
    assert json.loads(attributes(call)["gen_ai.output.messages"]) == [
        {"role": "assistant", "parts": [{"type": "text", "content": "An answer"}], "finish_reason": "stop"}
    ]


async def test_relayed_requests_are_spans_and_traceparent_is_passed_on() -> None:
    async with MediaServer("fake") as upstream, collector() as (found, url):
        arguments = ("--engine", f"openai={upstream.url}", "--otlp-endpoint", url)
        async with gateway(*arguments) as server, aiohttp.ClientSession(server.address) as http:
            headers = {"traceparent": f"00-{TRACE}-{SPAN}-01"}
            bodies = {
                "/v1/embeddings": {"model": "fake", "input": "secret"},
                "/v1/rerank": {"model": "fake", "query": "secret", "documents": ["secret"]},
                "/v1/images/generations": {"model": "fake", "prompt": "secret"},
                "/v1/audio/speech": {"model": "fake", "input": "secret", "voice": "x"},
            }
            for path, body in bodies.items():
                async with http.post(path, json=body, headers=headers) as response:
                    assert response.status == 200
            form = aiohttp.FormData({"model": "fake"})
            form.add_field("file", b"secret", filename="a.wav")
            async with http.post("/v1/audio/transcriptions", data=form, headers=headers) as response:
                assert response.status == 200
            upstream.statuses = [400]
            async with http.post("/v1/embeddings", json=bodies["/v1/embeddings"]) as response:
                assert response.status == 400
            await until(lambda: len(found.spans) == 6)
    *joined, failed = found.spans
    operations = ["embeddings", "rerank", "images", "speech", "transcriptions"]
    assert [span["name"] for span in joined] == [f"{operation} fake" for operation in operations]
    assert [attributes(span)["gen_ai.operation.name"] for span in joined] == operations
    assert {(span["traceId"], span["parentSpanId"], span["kind"]) for span in joined} == {(TRACE, SPAN, 2)}
    assert attributes(joined[0])["gen_ai.usage.input_tokens"] == "5"
    assert {attributes(span)["myna.engine"] for span in found.spans} == {"openai"}
    assert [f"00-{span['traceId']}-{span['spanId']}-01" for span in found.spans] == [
        asked["traceparent"] for asked in upstream.asked
    ]
    assert failed["traceId"] != TRACE
    assert failed["status"]["code"] == 2
    assert attributes(failed)["error.type"] == failed["status"]["message"]
    assert "secret" not in str(found.spans)


async def test_forms_contain_their_calls_and_tools_have_runs(tmp_path: Path) -> None:
    """Run a map of tools in front of a call, and compare the trace with the graph."""
    settings = tmp_path / "tools.json"
    servers = {"t": real(tmp_path / "count").model_dump(exclude_defaults=True)}
    settings.write_text(json.dumps({"servers": servers}))
    async with ScriptedServer() as upstream, collector() as (found, url):
        upstream.always = says("done")
        arguments = ("--engine", f"openai={upstream.url}", "--otlp-endpoint", url, "--tool-servers", str(settings))
        async with (
            gateway(*arguments, "--ledger", "on") as server,
            aiohttp.ClientSession(server.address) as http,
        ):
            tool = {"tool": {"server": "t", "name": "put", "arguments": {"text": "secret <<item>>"}}}
            reads = {"model": "fake", "messages": [{"role": "user", "content": "<<all>>"}]}
            calls = [
                {"map": {"over": ["a", "b", "c"], "call": tool}, "output": "all"},
                {**reads, "semantic": {"output": "end"}},
            ]
            headers = {"traceparent": f"00-{TRACE}-{SPAN}-01"}
            async with http.post("/v1/graphs", json={"calls": calls}, headers=headers) as response:
                assert response.status == 200, await response.text()
                session = (await response.json())["session"]
            await until(lambda: any(span["name"] == "chat fake" for span in found.spans))
            async with http.get(f"/v1/sessions/{session}") as response:
                assert (await response.json())["usage"]["tool_calls"] == 3
            async with http.get(f"/v1/usage?session={session}&group_by=model") as response:
                rows = (await response.json())["data"]
            async with http.get(f"/v1/sessions/{session}/graph") as response:
                graph = (await response.json())["calls"]
            async with http.get(f"/v1/sessions/{session}/graph?format=mermaid&fold=true") as response:
                diagram = await response.text()
            async with http.get(f"/v1/sessions/{session}/graph?fold=maybe") as response:
                assert (await response.json())["error"]["param"] == "fold"
    assert {(row["model"], row["calls"], row["tool_calls"]) for row in rows} == {("", 0, 3), ("fake", 1, 0)}
    assert [call["tool"] for call in graph] == [None, None, "t/put", "t/put", "t/put"]
    assert "3 of 3 done" in diagram
    assert "t/put" not in diagram
    by_name: dict[str, list[dict[str, Any]]] = {}
    for span in found.spans:
        by_name.setdefault(span["name"], []).append(span)
    (form,), (reader,) = by_name["map"], by_name["chat fake"]
    tools, runs = by_name["tool t/put"], by_name["execute_tool put"]
    assert {span["traceId"] for span in found.spans} == {TRACE}
    assert form["parentSpanId"] == reader["parentSpanId"] == SPAN
    assert {span["parentSpanId"] for span in tools} == {form["spanId"]}
    assert {span["parentSpanId"] for span in runs} == {span["spanId"] for span in tools}
    assert [link["spanId"] for link in reader["links"]] == [form["spanId"]]
    for span in (*tools, *runs):
        assert seconds(form)[0] <= seconds(span)[0]
        assert seconds(span)[1] <= seconds(form)[1]
    assert {attributes(run)["gen_ai.tool.name"] for run in runs} == {"put"}
    assert "secret" not in str(found.spans)
