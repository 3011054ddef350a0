"""What the routes reach the rest of the house through."""

from collections.abc import Callable
from dataclasses import dataclass

from aiohttp import web

from gateway.archive import Archive
from gateway.graph.store import SessionStore
from gateway.models import Models
from gateway.scheduler import Scheduler


@dataclass(frozen=True)
class Services:
    """One for each application. `ready`: whether every model takes work now."""

    sessions: SessionStore
    scheduler: Scheduler
    models: Models
    archive: Archive
    ready: Callable[[], bool]
    max_wait_seconds: float


SERVICES = web.AppKey("services", Services)
