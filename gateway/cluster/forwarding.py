"""Forward requests to the gateway that owns the session."""

import asyncio
import logging
import socket
import ssl
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

import aiohttp
import msgspec
from aiohappyeyeballs import AddrInfoType
from aiohttp import hdrs, web
from aiohttp.typedefs import Handler, Middleware
from multidict import CIMultiDict

from gateway.cluster.membership import Membership
from gateway.errors import RequestError
from gateway.graph.session_store import SessionStore
from gateway.http.json_body import read_body
from gateway.http.json_stream import SINGLE_RESPONSE
from gateway.http.middleware.auth import TENANT
from gateway.http.sse import REQUEST_ID
from gateway.journal import PostgresStorage
from gateway.journal.postgres import SessionOwner
from gateway.runtime.json_codec import encode_json

log = logging.getLogger("myna.peers")

FORWARDED = "X-Myna-Forwarded-To"
"""Header with the number of the gateway that a request was forwarded to. Only that gateway accepts the request, and
does not forward it again."""

_CONNECT_SECONDS = 3.0
_KEEPALIVE_OPTIONS = {"TCP_KEEPIDLE": 5, "TCP_KEEPINTVL": 2, "TCP_KEEPCNT": 3, "TCP_USER_TIMEOUT": 11_000}
"""TCP keepalive options: a connection ends after about eleven seconds without any packet. Answers may take longer."""
_RETRY_SECONDS = 0.2
_GRACE_SECONDS = 10.0
"""Time beyond a lease in which a session's new owner has to be ready, in seconds."""
_IDEMPOTENT = {hdrs.METH_GET, hdrs.METH_HEAD}
_HOP_HEADERS = {
    *(hdrs.CONNECTION, hdrs.KEEP_ALIVE, hdrs.PROXY_AUTHENTICATE, hdrs.PROXY_AUTHORIZATION, hdrs.TE, hdrs.TRAILER),
    *(hdrs.TRANSFER_ENCODING, hdrs.UPGRADE, hdrs.HOST, hdrs.CONTENT_LENGTH, hdrs.CONTENT_ENCODING, hdrs.EXPECT),
    *(hdrs.ACCEPT_ENCODING, hdrs.DATE, hdrs.SERVER, FORWARDED),
}
"""Headers that belong to one connection, or to the encoding of a body on it."""


@dataclass(frozen=True)
class RequestedSession:
    """Session that a request names. `may_create`: whether the request creates it if it does not exist."""

    id: str
    may_create: bool


class _GatewayUnreachable(Exception):
    """The other gateway did not answer. `may_have_run`: it may have received the request."""

    def __init__(self, may_have_run: bool) -> None:
        self.may_have_run = may_have_run


