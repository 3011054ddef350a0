"""A server process of a test's own, started and stopped."""

import os
import re
import signal
import subprocess
import sys
import threading
from types import TracebackType
from typing import Self

import psutil
from openai import OpenAI

MODEL = "SmolLM2-135M-Instruct"
_START_SECONDS = 180
_STOP_SECONDS = 40


class Server:
    """`myna serve` on a free port of 127.0.0.1. `log`: what it wrote to stderr so far."""

    def __init__(self, *arguments: str, env: dict[str, str] | None = None) -> None:
        self.log: list[str] = []
        self._clients: list[OpenAI] = []
        self.process = subprocess.Popen(
            [sys.executable, "-m", "gateway", "serve", "--port", "0", *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **(env or {})},
        )
        assert self.process.stdout is not None
        self._reader = threading.Thread(target=self._read_log, daemon=True)
        self._reader.start()
        watchdog = threading.Timer(_START_SECONDS, self.process.kill)
        watchdog.start()
        self.started = self.process.stdout.readline()
        watchdog.cancel()
        address = re.search(r"at ((?:https?://|unix:)\S+)/v1", self.started)
        if address is None:
            self.process.wait(_STOP_SECONDS)
            self._close()
            raise RuntimeError(f"the server did not start: {''.join(self.log)}")
        self.address = address[1]

    def _read_log(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.log.append(line)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def client(self, **options: object) -> OpenAI:
        """The real client, pointed here. It does not retry: tests want to see what the server says."""
        client = OpenAI(base_url=f"{self.address}/v1", **{"api_key": "none", "max_retries": 0, **options})  # type: ignore[arg-type]
        self._clients.append(client)
        return client

    def engine_processes(self) -> list[psutil.Process]:
        """The engine processes that this server started."""
        return [p for p in psutil.Process(self.process.pid).children() if "engine.worker" in p.cmdline()]

    def stop(self) -> int:
        """Ends the server as its operator would. Returns the exit status."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise
        finally:
            self._close()

    def _close(self) -> None:
        for client in self._clients:
            client.close()
        self._reader.join(_STOP_SECONDS)
        for pipe in (self.process.stdout, self.process.stderr):
            if pipe is not None:
                pipe.close()


class EngineElsewhere:
    """`myna engine` on a port of 127.0.0.1, a free one unless it is named. `log`: what it wrote to stderr so far."""

    TOKEN = "a token of tests"

    def __init__(self, *arguments: str, port: int = 0) -> None:
        self.log: list[str] = []
        self.process = subprocess.Popen(
            [sys.executable, "-m", "gateway", "engine", "--listen", f"127.0.0.1:{port}", *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "MYNA_ENGINE_TOKEN": self.TOKEN},
        )
        assert self.process.stdout is not None
        self._reader = threading.Thread(target=self._read_log, daemon=True)
        self._reader.start()
        watchdog = threading.Timer(_START_SECONDS, self.process.kill)
        watchdog.start()
        self.started = self.process.stdout.readline()
        watchdog.cancel()
        address = re.search(r"at ((?:tcp|tls)://\S+:(\d+)) ", self.started)
        if address is None:
            self.stop()
            raise RuntimeError(f"the engine did not start: {''.join(self.log)}")
        self.address, self.port = address[1], int(address[2])

    def _read_log(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.log.append(line)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Ends it as its operator would, or as the signal does. Returns the exit status."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        try:
            return self.process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise
        finally:
            self._reader.join(_STOP_SECONDS)
            for pipe in (self.process.stdout, self.process.stderr):
                if pipe is not None:
                    pipe.close()
