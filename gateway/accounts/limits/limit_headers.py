"""The headers `x-ratelimit-*`, as OpenAI sends them."""

import math
from collections.abc import MutableMapping

from gateway.accounts.limits.meter import Meter

NAMES = tuple(
    f"x-ratelimit-{what}-{kind}" for kind in ("requests", "tokens") for what in ("limit", "remaining", "reset")
)
"""Names of all these headers."""


def set_limit_headers(
    headers: MutableMapping[str, str], requests: Meter | None, tokens: Meter | None, now: float
) -> None:
    """Set the headers that describe the limits of a minute; none for a limit that the key does not have."""
    if requests is not None:
        left, seconds = requests.state(now)
        headers["x-ratelimit-limit-requests"] = requests.limit_text
        headers["x-ratelimit-remaining-requests"] = str(int(left))
        headers["x-ratelimit-reset-requests"] = duration_text(seconds) if seconds else "0s"
    if tokens is not None:
        left, seconds = tokens.state(now)
        headers["x-ratelimit-limit-tokens"] = tokens.limit_text
        headers["x-ratelimit-remaining-tokens"] = str(int(left))
        headers["x-ratelimit-reset-tokens"] = duration_text(seconds) if seconds else "0s"


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
