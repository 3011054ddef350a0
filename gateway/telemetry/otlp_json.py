"""Write the parts of spans in the JSON form of OpenTelemetry's protocol OTLP.

The JSON is written as text, because creating the same spans as objects, or with OpenTelemetry's package, would cost
several per cent of a request.
"""

from functools import lru_cache

from gateway.runtime.json_codec import encode_json

INTERNAL, SERVER = 1, 2
"""Kinds of spans: of the work inside a server, and of a request to it."""


def interval(start: float, end: float) -> str:
    """Return the times of a span, in nanoseconds of the Unix clock. OTLP has integers of 64 bits as texts."""
    return f'"startTimeUnixNano":"{start * 1e9:.0f}","endTimeUnixNano":"{end * 1e9:.0f}"'


def text_attribute(key: str, value: str) -> str:
    """Return an attribute whose value is a text."""
    return f'{{"key":"{key}","value":{{"stringValue":{quote(value)}}}}}'


def number_attribute(key: str, value: float) -> str:
    """Return an attribute whose value is an integer or a floating-point number."""
    kind = f'"intValue":"{value}"' if isinstance(value, int) else f'"doubleValue":{value!r}'
    return f'{{"key":"{key}","value":{{{kind}}}}}'


def error_status(code: str) -> str:
    """Return the status of a span that failed with a code."""
    return f'"status":{{"code":2,"message":{quote(code)}}}'


@lru_cache(1_000)
def quote(text: str) -> str:
    """Return a short text as JSON."""
    return quote_once(text)


def quote_once(text: str) -> str:
    """Return a text as JSON. Long texts are not cached."""
    return encode_json(text).decode()
