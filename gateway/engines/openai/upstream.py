"""One upstream server: its connections, its health, and its features."""

import asyncio
import dataclasses
import logging
import math
import re
import ssl
import time
from collections.abc import AsyncIterable, Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import msgspec

from gateway.engines.local.client import EngineStartFailed
from gateway.engines.openai.capabilities import TEXT, guess_capabilities, order_capabilities
from gateway.engines.openai.concurrency import ConcurrencyLimiter
from gateway.engines.openai.profiles import Profile, profile_of
from gateway.engines.openai.stream_parser import refusal_of
from gateway.engines.openai.tool_calls import MalformedCalls
from gateway.engines.protocol import EngineBusy, EngineFailure, EngineLost
from gateway.http_client.errors import ConnectError, ConnectionBroken, ResponseTimeout
from gateway.http_client.pool import ConnectionPool
from gateway.http_client.request_encoder import NO_HEADERS
from gateway.http_client.response import Response
from gateway.runtime.backoff import Backoff
from gateway.runtime.json_codec import BadJson, decode_json

log = logging.getLogger("myna.engines")

_IDLE_SECONDS = 4.0
"""Time for which an idle connection is kept, in seconds. Many servers, among them uvicorn and llama.cpp, close it after
5 seconds."""
_PROBE_SECONDS = 5.0
"""Interval and timeout of health checks, in seconds."""
_LIST_PROBES = 6
"""Number of intervals between health checks of servers whose only health check is their list of models."""
_MAX_FAILURES = 3
"""Number of consecutive failed requests after which a server that accepts connections gets a pause as well."""
_MAX_PAUSE = 60.0
"""Longest pause that a server can request by `Retry-After`, in seconds."""
_OVERLOADED = 529
"""Status of Anthropic's API for a server that accepts no work now."""
_CONCURRENCY = 256
"""Maximum number of concurrent requests, if neither the settings nor the server specify one."""
_ERROR_BYTES = 64 << 10
"""Maximum size of an error response that is read, in bytes."""
_RECENT_SECONDS = 60.0
"""Time after its last request for which a tenant counts as a user of the server, in seconds."""
_LARGEST_WINDOW = 2**31 - 1


@dataclass(frozen=True)
class UpstreamConfig:
    """An upstream server as the settings specify it.

    `url`: with or without its `/v1`. `models`: models to use; if empty, all that the server lists. `timeout`: seconds
    of silence, before or within an answer, after which the request is aborted. `concurrency`: maximum number of
    concurrent requests; 0 leaves it to the server. `malformed`: treatment of malformed tool calls.
    `capabilities`: what its models can do; if empty, what the server and the names of the models show. `kv_tokens`:
    size of its KV cache, in tokens; 0 if that is unknown.
    """

    name: str
    kind: str
    url: str
    key: str | None = None
    models: Sequence[str] = ()
    timeout: float = 300.0
    concurrency: int = 0
    tls: ssl.SSLContext | None = None
    malformed: MalformedCalls = MalformedCalls.REPAIR
    capabilities: Sequence[str] = ()
    kv_tokens: int = 0


@dataclass(frozen=True)
class ListedModel:
    """A model that a server lists. `window`: its context length in tokens, and `answer_tokens`: maximum tokens of an
    answer, if the server reports them. `capabilities`: see `capabilities.CAPABILITIES`."""

    id: str
    window: int | None = None
    capabilities: Sequence[str] = TEXT
    answer_tokens: int | None = None


