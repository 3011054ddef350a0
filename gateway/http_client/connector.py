"""Opening of connections to one server: name resolution, TCP and TLS."""

import asyncio
import os
import socket
import ssl
import time
from collections.abc import Callable, Sequence

import aiohappyeyeballs

from gateway.http_client.connection import Connection
from gateway.http_client.errors import ConnectError

_ADDRESS_SECONDS = 60.0
"""Time for which the addresses of a host name are cached, in seconds."""
_CONNECT_SECONDS = 10.0
"""Maximum time to resolve the host name and to connect, in seconds."""


class Connector:
    """Owner of the addresses of one server."""

    def __init__(self, host: str, port: int, tls: ssl.SSLContext | None) -> None:
        """Start without addresses. `tls`: trusted certificates; None for plain HTTP."""
        self._host = host
        self._port = port
        self._tls = tls
        self._addresses: Sequence[aiohappyeyeballs.AddrInfoType] = ()
        self._expiry = 0.0
        """Time of the monotonic clock from which the addresses are resolved again."""

    async def connect(self, build: Callable[[], Connection]) -> Connection:
        """Connect to the server with the connection that `build` returns. Raises ConnectError."""
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(_CONNECT_SECONDS):
                sock = await aiohappyeyeballs.start_connection(await self._resolve(), happy_eyeballs_delay=0.25)
                try:
                    _, connection = await loop.create_connection(
                        build,
                        sock=sock,
                        ssl=self._tls,
                        server_hostname=None if self._tls is None else self._host,
                    )
                except BaseException:
                    sock.close()
                    raise
        except TimeoutError as error:
            raise ConnectError(f"it did not answer within {_CONNECT_SECONDS:g} s") from error
        except OSError as error:  # includes errors of TLS
            raise ConnectError(_describe(error)) from error
        return connection

    async def _resolve(self) -> Sequence[aiohappyeyeballs.AddrInfoType]:
        """Return the addresses of the host. Raises OSError if there are none."""
        now = time.monotonic()
        if now >= self._expiry:
            loop = asyncio.get_running_loop()
            self._addresses = await loop.getaddrinfo(self._host, self._port, type=socket.SOCK_STREAM)
            self._expiry = now + _ADDRESS_SECONDS
        return self._addresses


def _describe(error: OSError) -> str:
    """Return the message of an error without asyncio's own prefix."""
    if error.errno is None or isinstance(error, socket.gaierror | ssl.SSLError):
        return error.strerror or str(error)
    return os.strerror(error.errno)
