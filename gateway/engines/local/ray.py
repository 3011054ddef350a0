"""Engines of this project as actors on a Ray cluster: place them, find them again, and connect to them over TCP.

An actor is an engine that listens (`engine.server.tcp`). It is detached and named, so that it outlives its gateway and
the next gateway finds it. It ends after a while without a connection. If its node dies, Ray starts it on another node,
and the gateway, whose connection broke, looks it up again. Ray (`pip install 'myna[ray]'`) is imported when it is used.
"""

import asyncio
import hashlib
import logging
import os
import secrets
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import msgspec

from engine.config import EngineConfig
from engine.protocol import EngineInfo
from gateway.engines.local.client import EngineStartFailed
from gateway.engines.local.tcp import TcpEngine

log = logging.getLogger("myna.engines")

_NAMESPACE = "myna"
_START_SECONDS = 900.0
"""Maximum time in which an actor is placed, loads its model and listens, in seconds."""
_POLL_SECONDS = 1.0


@dataclass(frozen=True)
class EngineResources:
    """Resources of each engine in the cluster: CPU cores and GPUs, or parts of a GPU."""

    cpus: float
    gpus: float


def connect(address: str) -> Any:
    """Return the ray module, connected to the cluster at `HOST:PORT`, or with `auto` to the one of this machine.

    Raises EngineStartFailed.
    """
    try:
        import ray
    except ImportError:
        raise EngineStartFailed("engines on Ray require the ray package: pip install 'myna[ray]'") from None
    try:
        if not ray.is_initialized():
            ray.init(address, namespace=_NAMESPACE, log_to_driver=False, logging_level=logging.WARNING)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise EngineStartFailed(f"there is no Ray cluster at {address}: {str(error).splitlines()[0]}") from error
    return ray


def resources_per_engine(address: str, count: int, cpus: float | None, gpus: float | None) -> list[EngineResources]:
    """Return the resources of each engine.

    Defaults: one engine for each GPU of the cluster. Without GPUs, one engine for each node that has cores, with as
    many cores as the smallest of these nodes. Raises EngineStartFailed.
    """
    ray = connect(address)
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    cores = [node["CPU"] for node in nodes if node.get("CPU")]
    if not cores:
        raise EngineStartFailed(f"no node of the Ray cluster at {address} has a free core")
    gpu_count = int(sum(node.get("GPU", 0) for node in nodes))
    if gpus is None:
        gpus = 1.0 if gpu_count else 0.0
    if cpus is None:
        cpus = 1.0 if gpus else min(cores)
    return [EngineResources(cpus, gpus)] * (count or (int(gpu_count / gpus) if gpus else len(cores)))


class RayEngine(TcpEngine):
    """One engine on the cluster. See `TcpEngine`. Closing leaves the actor running: it ends once no gateway has been
    connected for `linger` seconds."""

    def __init__(
        self,
        name: str,
        address: str,
        config: EngineConfig,
        resources: EngineResources,
        on_change: Callable[[], None],
        *,
        linger: float = 300.0,
        hang_seconds: float = 60.0,
    ) -> None:
        """`name` and `config` identify the actor."""
        super().__init__(name, "", 0, "", on_change, hang_seconds=hang_seconds)
        self._address = address
        self._config = msgspec.json.encode(config)
        self._resources = resources
        self._linger = linger
        self.actor = f"{name}-{hashlib.sha256(self._config + repr(resources).encode()).hexdigest()[:12]}"
        """Name of the actor in the cluster."""

    async def run_once(self, first_ready: "asyncio.Future[None]") -> str:
        """Find or create the actor, and connect to it."""
        ray = await asyncio.to_thread(connect, self._address)
        try:
            actor = await asyncio.to_thread(self._get_or_create_actor, ray)
            async with asyncio.timeout(_START_SECONDS):
                endpoint: Endpoint = await asyncio.wrap_future(actor.endpoint.remote().future())
        except TimeoutError:
            return f"its actor {self.actor} did not start within {_START_SECONDS:g} s; the cluster may lack resources"
        except ray.exceptions.RayError as error:
            return f"its actor {self.actor} was not found: {str(error).splitlines()[0]}"
        if endpoint.problem:
            await asyncio.to_thread(ray.kill, actor)
            raise EngineStartFailed(f"the engine of the actor {self.actor} cannot start: {endpoint.problem}")
        self._host, self._port, self._token = endpoint.host, endpoint.port, endpoint.token
        return await super().run_once(first_ready)

    def _get_or_create_actor(self, ray: Any) -> Any:
        """Return the actor of this name. Create it if there is none."""
        options: dict[str, Any] = {
            "name": self.actor,
            "namespace": _NAMESPACE,
            "lifetime": "detached",
            "get_if_exists": True,
            "num_cpus": self._resources.cpus,
            "num_gpus": self._resources.gpus,
            "max_restarts": -1,
            "max_concurrency": 8,
            "scheduling_strategy": "SPREAD",
        }
        return (
            ray.remote(EngineActor)
            .options(**options)
            .remote(self._config, max(1, int(self._resources.cpus)), self._linger)
        )


@dataclass(frozen=True)
class Endpoint:
    """Address and token of an actor's engine, or the problem because of which there is none."""

    host: str = ""
    port: int = 0
    token: str = ""
    problem: str = ""


class EngineActor:
    """An engine within an actor's process. Owner of the thread that runs it."""

    def __init__(self, config: bytes, threads: int, linger: float) -> None:
        decoded = msgspec.json.decode(config, type=EngineConfig)
        if not decoded.threads:
            decoded = msgspec.structs.replace(decoded, threads=threads)
        self._config = decoded
        self._linger = linger
        self._token = secrets.token_hex(16)
        self._connections, self._since = 0, time.monotonic()
        """Number of connected gateways, and the time of its last change."""
        self._endpoint = Endpoint()
        self._started = threading.Event()
        threading.Thread(target=self._serve, name="engine", daemon=True).start()

    def endpoint(self) -> Endpoint:
        """Return the address, once the engine listens or has failed to start."""
        self._started.wait()
        return self._endpoint

    def pid(self) -> int:
        """Return the id of the actor's process."""
        return os.getpid()

    def _serve(self) -> None:
        from ray.util import get_node_ip_address

        from engine.server.tcp import serve  # loads torch, which the gateway must not load

        host = str(get_node_ip_address())  # type: ignore[no-untyped-call]
        try:
            serve(
                self._config,
                host,
                0,
                self._token,
                None,
                on_start=lambda stop: None,
                on_ready=self._ready,
                on_connections=self._set_connections,
            )
        except Exception as error:
            if not self._started.is_set():
                self._endpoint = Endpoint(problem=f"{error}")
                self._started.set()
                return
            log.exception("the engine ended")
        os._exit(1)  # Ray restarts the actor

    def _ready(self, info: EngineInfo, address: str) -> None:
        host, _, port = address.partition("://")[2].rpartition(":")
        self._endpoint = Endpoint(host.strip("[]"), int(port), self._token)
        self._since = time.monotonic()
        self._started.set()
        threading.Thread(target=self._end_when_unused, name="linger", daemon=True).start()

    def _set_connections(self, count: int) -> None:
        """Record the number of connected gateways."""
        self._connections, self._since = count, time.monotonic()

    def _end_when_unused(self) -> None:
        import ray

        while self._connections or time.monotonic() - self._since < self._linger:
            time.sleep(_POLL_SECONDS)
        log.info("no gateway has been connected for %g s; ending", self._linger)
        ray.kill(ray.get_runtime_context().current_actor, no_restart=True)
