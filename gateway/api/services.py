"""The services of a gateway that its routes use."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from aiohttp import web

from gateway.accounts.accounts import Accounts
from gateway.accounts.keys.key_admin import KeyAdmin
from gateway.accounts.ledger.ledger import Ledger
from gateway.accounts.ledger.spend import FREE
from gateway.accounts.prices import Prices
from gateway.api.program_tracker import ProgramTracker
from gateway.config.tool_servers import ToolSettings
from gateway.errors import RequestError
from gateway.graph.budget import Limits
from gateway.graph.call import CallState
from gateway.graph.session_store import SessionStore
from gateway.http.middleware.auth import TENANT
from gateway.prompts.normalize import NormalizePrompts
from gateway.prompts.served_models import ServedModels
from gateway.relay import Embedder, Relay
from gateway.responses import ResponseStore
from gateway.runtime.fair_gate import FairGate
from gateway.scheduler import Scheduler
from gateway.telemetry.engine_status import EngineStatus
from gateway.telemetry.span_exporter import SpanExporter
from gateway.tools.tool_servers import ToolServers


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
    accounts: Accounts
    key_admin: KeyAdmin
    is_ready: Callable[[], bool]
    describe_engines: Callable[[], Sequence[tuple[EngineStatus, Sequence[str]]]]
    """Function that returns the state of each engine, with the models that it serves."""
    max_wait_seconds: float
    max_upload_bytes: int
    """Maximum size of a multipart form, in bytes."""
    exporter: SpanExporter | None = None
    """Exporter of traces, if the settings name a collector."""
    prices: Prices = field(default_factory=lambda: Prices({}))
    ledger: Ledger | None = None
    """Record of the tokens and the cost of each call, if there is one."""
    normalize_prompts: NormalizePrompts = NormalizePrompts.AGENTS
    programs: ProgramTracker | None = None
    """Programs of the requests, unless the settings turn them off."""
    tools: ToolServers = field(default_factory=lambda: ToolServers(ToolSettings()))
    """MCP servers that the operator allows."""
    schema_check_gate: FairGate = field(default_factory=lambda: FairGate(rests=False))

    def settle_request(
        self, tenant: str, id: str, model: str, engine: str, tokens: int, state: CallState = CallState.DONE
    ) -> None:
        """Record a request that is no call, and count its input tokens for its key. `id`: that of its reservation; see
        `Accounts.relayed`."""
        if self.ledger is not None:
            spend = self.ledger.record_request(tenant, model, engine, tokens, state)
        else:
            spend = FREE._replace(prompt=tokens, cost=self.prices.of(model).cost(tokens, 0, 0))
        self.accounts.settle(tenant, id, spend)

    def check_limits(self, limits: Limits | None) -> None:
        """Raise RequestError if the limits of a session cannot be applied."""
        if limits is not None and limits.cost is not None and not self.prices:
            message = "limits.cost has no effect, because this server has no prices; use limits.tokens"
            raise RequestError(400, message, code="invalid_value", param="limits.cost")

    def models_of(self, tenant: str) -> ServedModels:
        """Return the models that a tenant may use."""
        may_use = self.accounts.may_use(tenant)
        return self.models if may_use is None else self.models.restricted(may_use)


SERVICES = web.AppKey("services", Services)


def normalizes_prompt(request: web.Request) -> bool:
    """Return whether the prompt of a request is normalized; see `gateway.prompts.normalize`."""
    return request.app[SERVICES].normalize_prompts.applies_to(request.headers)


def models_of(request: web.Request) -> ServedModels:
    """Return the models that the API key of a request may use."""
    return request.app[SERVICES].models_of(request[TENANT])
