"""HTTP below the `mcp` package: bound answers while they arrive, and check where requests go.

The package reads JSON bodies of any length, reconnects streams as often as the server asks, and lets one failed request
end the whole connection. This transport returns one small JSON document for each request, also for failures, and drops
messages that the gateway has not asked for.
"""

import asyncio
import json
import socket
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx2
from httpx2 import EventSource, SSEError

from gateway.config.url_pattern import is_public_address
from gateway.tools.loop_share import LoopShare
from gateway.tools.messages import BadMessage, failure_message, one_line, parse_message
from gateway.tools.protocol import PROTOCOL_ERROR, TOO_LARGE, UNAVAILABLE

_MAX_ERROR_BYTES = 64 << 10
"""Maximum size of the body of an error response, in bytes."""
_STREAM_PAUSE_SECONDS = 1.0
"""Minimum time between two requests for the stream of notifications, in seconds."""
_CLOSE_SECONDS = 5.0
"""Time limit of the request that ends a session, in seconds."""
_CONNECT_SECONDS = 10.0
"""Time limit of a connection, in seconds."""
_MAX_EVENT_BYTES = 64 << 10
"""Maximum size of an event in a stream of notifications, in bytes."""
_JSON = {"content-type": "application/json"}
_LISTEN = "subscriptions/listen"


class _Refused(Exception):
    """A request that fails. `code`: of the ToolFailed. The message says why."""

    def __init__(self, code: str, reason: str) -> None:
        super().__init__(reason)
        self.code = code


