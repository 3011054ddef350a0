"""The command `myna serve`: start the gateway and its engines."""

import sys
import time

import uvloop

from gateway.cli.options import read_settings
from gateway.config.settings import ServeSettings


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
        engines = EngineFactory(settings, pool)
    except OSError as error:  # includes errors of TLS
        print(f"myna: cannot load {settings.engine_ca}: {error.strerror or error}", file=sys.stderr)
        return 1
    try:
        await engines.launch()
        from gateway.server.lifespan import Lifespan, StartFailed  # loads while the engine's process loads as well

        try:
            await Lifespan(settings, pool, engines, began).run()
        except StartFailed as error:
            print(f"myna: {error}", file=sys.stderr)
            return 1
        return 0
    finally:
        await engines.close()  # closes again, unless the start failed before
