"""Bound the share of the event loop that the messages of one server take."""

import asyncio
import time

_MESSAGE_SECONDS = 30e-6
"""Estimated time that a message takes the event loop, in seconds. Measured times would include those of other tasks."""
_BYTE_SECONDS = 10e-9
"""Estimated time for each byte of it, in seconds."""
_TURN_SECONDS = 0.005
"""Time after which messages of the server wait, in seconds."""
_REST_FACTOR = 4.0
"""Length of the wait, as a multiple of the time before it. So a server takes at most a fifth of the event loop."""


class LoopShare:
    """Estimated time that the messages of one server took, less the pauses between them."""

    def __init__(self) -> None:
        self._last = time.monotonic()
        self._debt = 0.0
        """Time that no pause has followed yet, in seconds."""

    async def spend(self, size: int) -> None:
        """Count a message of `size` bytes. Wait if there was no pause for a long time."""
        now = time.monotonic()
        self._debt = max(0.0, self._debt - (now - self._last) / _REST_FACTOR)
        self._last = now
        self._debt += _MESSAGE_SECONDS + size * _BYTE_SECONDS
        if self._debt > _TURN_SECONDS:
            await asyncio.sleep(self._debt * _REST_FACTOR)
