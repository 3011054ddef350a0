"""One server elsewhere: its connections, its health, and what it can do."""

import asyncio
import dataclasses
import logging
import math
import re
import ssl
import time
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import msgspec

from gateway.engines.local.client import EngineStartFailed
from gateway.engines.openai.concurrency import ConcurrencyLimiter
from gateway.engines.openai.profiles import Profile, profile_of
from gateway.engines.openai.stream_parser import refused
from gateway.engines.protocol import EngineBusy, EngineFailure, EngineLost
from gateway.http_client.connection import ConnectError, ConnectionBroken, ConnectionPool, Response, ResponseTimeout
from gateway.runtime import json_codec

log = logging.getLogger("myna.engines")

_KEPT_SECONDS = 4.0
"""For which an idle connection is kept: such servers, uvicorn's and llama.cpp's among them, close it after 5."""
_PROBE_SECONDS = 5.0
"""Between two looks at a server's health, and for each to take at most; one that only lists its models is looked at
more rarely."""
_RARELY = 6
_BACKOFF = (0.5, 30.0)
"""Seconds that a server is left alone after it failed, at first and at most."""
_FAILURES = 3
"""In a row, after which a server that takes connections is left alone too."""
_MOST_PAUSE = 60.0
"""Seconds; a server that is to be left alone for longer is asked again then."""
_CONCURRENCY = 256
"""Requests at a time, where neither the settings nor the server say how many."""
_ERROR_BYTES = 64 << 10
_RECENT_SECONDS = 60.0
"""Time for which a tenant that has asked a server counts among those that use it, in seconds."""
_LARGEST_WINDOW = 2**31 - 1


@dataclass(frozen=True)
class Server:
    """A server as the settings name it.

    `url`: with or without its `/v1`. `models`: those that are wanted, all that it lists if there are none. `timeout`:
    seconds of silence, within an answer or before it, after which it is given up. `concurrency`: requests at a time; 0
    leaves it to the server.
    """

    name: str
    kind: str
    url: str
    key: str | None = None
    models: Sequence[str] = ()
    timeout: float = 300.0
    concurrency: int = 0
    tls: ssl.SSLContext | None = None


@dataclass(frozen=True)
class Listed:
    """A model that a server lists. `window` in tokens, if it says so."""

    id: str
    window: int | None = None


