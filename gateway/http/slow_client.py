"""Disconnect clients that keep their connection open but do not read."""

import asyncio
from collections.abc import Awaitable

from aiohttp import web

STREAM_SECONDS = 300.0
"""Longest time for which a client may read nothing of a stream of events, in seconds."""

DOCUMENT_SECONDS = 60.0
"""Longest time for which a client may read nothing of a JSON document, in seconds."""


class SlowClient(ConnectionError):
    """A client kept its connection open but read nothing; the server closed the connection."""


async def wait_written(request: web.Request, writing: Awaitable[None], seconds: float) -> None:
    """Wait until the data is written. Close the connection and raise SlowClient if the client does not read it within
    so many seconds."""
    try:
        async with asyncio.timeout(seconds):
            await writing
    except TimeoutError:
        if request.transport is not None:
            request.transport.abort()
        raise SlowClient(f"the client has read nothing for {seconds:g} s") from None
