"""The services of a gateway that its routes use."""

from collections.abc import Callable
from dataclasses import dataclass, field

from aiohttp import web

from gateway.accounts.ledger import Ledger
from gateway.errors import RequestError
from gateway.graph.budget import Limits
from gateway.graph.call import Call
from gateway.graph.session_store import SessionStore
from gateway.prompts.served_models import ServedModels
from gateway.relay import Embedder, Relay
from gateway.responses import ResponseStore
from gateway.runtime.fair_gate import FairGate
from gateway.scheduler import Scheduler
from gateway.telemetry.span_exporter import SpanExporter


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
    max_wait_seconds: float
    max_upload_bytes: int
    """Maximum size of a multipart form, in bytes."""
    exporter: SpanExporter | None = None
    """Exporter of traces, if the settings name a collector."""
    cost_of: Callable[[Call], float] = lambda call: 0.0
    """Returns the cost of a call so far."""
    has_prices: bool = False
    """Whether any model has a price."""
    ledger: Ledger | None = None
    """Record of the tokens and the cost of each call, if there is one."""
    schema_check_gate: FairGate = field(default_factory=lambda: FairGate(rests=False))

    def check_limits(self, limits: Limits | None) -> None:
        """Raise RequestError if the limits of a session cannot be applied."""
        if limits is not None and limits.cost is not None and not self.has_prices:
            message = "limits.cost has no effect, because this server has no prices; use limits.tokens"
            raise RequestError(400, message, code="invalid_value", param="limits.cost")


SERVICES = web.AppKey("services", Services)
