"""All MCP servers that the operator allows, and those at URLs that clients may name."""

import asyncio
import difflib
import hashlib
import hmac
import importlib
import logging
import secrets
import time
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from gateway.config.tool_servers import ToolSettings, check_headers
from gateway.config.url_pattern import BadUrl, parse_url
from gateway.runtime.fair_gate import FairGate
from gateway.runtime.json_codec import encode_json
from gateway.runtime.schema_checker.work_budget import BudgetExceeded, NoVerdict, WorkBudget
from gateway.telemetry import metrics
from gateway.tools.catalog import Catalog
from gateway.tools.protocol import (
    UNAVAILABLE,
    BadArguments,
    Path,
    ToolDescription,
    ToolFailed,
    ToolResult,
    UnknownTool,
    UrlRefused,
)

if TYPE_CHECKING:
    from gateway.tools.connection import ServerConnection

log = logging.getLogger("myna.tools")

_CONNECTION = "gateway.tools.connection"
"""Module that loads the `mcp` package, which takes a second: loaded in a thread, and only if there are servers."""
_IMMEDIATE_STEPS = 1_000
"""Part of the work budget of a check that may be spent on the event loop: about 2 ms."""
_MAX_STEPS = 50_000
"""Work budget of a check in a thread: about 0.1 s. The gateway sends arguments that need more without a check."""
_MAX_ARGUMENT_BYTES = 4 << 20
"""Maximum size of the arguments of a call as JSON, in bytes."""
_MAX_URL_SERVERS = 256
"""Maximum number of servers at URLs of clients."""
_MAX_TENANT_URL_SERVERS = 16
"""Maximum number of servers at URLs of the clients of one tenant."""
_URL_IDLE_SECONDS = 600.0
"""Time after which an unused connection to a URL of a client is closed, in seconds."""
_SWEEP_SECONDS = 60.0
"""Interval of the search for unused connections, in seconds."""
_URL_LABEL = "(url)"
"""Label in metrics of all servers at URLs of clients."""


