"""gateway/graph/trace_context.py: the header `traceparent`."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.graph.trace_context import TraceContext, parse_traceparent

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        (f"00-{TRACE}-{SPAN}-01", TraceContext(TRACE, SPAN, True)),
        (f" 00-{TRACE}-{SPAN}-00 ", TraceContext(TRACE, SPAN, False)),
        (f"00-{TRACE}-{SPAN}-03", TraceContext(TRACE, SPAN, True)),
        (f"cc-{TRACE}-{SPAN}-01-more", TraceContext(TRACE, SPAN, True)),
        (None, None),
        ("", None),
        (f"00-{TRACE}-{SPAN}-01-more", None),
        (f"ff-{TRACE}-{SPAN}-01", None),
        (f"00-{'0' * 32}-{SPAN}-01", None),
        (f"00-{TRACE}-{'0' * 16}-01", None),
        (f"00-{TRACE.upper()}-{SPAN}-01", None),
        (f"00-{TRACE}-{SPAN}", None),
        (f"00-{TRACE}-{SPAN}-1", None),
    ],
)
def test_headers(header: str | None, expected: TraceContext | None) -> None:
    assert parse_traceparent(header) == expected


@given(st.text(max_size=80))
def test_any_text_is_either_valid_or_ignored(header: str) -> None:
    context = parse_traceparent(header)
    assert context is None or parse_traceparent(context.traceparent) == context
