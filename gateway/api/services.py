"""The services of a gateway that its routes use."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from aiohttp import web

from gateway.graph.session_store import SessionStore
from gateway.prompts.served_models import ServedModels
from gateway.relay import Embedder, Relay
from gateway.responses import ResponseStore
from gateway.runtime.fair_gate import FairGate
from gateway.scheduler import Scheduler
from gateway.telemetry.engine_status import EngineStatus


@dataclass(frozen=True)
class Services:
    """The services of one gateway.

    `is_ready`: whether every model accepts work now. `schema_check_gate`: admits work on schemas, patterns and grammars
    to threads.
    """

    sessions: SessionStore
    scheduler: Scheduler
    models: ServedModels
    response_store: ResponseStore
    relay: Relay
    embedder: Embedder
    is_ready: Callable[[], bool]
    describe_engines: Callable[[], Sequence[tuple[EngineStatus, Sequence[str]]]]
    """Function that returns the state of each engine, with the models that it serves."""
    max_wait_seconds: float
    max_upload_bytes: int
    """Maximum size of a multipart form, in bytes."""
    exports_traces: bool = False
    """Whether calls join the traces that their requests name."""
    schema_check_gate: FairGate = field(default_factory=lambda: FairGate(rests=False))


SERVICES = web.AppKey("services", Services)
