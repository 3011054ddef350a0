"""The connection to one MCP server: start it, list its tools, call them, and connect again after it has died."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import httpx2
import mcp_types as types
from mcp.client import Client, Transport
from mcp.client.session import ClientSession
from mcp.client.streamable_http import streamable_http_client
from mcp.shared.exceptions import MCPError
from mcp_types.version import MODERN_PROTOCOL_VERSIONS
from pydantic import BaseModel, ConfigDict, ValidationError

from gateway.config.tool_servers import ToolServerTable
from gateway.runtime.backoff import Backoff
from gateway.runtime.fair_gate import FairGate
from gateway.tools.catalog import MAX_TOOLS, Catalog
from gateway.tools.child_process import CannotStart, ChildProcess
from gateway.tools.http_transport import BoundedTransport
from gateway.tools.messages import failure_of, max_message_bytes, one_line
from gateway.tools.pipe_transport import PipeLost, PipeTransport
from gateway.tools.protocol import PROTOCOL_ERROR, TIMEOUT, TOO_LARGE, UNAVAILABLE, ToolFailed, ToolResult
from gateway.tools.result_text import BadResult, result_text

log = logging.getLogger("myna.tools")
for _name in ("mcp", "client", "httpx2", "httpcore2"):  # they log each request, with ids of sessions
    logging.getLogger(_name).setLevel(logging.ERROR)

_MAX_PAGES = 100
"""Maximum number of pages of a list of tools."""
_MAX_CURSOR = 4_096
"""Maximum length of a page's cursor, in characters."""
_REFRESH_SECONDS = 1.0
"""Minimum time between two lists of the same server, in seconds."""
_STABLE_SECONDS = 60.0
"""Lifetime from which a connection counts as stable, in seconds: the next pause is the first one again."""
_SHORT_PAUSE_SECONDS = 1.0
"""Pause before the next attempt during which calls wait, in seconds. In longer pauses they fail."""
_CLOSE_SECONDS = 10.0
"""Time limit of the end of a connection, in seconds."""
_MAX_LISTEN_PAUSE = 30.0
"""Pause before a subscription that ended is made again, in seconds."""
_MARGIN_SECONDS = 5.0
"""Time by which HTTP requests outlive the time limit of a call, in seconds. Then they are aborted."""
_CLIENT_INFO = types.Implementation(name="myna", version="1")


class _RawResult(BaseModel):
    """A result as the server sent it."""

    model_config = ConfigDict(extra="allow")

    @property
    def fields(self) -> dict[str, Any]:
        """All fields."""
        return self.model_extra or {}


@dataclass(frozen=True)
class _Failure:
    """Reason why a connection has ended, or could not be made."""

    code: str
    reason: str


@dataclass(frozen=True)
class _Live:
    """A connection that works. `lost`: future that is done when the connection has ended."""

    session: ClientSession
    lost: "asyncio.Future[_Failure]"