class Forwarding:
    """Owner of the connections to other gateways."""

    def __init__(
        self,
        storage: PostgresStorage,
        membership: Membership,
        sessions: SessionStore,
        session_of: Callable[[web.Request], Awaitable[RequestedSession | None]],
        is_list: Callable[[web.Request], bool],
        tls: ssl.SSLContext | None,
    ) -> None:
        """`session_of` returns the session that a request names, `is_list` whether the request lists all sessions."""
        self._storage = storage
        self._membership = membership
        self._sessions = sessions
        self._session_of = session_of
        self._is_list = is_list
        self._tls = tls
        self._http: aiohttp.ClientSession | None = None

    async def start(self) -> None:
        """Create the HTTP client. Call it before the first request."""
        self._http = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(
                limit=0, ssl=self._tls or True, keepalive_timeout=30, socket_factory=_keepalive_socket
            ),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_SECONDS),
            skip_auto_headers=[hdrs.ACCEPT_ENCODING, hdrs.USER_AGENT],
        )

    async def close(self) -> None:
        """Close all connections."""
        if self._http is not None:
            await self._http.close()

    @property
    def middleware(self) -> Middleware:
        """Middleware that forwards requests. It runs after authentication, before all code that looks up
        sessions."""

        @web.middleware
        async def forward(request: web.Request, handler: Handler) -> web.StreamResponse:
            return await self._answer(request, handler)

        return forward

    async def _answer(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        await self._membership.wait_joined()
        target = request.headers.get(FORWARDED)
        if target is not None and target != str(self._storage.gateway):
            raise RequestError(421, f"this is gateway {self._storage.gateway}", code="wrong_gateway")
        if self._is_list(request):
            return await handler(request) if target is not None else await self._list_all(request, handler)
        session = await self._session_of(request)
        if session is None:
            return await handler(request)
        tenant, deadline = request[TENANT], asyncio.get_running_loop().time() + self._storage.lease + _GRACE_SECONDS
        while not self._sessions.holds(tenant, session.id):
            try:
                owner = await self._find_owner(tenant, session)
            except self._storage.failures as error:
                message = f"the gateway that owns session {session.id!r} cannot be determined now: {error}"
                raise RequestError(503, message, code="journal_failed") from error
            if owner is None:
                break
            if target is None and owner.is_alive:
                try:
                    return await self._forward(request, owner)
                except _GatewayUnreachable as error:
                    if error.may_have_run and request.method not in _IDEMPOTENT:
                        message = "the gateway that owns this session ended during the request; try again"
                        raise RequestError(503, message, code="gateway_lost") from error
            self._membership.request_check()
            if target is not None or asyncio.get_running_loop().time() > deadline:
                message = f"the gateway that owns session {session.id!r} cannot be reached; try again"
                raise RequestError(503, message, code="gateway_lost")
            await asyncio.sleep(_RETRY_SECONDS)
        return await handler(request)

    async def _find_owner(self, tenant: str, session: RequestedSession) -> SessionOwner | None:
        """Return the other gateway that owns the session.

        Return None if this gateway owns or creates the session, or if no gateway owns it.
        """
        if session.may_create and await self._storage.claim(tenant, session.id):
            await self._membership.wait_for_takeover()
            return None
        owner = await self._storage.find(tenant, session.id)
        if owner is None:
            if await self._storage.has_expired(tenant, session.id):
                self._sessions.remember(tenant, session.id)
            return None
        if owner.gateway != self._storage.gateway:
            return owner
        await self._membership.wait_for_takeover()
        return None

    # requests to other gateways

    async def _forward(self, request: web.Request, owner: SessionOwner, *, stream: bool = True) -> web.StreamResponse:
        """Return the other gateway's answer: streamed, or complete if `stream` is false.

        Raises _GatewayUnreachable if there is none.
        """
        assert self._http is not None, "not started"
        limit = self._membership.lifetime_of(owner.gateway)
        response: web.StreamResponse | None = None
        try:
            async with limit:
                headers = _forwarded_headers(request.headers)
                headers[FORWARDED] = str(owner.gateway)
                headers["x-request-id"] = request[REQUEST_ID]
                body = await read_body(request) if request.body_exists else None
                async with self._http.request(
                    request.method, owner.url + request.raw_path, headers=headers, data=body, allow_redirects=False
                ) as answer:
                    if answer.status == 421:
                        raise _GatewayUnreachable(may_have_run=False)
                    if not stream or (answer.content_type != "text/event-stream" and answer.content_length is not None):
                        content = await answer.read()
                        return web.Response(
                            status=answer.status, body=content, headers=_forwarded_headers(answer.headers)
                        )
                    response = web.StreamResponse(status=answer.status, headers=_forwarded_headers(answer.headers))
                    await response.prepare(request)
                    await _copy_body(answer, response)
                    await response.write_eof()
                    return response
        except (aiohttp.ClientError, TimeoutError) as error:
            if response is not None:
                # as it would be without forwarding: the client's connection breaks off
                if request.transport is not None and not request.transport.is_closing():
                    log.warning("the connection to the gateway at %s broke during an answer: %r", owner.url, error)
                    request.transport.abort()
                raise aiohttp.ClientConnectionResetError(
                    "the connection to the other gateway broke during the answer"
                ) from error
            is_unreached = isinstance(error, aiohttp.ClientConnectorError | aiohttp.ConnectionTimeoutError)
            raise _GatewayUnreachable(may_have_run=not is_unreached) from error
        finally:
            self._membership.release_lifetime(owner.gateway, limit)

    async def _list_all(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Return the sessions of all gateways, oldest first."""
        owners = [
            SessionOwner(gateway, url, True) for gateway, url in (await self._membership.refresh_others()).items()
        ]
        requests = (self._forward(request, owner, stream=False) for owner in owners)
        others = await asyncio.gather(*requests, return_exceptions=True)
        request[SINGLE_RESPONSE] = True
        answers = [await handler(request), *others]
        sessions = []
        for answer in answers:
            if isinstance(answer, _GatewayUnreachable):
                self._membership.request_check()
                raise RequestError(503, "another gateway could not list its sessions; try again", code="gateway_lost")
            if isinstance(answer, BaseException):
                raise answer
            if answer.status != 200:
                return answer
            assert isinstance(answer, web.Response)
            assert isinstance(answer.body, bytes)
            sessions += msgspec.json.decode(answer.body)["data"]
        sessions.sort(key=lambda session: session["created_at"])
        own = answers[0]
        assert isinstance(own, web.Response)
        own.body = encode_json({"object": "list", "data": sessions})
        return own


def _keepalive_socket(address: AddrInfoType) -> socket.socket:
    """Return a socket whose connection ends if the other side becomes unreachable without closing it."""
    sock = socket.socket(*address[:3])
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in _KEEPALIVE_OPTIONS.items():
        if hasattr(socket, name):  # not available on every system
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
    return sock


def _forwarded_headers(headers: Mapping[str, str]) -> CIMultiDict[str]:
    forwarded = CIMultiDict(headers)
    for name in _HOP_HEADERS:
        forwarded.popall(name, None)
    return forwarded


async def _copy_body(answer: aiohttp.ClientResponse, response: web.StreamResponse) -> None:
    async for chunk in answer.content.iter_any():
        await response.write(chunk)
