"""gateway/telemetry/span_exporter.py: batches for a collector that may be slow, broken or away."""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp import web
from prometheus_client import REGISTRY

from gateway.graph.call import Call
from gateway.graph.trace_context import TraceContext
from gateway.telemetry import span_exporter
from gateway.telemetry.span_exporter import SpanExporter
from tests.gateway.engines.generation import until
from tests.gateway.telemetry.test_spans import end, session_with_chain


class Collector:
    def __init__(self) -> None:
        self.spans: list[dict[str, Any]] = []
        self.resources: list[Any] = []
        self.headers: list[str | None] = []
        self.status = 200
        self.delay = 0.0

    async def receive(self, request: web.Request) -> web.Response:
        await asyncio.sleep(self.delay)
        content = await request.json()
        self.headers.append(request.headers.get("x-team"))
        if self.status == 200:
            for resource in content["resourceSpans"]:
                self.resources.append(resource["resource"])
                self.spans += [span for scope in resource["scopeSpans"] for span in scope["spans"]]
        return web.json_response({}, status=self.status)


@asynccontextmanager
async def collector() -> AsyncIterator[tuple[Collector, str]]:
    found = Collector()
    app = web.Application(client_max_size=64 << 20)
    app.router.add_post("/v1/traces", found.receive)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield found, f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(span_exporter, "_BATCH_SECONDS", 0.02)


def ended_call() -> Call:
    _, call, _ = session_with_chain()
    end(call)
    return call


def counted(result: str) -> float:
    return REGISTRY.get_sample_value("myna_trace_spans_total", {"result": result}) or 0.0


async def test_spans_arrive_in_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(span_exporter, "_MAX_BATCH", 10)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "x-team=a%20b, other=1")
    async with collector() as (found, url):
        exporter = SpanExporter(url)
        exporter.start()
        for _ in range(20):
            exporter.observe(ended_call())
        await until(lambda: len(found.spans) == 20 * 7)
        assert len(found.resources) == 14
        assert found.headers[0] == "a b"
        exporter.observe(ended_call())
        await exporter.close()
        assert len(found.spans) == 21 * 7, "closing sends the rest"


async def test_a_trace_that_is_not_sampled_is_not_sent() -> None:
    async with collector() as (found, url):
        exporter = SpanExporter(url)
        exporter.start()
        call = ended_call()
        call.trace = TraceContext("1" * 32, "2" * 16, sampled=False)
        exporter.observe(call)
        exporter.observe(ended_call())
        await until(lambda: len(found.spans) == 7)
        await exporter.close()
        assert len(found.spans) == 7


async def test_a_collector_that_fails_loses_spans_and_nothing_waits(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(span_exporter, "_MAX_WAITING", 50)
    monkeypatch.setattr(span_exporter, "_MAX_PAUSE", 0.05)
    dropped = counted("dropped")
    async with collector() as (found, url):
        found.status = 503
        exporter = SpanExporter(url)
        exporter.start()
        with caplog.at_level(logging.WARNING, "myna.tracing"):
            for _ in range(20):
                exporter.observe(ended_call())
            assert len(exporter._waiting) <= 56
            await until(lambda: not exporter._waiting)
            await until(lambda: counted("dropped") > dropped)
            exporter.observe(ended_call())
            await until(lambda: not exporter._waiting)
        assert caplog.text.count("answered 503; spans are dropped") == 1, "not once for each batch"
        found.status = 200
        await asyncio.sleep(0.1)
        exporter.observe(ended_call())
        await until(lambda: len(found.spans) == 7)
        await exporter.close()


async def test_closing_does_not_wait_for_a_collector_that_is_away(monkeypatch: pytest.MonkeyPatch) -> None:
    exporter = SpanExporter("http://127.0.0.1:9")
    exporter.start()
    exporter.observe(ended_call())
    async with asyncio.timeout(10):
        await exporter.close()
    async with collector() as (found, url):
        found.delay = 30.0
        exporter = SpanExporter(url)
        exporter.start()
        exporter.observe(ended_call())
        await asyncio.sleep(0.1)
        async with asyncio.timeout(10):
            await exporter.close()
