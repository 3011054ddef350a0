"""Listen for HTTP connections, on a TCP port or a Unix socket."""

import resource
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from aiohttp import web

from gateway.config.settings import ServeSettings
from gateway.http.connections import Runner
from gateway.server.tls import tls_context

_BACKLOG = 1024
"""Maximum number of connections that the system has accepted and the server has not."""


@asynccontextmanager
async def listening(app: web.Application, settings: ServeSettings) -> AsyncIterator[str]:
    """Listen until the context ends, and yield the address. Raises OSError if that fails."""
    runner = Runner(app, shutdown_timeout=0.5)
    await runner.setup()
    try:
        tls = tls_context(settings.tls_cert, settings.tls_key)
        if settings.uds is not None:
            path = settings.uds.expanduser()
            await web.UnixSite(runner, path, ssl_context=tls, backlog=_BACKLOG).start()
            try:
                yield f"unix:{path}"
            finally:
                path.unlink(missing_ok=True)
            return
        await web.TCPSite(runner, settings.host, settings.port, ssl_context=tls, backlog=_BACKLOG).start()
        host, port = runner.addresses[0][:2]
        yield f"{'http' if tls is None else 'https'}://{f'[{host}]' if ':' in host else host}:{port}"
    finally:
        await runner.cleanup()


def requested_address(settings: ServeSettings) -> str:
    """Return where the settings ask to listen, for error messages."""
    address = f"{settings.host}:{settings.port}" if settings.uds is None else str(settings.uds)
    return address if settings.tls_cert is None else f"{address} with the certificate {settings.tls_cert}"


def allow_many_connections() -> None:
    """Raise the limit of open files to the system's maximum: the usual limit is 1,024, and each connection is one."""
    _, maximum = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (maximum, maximum))
