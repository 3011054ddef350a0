"""The services of a gateway that its routes use."""

from collections.abc import Callable
from dataclasses import dataclass, field

from aiohttp import web

from gateway.accounts.accounts import Accounts
from gateway.accounts.key_admin import KeyAdmin
from gateway.graph.session_store import SessionStore
from gateway.http.middleware.auth import TENANT
from gateway.prompts.served_models import ServedModels
from gateway.relay import Embedder, Relay
from gateway.responses import ResponseStore
from gateway.runtime.fair_gate import FairGate
from gateway.scheduler import Scheduler


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
    max_wait_seconds: float
    max_upload_bytes: int
    """Maximum size of a multipart form, in bytes."""
    exports_traces: bool = False
    """Whether calls join the traces that their requests name."""
    schema_check_gate: FairGate = field(default_factory=lambda: FairGate(rests=False))

    def models_of(self, tenant: str) -> ServedModels:
        """Return the models that a tenant may use."""
        return self.models.restricted(self.accounts.may_use(tenant))


SERVICES = web.AppKey("services", Services)


def models_of(request: web.Request) -> ServedModels:
    """Return the models that the API key of a request may use."""
    return request.app[SERVICES].models_of(request[TENANT])
