"""Start and stop of the servers that a benchmark measures."""

import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

_STOP_SECONDS = 40


def free_port() -> int:
    """Return a free port of this machine."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@contextmanager
def started(
    command: Sequence[str], *, port_option: str, environment: Mapping[str, str] | None = None, seconds: float = 120
) -> Iterator[str]:
    """Start a server with OpenAI's API on a free port of this machine. Yield its address once it lists its models.

    Raises SystemExit if it exits, or is not ready within the time limit.
    """
    port = free_port()
    if threading.current_thread() is threading.main_thread():  # on SIGTERM, a benchmark stops its servers first
        signal.signal(signal.SIGTERM, signal.default_int_handler)
    process = subprocess.Popen([*command, port_option, str(port)], stdout=sys.stderr, env=environment)
    try:
        address, began = f"http://127.0.0.1:{port}", time.monotonic()
        while not _lists_models(address):
            if process.poll() is not None:
                raise SystemExit(f"bench: {' '.join(command[:4])} … ended with {process.returncode}")
            if time.monotonic() - began > seconds:
                raise SystemExit(f"bench: {' '.join(command[:4])} … was not ready within {seconds:g} s")
            time.sleep(0.2)
        yield address
    finally:
        process.terminate()
        try:
            process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _lists_models(address: str) -> bool:
    try:
        with urllib.request.urlopen(f"{address}/v1/models", timeout=2) as response:
            return response.status == 200 and b'"id"' in response.read()
    except (urllib.error.URLError, OSError):
        return False