class Upstream:
    """Owner of the connections to one server, and of what is known of it.

    It is `ready` unless it is down or has said that it is too busy. It is down when it cannot be reached, when its own
    page of health says so, and after some failures in a row; then it is looked at again with growing pauses.
    """

    def __init__(self, server: Server, changed: Callable[[], None], *, patience: float = 0.0) -> None:
        """`changed` is called whenever `ready` changes. `patience`: seconds for which `start` goes on trying."""
        self.server = server
        host = re.sub(r"^\w+://", "", server.url).partition("/")[0].rpartition("@")[2].partition(":")[0]
        self.profile: Profile = profile_of(server.kind, host)
        self.url = re.sub(r"(/v1)?/*$", "", server.url)
        self.models: list[Listed] = [Listed(name) for name in server.models]
        self.turns = ConcurrencyLimiter(server.concurrency or _CONCURRENCY)
        self.others = 0
        """Requests that the server has from elsewhere, as far as it says."""
        self.dropped: set[str] = set()
        """Fields that it refused, and does without."""
        self._changed = changed
        self._patience = patience
        self._connections: ConnectionPool | None = None
        self._down: str | None = "it was not reached yet"
        self._busy_until = 0.0
        self._failures = 0
        self._failing: set[str] = set()
        """Tenants whose requests have failed since the last success."""
        self._asked: dict[str, float] = {}
        """Times at which tenants have asked last, by the monotonic clock."""
        self._briefly = False
        """Whether one tenant's failures alone have brought the server down: then the pauses do not grow."""
        self._pause = _BACKOFF[0]
        self._look = asyncio.Event()
        self._watch: asyncio.Task[None] | None = None

    @property
    def ready(self) -> bool:
        """Whether it takes work now."""
        return self._down is None and time.monotonic() >= self._busy_until

    async def start(self) -> None:
        """Returns when the server was reached; or at once, if its models are named, since then it may come later.
        Raises EngineStartFailed."""
        key = {"Authorization": f"Bearer {self.server.key}"} if self.server.key else {}
        try:
            self._connections = ConnectionPool(
                self.url, key, tls=self.server.tls, patience=self.server.timeout, kept=_KEPT_SECONDS
            )
        except ValueError as error:
            raise EngineStartFailed(f"the engine {self.server.name} at {self.url} cannot be asked: {error}") from error
        began = time.monotonic()
        problem = await self._reach()
        while problem is not None and not self.server.models and time.monotonic() - began < self._patience:
            await asyncio.sleep(min(self._pause, 1.0))
            problem = await self._reach()
        if problem is not None:
            if not self.server.models:
                await self.close()
                raise EngineStartFailed(f"the engine {self.server.name} at {self.url} {problem}")
            log.warning("engine %s at %s %s; it is tried again", self.server.name, self.url, problem)
        self._watch = asyncio.create_task(self._keep_watch(), name=f"watch {self.server.name}")

    async def close(self) -> None:
        """Ends all connections."""
        if self._watch is not None:
            self._watch.cancel()
            with suppress(asyncio.CancelledError):
                await self._watch
        if self._connections is not None:
            await self._connections.close()

    # asking

    async def post(self, path: str, content: bytes, tenant: str) -> Response:
        """The answer to a request, once its status is there and says success; to be closed by whoever reads it.

        `content`: the request's body. `tenant`: whose request it is.
        Raises EngineLost where it may be tried again, and other failures of engines where that would change nothing.
        """
        assert self._connections is not None, "not started"
        self._asked[tenant] = time.monotonic()
        try:
            response = await self._connections.post(path, content)
            if response.status == 200:
                return response
            try:
                raise await self._refusal(response, tenant)
            finally:
                response.close()
        except (ConnectError, ConnectionBroken) as error:
            raise self.broke(error, tenant) from error

    def broke(self, error: ConnectError | ConnectionBroken, tenant: str) -> EngineLost:
        """What an error of the connection means. `tenant`: whose request it ended."""
        if isinstance(error, ConnectError):
            self._fell(f"cannot be reached: {error}")
            return self.lost("cannot be reached")
        self.failed(tenant)
        if isinstance(error, ResponseTimeout):
            return self.lost(f"has been silent for {self.server.timeout:g} s")
        return self.lost(f"broke off: {error}")

    def learn(
        self, dropped: Collection[str], length: Literal["max_tokens", "max_completion_tokens"] | None = None
    ) -> None:
        """Change all later requests: leave the `dropped` fields out, and send the maximum length of a chat's answer in
        the field `length`, if it is given."""
        self.dropped.update(dropped)
        if length is not None:
            self.profile = dataclasses.replace(self.profile, length=length)

    def lost(self, what: str) -> EngineLost:
        """For whoever waited for it; a moment later it may go better."""
        return EngineLost(f"the engine {self.server.name} {what}", suspect=False, pause=0.2)

    def failed(self, tenant: str) -> None:
        """Note that a request of the tenant failed for the server's own reasons.

        After some failures in a row the server is left alone. But the requests of one tenant may all fail because of
        what they say. So the failures of one tenant do not count as long as others use the server.
        """
        self._failures += 1
        self._failing.add(tenant)
        if self._failures < _FAILURES:
            return
        recent = time.monotonic() - _RECENT_SECONDS
        alone = len(self._failing) == 1 and len(self._asked) > 1
        if alone and any(at > recent for other, at in self._asked.items() if other not in self._failing):
            return
        self._fell(f"failed {self._failures} times in a row", briefly=alone)

    def succeeded(self) -> None:
        """A request was answered."""
        self._failures, self._pause = 0, _BACKOFF[0]
        self._failing.clear()

    def _fell(self, why: str, *, briefly: bool = False) -> None:
        if self._down is None:
            self._briefly = briefly
            log.error("engine %s %s; it is left alone for %.1f s", self.server.name, why, self._pause)
            self._down = why
            self._look.set()
            self._changed()

    async def _refusal(self, response: Response, tenant: str) -> EngineFailure:
        """What an answer other than success means."""
        status, message, code = response.status, *_said(await response.read(_ERROR_BYTES, cut=True))
        told = f"the engine {self.server.name} answers {status}: {message or response.reason}"
        if status in (401, 403):
            log.error("%s", told)
            return EngineFailure(f"the engine {self.server.name} does not accept the key it is shown ({status})")
        if status == 429 and code != "insufficient_quota":
            pause = _seconds(response.headers.get("retry-after"))
            self._rest(pause)
            return EngineBusy(told, suspect=False, pause=pause)
        if status in (408, 409, 425) or status >= 500:
            self.failed(tenant)
            return EngineLost(told, suspect=False, pause=0.2)
        if status == 429 or status == 402:
            return EngineFailure(told)
        self.succeeded()
        return refused(message, told, code)

    def _rest(self, seconds: float) -> None:
        """It has said that it is too busy."""
        self._busy_until = max(self._busy_until, time.monotonic() + seconds)
        self._changed()
        asyncio.get_running_loop().call_later(seconds + 0.01, self._changed)

    # watching

    async def _keep_watch(self) -> None:
        looks = 0
        while True:
            pause = _PROBE_SECONDS if self._down is None else self._pause
            self._look.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._look.wait()
                continue  # it has just fallen: now its pause begins
            looks += 1
            if self._down is not None:
                if not self._briefly:
                    self._pause = min(2 * self._pause, _BACKOFF[1])
                if (problem := await self._reach()) is not None:
                    log.info("engine %s %s still", self.server.name, problem)
            elif self.profile.health != "/v1/models" or looks % _RARELY == 0:
                await self._look_after()

    async def _reach(self) -> str | None:
        """Looks whether it is there, and learns what it can do. Returns what is wrong."""
        try:
            await self._learn()
        except EngineStartFailed as error:
            return str(error)
        except TimeoutError:
            return f"cannot be reached: it did not answer within {_PROBE_SECONDS:g} s"
        except (ConnectError, ConnectionBroken) as error:
            return f"cannot be reached: {error}"
        except ValueError as error:  # of which msgspec's errors are
            return f"does not answer as a server with OpenAI's API would: {error}"
        if self._down is not None:
            self._down, self._failures = None, _FAILURES - 1 if self._failures else 0
            self._failing.clear()
            self._changed()
        return None

    async def _learn(self) -> None:
        status, body = await self._get("/v1/models")
        if status in (401, 403):
            raise EngineStartFailed(f"does not accept the key it is shown ({status})")
        if status != 200:
            raise EngineStartFailed(f"answers {status} when it is asked for its models")
        listed = _read(body, _Models).data
        by_name = {model.id: Listed(model.id, model.window) for model in listed}
        wanted = self.server.models or list(by_name)
        self.models = [by_name.get(name, Listed(name)) for name in wanted]
        if not self.models:
            raise EngineStartFailed("lists no model")
        self.profile = self.profile.knowing(await self._fields())
        if self.server.kind == "llamacpp" and not self.server.concurrency:
            status, body = await self._get("/props")
            if status == 200 and (slots := _read(body, _Props).total_slots) > 0:
                self.turns.limit = slots

    async def _fields(self) -> list[str]:
        """Of its chat requests, if it says so."""
        if self.server.kind in ("openai", "llamacpp"):
            return []
        status, body = await self._get("/openapi.json")
        if status != 200:
            return []
        try:
            document = json_codec.decode(body)
            route = document["paths"]["/v1/chat/completions"]["post"]
            schema = route["requestBody"]["content"]["application/json"]["schema"]
            name = schema["$ref"].rpartition("/")[2]
            return [str(field) for field in dict(document["components"]["schemas"][name]["properties"])]
        except (KeyError, TypeError, ValueError, AttributeError):  # it documents something else, or nothing
            return []

    async def _look_after(self) -> None:
        """Its health, and how much it has to do."""
        try:
            status, _ = await self._get(self.profile.health)
        except TimeoutError:
            self._fell(f"has not said how it is within {_PROBE_SECONDS:g} s")
            return
        except (ConnectError, ConnectionBroken) as error:
            self._fell(f"cannot be reached: {error}")
            return
        if status >= 500:
            self._fell(f"says of its health: {status}")
            return
        if self.profile.load:
            with suppress(TimeoutError, ConnectError, ConnectionBroken):
                own = self.turns.running
                status, body = await self._get("/metrics")
                if status == 200:
                    self.others = max(0, _sum(body.decode(errors="replace"), self.profile.load) - own)

    async def _get(self, path: str) -> tuple[int, bytes]:
        assert self._connections is not None
        async with asyncio.timeout(_PROBE_SECONDS):
            response = await self._connections.ask("GET", path)
            try:
                return response.status, await response.read()
            finally:
                response.close()


