"""An upstream server with OpenAI's API that behaves as a test specifies, faults included."""

import asyncio
import json
from collections.abc import Awaitable, Callable, Sequence
from types import TracebackType
from typing import Any, Self

from aiohttp import web

Behaviour = Callable[[web.Request, dict[str, Any]], Awaitable[web.StreamResponse]]


class ScriptedServer:
    """A server that answers each request with the next behaviour of `script`, and records all bodies.

    Once the script is empty, it answers with `always`, or else with the name of the requested model.
    """

    def __init__(self, *models: str, port: int = 0, window: int | None = 4096) -> None:
        self.models = models or ("fake",)
        self.window = window
        self.script: list[Behaviour] = []
        self.always: Behaviour | None = None
        """Behaviour once the script is empty."""
        self.asked: list[dict[str, Any]] = []
        self.paths: list[str] = []
        self.keys: list[str | None] = []
        self.headers: list[dict[str, str]] = []
        self.health = 200
        self.metrics = ""
        self.schema: dict[str, Any] | None = None
        self.once = False
        """Whether it closes a connection when a second request arrives on it, as after an idle timeout."""
        self.aborted = 0
        """Number of requests whose client disconnected before the end."""
        self._port = port
        self._runner: web.AppRunner | None = None
        self._seen: set[asyncio.BaseTransport] = set()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    async def start(self) -> None:
        """Start to listen, after a stop on the same port."""
        app = web.Application(client_max_size=16 << 20)
        app.router.add_get("/v1/models", self._list)
        app.router.add_get("/health", self._health)
        app.router.add_get("/metrics", self._metrics)
        app.router.add_get("/openapi.json", self._openapi)
        app.router.add_post("/v1/chat/completions", self._answer)
        app.router.add_post("/v1/completions", self._answer)
        app.router.add_post("/v1/messages", self._answer)
        self._runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", self._port)
        await site.start()
        self._port = self._runner.addresses[0][1]

    async def stop(self) -> None:
        """Stop. Connections are refused until the next start."""
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    @property
    def url(self) -> str:
        """URL of the server."""
        return f"http://127.0.0.1:{self._port}"

    async def _list(self, request: web.Request) -> web.Response:
        window = {} if self.window is None else {"max_model_len": self.window}
        return web.json_response({"object": "list", "data": [{"id": name, **window} for name in self.models]})

    async def _health(self, request: web.Request) -> web.Response:
        return web.Response(status=self.health)

    async def _metrics(self, request: web.Request) -> web.Response:
        return web.Response(text=self.metrics)

    async def _openapi(self, request: web.Request) -> web.Response:
        return web.Response(status=404) if self.schema is None else web.json_response(self.schema)

    def knows(self, *fields: str) -> None:
        """Publish an OpenAPI document in which chat requests have these fields."""
        body = {"content": {"application/json": {"schema": {"$ref": "#/components/schemas/Chat"}}}}
        self.schema = {
            "paths": {"/v1/chat/completions": {"post": {"requestBody": body}}},
            "components": {"schemas": {"Chat": {"properties": {field: {} for field in fields}}}},
        }

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        assert request.transport is not None
        if self.once and request.transport in self._seen:
            request.transport.abort()
            raise ConnectionResetError
        self._seen.add(request.transport)
        self.asked.append(body)
        self.paths.append(request.path)
        self.keys.append(request.headers.get("Authorization"))
        self.headers.append(dict(request.headers))
        behaviour = self.script.pop(0) if self.script else self.always or says(body["model"])
        try:
            return await behaviour(request, body)
        except (asyncio.CancelledError, ConnectionError):
            self.aborted += 1
            raise


def chunk(body: dict[str, Any], text: str | None, finish: str | None = None, **more: Any) -> dict[str, Any]:
    """Return one event of an answer."""
    if "messages" in body:
        choice: dict[str, Any] = {"index": 0, "delta": {} if text is None else {"content": text}}
    else:
        choice = {"index": 0, "text": text or ""}
    return {"id": "x", "model": body["model"], "choices": [{**choice, "finish_reason": finish, **more}]}


async def stream(request: web.Request, events: Sequence[Any], *, done: bool = True) -> web.StreamResponse:
    """Stream events, as JSON unless they are bytes."""
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
    await response.prepare(request)
    for event in events:
        data = event if isinstance(event, bytes) else json.dumps(event).encode()
        await response.write(b"data: " + data + b"\n\n")
    if done:
        await response.write(b"data: [DONE]\n\n")
    return response


def says(*texts: str, finish: str = "stop", usage: Any = None, **more: Any) -> Behaviour:
    """Return a behaviour that streams an answer in these pieces."""

    async def behave(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        total = usage or {"prompt_tokens": 7, "completion_tokens": len(texts), "total_tokens": 7 + len(texts)}
        events = [chunk(body, text, **more) for text in texts]
        ends = [chunk(body, None, finish), {"choices": [], "usage": total}]
        return await stream(request, [*events, *ends])

    return behave


def refuses(status: int, message: str = "no", headers: dict[str, str] | None = None, **error: Any) -> Behaviour:
    """Return a behaviour that answers with an error in OpenAI's format."""

    async def behave(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        return web.json_response({"error": {"message": message, **error}}, status=status, headers=headers)

    return behave


def breaks_off(*texts: str) -> Behaviour:
    """Return a behaviour that sends a part of an answer and closes the connection."""

    async def behave(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        response = await stream(request, [chunk(body, text) for text in texts], done=False)
        assert request.transport is not None
        request.transport.abort()
        return response

    return behave


def hangs(*texts: str) -> Behaviour:
    """Return a behaviour that sends a part of an answer and then hangs. Without texts it sends no status either."""

    async def behave(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        response = None
        if texts:
            response = await stream(request, [chunk(body, text) for text in texts], done=False)
        await asyncio.sleep(60)
        return response or web.Response()

    return behave


def sends(content: bytes, content_type: str = "text/event-stream") -> Behaviour:
    """Return a behaviour that answers with these bytes and status 200."""

    async def behave(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        return web.Response(body=content, content_type=content_type)

    return behave
