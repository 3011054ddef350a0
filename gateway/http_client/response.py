"""A response: the part of its body that no reader has taken yet, and the task or callback that waits for more."""

import asyncio
import math
from collections.abc import Callable
from typing import TYPE_CHECKING

from gateway.http_client.errors import ConnectionBroken

if TYPE_CHECKING:
    from gateway.http_client.connection import Connection

_BODY_BYTES = 64 << 20
"""Maximum size of a body that is read as a whole, in bytes."""
_MAX_UNREAD_BYTES = 256 << 10
"""Size of the unread body from which the server is paused, in bytes."""


class Response:
    """A response whose head has arrived. The caller closes it.

    `headers`: by name in lower case. `ended`: the body is complete, and all of it was returned except for what the next
    `next_chunk` returns.
    """

    def __init__(self, connection: "Connection", timeout: float) -> None:
        self.status = 0
        self.reason = ""
        self.headers: dict[str, str] = {}
        self.ended = False
        self.timeout = timeout
        """Maximum silence of the server from now on, in seconds."""
        self.deadline = math.inf
        """Time of the monotonic clock at which the response is aborted, whatever arrives."""
        self._connection = connection
        self._body: list[bytes] = []
        self._unread = 0
        self._error: ConnectionBroken | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._callback: Callable[[bytes], None] | None = None
        self._callback_error: Exception | None = None
        """Error that the callback raised."""

    async def next_chunk(self) -> bytes:
        """Wait for a chunk of the body, and return it; return nothing after the last one. Raises ConnectionBroken
        behind all that arrived."""
        while not self._body:
            if self._error is not None:
                raise self._copy_error(self._error)
            if self.ended:
                return b""
            await self._wait_for_change()
        return self._take_body()

    def _take_body(self) -> bytes:
        body = self._body[0] if len(self._body) == 1 else b"".join(self._body)
        self._body.clear()
        if self._unread > _MAX_UNREAD_BYTES:
            self._connection.resume()
        self._unread = 0
        return body

    async def stream_to(self, callback: Callable[[bytes], None]) -> None:
        """Call `callback` with each chunk of the body where it arrives, and return after the last one.

        Raises ConnectionBroken after all data that arrived, and the errors of `callback`.
        """
        self._callback = callback
        try:
            self._deliver()
            while self._callback_error is None and self._error is None and not self.ended:
                await self._wait_for_change()
        finally:
            self._callback = None
        if self._callback_error is not None:
            try:
                raise self._callback_error
            finally:
                self._callback_error = None  # its traceback refers to this response: a reference cycle
        if self._error is not None:
            raise self._copy_error(self._error)

    @staticmethod
    def _copy_error(error: ConnectionBroken) -> ConnectionBroken:
        """Return a copy of the error. The traceback of a raised error refers to the caller, and so to this response."""
        return type(error)(*error.args)

    def _deliver(self) -> None:
        if self._body and self._callback is not None and self._callback_error is None:
            try:
                self._callback(self._take_body())
            except Exception as error:  # an error of the caller must not reach the transport
                self._callback_error = error

    async def read(self, maximum: int = _BODY_BYTES, *, cut: bool = False) -> bytes:
        """Return the rest of the body. Raises ConnectionBroken if it has more than `maximum` bytes; with `cut`, return
        its first bytes instead."""
        body = bytearray()
        while chunk := await self.next_chunk():
            body += chunk
            if len(body) > maximum:
                if cut:
                    break
                raise ConnectionBroken(f"the response has more than {maximum} bytes")
        return bytes(body[:maximum])

    def close(self) -> None:
        """End the response. Its connection is kept if the body was complete."""
        if not self.ended:
            self._connection.end(ConnectionBroken("the gateway closed it"))

    async def wait_for_head(self) -> None:
        """Wait for the head. Raises ConnectionBroken if the connection ends before."""
        while not self.status:
            if self._error is not None:
                raise self._copy_error(self._error)
            await self._wait_for_change()

    async def _wait_for_change(self) -> None:
        self._waiter = asyncio.get_running_loop().create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    # called by the connection

    def append_body(self, body: bytes) -> None:
        """Append a chunk of the body. `notify` announces it."""
        self._body.append(body)
        self._unread += len(body)
        if self._unread > _MAX_UNREAD_BYTES:
            self._connection.pause()

    def notify(self) -> None:
        """Announce new data, or the end."""
        if self._callback is not None:
            self._deliver()
            if self._callback_error is None and self._error is None and not self.ended:
                return
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def fail(self, error: ConnectionBroken) -> None:
        """End the response with an error."""
        self._error = error
        self.notify()
