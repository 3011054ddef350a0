"""Describe a request without a call as a span of OpenTelemetry: embeddings, rerank, audio and images."""

import asyncio
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from gateway.errors import RequestError
from gateway.graph.trace_context import TraceContext, parse_traceparent
from gateway.telemetry.otlp_json import SERVER, error_status, interval, number_attribute, quote, text_attribute

if TYPE_CHECKING:
    from gateway.telemetry.span_exporter import SpanExporter


class RequestSpan:
    """Span of one request. Set `engine` and `input_tokens` when they are known, and `code` if the request fails."""

    def __init__(self, operation: str, model: str, parent: TraceContext | None) -> None:
        """`operation`: value of `gen_ai.operation.name`. `parent`: the span that the request names, if any."""
        trace_id = os.urandom(16).hex() if parent is None else parent.trace_id
        self.context = TraceContext(trace_id, os.urandom(8).hex(), parent is None or parent.sampled)
        """Position of the span."""
        self.engine: str | None = None
        self.input_tokens = 0
        """Number of tokens of the input; 0 if it is not known."""
        self.code: str | None = None
        self._operation = operation
        self._model = model
        self._parent = parent
        self._began = time.time()
        self._clock = time.monotonic()

    def encode(self) -> str:
        """Return the span as JSON. It ends now."""
        attributes = [
            text_attribute("gen_ai.operation.name", self._operation),
            text_attribute("gen_ai.provider.name", "myna"),
            text_attribute("gen_ai.request.model", self._model),
        ]
        if self.engine is not None:
            attributes.append(text_attribute("myna.engine", self.engine))
        if self.input_tokens:
            attributes.append(number_attribute("gen_ai.usage.input_tokens", self.input_tokens))
        if self.code is not None:
            attributes.append(text_attribute("error.type", self.code))
        parent = "" if self._parent is None else f'"parentSpanId":"{self._parent.span_id}",'
        status = "" if self.code is None else f",{error_status(self.code)}"
        end = self._began + time.monotonic() - self._clock
        return (
            f'{{"traceId":"{self.context.trace_id}","spanId":"{self.context.span_id}",{parent}'
            f'"name":{quote(f"{self._operation} {self._model}")},"kind":{SERVER},{interval(self._began, end)},'
            f'"attributes":[{",".join(attributes)}]{status}}}'
        )


@contextmanager
def request_span(
    exporter: "SpanExporter | None", operation: str, model: str, traceparent: str | None
) -> Iterator[RequestSpan | None]:
    """Export a span of the block; with None, yield None and do nothing.

    `traceparent`: header of the request. An error that ends the block is the error of the span.
    """
    if exporter is None:
        yield None
        return
    span = RequestSpan(operation, model, parse_traceparent(traceparent))
    try:
        yield span
    except RequestError as error:
        span.code = error.code or str(error.status)
        raise
    except (asyncio.CancelledError, ConnectionError):  # the client has disconnected
        span.code = span.code or "cancelled"
        raise
    except BaseException as error:
        span.code = span.code or type(error).__name__
        raise
    finally:
        exporter.observe_request(span)
