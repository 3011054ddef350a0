"""The command `myna engine`: run an engine that gateways on other machines connect to."""

import signal
import ssl
import sys
import time
from collections.abc import Callable

from engine.errors import EngineError
from engine.protocol import EngineInfo
from engine.server.tcp import serve
from gateway.cli.options import read_settings
from gateway.config.settings import EngineSettings
from gateway.server.engine_factory import engine_config
from gateway.server.tls import tls_context


def main(arguments: list[str]) -> int:
    """Serve until a signal ends the process. Return the exit status."""
    settings = read_settings(EngineSettings, arguments, "myna engine")
    return 2 if settings is None else run(settings)


def run(settings: EngineSettings) -> int:
    """Serve until SIGTERM, SIGINT or SIGHUP. Return the exit status."""
    began = time.monotonic()

    def stopping(stop: Callable[[], None]) -> None:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            if signal.getsignal(number) is not signal.SIG_IGN:  # `nohup` ignores hangups
                signal.signal(number, lambda *_: stop())

    def ready(info: EngineInfo, address: str) -> None:
        print(
            f"myna engine runs {info.model} ({info.dtype}, window {info.window}) on {info.device}, kernels: "
            f"{info.kernels}, KV {info.kv_tokens} tokens, at {address} (ready in {time.monotonic() - began:.1f} s)",
            flush=True,
        )

    try:
        tls: ssl.SSLContext | None = tls_context(settings.tls_cert, settings.tls_key)
    except OSError as error:
        print(f"myna engine: cannot use the certificate {settings.tls_cert}: {error}", file=sys.stderr)
        return 1
    host, port = settings.address
    config = engine_config(settings, settings.device, 1)
    try:
        serve(config, host, port, settings.engine_token or "", tls, on_start=stopping, on_ready=ready)
    except EngineError as error:
        print(f"myna engine: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"myna engine: cannot listen on {settings.listen}: {error.strerror or error}", file=sys.stderr)
        return 1
    return 0