class ServerConnection:
    """Owner of the connection to one server, which a task makes again after it has ended."""

    def __init__(
        self, name: str, settings: ToolServerTable, *, is_of_client: bool = False, only_public: bool = False
    ) -> None:
        """`is_of_client`: whether a client has named the server; its failures are then logged for debugging only.
        `only_public`: whether the server must have an address of the public internet."""
        self.name = name
        self.known: Catalog | None = None
        """Tools that the server listed last, also if it is not connected now."""
        self.last_used = time.monotonic()
        self.running_calls = 0
        """Number of calls that run or wait."""
        self._settings = settings
        self._only_public = only_public
        self._log_level = logging.DEBUG if is_of_client else logging.WARNING
        self._gate = FairGate(rests=False, places=settings.parallel)
        self._live: _Live | None = None
        self._attempt: asyncio.Future[_Failure | None] = asyncio.get_running_loop().create_future()
        """Result of the current attempt to connect, or of the last one."""
        self._list_changed = asyncio.Event()
        self._closing = asyncio.Event()
        self._backoff = Backoff()
        self._has_worked = False
        """Whether a call on this connection has succeeded."""
        self._abandoned: set[asyncio.Task[Any]] = set()
        """Tasks of cancelled requests, which still send the cancellation to the server."""
        self._task = asyncio.create_task(self._run(), name=f"tool server {name}")

    async def close(self) -> None:
        """End the connection, and the process of the server."""
        self._closing.set()  # an anyio scope that fails in the same moment swallows a cancellation
        if not self._attempt.done():
            self._attempt.set_result(_Failure(UNAVAILABLE, "the gateway closes the connection"))
        self._task.cancel()
        for task in self._abandoned:
            task.cancel()
        await asyncio.wait({self._task, *self._abandoned}, timeout=_CLOSE_SECONDS)

    async def catalog(self) -> Catalog:
        """Return the tools of the server. Waits while it starts. Raises ToolFailed if it is not available."""
        await self._require_live("")
        assert self.known is not None
        return self.known

    async def call(self, name: str, arguments: Mapping[str, Any], tenant: str) -> ToolResult:
        """Call a tool. Raises UnknownTool and ToolFailed."""
        self.running_calls += 1
        try:
            (await self.catalog()).require(name)
            async with self._gate.turn(tenant):
                live = await self._require_live(name)
                began = time.monotonic()
                text, is_error = await self._call(live, name, arguments)
                size = len(text.encode())
                if size > self._settings.result_bytes:
                    limit = self._settings.result_bytes
                    raise self._failed(TOO_LARGE, f"its result has {size} bytes; at most {limit} are allowed", name)
                self._has_worked = True
                return ToolResult(text, is_error, size, time.monotonic() - began)
        finally:
            self.running_calls -= 1
            self.last_used = time.monotonic()

    async def _require_live(self, tool: str) -> _Live:
        """Return the connection. Waits while it is made. Raises ToolFailed if it cannot be made."""
        if self._live is not None:
            return self._live
        attempt = self._attempt
        await asyncio.wait({attempt}, timeout=self._settings.start_seconds + _MARGIN_SECONDS)
        failure = attempt.result() if attempt.done() else _Failure(UNAVAILABLE, "it does not start")
        if self._live is None:
            failure = failure or _Failure(UNAVAILABLE, "the connection has ended")
            raise self._failed(failure.code, failure.reason, tool)
        return self._live

    async def _call(self, live: _Live, name: str, arguments: Mapping[str, Any]) -> tuple[str, bool]:
        """Return the text of a tool's result, and whether it is an error. Raises ToolFailed."""
        params = types.CallToolRequestParams(name=name, arguments=dict(arguments))
        request = live.session.send_request(types.CallToolRequest(params=params), _RawResult)
        task = asyncio.create_task(request, name=f"call of {self.name}/{name}")
        try:
            waited: set[asyncio.Future[Any]] = {task, live.lost}
            await asyncio.wait(waited, timeout=self._settings.seconds, return_when=asyncio.FIRST_COMPLETED)
        finally:
            if not task.done():  # also if the caller is cancelled; the session then sends `notifications/cancelled`
                self._abandon(task)
        if not task.done() or task.cancelled():
            if live.lost.done():
                raise self._failed(live.lost.result().code, live.lost.result().reason, name)
            self._list_changed.set()  # the next list shows whether the server answers at all
            raise self._failed(TIMEOUT, f"it did not answer within {self._settings.seconds:g} s", name)
        try:
            result = task.result().fields
            if result.get("resultType", "complete") != "complete":
                raise self._failed(PROTOCOL_ERROR, "it asks for further input, which is not offered", name)
            return result_text(result), result.get("isError") is True
        except MCPError as error:
            if live.lost.done():
                raise self._failed(live.lost.result().code, live.lost.result().reason, name) from None
            raise self._failed(*_describe(error), name) from None
        except ValueError as error:
            reason = str(error) if isinstance(error, BadResult) else "its form is not that of the protocol"
            raise self._failed(PROTOCOL_ERROR, f"its result is invalid: {reason}", name) from None
        except Exception as error:
            log.exception("tool server %s: unexpected error", self.name)
            raise self._failed(PROTOCOL_ERROR, one_line(str(error)) or type(error).__name__, name) from None

    def _abandon(self, task: "asyncio.Task[Any]") -> None:
        self._abandoned.add(task)
        task.add_done_callback(self._forget)
        task.cancel()

    def _forget(self, task: "asyncio.Task[Any]") -> None:
        self._abandoned.discard(task)
        if not task.cancelled() and task.exception() is not None:
            log.debug("tool server %s: a cancelled call failed: %s", self.name, task.exception())

    def _failed(self, code: str, reason: str, tool: str = "") -> ToolFailed:
        where = f"tool {tool} of server {self.name}" if tool else f"tool server {self.name}"
        return ToolFailed(code, f"{where}: {reason}")

    # the connection

    async def _run(self) -> None:
        """Connect, and connect again after the connection has ended, with growing pauses."""
        while not self._closing.is_set():
            if self._attempt.done():
                self._attempt = asyncio.get_running_loop().create_future()
            began = time.monotonic()
            self._has_worked = False
            failure = await self._connect()
            if time.monotonic() - began > _STABLE_SECONDS:
                self._backoff.reset()
            if self._closing.is_set():
                return
            pause = self._backoff.seconds
            log.log(self._log_level, "tool server %s: %s; next attempt in %g s", self.name, failure.reason, pause)
            with suppress(TimeoutError):
                await asyncio.wait_for(self._closing.wait(), pause)
            self._backoff.grow()

    def _end_attempt(self, failure: _Failure) -> None:
        """Let calls fail until the next attempt; or let them wait for it, if the connection has worked."""
        if self._has_worked:
            self._backoff.reset()
        if self._live is None:
            if not self._attempt.done():
                self._attempt.set_result(failure)
            return
        self._live = None
        self._attempt = asyncio.get_running_loop().create_future()
        if self._backoff.seconds > _SHORT_PAUSE_SECONDS:
            self._attempt.set_result(failure)

    async def _connect(self) -> _Failure:
        """Connect, and serve calls until the connection ends. Return the reason."""
        lost: asyncio.Future[_Failure] = asyncio.get_running_loop().create_future()

        def lose(failure: _Failure) -> None:
            if not lost.done():
                lost.set_result(failure)
                self._end_attempt(failure)  # before the process has ended

        try:
            async with AsyncExitStack() as stack:
                async with asyncio.timeout(self._settings.start_seconds):
                    transport = await stack.enter_async_context(self._transport(lose))
                    client = Client(transport, mode="auto", cache=None, client_info=_CLIENT_INFO)
                    await stack.enter_async_context(client)
                    self._list_changed.clear()
                    self.known = await self._list(client)
                if not lost.done():
                    self._live = _Live(client.session, lost)
                    self._attempt.set_result(None)
                    log.debug("tool server %s: %d tools", self.name, len(self.known))
                    await self._watch(client, lost, lose)
        except Exception as error:
            log.debug("tool server %s", self.name, exc_info=True)
            lose(self._failure_of(error, f"it did not start within {self._settings.start_seconds:g} s"))
        if not lost.done():
            lose(_Failure(UNAVAILABLE, "the connection has ended"))
        return lost.result()

    @asynccontextmanager
    async def _transport(self, lose: Callable[[_Failure], None]) -> AsyncIterator[Transport]:
        """Yield the transport of the settings. `lose`: callback for the end of the connection."""
        settings = self._settings
        max_bytes = max_message_bytes(settings.result_bytes)
        if settings.command is not None:
            start = partial(ChildProcess.start, settings.command, settings.env, settings.cwd)

            def lose_pipe(error: PipeLost) -> None:
                lose(_Failure(error.code, str(error)))

            yield PipeTransport(self.name, start, max_bytes, self._list_changed.set, lose_pipe)
            return
        assert settings.url is not None
        bounded = BoundedTransport(
            settings.url,
            max_bytes=max_bytes,
            seconds=max(settings.seconds, settings.start_seconds) + _MARGIN_SECONDS,
            only_public=self._only_public,
            on_list_changed=self._list_changed.set,
            on_lost=lambda reason: lose(_Failure(UNAVAILABLE, reason)),
        )
        # trust_env: proxies and .netrc of the gateway's environment are not for servers of tools
        async with httpx2.AsyncClient(
            transport=bounded, headers=settings.headers, timeout=None, trust_env=False, follow_redirects=False
        ) as http:
            yield streamable_http_client(settings.url, http_client=http)

    async def _watch(self, client: Client, lost: "asyncio.Future[_Failure]", lose: Callable[[_Failure], None]) -> None:
        """Keep the list of tools up to date until the connection ends."""
        work: list[Coroutine[Any, Any, None]] = [self._refresh(client, lose)]
        if client.protocol_version in MODERN_PROTOCOL_VERSIONS:
            work.append(self._listen(client))
        tasks = [asyncio.create_task(coroutine) for coroutine in work]
        try:
            await asyncio.wait({lost})
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks, timeout=_CLOSE_SECONDS)

    async def _refresh(self, client: Client, lose: Callable[[_Failure], None]) -> None:
        """List the tools again after a change, and after a call that was not answered. A server that does not answer
        loses its connection."""
        while True:
            await self._list_changed.wait()
            self._list_changed.clear()
            try:
                async with asyncio.timeout(self._settings.start_seconds):
                    self.known = await self._list(client)
            except Exception as error:
                lose(self._failure_of(error, "it does not answer any more"))
                return
            await asyncio.sleep(_REFRESH_SECONDS)

    async def _listen(self, client: Client) -> None:
        """Subscribe to changes of the list of tools, as servers since 2026-07-28 require. Not all offer this."""
        pause = 1.0
        while True:
            try:
                async with client.listen(tools_list_changed=True) as subscription:
                    async for _ in subscription:
                        self._list_changed.set()
            except Exception as error:
                log.debug("tool server %s: no subscription: %s", self.name, error)
            await asyncio.sleep(pause)
            pause = min(2 * pause, _MAX_LISTEN_PAUSE)

    def _failure_of(self, error: BaseException, timeout: str) -> _Failure:
        """Return the failure for an error of the connection. `timeout`: reason if a time limit was exceeded."""
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        match error:
            case TimeoutError():
                return _Failure(UNAVAILABLE, timeout)
            case MCPError():
                return _Failure(*_describe(error))
            case ToolFailed():
                return _Failure(error.code, str(error))
            case ValidationError():
                return _Failure(PROTOCOL_ERROR, "its list of tools or its handshake is invalid")
            case CannotStart() | OSError() | RuntimeError() | ValueError():
                return _Failure(UNAVAILABLE, one_line(str(error)) or type(error).__name__)
        log.error("tool server %s: unexpected error", self.name, exc_info=error)
        return _Failure(UNAVAILABLE, one_line(str(error)) or type(error).__name__)

    async def _list(self, client: Client) -> Catalog:
        """Return the tools of the server. Raises ToolFailed, MCPError and ValidationError."""
        listed: list[Mapping[str, Any]] = []
        cursor: str | None = None
        for _ in range(_MAX_PAGES):
            params = None if cursor is None else types.PaginatedRequestParams(cursor=cursor)
            page = await client.session.list_tools(params=params)
            listed += [
                tool.model_dump(by_alias=True, include={"name", "description", "input_schema", "annotations"})
                for tool in page.tools
            ]
            if len(listed) > MAX_TOOLS:
                raise ToolFailed(TOO_LARGE, f"it lists more than {MAX_TOOLS} tools")
            cursor = page.next_cursor
            if cursor is None:
                return Catalog(self.name, self._settings, listed)
            if len(cursor) > _MAX_CURSOR:
                break
        raise ToolFailed(TOO_LARGE, f"its list of tools has more than {_MAX_PAGES} pages")


def _describe(error: MCPError) -> tuple[str, str]:
    """Return the code of ToolFailed and the reason for an error of the session."""
    code = failure_of(error.code)
    if code is not None:
        return code, one_line(error.message)
    if error.code == types.CONNECTION_CLOSED:
        return UNAVAILABLE, "the connection has ended"
    if error.code == types.REQUEST_TIMEOUT:
        return UNAVAILABLE, "it does not answer"
    return PROTOCOL_ERROR, f"it answered with error {error.code}: {one_line(error.message)}"
