"""The command `myna serve`: start the gateway and its engines."""

import sys
import time
from typing import TYPE_CHECKING

import uvloop

from gateway.cli.options import read_settings
from gateway.config.settings import ServeSettings

if TYPE_CHECKING:
    pass


def main(arguments: list[str]) -> int:
    """Serve until a signal ends the process. Return the exit status."""
    began = time.monotonic()
    settings = read_settings(ServeSettings, arguments, "myna serve")
    return 2 if settings is None else uvloop.run(_serve(settings, began))


async def _serve(settings: ServeSettings, began: float) -> int:
    from gateway.engines.pool import EnginePool
    from gateway.server.engine_factory import EngineFactory

    pool: EnginePool = EnginePool(settings.engine_wait)
    try:
        fleet = EngineFactory(settings, pool)
    except OSError as error:  # includes errors of TLS
        print(f"myna: cannot trust {settings.engine_ca}: {error.strerror or error}", file=sys.stderr)
        return 1
    try:
        await fleet.begin()
        from gateway.app import serve  # loads for half a second, while the engine's process loads as well

        return await serve(settings, pool, fleet, began)
    finally:
        await fleet.close()  # closes again, unless `serve` raised before it closed
