"""Tool servers of a running gateway: they start beside it, and end with it."""

import json
import signal
import time
from pathlib import Path

import psutil
import pytest

from tests.fakes.checkpoints import write_tiny_llama
from tests.fakes.gateway_harness import GatewayHarness
from tests.fakes.tool_servers import hostile, real

pytestmark = pytest.mark.waits


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a small model that loads fast."""
    return write_tiny_llama(tmp_path_factory.mktemp("models") / "tiny")


def tool_processes(server: GatewayHarness, count: int) -> list[psutil.Process]:
    """Return the processes of the tool servers, once there are this many."""
    deadline = time.monotonic() + 60
    while True:
        found = [
            process
            for process in psutil.Process(server.process.pid).children()
            if any(part.endswith("tool_server.py") for part in process.cmdline()) and "-c" not in process.cmdline()
        ]
        if len(found) == count:
            return found
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_tool_servers_end_with_the_gateway(tiny: Path, tmp_path: Path, number: signal.Signals) -> None:
    tables = {
        "good": real(tmp_path / "counter"),
        "stubborn": hostile("ignores_sigterm"),
        "stuck": hostile("never_starts", start_seconds=300.0),
    }
    document = {name: table.model_dump(exclude_defaults=True) for name, table in tables.items()}
    file = tmp_path / "tools.json"
    file.write_text(json.dumps({"servers": document}))
    with GatewayHarness("--model", str(tiny), "--kv-tokens", "4096", "--tool-servers", str(file)) as server:
        processes = tool_processes(server, 3)
        server.stop(number)
        gone, alive = psutil.wait_procs(processes, timeout=30)
        assert (len(gone), alive) == (3, [])


def test_an_invalid_file_stops_the_start_with_a_one_line_error(tmp_path: Path) -> None:
    file = tmp_path / "tools.json"
    file.write_text('{"servers": {"a": {"command": ["x"]}}}')
    with pytest.raises(RuntimeError, match=r"myna serve: \S+tools\.json: servers\.a\.tools: this key is required"):
        GatewayHarness("--tool-servers", str(file))
