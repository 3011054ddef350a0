"""GET /v1/responses: create responses over a WebSocket, one after another."""

import asyncio
import re
import time
from typing import Any

from aiohttp import WSMsgType, web

from compat.openai.responses import ResponseRequest
from gateway.api.responses.builder import ResponseBuilder, encode_events
from gateway.api.responses.conversations import LocalTurns, new_response_id
from gateway.api.responses.creation import build_call, create_response
from gateway.api.semantic.extension import DEFER_HEADER, SESSION_HEADER
from gateway.api.services import SERVICES
from gateway.errors import RequestError
from gateway.http.json_body import drop_bytes, hold_bytes, release_bytes, validate_async
from gateway.http.middleware.admission import ADMISSION
from gateway.http.middleware.auth import TENANT, reauthenticate
from gateway.http.middleware.errors import as_request_error, error_body
from gateway.http.middleware.key_limits import run_limited
from gateway.http.openapi import operation
from gateway.http.slow_client import SlowClient
from gateway.http.websocket import MAX_MESSAGE_BYTES, WEBSOCKETS, MessageStream
from gateway.responses import ResponseStoreError
from gateway.runtime.json_codec import BadJson, decode_json, encode_json
from gateway.telemetry.metrics import count_request

routes = web.RouteTableDef()

MAX_SECONDS = 3_600.0
"""Longest time that a WebSocket stays open, in seconds, apart from the response that runs at its end."""
_MAX_WAITING = 16
"""Maximum number of messages that wait for an answer on one WebSocket. They have at most MAX_MESSAGE_BYTES together."""
_NO_INPUT = b'{"input":[]}'
_LARGE_BYTES = 64 << 10
"""Size from which a message counts among the bytes in progress, in bytes."""
_LANE = re.compile(r"[A-Za-z0-9_.-]{1,256}")
_SESSION_HELP = "sessions are not available over a WebSocket; use POST /v1/responses"


@routes.get("/v1/responses")
@operation(status=101, errors=(400, 403, 426, 429, 503))
async def connect(request: web.Request) -> web.StreamResponse:
    """Create responses over a WebSocket.

    Each message of the client is a `response.create`, and is answered with the events of a response. A message that
    arrives meanwhile waits. The latest response can be continued even if it is not stored.
    """
    for header in (SESSION_HEADER, DEFER_HEADER):
        if header in request.headers:
            raise RequestError(400, _SESSION_HELP, code="unsupported_with_semantic")
    sockets = request.app[WEBSOCKETS]
    socket = await sockets.accept(request, min(MAX_MESSAGE_BYTES, request.client_max_size))
    try:
        await _Connection(request, socket).run()
    finally:
        sockets.release(request, socket)
    return socket


