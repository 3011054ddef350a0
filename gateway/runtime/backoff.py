"""Growing pauses between attempts to reach an engine or a server."""

_FIRST_SECONDS = 0.5
"""First pause, in seconds."""
_MAX_SECONDS = 30.0
"""Longest pause, in seconds."""


class Backoff:
    """The pause before the next attempt. It doubles with each failure, up to a maximum."""

    def __init__(self) -> None:
        self.seconds = _FIRST_SECONDS
        """Current pause, in seconds."""

    def grow(self) -> None:
        """Double the pause after another failure."""
        self.seconds = min(2 * self.seconds, _MAX_SECONDS)

    def reset(self) -> None:
        """Start over with the first pause."""
        self.seconds = _FIRST_SECONDS
