"""Periodic work: end expired sessions, delete old responses, end stuck calls, collect garbage."""

import asyncio
import logging
import time

from gateway.api.services import Services
from gateway.responses import ResponseStoreError
from gateway.server.gc_tuning import GcTuner

log = logging.getLogger("myna")

_DISSOLVE_SECONDS = 1.0
"""Interval at which ended sessions are dissolved, and late ones are ended, in seconds."""
_SWEEP_SECONDS = 5.0
"""Interval of all other periodic work, in seconds."""


async def maintain(services: Services, tuner: GcTuner) -> None:
    """Run periodic work for ever. An exception does not end this coroutine: no other code does this work."""
    swept = time.monotonic()
    while True:
        await asyncio.sleep(_DISSOLVE_SECONDS)
        try:
            services.sessions.end_late(time.time())
            services.sessions.dissolve_ended()
            if time.monotonic() - swept >= _SWEEP_SECONDS:
                swept = time.monotonic()
                await _sweep(services, swept)
                tuner.sweep(idle=not services.scheduler.unfinished_calls)
        except Exception:
            log.exception("periodic work failed; next attempt in %g s", _DISSOLVE_SECONDS)


async def _sweep(services: Services, now: float) -> None:
    """Delete expired sessions and responses, and end calls that can make no progress. `now`: monotonic clock."""
    expired = services.sessions.expire(now)
    services.scheduler.end_stuck(services.sessions.all())
    try:
        if expired:
            await services.response_store.delete_sessions([(session.tenant, session.id) for session in expired])
        await services.response_store.enforce_retention()
    except ResponseStoreError as error:
        log.warning("%s", error)