class ToolServers:
    """Owner of the connections to MCP servers. It implements `protocol.Tools`."""

    def __init__(self, settings: ToolSettings) -> None:
        self._settings = settings
        self._servers: dict[str, ServerConnection] = {}
        self._url_servers: dict[str, ServerConnection] = {}
        """Connections to URLs of clients, by a name that only the tenant knows. The least recently opened first."""
        self._url_tenants: dict[str, str] = {}
        self._secret = secrets.token_bytes(32)
        self._check_gate = FairGate(rests=False)
        self._starting: asyncio.Task[None] | None = None
        self._sweeping: asyncio.Task[None] | None = None
        self._is_closed = False

    @property
    def names(self) -> Sequence[str]:
        """Names of the servers of the operator."""
        return list(self._settings.servers)

    @property
    def allows_urls(self) -> bool:
        """Return whether clients may name any URLs."""
        return bool(self._settings.url_patterns)

    def start(self) -> None:
        """Begin to connect to the servers, without a wait."""
        if self._starting is None and self._settings.servers:
            self._starting = asyncio.create_task(self._start_all(), name="start of tool servers")

    async def _start_all(self) -> None:
        await asyncio.to_thread(importlib.import_module, _CONNECTION)
        from gateway.tools.connection import ServerConnection

        if not self._is_closed:
            for name, table in self._settings.servers.items():
                self._servers[name] = ServerConnection(name, table)

    async def close(self) -> None:
        """End all connections and the processes of the servers."""
        self._is_closed = True
        if self._sweeping is not None:
            self._sweeping.cancel()
        if self._starting is not None:
            await asyncio.wait({self._starting})
        connections = [*self._servers.values(), *self._url_servers.values()]
        self._servers.clear()
        self._url_servers.clear()
        if connections:
            await asyncio.gather(*(connection.close() for connection in connections))

    async def describe(self, server: str, pattern: str = "*") -> Sequence[ToolDescription]:
        """See `protocol.Tools.describe`."""
        return (await self._catalog(server)).describe(pattern)

    async def check(
        self, server: str, name: str, arguments: Mapping[str, Any], *, unknown: Collection[Path] = (), tenant: str = ""
    ) -> None:
        """See `protocol.Tools.check`."""
        catalog = await self._catalog(server)
        catalog.require(name)
        if len(encode_json(arguments)) > _MAX_ARGUMENT_BYTES:
            raise BadArguments(f"the arguments have more than {_MAX_ARGUMENT_BYTES} bytes", "")
        try:
            try:
                found = catalog.violation(name, arguments, unknown, WorkBudget(_IMMEDIATE_STEPS))
            except BudgetExceeded:
                budget = WorkBudget(_MAX_STEPS)
                async with self._check_gate.turn(tenant):
                    try:
                        found = await asyncio.to_thread(catalog.violation, name, arguments, unknown, budget)
                    except asyncio.CancelledError:
                        budget.left = -1  # ends the thread's work soon
                        raise
        except NoVerdict as reason:  # the server checks its arguments itself
            log.debug("arguments of %s/%s were not checked: %s", server, name, reason)
            return
        if found is not None:
            raise BadArguments(f"the arguments of the tool {name!r} of {server!r} are invalid: {found}", found.path)

    async def call(self, server: str, name: str, arguments: dict[str, Any], *, tenant: str) -> ToolResult:
        """See `protocol.Tools.call`."""
        connection = await self._connection(server)
        label = _URL_LABEL if server in self._url_servers else server
        began = time.monotonic()
        outcome = "cancelled"
        try:
            result = await connection.call(name, arguments, tenant)
            outcome = "error" if result.is_error else "ok"
            return result
        except ToolFailed as error:
            outcome = error.code
            raise
        except UnknownTool:
            outcome = UnknownTool.code
            raise
        finally:
            catalog = connection.known
            tool = name if catalog is not None and catalog.has(name) else "(unknown)"
            metrics.count_tool_call(label, tool, outcome, time.monotonic() - began)

    def is_pure(self, server: str, name: str) -> bool:
        """See `protocol.Tools.is_pure`."""
        catalog = self._known(server)
        return catalog is not None and catalog.may_share(name)

    def is_idempotent(self, server: str, name: str) -> bool:
        """See `protocol.Tools.is_idempotent`."""
        catalog = self._known(server)
        return catalog is not None and catalog.is_idempotent(name)

    async def open_url(self, url: str, headers: Mapping[str, str], *, tenant: str) -> str:
        """Return the name of a server at a URL of a client, for this tenant and process. The connection is closed when
        it was not used for ten minutes. Raises UrlRefused if the operator does not allow the URL."""
        try:
            found = parse_url(url)
            check_headers(headers)
        except BadUrl as error:
            raise UrlRefused(str(error), "server_url") from None
        except ValueError as error:
            raise UrlRefused(str(error), "headers") from None
        patterns = [pattern for pattern in self._settings.url_patterns if pattern.accepts(found)]
        if not patterns:
            raise UrlRefused("the operator of this server does not allow this URL", "server_url")
        identity = encode_json([tenant, url, sorted(headers.items())])
        name = f"url-{hmac.new(self._secret, identity, hashlib.sha256).hexdigest()[:40]}"
        if name not in self._url_servers:
            await asyncio.to_thread(importlib.import_module, _CONNECTION)
            await self._make_room(tenant)
            from gateway.tools.connection import ServerConnection

            if self._is_closed:
                raise ToolFailed(UNAVAILABLE, "the gateway is shutting down")
            if name not in self._url_servers:
                only_public = not any(pattern.names_the_host for pattern in patterns)
                table = self._settings.url_limits(url, headers)
                self._url_servers[name] = ServerConnection(name, table, is_of_client=True, only_public=only_public)
                self._url_tenants[name] = tenant
        self._url_servers[name].last_used = time.monotonic()
        if self._sweeping is None:
            self._sweeping = asyncio.create_task(self._sweep(), name="idle tool servers")
        return name

    async def _make_room(self, tenant: str) -> None:
        """Close unused connections to URLs if there are too many. Raises ToolFailed if all are in use."""
        own = [name for name, owner in self._url_tenants.items() if owner == tenant]
        candidates = own if len(own) >= _MAX_TENANT_URL_SERVERS else list(self._url_servers)
        if len(own) < _MAX_TENANT_URL_SERVERS and len(self._url_servers) < _MAX_URL_SERVERS:
            return
        idle = [name for name in candidates if not self._url_servers[name].running_calls]
        if not idle:
            raise ToolFailed(UNAVAILABLE, "too many servers at URLs of clients are in use")
        await self._drop(min(idle, key=lambda name: self._url_servers[name].last_used))

    async def _drop(self, name: str) -> None:
        connection = self._url_servers.pop(name)
        del self._url_tenants[name]
        await connection.close()

    async def _sweep(self) -> None:
        """Close connections to URLs that were not used for long."""
        while True:
            await asyncio.sleep(_SWEEP_SECONDS)
            limit = time.monotonic() - _URL_IDLE_SECONDS
            for name, connection in [*self._url_servers.items()]:
                if not connection.running_calls and connection.last_used < limit and name in self._url_servers:
                    await self._drop(name)

    def _known(self, server: str) -> Catalog | None:
        connection = self._servers.get(server) or self._url_servers.get(server)
        return None if connection is None else connection.known

    async def _catalog(self, server: str) -> Catalog:
        return await (await self._connection(server)).catalog()

    async def _connection(self, server: str) -> "ServerConnection":
        """Return the connection to a server. Raises UnknownTool if there is no such server."""
        if self._starting is not None and not self._starting.done():
            await asyncio.shield(self._starting)
        found = self._servers.get(server) or self._url_servers.get(server)
        if found is not None:
            return found
        if self._is_closed:
            raise ToolFailed(UNAVAILABLE, "the gateway is shutting down")
        names = self.names
        if near := difflib.get_close_matches(server[:100], names, 3, 0.5):
            hint = f"; did you mean {' or '.join(near)}?"
        else:
            hint = f"; servers: {', '.join(names[:5])}" if names else "; this gateway has no tool servers"
        raise UnknownTool(f"there is no tool server {server[:100]!r}{hint}")
