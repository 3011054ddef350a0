"""Send spans to a collector of OpenTelemetry, by OTLP over HTTP, in batches.

Nothing waits for the collector: if it is away or slow, spans are dropped and counted.
"""

import asyncio
import logging
import os
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Any
from urllib.parse import unquote

import msgspec

from gateway.graph.call import Call
from gateway.http_client.errors import ConnectError, ConnectionBroken
from gateway.http_client.pool import ConnectionPool
from gateway.runtime.executors import offload
from gateway.telemetry.metrics import count_spans
from gateway.telemetry.request_span import RequestSpan
from gateway.telemetry.span_texts import DecodeTokens, text_attributes
from gateway.telemetry.spans import encode_spans, trace_of

log = logging.getLogger("myna.tracing")

_BATCH_SECONDS = 1.0
_MAX_BATCH = 2_000
"""Maximum number of spans in one request."""
_MAX_WAITING = 20_000
"""Maximum number of spans that wait for the collector."""
_MAX_WAITING_CHARACTERS = 64_000_000
"""Maximum size of the spans that wait for the collector, in characters. Spans with texts are large."""
_MAX_BATCH_CHARACTERS = 4_000_000
"""Size of a request after which it gets no further span, in characters. The OpenTelemetry Collector refuses requests of
more than 20 MiB."""
_TIMEOUT = 10.0
"""Longest silence of the collector, in seconds."""
_MAX_PAUSE = 60.0
"""Longest pause after failures of the collector, in seconds."""
_LOG_SECONDS = 60.0


class SpanExporter:
    """Owner of the spans that are not sent yet. Call `observe` with every call that ends."""

    def __init__(self, endpoint: str, *, headers: Mapping[str, str] | None = None, service: str = "myna") -> None:
        """`endpoint`: URL of the collector, without `/v1/traces`. `headers`: by default those of the environment
        variable OTEL_EXPORTER_OTLP_HEADERS. Raises ValueError if the URL or a header is invalid."""
        headers = _environment_headers() if headers is None else headers
        self._connections = ConnectionPool(endpoint, headers, timeout=_TIMEOUT)
        self._endpoint = endpoint
        self._resource = {"attributes": [_text("service.name", service), _text("process.pid", str(os.getpid()))]}
        self._waiting: list[str] = []
        """Spans as JSON."""
        self._waiting_characters = 0
        self._decode: DecodeTokens | None = None
        self._task: asyncio.Task[None] | None = None
        self._logged = -_LOG_SECONDS

    def start(self) -> None:
        """Start to send spans."""
        self._task = asyncio.create_task(self._run(), name="export spans")

    def include_texts(self, decode: DecodeTokens) -> None:
        """Add the texts of prompts and answers to the spans of calls from now on."""
        self._decode = decode

    def observe(self, call: Call) -> None:
        """Enqueue the spans of a call that has ended, unless its request says that its trace is not recorded."""
        trace = trace_of(call)
        if trace is not None and not trace.sampled:
            return
        if self._has_room():
            texts = "" if self._decode is None else text_attributes(call, self._decode)
            self._enqueue(encode_spans(call, texts))

    def observe_request(self, span: RequestSpan) -> None:
        """Enqueue the span of a request without a call, unless the request says that its trace is not recorded."""
        if span.context.sampled and self._has_room():
            self._enqueue([span.encode()])

    def _has_room(self) -> bool:
        """Return whether spans can be enqueued. Otherwise count a span as dropped."""
        if len(self._waiting) < _MAX_WAITING and self._waiting_characters < _MAX_WAITING_CHARACTERS:
            return True
        count_spans("dropped", 1)
        return False

    def _enqueue(self, spans: Sequence[str]) -> None:
        self._waiting += spans
        self._waiting_characters += sum(map(len, spans))

    async def close(self) -> None:
        """Send the spans that wait, if the collector accepts them at once, and close the connection."""
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task
            with suppress(TimeoutError):
                async with asyncio.timeout(2.0):
                    await self._send_waiting()
        await self._connections.close()

    async def _run(self) -> None:
        pause = _BATCH_SECONDS
        while True:
            await asyncio.sleep(pause)
            pause = _BATCH_SECONDS if await self._send_waiting() else min(2 * pause, _MAX_PAUSE)

    async def _send_waiting(self) -> bool:
        """Send the spans in batches. Return False once the collector does not accept one; that batch is dropped."""
        while self._waiting:
            batch = self._take_batch()
            try:
                content = await offload(partial(self._encode, batch), sum(map(len, batch)))
                response = await self._connections.post("/v1/traces", content)
                try:
                    await response.read(1 << 20, cut=True)
                finally:
                    response.close()
                problem = None if response.status < 300 else f"answered {response.status}"
            except (ConnectError, ConnectionBroken) as error:
                problem = f"cannot be reached: {error}"
            count_spans("sent" if problem is None else "dropped", len(batch))
            if problem is not None:
                if time.monotonic() - self._logged > _LOG_SECONDS:
                    self._logged = time.monotonic()
                    log.warning("the collector at %s %s; spans are dropped", self._endpoint, problem)
                return False
        return True

    def _take_batch(self) -> list[str]:
        """Remove the spans of the next request from those that wait, and return them."""
        count = characters = 0
        for span in self._waiting[:_MAX_BATCH]:
            count, characters = count + 1, characters + len(span)
            if characters > _MAX_BATCH_CHARACTERS:
                break
        batch, self._waiting = self._waiting[:count], self._waiting[count:]
        self._waiting_characters -= characters
        return batch

    def _encode(self, spans: Sequence[str]) -> bytes:
        joined = msgspec.Raw(f"[{','.join(spans)}]".encode())
        scope = {"scope": {"name": "myna"}, "spans": joined}
        return msgspec.json.encode({"resourceSpans": [{"resource": self._resource, "scopeSpans": [scope]}]})


def _text(key: str, value: str) -> dict[str, Any]:
    return {"key": key, "value": {"stringValue": value}}


def _environment_headers() -> dict[str, str]:
    """Return the headers of OTEL_EXPORTER_OTLP_HEADERS: `name=value,name=value`, percent-encoded."""
    headers = {}
    for pair in os.environ.get("OTEL_EXPORTER_OTLP_HEADERS", "").split(","):
        name, separator, value = pair.partition("=")
        if separator and name.strip():
            headers[name.strip()] = unquote(value.strip())
    return headers