class _Connection:
    """One client's WebSocket. Owner of the response that it runs."""

    def __init__(self, request: web.Request, socket: web.WebSocketResponse) -> None:
        self._request = request
        self._socket = socket
        self._messages: asyncio.Queue[bytes] = asyncio.Queue(_MAX_WAITING)
        """Messages that have arrived and wait, in UTF-8: a text with one rare character has four bytes for each."""
        self._waiting_bytes = 0
        """Size of these messages."""
        self._held_bytes = 0
        """Bytes that count among those in progress: large messages that wait, and the one that is answered."""
        self._local = LocalTurns()
        self._ends_at = time.monotonic() + MAX_SECONDS

    async def run(self) -> None:
        """Answer messages until the client closes the WebSocket, or its time is over."""
        reading = asyncio.ensure_future(self._read())
        answering: asyncio.Future[None] | None = None
        try:
            while not reading.done():
                answering = asyncio.ensure_future(self._answer_next())
                await asyncio.wait((reading, answering), return_when=asyncio.FIRST_COMPLETED)
                if answering.done():
                    answering.result()
        except TimeoutError:
            code = "websocket_connection_limit_reached"
            message = f"a WebSocket stays open for {MAX_SECONDS:g} s at most; open another one"
            await self._send_error(RequestError(400, message, code=code), None)
            await self._socket.close()
        except (ConnectionError, SlowClient):
            pass  # the client has disconnected
        finally:
            for task in (reading, answering):
                if task is not None:
                    task.cancel()
            await asyncio.gather(*filter(None, (reading, answering)), return_exceptions=True)
            self._drop(self._held_bytes)

    async def _read(self) -> None:
        """Read messages until the WebSocket is closed. Refuse those that exceed the limits of waiting messages.

        It never waits for an answer: it has to see pongs and the client's end.
        """
        while True:
            message = await self._socket.receive()
            if message.type not in (WSMsgType.TEXT, WSMsgType.BINARY):
                return
            data = message.data if isinstance(message.data, bytes) else message.data.encode()
            size = len(data)
            if self._messages.full() or (self._waiting_bytes and self._waiting_bytes + size > MAX_MESSAGE_BYTES):
                refusal = "too many messages wait for an answer on this WebSocket; wait for the end of a response"
                await self._send_error(RequestError(429, refusal, code="overloaded"), None)
                continue
            try:
                self._hold(size)
            except RequestError as error:
                await self._send_error(error, None)
                continue
            self._waiting_bytes += size
            self._messages.put_nowait(data)
            del message, data  # the next message may arrive after an hour

    def _hold(self, size: int) -> None:
        """Count a large message among the bytes in progress. Raises RequestError if there are too many."""
        if size > _LARGE_BYTES:
            hold_bytes(self._request, size)
            self._held_bytes += size

    def _drop(self, size: int) -> None:
        """Stop counting bytes of large messages."""
        self._held_bytes -= size
        drop_bytes(self._request, size)

    async def _answer_next(self) -> None:
        """Wait for the next message and answer it. Raises TimeoutError at the end of the connection's time."""
        async with asyncio.timeout(max(0.0, self._ends_at - time.monotonic())):
            message = await self._messages.get()
        self._waiting_bytes -= len(message)
        admitted = self._request.app[ADMISSION].enter()
        if admitted is not None:
            await admitted
        lane, status = None, 200
        content: dict[str, Any] = {}
        local_id = self._local.id
        try:
            content = _decode(message)
            lane = _take_lane(content)
            await self._create_limited(content, lane)
        except (ConnectionError, SlowClient):
            raise
        except Exception as error:
            status = await self._send_error(as_request_error(error), lane)  # a variable would be a cycle
        finally:
            release_bytes(self._request)
            if len(message) > _LARGE_BYTES:
                self._drop(len(message))
        if local_id is not None and content.get("previous_response_id") == local_id == self._local.id:
            self._local.forget()  # as in OpenAI's API: the turn has failed
        count_request("WEBSOCKET", "/v1/responses", status)

    async def _create_limited(self, content: dict[str, Any], lane: str | None) -> None:
        """Answer a message once the limits of the API key admit it, as for a request. Raises LimitReached too."""
        accounts, tenant = self._request.app[SERVICES].accounts, self._request[TENANT]
        accounts.check_key(tenant)  # the key may have been deleted since the WebSocket was opened
        reauthenticate(self._request)  # or rotated
        limits = accounts.limits_of(tenant)
        if limits is None:
            await self._create(content, lane)
        else:
            await run_limited(limits, self._create, content, lane)

    async def _create(self, content: dict[str, Any], lane: str | None) -> None:
        """Answer a message with the events of a response. Raises RequestError and GraphError."""
        is_warm_up = _take_options(content)
        is_empty = is_warm_up and not content.get("input")
        if is_empty:
            content["input"] = [{"role": "user", "content": ""}]  # it may have tools alone
        raw = encode_json(content)
        body = await validate_async(self._request, content, ResponseRequest, raw)
        if body.semantic is not None and (body.semantic.session is not None or body.semantic.defer):
            raise RequestError(400, _SESSION_HELP, code="unsupported_with_semantic", param="semantic.session")
        stream = MessageStream(self._request, self._socket, lane)
        if is_warm_up:
            await self._warm_up(body, raw, stream, is_empty=is_empty)
        else:
            await create_response(self._request, body, raw, stream=stream, local=self._local)

    async def _warm_up(self, body: ResponseRequest, raw: bytes, stream: MessageStream, *, is_empty: bool) -> None:
        """Answer with a response without output, which the next message can continue. `raw`: content of the message.
        `is_empty`: whether its input is a placeholder."""
        call = await build_call(self._request, body, raw, self._local)
        stored = _NO_INPUT if is_empty else call.raw
        target = call.target
        builder = ResponseBuilder(
            call.body, target.model, target.scope, None, new_response_id(), checker=None, is_stored=call.turn.is_stored
        )
        response = builder.build_response("completed", [])
        if call.turn.is_stored:
            try:
                await call.turn.store(response, stored, slots=False)
            except ResponseStoreError:
                builder.is_stored = False
                response = builder.build_response("completed", [])
        self._local.remember(call.turn, response, stored)
        await stream.end(encode_events([*builder.open(), builder.build_last_event(response)]))

    async def _send_error(self, error: RequestError, lane: str | None) -> int:
        """Send an error event, and return the error's status."""
        described = error_body(error).error
        code = described.code or described.type
        event: dict[str, Any] = {"type": "error", "status": error.status}
        event["error"] = {
            "type": described.type,
            "code": code,
            "message": described.message,
            "param": described.param,
        }
        if lane is not None:
            event["stream_id"] = lane
        if not self._socket.closed:
            await self._socket.send_str(encode_json(event).decode())
        return error.status


def _decode(message: bytes) -> dict[str, Any]:
    """Return the content of a `response.create`. Raises RequestError for other messages."""
    try:
        content = decode_json(message)
    except BadJson as error:
        raise RequestError(400, f"invalid message: {error}", code="invalid_json") from None
    if not isinstance(content, dict):
        raise RequestError(400, "the message must be a JSON object", code="invalid_json")
    kind = content.pop("type", None)
    if kind != "response.create":
        raise RequestError(400, "type must be 'response.create'", code="unsupported_value", param="type")
    return content


def _take_lane(content: dict[str, Any]) -> str | None:
    """Remove the `stream_id` from a message and return it. Raises RequestError for an invalid one."""
    lane = content.pop("stream_id", None)
    if lane is not None and not (isinstance(lane, str) and _LANE.fullmatch(lane)):
        message = "stream_id must have at most 256 letters, digits and ._-"
        raise RequestError(400, message, code="invalid_stream_id", param="stream_id")
    return lane


def _take_options(content: dict[str, Any]) -> bool:
    """Set `stream` in a message, and remove `generate`. Return whether it asks for no output. Raises RequestError."""
    if content.get("background"):
        message = "background is not available over a WebSocket; use POST /v1/responses"
        raise RequestError(400, message, code="unsupported_value", param="background")
    if content.get("stream") is False:
        message = "over a WebSocket, a response is always sent as events"
        raise RequestError(400, message, code="unsupported_value", param="stream")
    generate = content.pop("generate", None)
    if generate not in (None, True, False):
        raise RequestError(400, "generate must be a boolean", code="invalid_value", param="generate")
    content["stream"] = True
    return generate is False