class _Meta(msgspec.Struct):
    n_ctx: int | None = None


class _Model(msgspec.Struct):
    id: str
    max_model_len: int | None = None
    context_length: int | None = None
    meta: _Meta | None = None

    @property
    def window(self) -> int | None:
        """Window under vLLM's, SGLang's and myna's name for it, OpenRouter's, or llama.cpp's; None if it is not
        positive."""
        window = self.max_model_len or self.context_length or (self.meta.n_ctx if self.meta else None) or 0
        return min(window, _LARGEST_WINDOW) if window > 0 else None


class _Models(msgspec.Struct):
    data: list[_Model]


class _Props(msgspec.Struct):
    total_slots: int = 0


_Kind = TypeVar("_Kind")


def _read(body: bytes, kind: type[_Kind]) -> _Kind:
    """Decode what a server says of itself. Raises ValueError."""
    try:
        return msgspec.json.decode(body, type=kind)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _said(body: bytes) -> tuple[str, str]:
    """Message and code of an error, in whichever shape."""
    try:
        answer = json_codec.decode(body)
    except json_codec.BadJson:
        return " ".join(body[:300].decode(errors="replace").split()), ""
    error = answer.get("error", answer) if isinstance(answer, dict) else answer
    if not isinstance(error, dict):
        return str(error), ""
    code = error.get("code")
    return str(error.get("message") or error.get("detail") or error), str(
        code if isinstance(code, str) else error.get("type") or ""
    )


def _seconds(retry_after: str | None) -> float:
    """How long a server that is too busy wants to be left alone."""
    try:
        seconds = float(retry_after or 1.0)
    except ValueError:  # a date
        return 1.0
    return 1.0 if math.isnan(seconds) else min(max(seconds, 0.05), _MOST_PAUSE)


def _sum(metrics: str, names: Sequence[str] | Any) -> int:
    """Return the sum of some metrics over all their labels, in Prometheus' text format. Values that are no numbers of
    requests count as 0."""
    total = 0.0
    for name in names:
        for value in re.findall(rf"^{re.escape(name)}(?:\{{[^}}\n]*\}})? ([0-9.eE+]{{1,30}})", metrics, re.MULTILINE):
            with suppress(ValueError):
                total += min(float(value), _LARGEST_WINDOW)
    return round(total)