class BoundedTransport(httpx2.AsyncBaseTransport):
    """Owner of the HTTP connections to one server."""

    def __init__(
        self,
        url: str,
        *,
        max_bytes: int,
        seconds: float,
        only_public: bool,
        on_list_changed: Callable[[], None],
        on_lost: Callable[[str], None],
    ) -> None:
        """`max_bytes`: maximum size of a message. `seconds`: time limit of a request. `only_public`: whether the host
        must have an address of the public internet. `on_lost`: is called if the server has forgotten the session."""
        self._url = httpx2.URL(url)
        self._max_bytes = max_bytes
        self._seconds = seconds
        self._only_public = only_public
        self._on_list_changed = on_list_changed
        self._on_lost = on_lost
        self._inner = httpx2.AsyncHTTPTransport(
            limits=httpx2.Limits(max_connections=None, max_keepalive_connections=16, keepalive_expiry=30.0), retries=0
        )
        self._requests: dict[Any, asyncio.Timeout] = {}
        """Time limits of requests that run, by JSON-RPC id. A cancelled request ends immediately."""
        self._last_stream = -_STREAM_PAUSE_SECONDS
        self._share = LoopShare()

    async def aclose(self) -> None:
        """Close all connections."""
        await self._inner.aclose()

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        """Send a request of the `mcp` package. See httpx2."""
        if request.method == "GET":
            return await self._open_stream(request)
        message = json.loads(request.content) if request.content else {}
        method, id = message.get("method"), message.get("id")
        if method == "notifications/cancelled":
            running = self._requests.get((message.get("params") or {}).get("requestId"))
            if running is not None:
                running.reschedule(0.0)
        try:
            if method == _LISTEN:
                return await self._listen(request)
            seconds = _CLOSE_SECONDS if request.method == "DELETE" else self._seconds
            async with asyncio.timeout(seconds) as limit:
                if id is not None and method is not None:
                    self._requests[id] = limit
                try:
                    return await self._answer(request, id if method is not None else None)
                finally:
                    if self._requests.get(id) is limit:
                        del self._requests[id]
        except TimeoutError:
            failure = failure_message(id, UNAVAILABLE, f"it did not answer within {self._seconds:g} s")
        except _Refused as error:
            failure = failure_message(id, error.code, str(error))
        return httpx2.Response(200 if id is not None else 502, json=failure, headers=_JSON, request=request)

    async def _send(self, request: httpx2.Request) -> httpx2.Response:
        """Return the response once its head has arrived. Raises _Refused."""
        if request.url != self._url:
            raise _Refused(UNAVAILABLE, "it redirects to another URL")
        request.headers["accept-encoding"] = "identity"  # a compressed body would have no bound
        request.extensions["timeout"] = {"connect": _CONNECT_SECONDS, "read": None, "write": 30.0, "pool": None}
        if self._only_public:
            await self._pin_address(request)
        try:
            response = await self._inner.handle_async_request(request)
        except (httpx2.HTTPError, httpx2.InvalidURL) as error:
            reason = one_line(str(error)) or type(error).__name__
            raise _Refused(UNAVAILABLE, f"it cannot be reached: {reason}") from None
        response.request = request
        if response.headers.get("content-encoding", "identity").strip().lower() != "identity":
            await response.aclose()
            raise _Refused(PROTOCOL_ERROR, "it sent a compressed answer")
        if 300 <= response.status_code < 400:
            place = one_line(response.headers.get("location", ""))
            await response.aclose()
            raise _Refused(UNAVAILABLE, f"it redirects to {place or 'another URL'}; redirects are not followed")
        return response

    async def _pin_address(self, request: httpx2.Request) -> None:
        """Resolve the host, and let the request go to an address that was checked. Raises _Refused."""
        host = request.url.host
        try:
            found = await asyncio.get_running_loop().getaddrinfo(
                host, request.url.port or (443 if request.url.scheme == "https" else 80), type=socket.SOCK_STREAM
            )
        except OSError as error:
            raise _Refused(UNAVAILABLE, f"it cannot be reached: {one_line(str(error))}") from None
        addresses = [str(item[4][0]) for item in found]
        if not addresses or not all(is_public_address(address) for address in addresses):
            raise _Refused(
                UNAVAILABLE, "its host is not on the public internet; only a pattern with this host allows it"
            )
        request.headers["host"] = request.url.netloc.decode("ascii")
        request.extensions["sni_hostname"] = host
        request.url = request.url.copy_with(host=addresses[0])

    async def _answer(self, request: httpx2.Request, id: Any) -> httpx2.Response:
        """Send a message. Return the response to it, with a body of bounded size. Raises _Refused."""
        has_session = "mcp-session-id" in request.headers
        response = await self._send(request)
        try:
            headers = {key: value for key, value in response.headers.items() if key == "mcp-session-id"}
            kind = response.headers.get("content-type", "").partition(";")[0].strip().lower()
            if response.status_code >= 400:
                return await self._describe_error(request, response, id, has_session)
            if id is None:
                return httpx2.Response(202, headers=headers, request=request)
            if kind == "application/json":
                message = await self._parse(b"".join([chunk async for chunk in self._bounded(response)]))
            elif kind == "text/event-stream":
                message = await self._find_answer(response, id)
            else:
                raise _Refused(PROTOCOL_ERROR, f"it sent content of type {one_line(kind)[:60] or 'unknown'}")
            if message.get("id") != id or isinstance(message.get("id"), bool):
                raise _Refused(PROTOCOL_ERROR, "it answered another request")
            return httpx2.Response(200, json=message, headers=headers | _JSON, request=request)
        except (httpx2.HTTPError, httpx2.StreamError) as error:
            reason = one_line(str(error)) or type(error).__name__
            raise _Refused(UNAVAILABLE, f"its answer broke off: {reason}") from None
        finally:
            await response.aclose()

    async def _describe_error(
        self, request: httpx2.Request, response: httpx2.Response, id: Any, has_session: bool
    ) -> httpx2.Response:
        """Return an error response of the server: as it is if its body is a JSON-RPC error. Raises _Refused."""
        body = b""
        async for chunk in self._bounded(response):
            body = (body + chunk)[: _MAX_ERROR_BYTES + 1]
            if len(body) > _MAX_ERROR_BYTES:
                break
        if len(body) <= _MAX_ERROR_BYTES:
            try:
                message = await parse_message(body)
            except BadMessage:
                message = {}
            if isinstance(message.get("error"), dict):
                return httpx2.Response(response.status_code, json=message, headers=_JSON, request=request)
        if response.status_code == 404 and has_session:
            self._on_lost("it has ended the session")
        raise _Refused(UNAVAILABLE, f"it answered with HTTP status {response.status_code}")

    async def _find_answer(self, response: httpx2.Response, id: Any) -> dict[str, Any]:
        """Return the answer to a request from a stream of events. Other messages are dropped. Raises _Refused."""
        headers = {"content-type": "text/event-stream"}
        bounded = httpx2.Response(
            200, headers=headers, stream=_Stream(self._bounded(response)), request=response.request
        )
        try:
            async for event in EventSource(bounded, max_event_size=self._max_bytes):
                await self._share.spend(len(event.data))
                if event.event != "message" or not event.data:
                    continue
                message = await self._parse(event.data.encode("utf-8", "surrogatepass"))
                if "method" not in message:
                    return message
                if message["method"] == "notifications/tools/list_changed":
                    self._on_list_changed()
        except SSEError as error:
            raise _Refused(TOO_LARGE, f"its stream of events is refused: {one_line(str(error))}") from None
        raise _Refused(UNAVAILABLE, "its answer broke off")

    async def _parse(self, body: bytes) -> dict[str, Any]:
        try:
            return await parse_message(body)
        except BadMessage as error:
            raise _Refused(error.code, str(error)) from None

    async def _bounded(self, response: httpx2.Response) -> AsyncIterator[bytes]:
        """Yield the body. Raises _Refused if it is larger than a message may be."""
        size = 0
        async for chunk in response.aiter_raw():
            size += len(chunk)
            if size > self._max_bytes:
                raise _Refused(TOO_LARGE, f"it sent a message of more than {self._max_bytes} bytes")
            yield chunk

    async def _open_stream(self, request: httpx2.Request) -> httpx2.Response:
        """Open the stream of notifications. Only changes of the list of tools are used, so nothing is passed on."""
        pause = self._last_stream + _STREAM_PAUSE_SECONDS - time.monotonic()
        if pause > 0:
            await asyncio.sleep(pause)
        self._last_stream = time.monotonic()
        try:
            response = await self._send(request)
        except _Refused as error:
            return httpx2.Response(502, text=str(error), request=request)
        if response.status_code != 200:
            await response.aclose()
            return httpx2.Response(response.status_code, request=request)
        headers = {"content-type": "text/event-stream"}
        return httpx2.Response(200, headers=headers, stream=self._filtered(response), request=request)

    async def _listen(self, request: httpx2.Request) -> httpx2.Response:
        """Open a subscription to changes. Raises _Refused."""
        async with asyncio.timeout(self._seconds):
            response = await self._send(request)
        kind = response.headers.get("content-type", "").partition(";")[0].strip().lower()
        if response.status_code != 200 or kind != "text/event-stream":
            await response.aclose()
            raise _Refused(UNAVAILABLE, "it offers no subscription")
        headers = {"content-type": "text/event-stream"}
        return httpx2.Response(200, headers=headers, stream=self._filtered(response), request=request)

    def _filtered(self, response: httpx2.Response) -> "_Stream":
        return _Stream(self._filter_events(response), response)

    async def _filter_events(self, response: httpx2.Response) -> AsyncIterator[bytes]:
        """Yield the events that the session needs, as bytes. The rate of events is bounded."""
        try:
            async for event in EventSource(response, max_event_size=_MAX_EVENT_BYTES):
                await self._share.spend(len(event.data))
                if event.event != "message" or not event.data:
                    continue
                try:
                    message = await parse_message(event.data.encode("utf-8", "surrogatepass"))
                except BadMessage:
                    continue
                method = message.get("method")
                if method == "notifications/tools/list_changed":
                    self._on_list_changed()
                elif method == "notifications/subscriptions/acknowledged" or method is None:
                    yield b"event: message\ndata: " + json.dumps(message).encode() + b"\n\n"
        except (SSEError, httpx2.HTTPError):
            return
        finally:
            await response.aclose()


class _Stream(httpx2.AsyncByteStream):
    """Body of a response, from an iterator."""

    def __init__(self, chunks: AsyncIterator[bytes], response: httpx2.Response | None = None) -> None:
        self._chunks = chunks
        self._response = response

    async def __aiter__(self) -> AsyncIterator[bytes]:
        async for chunk in self._chunks:
            yield chunk

    async def aclose(self) -> None:
        if self._response is not None:
            await self._response.aclose()
