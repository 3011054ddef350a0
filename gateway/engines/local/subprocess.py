"""Engine of this project as a child process: the gateway starts, watches and restarts it."""

import asyncio
import logging
import signal
import socket
import sys
from collections.abc import Callable
from contextlib import suppress

import msgspec

from engine.config import EngineConfig
from engine.errors import CheckpointError
from engine.protocol import (
    FatalReport,
    FolderReport,
    FrameBuffer,
    FrameError,
    ReadyReport,
    Shutdown,
    encode_frame,
    report_decoder,
)
from engine.tokenizer import Tokenizer
from gateway.engines.local.client import READ_BYTES, EngineClient, EngineStartFailed

log = logging.getLogger("myna.engines")

_WORKER = "engine.server.worker"
_STOP_SECONDS = 3.0
"""Time in which a process has to end before it is killed, in seconds."""


class SubprocessEngine(EngineClient):
    """Owner of one engine process. See `EngineClient`. Closing ends it, by force if it does not end itself."""

    def __init__(
        self, name: str, config: EngineConfig, on_change: Callable[[], None], *, hang_seconds: float = 60.0
    ) -> None:
        """See `EngineClient`. A process that hangs is killed and replaced."""
        super().__init__(name, on_change, hang_seconds=hang_seconds)
        self._config = config
        self._process: asyncio.subprocess.Process | None = None
        self._spawned: tuple[asyncio.subprocess.Process, socket.socket] | None = None

    @property
    def pid(self) -> int | None:
        """Id of the running process; None if there is none."""
        return None if self._process is None else self._process.pid

    async def launch(self) -> None:
        """Start the process. `start` uses it."""
        self._spawned = await self._spawn()

    async def close(self) -> None:
        """End the process. See `EngineClient.close`."""
        await super().close()
        if self._spawned is not None:  # `start` was never called
            process, gateway_end = self._spawned
            self._spawned = None
            gateway_end.close()
            with suppress(ProcessLookupError):  # it has ended already
                process.kill()  # while it loads it does not notice the closed socket; it has no work to lose
            await self._reap(process)

    async def _spawn(self) -> tuple[asyncio.subprocess.Process, socket.socket]:
        """Start a process. Return it with the gateway's end of its socket."""
        gateway_end, engine_end = socket.socketpair()
        with engine_end:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                *("-m", _WORKER, "--fd", str(engine_end.fileno())),
                *("--config", msgspec.json.encode(self._config).decode()),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=2,  # the gateway's stdout is the user's
                pass_fds=[engine_end.fileno()],
            )
        return process, gateway_end

    async def run_once(self, first_ready: "asyncio.Future[None]") -> str:
        """Start one process and serve it until it ends."""
        process, gateway_end = self._spawned or await self._spawn()
        self._spawned = None
        self._process = process
        reader, writer = await asyncio.open_connection(sock=gateway_end)
        self.on_connected(writer)
        watchdog = asyncio.create_task(self.watch(), name=f"watch {self.name}")
        try:
            await self._serve(reader, first_ready)
        except (FrameError, msgspec.DecodeError, OSError) as error:
            log.error("the connection to engine %s failed: %s", self.name, error)
        finally:
            watchdog.cancel()
            # Closing the gateway's end ends the process: its reader thread sees the end of the stream.
            if not writer.is_closing():
                writer.write(encode_frame(Shutdown()))
                writer.close()
            self.on_disconnected()
            reason = await self._reap(process)
        return reason

    async def _serve(self, reader: asyncio.StreamReader, first_ready: "asyncio.Future[None]") -> None:
        frames = FrameBuffer()
        while data := await reader.read(READ_BYTES):
            for body in frames.feed(data):
                match report_decoder.decode(body):
                    case FolderReport(folder):
                        if self._tokenizer is None:  # while the weights load
                            try:
                                self._tokenizer = await asyncio.to_thread(Tokenizer, folder)
                            except CheckpointError as error:
                                raise EngineStartFailed(str(error)) from error
                    case ReadyReport(info):
                        self.on_ready(info, first_ready)
                    case FatalReport(message):
                        raise EngineStartFailed(message)
                    case step:
                        self.on_step(step)

    def abort_engine(self) -> None:
        """Kill the process. See `EngineClient.abort_engine`."""
        if self._process is not None:
            self._process.kill()

    async def _reap(self, process: asyncio.subprocess.Process) -> str:
        try:
            async with asyncio.timeout(_STOP_SECONDS):
                status = await process.wait()
        except TimeoutError:
            process.kill()
            status = await process.wait()
        self._process = None
        return f"signal {signal.Signals(-status).name}" if status < 0 else f"exit status {status}"
