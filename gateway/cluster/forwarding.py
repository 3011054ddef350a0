"""A request belongs to the gateway that has its session; whichever is asked passes it on to that one."""

import asyncio
import logging
import socket
import ssl
from collections.abc import Awaitable, Callable, Mapping
from typing import Protocol

import aiohttp
import msgspec
from aiohappyeyeballs import AddrInfoType
from aiohttp import hdrs, web
from aiohttp.typedefs import Handler, Middleware
from multidict import CIMultiDict

from gateway.cluster.membership import Membership
from gateway.errors import RequestError
from gateway.graph.store import SessionStore
from gateway.http.json_body import encode_json, read_body
from gateway.http.json_stream import WHOLE
from gateway.http.middleware.auth import TENANT
from gateway.http.sse import REQUEST_ID
from gateway.journal import PostgresStorage
from gateway.journal.postgres import Home

log = logging.getLogger("myna.peers")

FORWARDED = "X-Myna-Forwarded-To"
"""The number of the gateway that a request was passed on to. Nobody else takes it, and that one keeps it."""

_CONNECT_SECONDS = 3.0
_SILENCE = {"TCP_KEEPIDLE": 5, "TCP_KEEPINTVL": 2, "TCP_KEEPCNT": 3, "TCP_USER_TIMEOUT": 11_000}
"""Some eleven seconds, after which a network that lets nothing through has parted us. Answers may take longer."""
_AGAIN_SECONDS = 0.2
_GRACE_SECONDS = 10.0
"""Beyond a lease, for a session's new owner to be ready."""
_IDEMPOTENT = {hdrs.METH_GET, hdrs.METH_HEAD}
_NOT_PASSED_ON = {
    *(hdrs.CONNECTION, hdrs.KEEP_ALIVE, hdrs.PROXY_AUTHENTICATE, hdrs.PROXY_AUTHORIZATION, hdrs.TE, hdrs.TRAILER),
    *(hdrs.TRANSFER_ENCODING, hdrs.UPGRADE, hdrs.HOST, hdrs.CONTENT_LENGTH, hdrs.CONTENT_ENCODING, hdrs.EXPECT),
    *(hdrs.ACCEPT_ENCODING, hdrs.DATE, hdrs.SERVER, FORWARDED),
}
"""Headers that belong to one connection, or to how a body was packed on it."""


class Named(Protocol):
    """The session that a request names."""

    @property
    def id(self) -> str:
        """What it is called."""

    @property
    def creates(self) -> bool:
        """Whether it is made if nobody has it."""


class _Elsewhere(Exception):
    """The gateway that was asked did not answer; whether it may have done something is in `begun`."""

    def __init__(self, begun: bool) -> None:
        self.begun = begun


