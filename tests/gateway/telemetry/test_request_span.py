"""gateway/telemetry/request_span.py: spans of requests without a call."""

import asyncio
from typing import Any

import msgspec
import pytest

from gateway.errors import RequestError
from gateway.graph.trace_context import TraceContext, parse_traceparent
from gateway.telemetry.request_span import RequestSpan, request_span
from gateway.telemetry.span_exporter import SpanExporter
from tests.gateway.telemetry.test_span_exporter import collector
from tests.gateway.telemetry.test_spans import attributes


def encoded(span: RequestSpan) -> dict[str, Any]:
    found: dict[str, Any] = msgspec.json.decode(span.encode())
    return found


def test_a_span_of_its_own_trace() -> None:
    span = RequestSpan("embeddings", 'b"ge', None)
    span.engine, span.input_tokens = "there", 7
    found = encoded(span)
    assert (found["name"], found["kind"]) == ('embeddings b"ge', 2)
    assert "parentSpanId" not in found
    assert "status" not in found
    assert int(found["endTimeUnixNano"]) >= int(found["startTimeUnixNano"])
    assert attributes(found) == {
        "gen_ai.operation.name": "embeddings",
        "gen_ai.provider.name": "myna",
        "gen_ai.request.model": 'b"ge',
        "gen_ai.usage.input_tokens": "7",
        "myna.engine": "there",
    }
    assert parse_traceparent(span.context.traceparent) == TraceContext(found["traceId"], found["spanId"])
    assert encoded(RequestSpan("embeddings", "m", None))["traceId"] != found["traceId"]


def test_a_span_of_the_trace_that_the_request_names() -> None:
    span = RequestSpan("rerank", "m", TraceContext("1" * 32, "2" * 16, sampled=False))
    found = encoded(span)
    assert (found["traceId"], found["parentSpanId"]) == ("1" * 32, "2" * 16)
    assert span.context.traceparent.endswith("-00"), "servers are told that the trace is not recorded"


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (RequestError(429, "too many", code="overloaded"), "overloaded"),
        (RequestError(400, "no code"), "400"),
        (asyncio.CancelledError(), "cancelled"),
        (ConnectionResetError(), "cancelled"),
        (ZeroDivisionError(), "ZeroDivisionError"),
    ],
)
async def test_an_error_is_that_of_the_span(error: BaseException, code: str) -> None:
    async with collector() as (found, url):
        exporter = SpanExporter(url)
        exporter.start()
        with pytest.raises(type(error)), request_span(exporter, "speech", "m", None):
            raise error
        await exporter.close()
        (span,) = found.spans
    assert span["status"] == {"code": 2, "message": code}
    assert attributes(span)["error.type"] == code


async def test_a_trace_that_is_not_recorded_is_not_sent() -> None:
    async with collector() as (found, url):
        exporter = SpanExporter(url)
        exporter.start()
        for flag in ("00", "01"):
            with request_span(exporter, "speech", "m", f"00-{'1' * 32}-{'2' * 16}-{flag}"):
                pass
        await exporter.close()
        assert len(found.spans) == 1


def test_without_an_exporter_there_is_no_span() -> None:
    with request_span(None, "speech", "m", f"00-{'1' * 32}-{'2' * 16}-01") as span:
        assert span is None