class Upstream:
    """Owner of the connections to one server, and of its state.

    It is ready unless it is down or busy. It is down if it cannot be reached, if its health check fails, or after
    several failed requests in a row; then it is probed with growing pauses. It is busy for as long as it has requested.
    """

    def __init__(self, config: UpstreamConfig, on_change: Callable[[], None], *, start_timeout: float = 0.0) -> None:
        """`on_change` is called whenever `is_ready` changes. `start_timeout`: seconds for which `start` keeps
        trying."""
        self.config = config
        host = re.sub(r"^\w+://", "", config.url).partition("/")[0].rpartition("@")[2].partition(":")[0]
        self.profile: Profile = profile_of(config.kind, host)
        self.url = re.sub(r"(/v1)?/*$", "", config.url)
        self.models = [ListedModel(name, None, self._capabilities(name)) for name in config.models]
        self.limiter = ConcurrencyLimiter(config.concurrency or _CONCURRENCY)
        self.external_requests = 0
        """Number of requests that other clients have on the server, if it reports its load."""
        self.dropped: set[str] = set()
        """Request fields that the server refused, and that are left out."""
        self._on_change = on_change
        self._start_timeout = start_timeout
        self._connections: ConnectionPool | None = None
        self._problem: str | None = "was not reached yet"
        self._busy_until = 0.0
        self._failures = 0
        self._failing: set[str] = set()
        """Tenants whose requests have failed since the last success."""
        self._last_used: dict[str, float] = {}
        """Time of each tenant's last request, by the monotonic clock."""
        self._is_brief = False
        """Whether the server is down because of one tenant's failures alone. Then the pauses do not grow."""
        self._backoff = Backoff()
        self._wake = asyncio.Event()
        self._watchdog: asyncio.Task[None] | None = None

    @property
    def is_ready(self) -> bool:
        """Whether the server accepts work now."""
        return self._problem is None and time.monotonic() >= self._busy_until

    @property
    def problem(self) -> str | None:
        """Why the server accepts no work now; None if it does."""
        if self._problem is None and not self.is_ready:
            return "asked for a pause"
        return self._problem

    async def start(self) -> None:
        """Connect to the server. Return when the server has answered, or immediately if the settings name its models.
        Raises EngineStartFailed."""
        headers = self.profile.headers(self.config.key)
        try:
            self._connections = ConnectionPool(
                self.url, headers, tls=self.config.tls, timeout=self.config.timeout, keep_alive=_IDLE_SECONDS
            )
        except ValueError as error:
            raise EngineStartFailed(f"engine {self.config.name} has an invalid URL {self.url}: {error}") from error
        began = time.monotonic()
        problem = await self._try_connect()
        while problem is not None and not self.config.models and time.monotonic() - began < self._start_timeout:
            await asyncio.sleep(min(self._backoff.seconds, 1.0))
            problem = await self._try_connect()
        if problem is not None:
            if not self.config.models:
                await self.close()
                raise EngineStartFailed(f"engine {self.config.name} at {self.url} {problem}")
            log.warning("engine %s at %s %s; trying again", self.config.name, self.url, problem)
        self._watchdog = asyncio.create_task(self._watch_health(), name=f"watch {self.config.name}")

    async def close(self) -> None:
        """Close all connections."""
        if self._watchdog is not None:
            self._watchdog.cancel()
            with suppress(asyncio.CancelledError):
                await self._watchdog
        if self._connections is not None:
            await self._connections.close()

    # requests

    async def post(self, path: str, content: bytes, tenant: str, headers: Mapping[str, str] = NO_HEADERS) -> Response:
        """Send a request. Return the response once its status is 200; the caller closes it.

        `content`: the request's body. `tenant`: the tenant whose request it is. `headers`: further headers. Raises
        EngineLost if another attempt may succeed, and other engine failures if not.
        """
        assert self._connections is not None, "not started"
        self._last_used[tenant] = time.monotonic()
        try:
            response = await self._connections.post(path, content, headers)
            if response.status == 200:
                return response
            raise await self._refusal(response, tenant)
        except (ConnectError, ConnectionBroken) as error:
            raise self.connection_error(error, tenant) from error

    async def relay(
        self,
        path: str,
        body: bytes | AsyncIterable[bytes],
        content_type: str,
        tenant: str,
        headers: Mapping[str, str] = NO_HEADERS,
    ) -> Response:
        """Send a request of a client as it is. Return the response if it is a success; the caller closes it.
        `headers`: further headers.

        Raises as `post`, and the errors of `body`.
        """
        assert self._connections is not None, "not started"
        self._last_used[tenant] = time.monotonic()
        try:
            response = await self._connections.send("POST", path, body, content_type, headers)
            if 200 <= response.status < 300:
                return response
            raise await self._refusal(response, tenant)
        except (ConnectError, ConnectionBroken) as error:
            raise self.connection_error(error, tenant) from error

    def connection_error(self, error: ConnectError | ConnectionBroken, tenant: str) -> EngineLost:
        """Return the error for a broken connection. `tenant`: the tenant whose request it ended."""
        if isinstance(error, ConnectError):
            self._mark_down(f"cannot be reached: {error}")
            return self.lost_error("cannot be reached")
        self.record_failure(tenant)
        if isinstance(error, ResponseTimeout):
            return self.lost_error(f"sent no data for {self.config.timeout:g} s")
        return self.lost_error(f"broke the connection: {error}")

    def adopt_changes(
        self, dropped: Collection[str], length_field: Literal["max_tokens", "max_completion_tokens"] | None = None
    ) -> None:
        """Change all later requests: leave out the `dropped` fields, and send the maximum length of a chat's answer in
        the field `length_field`, if it is given."""
        self.dropped.update(dropped)
        if length_field is not None:
            self.profile = dataclasses.replace(self.profile, length_field=length_field)

    def lost_error(self, reason: str) -> EngineLost:
        """Return the error of a request that failed with the server. Another attempt may succeed after a short
        pause."""
        return EngineLost(f"engine {self.config.name} {reason}", suspect=False, pause=0.2)

    def record_failure(self, tenant: str) -> None:
        """Count a request of the tenant that failed for the server's own reasons.

        After some failures in a row the server is marked as down. But the requests of one tenant may all fail because
        of what they contain. So the failures of one tenant do not count as long as other tenants use the server.
        """
        self._failures += 1
        self._failing.add(tenant)
        if self._failures < _MAX_FAILURES:
            return
        recent = time.monotonic() - _RECENT_SECONDS
        alone = len(self._failing) == 1 and len(self._last_used) > 1
        if alone and any(
            time_of_use > recent for other, time_of_use in self._last_used.items() if other not in self._failing
        ):
            return
        self._mark_down(f"failed {self._failures} times in a row", briefly=alone)

    def record_success(self) -> None:
        """Reset the count of failures, because a request was answered."""
        self._failures = 0
        self._backoff.reset()
        self._failing.clear()

    def _mark_down(self, reason: str, *, briefly: bool = False) -> None:
        if self._problem is None:
            self._is_brief = briefly
            log.error("engine %s %s; next attempt in %.1f s", self.config.name, reason, self._backoff.seconds)
            self._problem = reason
            self._wake.set()
            self._on_change()

    async def _refusal(self, response: Response, tenant: str) -> EngineFailure:
        """Return the error for a response that is not a success, and close the response."""
        try:
            status, message, code = response.status, *_parse_error(await response.read(_ERROR_BYTES, cut=True))
        finally:
            response.close()
        text = f"engine {self.config.name} answered {status}: {message or response.reason}"
        if status in (401, 403):
            log.error("%s", text)
            return EngineFailure(f"engine {self.config.name} does not accept the API key ({status})")
        if status == _OVERLOADED or (status == 429 and code != "insufficient_quota"):
            pause = _retry_pause(response.headers.get("retry-after"))
            self._mark_busy(pause)
            return EngineBusy(text, suspect=False, pause=pause)
        if status in (408, 409, 425) or status >= 500:
            self.record_failure(tenant)
            return EngineLost(text, suspect=False, pause=0.2)
        if status == 429 or status == 402:
            return EngineFailure(text)
        self.record_success()
        return refusal_of(message, text, code)

    def _mark_busy(self, seconds: float) -> None:
        """Mark the server as busy for some seconds."""
        self._busy_until = max(self._busy_until, time.monotonic() + seconds)
        self._on_change()
        asyncio.get_running_loop().call_later(seconds + 0.01, self._on_change)

    # health

    async def _watch_health(self) -> None:
        probes = 0
        while True:
            pause = _PROBE_SECONDS if self._problem is None else self._backoff.seconds
            self._wake.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._wake.wait()
                continue  # the server was just marked as down: its pause begins now
            probes += 1
            if self._problem is not None:
                if not self._is_brief:
                    self._backoff.grow()
                if (problem := await self._try_connect()) is not None:
                    log.info("engine %s still %s", self.config.name, problem)
            elif self.profile.health_path != "/v1/models" or probes % _LIST_PROBES == 0:
                await self._check_health()

    async def _try_connect(self) -> str | None:
        """Try to reach the server, and discover its features. Return the problem, or None."""
        try:
            await self._discover()
        except EngineStartFailed as error:
            return str(error)
        except TimeoutError:
            return f"cannot be reached: it did not answer within {_PROBE_SECONDS:g} s"
        except (ConnectError, ConnectionBroken) as error:
            return f"cannot be reached: {error}"
        except ValueError as error:  # includes msgspec's errors
            return f"does not respond like an OpenAI-compatible server: {error}"
        if self._problem is not None:
            self._problem, self._failures = None, _MAX_FAILURES - 1 if self._failures else 0
            self._failing.clear()
            self._on_change()
        return None

    async def _discover(self) -> None:
        status, body = await self._get(self.profile.models_path)
        if status in (401, 403):
            raise EngineStartFailed(f"does not accept the API key ({status})")
        if status != 200:
            raise EngineStartFailed(f"answers {status} to a request for its models")
        listed = _decode(body, _Models).data
        by_name = {model.id: model for model in listed}
        names = self.config.models or list(by_name)
        if not names:
            raise EngineStartFailed("lists no models")
        document = await self._fetch_document()
        self.profile = self.profile.adapt(_chat_fields(document))
        paths = document.get("paths")
        routes = list(paths) if isinstance(paths, dict) else []
        self.models = [
            ListedModel(
                name,
                by_name[name].window if name in by_name else None,
                self._capabilities(name, by_name[name].capabilities if name in by_name else None, routes),
                by_name[name].answer_tokens if name in by_name else None,
            )
            for name in names
        ]
        if self.config.kind == "llamacpp" and not self.config.concurrency:
            status, body = await self._get("/props")
            if status == 200 and (slots := _decode(body, _Props).total_slots) > 0:
                self.limiter.limit = slots

    def _capabilities(self, model: str, listed: Any = None, routes: Sequence[str] = ()) -> tuple[str, ...]:
        """Return what a model can do. `listed`: its capabilities as the server lists them. `routes`: the server's
        routes, if it documents them."""
        if self.config.capabilities:
            return order_capabilities(self.config.capabilities)
        if isinstance(listed, list):  # other servers have other words in this field
            known = order_capabilities(item for item in listed if isinstance(item, str))
            if known:
                return known
        return guess_capabilities(model, routes)

    async def _fetch_document(self) -> dict[str, Any]:
        """Return the server's OpenAPI document; an empty one if it has none."""
        if self.config.kind in ("openai", "llamacpp"):
            return {}
        status, body = await self._get("/openapi.json")
        if status != 200:
            return {}
        try:
            document = decode_json(body)
        except ValueError:  # BadJson is one
            return {}
        return document if isinstance(document, dict) else {}

    async def _check_health(self) -> None:
        """Check the server's health, and read its load."""
        try:
            status, _ = await self._get(self.profile.health_path)
        except TimeoutError:
            self._mark_down(f"did not answer its health check within {_PROBE_SECONDS:g} s")
            return
        except (ConnectError, ConnectionBroken) as error:
            self._mark_down(f"cannot be reached: {error}")
            return
        if status >= 500:
            self._mark_down(f"failed its health check with status {status}")
            return
        if self.profile.load_metrics:
            with suppress(TimeoutError, ConnectError, ConnectionBroken):
                own = self.limiter.running
                status, body = await self._get("/metrics")
                if status == 200:
                    self.external_requests = max(
                        0, _sum_metrics(body.decode(errors="replace"), self.profile.load_metrics) - own
                    )

    async def _get(self, path: str) -> tuple[int, bytes]:
        assert self._connections is not None
        async with asyncio.timeout(_PROBE_SECONDS):
            response = await self._connections.request("GET", path)
            try:
                return response.status, await response.read()
            finally:
                response.close()


