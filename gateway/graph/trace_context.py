"""W3C Trace Context: where a call stands in a distributed trace."""

import re
from typing import NamedTuple

_TRACEPARENT = re.compile(r"(?!ff)[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")


class TraceContext(NamedTuple):
    """Position in a trace.

    `trace_id`, `span_id`: 32 and 16 hexadecimal digits. `sampled`: whether the trace is recorded.
    """

    trace_id: str
    span_id: str
    sampled: bool = True

    @property
    def traceparent(self) -> str:
        """The value of the header `traceparent`."""
        return f"00-{self.trace_id}-{self.span_id}-{'01' if self.sampled else '00'}"


def parse_traceparent(header: str | None) -> TraceContext | None:
    """Return the position that a header `traceparent` names; None if there is none, or if it is invalid: the standard
    says to start a new trace then."""
    found = None if header is None else _TRACEPARENT.fullmatch(header.strip())
    if found is None or ((header or "").startswith("00") and found[4]):  # version 00 has four fields
        return None
    return TraceContext(found[1], found[2], bool(int(found[3], 16) & 1))
