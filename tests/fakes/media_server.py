"""An upstream server for embeddings, speech, transcription and images that behaves as a test specifies."""

import asyncio
import hashlib
from types import TracebackType
from typing import Any, Self

from aiohttp import web

ROUTES = (
    *("/v1/embeddings", "/rerank", "/v1/rerank", "/v2/rerank", "/score", "/v1/score", "/v1/audio/speech"),
    *("/v1/audio/transcriptions", "/v1/audio/translations", "/v1/images/generations", "/v1/images/edits"),
)


class MediaServer:
    """A server that records its requests and answers them with what they contain."""

    def __init__(self, *models: str, capabilities: Any = None) -> None:
        self.models = models or ("fake",)
        self.capabilities = capabilities
        self.asked: list[dict[str, Any]] = []
        self.statuses: list[int] = []
        """Statuses of the next answers; 200 once there are none."""
        self.pieces: list[bytes] = []
        """Pieces of the next answer, each sent when `go_on` allows it."""
        self.content_type = "audio/mpeg"
        """Content type of these pieces."""
        self.go_on = asyncio.Event()
        self.reads = True
        """Whether it reads the bodies of forms."""
        self.aborted = asyncio.Event()
        """Set once a client has disconnected before the end."""
        self._runner: web.AppRunner | None = None
        self._port = 0

    @property
    def url(self) -> str:
        """URL of the server."""
        return f"http://127.0.0.1:{self._port}"

    async def __aenter__(self) -> Self:
        app = web.Application(client_max_size=64 << 20)
        app.router.add_get("/v1/models", self._list)
        for route in ROUTES:
            app.router.add_post(route, self._answer)
        self._runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        self._port = self._runner.addresses[0][1]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._runner is not None
        await self._runner.cleanup()

    async def _list(self, request: web.Request) -> web.Response:
        more = {} if self.capabilities is None else {"capabilities": self.capabilities}
        return web.json_response({"data": [{"id": name, **more} for name in self.models]})

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        try:
            return await self._respond(request)
        except (asyncio.CancelledError, ConnectionError):
            self.aborted.set()
            raise

    async def _respond(self, request: web.Request) -> web.StreamResponse:
        status = self.statuses.pop(0) if self.statuses else 200
        asked: dict[str, Any] = {
            "path": request.path,
            "key": request.headers.get("Authorization"),
            "traceparent": request.headers.get("traceparent"),
        }
        if not self.reads:
            await asyncio.sleep(60)
        if request.content_type == "multipart/form-data":
            asked["form"] = [await _field(part) async for part in await request.multipart()]
        else:
            asked["body"] = await request.json()
        self.asked.append(asked)
        if status != 200:
            headers = {"Retry-After": "0.1"} if status == 429 else {}
            return web.json_response({"error": {"message": f"status {status}"}}, status=status, headers=headers)
        if self.pieces:
            response = web.StreamResponse(headers={"Content-Type": self.content_type})
            await response.prepare(request)
            for piece in self.pieces:
                await response.write(piece)
                await self.go_on.wait()
                self.go_on.clear()
            return response
        answer = {"object": "list", "asked": request.path, "usage": {"prompt_tokens": 5, "total_tokens": 5}}
        return web.json_response(answer, headers={"Server-Secret": "x"})


async def _field(part: Any) -> tuple[str, Any]:
    """Return name and text of a field, or name, type, size and digest of a file."""
    data = await part.read()
    if part.filename is None:
        return part.name, data.decode()
    kind = part.headers.get("Content-Type")
    return part.name, (part.filename, kind, len(data), hashlib.sha256(data).hexdigest())