def _chat_fields(document: Mapping[str, Any]) -> list[str]:
    """Return the field names of chat requests in an OpenAPI document; none if it does not describe them."""
    try:
        route = document["paths"]["/v1/chat/completions"]["post"]
        schema = route["requestBody"]["content"]["application/json"]["schema"]
        name = schema["$ref"].rpartition("/")[2]
        return [str(field) for field in dict(document["components"]["schemas"][name]["properties"])]
    except (KeyError, TypeError, ValueError, AttributeError):
        return []


class _Meta(msgspec.Struct):
    n_ctx: int | None = None


class _Model(msgspec.Struct):
    id: str
    max_model_len: int | None = None
    context_length: int | None = None
    max_input_tokens: int | None = None
    meta: _Meta | None = None
    capabilities: Any = None
    max_tokens: Any = None

    @property
    def answer_tokens(self) -> int | None:
        """Maximum tokens of an answer, as Anthropic's API reports it; None if it is absent or not a positive number."""
        return self.max_tokens if type(self.max_tokens) is int and 0 < self.max_tokens <= _LARGEST_WINDOW else None

    @property
    def window(self) -> int | None:
        """Context length in tokens, from the field that the server sends; None if it is absent or not positive.

        The field is `max_model_len` for vLLM, SGLang and myna, `context_length` for OpenRouter, `max_input_tokens` for
        Anthropic, and `meta.n_ctx` for llama.cpp.
        """
        reported = self.max_model_len or self.context_length or self.max_input_tokens
        window = reported or (self.meta.n_ctx if self.meta else None) or 0
        return min(window, _LARGEST_WINDOW) if window > 0 else None