class Forwarding:
    """Owner of the connections to other gateways."""

    def __init__(
        self,
        storage: PostgresStorage,
        membership: Membership,
        sessions: SessionStore,
        named: Callable[[web.Request], Awaitable[Named | None]],
        is_list: Callable[[web.Request], bool],
        tls: ssl.SSLContext | None,
    ) -> None:
        """`named` says which session a request names, `is_list` whether it asks for all of them."""
        self._storage = storage
        self._membership = membership
        self._sessions = sessions
        self._named = named
        self._is_list = is_list
        self._tls = tls
        self._http: aiohttp.ClientSession | None = None

    async def start(self) -> None:
        """Before the first request."""
        self._http = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(
                limit=0, ssl=self._tls or True, keepalive_timeout=30, socket_factory=_noticing
            ),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_SECONDS),
            skip_auto_headers=[hdrs.ACCEPT_ENCODING, hdrs.USER_AGENT],
        )

    async def close(self) -> None:
        """Ends all connections."""
        if self._http is not None:
            await self._http.close()

    @property
    def middleware(self) -> Middleware:
        """Behind authentication, before everything that knows sessions."""

        @web.middleware
        async def forward(request: web.Request, handler: Handler) -> web.StreamResponse:
            return await self._answer(request, handler)

        return forward

    async def _answer(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        await self._membership.joined()
        target = request.headers.get(FORWARDED)
        if target is not None and target != str(self._storage.gateway):
            raise RequestError(421, f"this is gateway {self._storage.gateway}", code="wrong_gateway")
        if self._is_list(request):
            return await handler(request) if target is not None else await self._merged(request, handler)
        named = await self._named(request)
        if named is None:
            return await handler(request)
        tenant, until = request[TENANT], asyncio.get_running_loop().time() + self._storage.lease + _GRACE_SECONDS
        while not self._sessions.holds(tenant, named.id):
            try:
                home = await self._home(tenant, named)
            except self._storage.failures as error:
                message = f"whose session {named.id!r} is cannot be found out now: {error}"
                raise RequestError(503, message, code="journal_failed") from error
            if home is None:
                break
            if target is None and home.alive:
                try:
                    return await self._pass_on(request, home)
                except _Elsewhere as lost:
                    if lost.begun and request.method not in _IDEMPOTENT:
                        message = "the gateway that has this session ended while it was asked; ask again"
                        raise RequestError(503, message, code="gateway_lost") from lost
            self._membership.look()
            if target is not None or asyncio.get_running_loop().time() > until:
                message = f"the gateway that has session {named.id!r} cannot be reached, or has just died; ask again"
                raise RequestError(503, message, code="gateway_lost")
            await asyncio.sleep(_AGAIN_SECONDS)
        return await handler(request)

    async def _home(self, tenant: str, named: Named) -> Home | None:
        """The other gateway that has the session; None if it is ours, or is to be, or is nobody's."""
        if named.creates and await self._storage.claim(tenant, named.id):
            await self._membership.settled()
            return None
        home = await self._storage.find(tenant, named.id)
        if home is None:
            if await self._storage.has_expired(tenant, named.id):
                self._sessions.remember(tenant, named.id)
            return None
        if home.gateway != self._storage.gateway:
            return home
        await self._membership.settled()
        return None

    # asking others

    async def _pass_on(self, request: web.Request, home: Home, *, whole: bool = False) -> web.StreamResponse:
        """Return the other gateway's answer, passed on as it comes or, if `whole`, once all of it is there.

        Raises _Elsewhere if there is none.
        """
        assert self._http is not None, "not started"
        limit = self._membership.while_alive(home.gateway)
        response: web.StreamResponse | None = None
        try:
            async with limit:
                headers = _passed_on(request.headers)
                headers[FORWARDED] = str(home.gateway)
                headers["x-request-id"] = request[REQUEST_ID]
                body = await read_body(request) if request.body_exists else None
                async with self._http.request(
                    request.method, home.url + request.raw_path, headers=headers, data=body, allow_redirects=False
                ) as answer:
                    if answer.status == 421:
                        raise _Elsewhere(begun=False)
                    if whole or (answer.content_type != "text/event-stream" and answer.content_length is not None):
                        content = await answer.read()
                        return web.Response(status=answer.status, body=content, headers=_passed_on(answer.headers))
                    response = web.StreamResponse(status=answer.status, headers=_passed_on(answer.headers))
                    await response.prepare(request)
                    await _pour(answer, response)
                    await response.write_eof()
                    return response
        except (aiohttp.ClientError, TimeoutError) as error:
            if response is not None:
                # it ends as it would if the other one had been asked: broken off
                if request.transport is not None and not request.transport.is_closing():
                    log.warning("the gateway at %s ended within an answer: %r", home.url, error)
                    request.transport.abort()
                raise aiohttp.ClientConnectionResetError("the answer broke off") from error
            unreached = isinstance(error, aiohttp.ClientConnectorError | aiohttp.ConnectionTimeoutError)
            raise _Elsewhere(begun=not unreached) from error
        finally:
            self._membership.no_longer(home.gateway, limit)

    async def _merged(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Our sessions and the others', oldest first."""
        homes = [Home(gateway, url, True) for gateway, url in (await self._membership.see()).items()]
        passed_on = (self._pass_on(request, home, whole=True) for home in homes)
        others = await asyncio.gather(*passed_on, return_exceptions=True)
        request[WHOLE] = True
        answers = [await handler(request), *others]
        sessions = []
        for answer in answers:
            if isinstance(answer, _Elsewhere):
                self._membership.look()
                raise RequestError(503, "another gateway cannot be asked for its sessions now", code="gateway_lost")
            if isinstance(answer, BaseException):
                raise answer
            if answer.status != 200:
                return answer
            assert isinstance(answer, web.Response)
            assert isinstance(answer.body, bytes)
            sessions += msgspec.json.decode(answer.body)["data"]
        sessions.sort(key=lambda session: session["created_at"])
        mine = answers[0]
        assert isinstance(mine, web.Response)
        mine.body = encode_json({"object": "list", "data": sessions})
        return mine


def _noticing(address: AddrInfoType) -> socket.socket:
    """A socket whose connection ends when the other side cannot be reached any more, though nobody says so."""
    made = socket.socket(*address[:3])
    made.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in _SILENCE.items():
        if hasattr(socket, name):  # not on every system
            made.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
    return made


def _passed_on(headers: Mapping[str, str]) -> CIMultiDict[str]:
    kept = CIMultiDict(headers)
    for name in _NOT_PASSED_ON:
        kept.popall(name, None)
    return kept


async def _pour(answer: aiohttp.ClientResponse, response: web.StreamResponse) -> None:
    async for chunk in answer.content.iter_any():
        await response.write(chunk)
