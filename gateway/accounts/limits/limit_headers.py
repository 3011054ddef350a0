"""The headers `x-ratelimit-*`, as OpenAI sends them."""

import math
from collections.abc import Mapping

from gateway.accounts.limits.meter import Meter

NAMES = tuple(
    f"x-ratelimit-{what}-{kind}" for kind in ("requests", "tokens") for what in ("limit", "remaining", "reset")
)
"""Names of all these headers."""


def limit_headers(requests: Meter | None, tokens: Meter | None, now: float) -> Mapping[str, str]:
    """Return the headers that describe the limits of a minute; none for a limit that the key does not have."""
    headers = {}
    for meter, (limit, remaining, reset) in ((requests, NAMES[:3]), (tokens, NAMES[3:])):
        if meter is not None:
            headers[limit] = str(int(meter.limit))
            left, seconds = meter.state(now)
            headers[remaining] = str(int(left))
            headers[reset] = duration_text(seconds) if seconds else "0s"
    return headers


def duration_text(seconds: float) -> str:
    """Return a duration as OpenAI writes it: `6m0s`, `1.5s`, `20ms`, `0s`."""
    if 0 < seconds < 0.999:
        return f"{math.ceil(1_000 * seconds - 1e-6)}ms"
    milliseconds = math.ceil(1_000 * min(max(0.0, seconds), 1e9) - 1e-6)
    if not milliseconds:
        return "0s"
    minutes, rest = divmod(milliseconds, 60_000)
    hours, minutes = divmod(minutes, 60)
    text = f"{rest / 1_000:.3f}".rstrip("0").rstrip(".") + "s"
    if hours:
        return f"{hours}h{minutes}m{text}"
    return f"{minutes}m{text}" if minutes else text