class _Models(msgspec.Struct):
    data: list[_Model]


class _Props(msgspec.Struct):
    total_slots: int = 0


_Kind = TypeVar("_Kind")


def _decode(body: bytes, kind: type[_Kind]) -> _Kind:
    """Decode the JSON in which the server describes itself or its models. Raises ValueError if it does not fit
    `kind`."""
    try:
        return msgspec.json.decode(body, type=kind)
    except RecursionError:
        raise ValueError("the JSON is nested too deeply") from None


def _parse_error(body: bytes) -> tuple[str, str]:
    """Return message and code of an error response, in any of the known shapes."""
    try:
        answer = decode_json(body)
    except BadJson:
        return " ".join(body[:300].decode(errors="replace").split()), ""
    error = answer.get("error", answer) if isinstance(answer, dict) else answer
    if not isinstance(error, dict):
        return str(error), ""
    code = error.get("code")
    return str(error.get("message") or error.get("detail") or error), str(
        code if isinstance(code, str) else error.get("type") or ""
    )


def _retry_pause(retry_after: str | None) -> float:
    """Return the pause that a busy server requests, in seconds."""
    try:
        seconds = float(retry_after or 1.0)
    except ValueError:  # a date
        return 1.0
    return 1.0 if math.isnan(seconds) else min(max(seconds, 0.05), _MAX_PAUSE)


def _sum_metrics(metrics: str, names: Sequence[str] | Any) -> int:
    """Return the sum of some metrics over all their labels, in Prometheus' text format. Values that are not valid
    counts are 0."""
    total = 0.0
    for name in names:
        for value in re.findall(rf"^{re.escape(name)}(?:\{{[^}}\n]*\}})? ([0-9.eE+]{{1,30}})", metrics, re.MULTILINE):
            with suppress(ValueError):
                total += min(float(value), _LARGEST_WINDOW)
    return round(total)
