"""Start and stop `myna serve` as a process."""

import psutil
from openai import OpenAI

from tests.fakes.process_harness import ProcessHarness

MODEL = "SmolLM2-135M-Instruct"
"""Name of the default model."""


class GatewayHarness(ProcessHarness):
    """A running `myna serve` on a free port."""

    def __init__(self, *arguments: str, env: dict[str, str] | None = None) -> None:
        self._clients: list[OpenAI] = []
        super().__init__("serve", "--port", "0", *arguments, address=r"at ((?:https?://|unix:)\S+)/v1", env=env)

    def client(self, **options: object) -> OpenAI:
        """Return an OpenAI client of this server. It does not retry, so that tests see each answer."""
        client = OpenAI(
            base_url=f"{self.address}/v1", **{"api_key": "none", "max_retries": 0, "timeout": 100, **options}
        )  # type: ignore[arg-type]
        self._clients.append(client)
        return client

    def engine_processes(self) -> list[psutil.Process]:
        """Return the engine processes of this server."""
        return [p for p in psutil.Process(self.process.pid).children() if "engine.server.worker" in p.cmdline()]

    def _close(self) -> None:
        for client in self._clients:
            client.close()
        super()._close()
