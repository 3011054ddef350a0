"""Pass requests on to the upstream servers of a model, and choose among them."""

import asyncio
import time
from collections.abc import AsyncIterable, AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from gateway.engines.openai import CAPABILITIES, OpenAIEngine
from gateway.engines.openai.concurrency import ConcurrencySlot
from gateway.engines.protocol import ContextRefused, EngineBusy, EngineFailure, EngineLost, Engines
from gateway.errors import FailedCall, RequestError
from gateway.graph.errors import Failure
from gateway.graph.limits import SharedLimit
from gateway.http_client.errors import ConnectionBroken
from gateway.http_client.request_encoder import NO_HEADERS
from gateway.http_client.response import Response

_ATTEMPTS = 3
"""Maximum number of attempts of a request whose server was lost."""
_RANK_SECONDS = 0.05
"""Delay of a request in a server's queue for each unanswered request of the same tenant, in seconds."""


@dataclass
class RelayedRequest:
    """A request to pass on. `path`: route of the server. `model`: name of the model. `body`: complete, or in pieces,
    which can be sent once. `headers`: further headers for the server."""

    path: str
    model: str
    tenant: str
    content_type: str
    body: bytes | AsyncIterable[bytes]
    headers: Mapping[str, str] = field(default_factory=lambda: NO_HEADERS)
    engine: str | None = None
    """Engine that the request was last sent to."""
    tokens: int | None = None
    """Number of input tokens, 0 if the server does not report it; None until the answer is complete."""

    @property
    def capability(self) -> str:
        """Capability of a model that the request needs."""
        return CAPABILITIES[self.path]


class Relay:
    """Owner of the relayed requests that are not answered."""

    def __init__(self, engines: Engines, max_requests: int, *, several_tenants: bool = False) -> None:
        """`max_requests`: maximum number of requests that are not answered. `several_tenants`: whether there can be
        more than one tenant."""
        self._engines = engines
        self._limit = SharedLimit(max_requests, several=several_tenants)

    @asynccontextmanager
    async def send(self, request: RelayedRequest) -> AsyncIterator[Response]:
        """Send the request, and yield the server's response, whose status is a success. When the block ends, so does
        the request on the server.

        Raises RequestError if no server of the model accepts the request, or its response breaks off.
        """
        tenant = request.tenant
        if not self._limit.has_room(tenant):
            count = self._limit.amount(tenant)
            message = f"{count} requests of this key are not answered, the current maximum; try again later"
            raise RequestError(429, message, code="overloaded")
        self._limit.add(tenant)
        try:
            engine, response = await self._open(request)
            try:
                yield response
                if response.ended:
                    engine.upstream.record_success()
            except ConnectionBroken as error:
                raise as_request_error(engine.upstream.connection_error(error, tenant)) from error
            finally:
                response.close()
                _release(engine)
        finally:
            self._limit.remove(tenant)

    async def _open(self, request: RelayedRequest) -> tuple[OpenAIEngine, Response]:
        """Return the response of the server that accepts the request, and its engine, whose slot is held. Raises
        RequestError."""
        for attempt in range(_ATTEMPTS):
            try:
                engine = await self._find_engine(request)
            except EngineFailure as error:
                raise as_request_error(error) from error
            rank = time.monotonic() + _RANK_SECONDS * self._limit.amount(request.tenant)
            await engine.upstream.limiter.acquire(ConcurrencySlot(rank))
            engine.contexts += 1
            request.engine = engine.name
            try:
                response = await engine.upstream.relay(
                    request.path, request.body, request.content_type, request.tenant, request.headers
                )
                return engine, response
            except EngineLost as error:
                _release(engine)
                if attempt == _ATTEMPTS - 1 or not isinstance(request.body, bytes):
                    raise as_request_error(error) from error
                pause = error.pause
            except EngineFailure as error:
                _release(engine)
                raise as_request_error(error) from error
            except BaseException:
                _release(engine)
                raise
            await asyncio.sleep(pause)
        raise AssertionError("the last attempt returns or raises")

    async def _find_engine(self, request: RelayedRequest) -> OpenAIEngine:
        """Return the engine with the least work that can answer the request. Raises EngineFailure if none can."""
        capability = request.capability
        engines = await self._engines.find_ready(request.model)
        upstream = [engine for engine in engines if isinstance(engine, OpenAIEngine)]
        able = [engine for engine in upstream if capability in engine.capabilities]
        unsure = [engine for engine in upstream if not engine.upstream.config.capabilities]
        if not able and not unsure:
            message = f"no engine of the model {request.model!r} supports {capability}"
            raise ContextRefused("unsupported_by_engine", message, "model")
        return min(able or unsure, key=lambda engine: engine.load)


def _release(engine: OpenAIEngine) -> None:
    engine.contexts -= 1
    engine.upstream.limiter.release()


def as_request_error(error: EngineFailure) -> RequestError:
    """Return the error that the client receives."""
    failed = FailedCall(Failure(error.code, str(error), field=error.field))
    if isinstance(error, EngineBusy):
        failed.headers["Retry-After"] = str(max(1, round(error.pause)))
    return failed
