"""An engine process of our own: started, watched, restarted."""

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
from engine.protocol import Fatal, FrameBuffer, FrameError, Ready, Resolved, Shutdown, encode_frame, report_decoder
from engine.tokenizer import Tokenizer
from gateway.engines.local.client import READ_BYTES, EngineClient, EngineStartFailed

log = logging.getLogger("myna.engines")

_WORKER = "engine.server.worker"
_STOP_SECONDS = 3.0


class SubprocessEngine(EngineClient):
    """Owner of one engine process; see `EngineClient`. Closing ends it, by force if it does not end itself."""

    def __init__(
        self, name: str, config: EngineConfig, changed: Callable[[], None], *, hang_seconds: float = 60.0
    ) -> None:
        """See `EngineClient`. A process that hangs is killed and replaced."""
        super().__init__(name, changed, hang_seconds=hang_seconds)
        self._config = config
        self._process: asyncio.subprocess.Process | None = None
        self._begun: tuple[asyncio.subprocess.Process, socket.socket] | None = None

    @property
    def pid(self) -> int | None:
        """Of the process that runs now."""
        return None if self._process is None else self._process.pid

    async def begin(self) -> None:
        """Starts the process already; `start` goes on with it."""
        self._begun = await self._spawn()

    async def close(self) -> None:
        """See `EngineClient.close`."""
        await super().close()
        if self._begun is not None:  # and nothing came of it
            process, ours = self._begun
            self._begun = None
            ours.close()
            with suppress(ProcessLookupError):  # it is gone already
                process.kill()  # it would look whether we are there only once it has loaded, and it has nothing to lose
            await self._reap(process)

    async def _spawn(self) -> tuple[asyncio.subprocess.Process, socket.socket]:
        """A process, and our end of the link to it."""
        ours, theirs = socket.socketpair()
        with theirs:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                *("-m", _WORKER, "--fd", str(theirs.fileno())),
                *("--config", msgspec.json.encode(self._config).decode()),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=2,  # the gateway's stdout is the user's
                pass_fds=[theirs.fileno()],
            )
        return process, ours

    async def run_once(self, first_ready: "asyncio.Future[None]") -> str:
        """Starts one process and serves it until it ends."""
        process, ours = self._begun or await self._spawn()
        self._begun = None
        self._process = process
        reader, writer = await asyncio.open_connection(sock=ours)
        self.linked(writer)
        watchdog = asyncio.create_task(self.watch(), name=f"watch {self.name}")
        try:
            await self._serve(reader, first_ready)
        except (FrameError, msgspec.DecodeError, OSError) as error:
            log.error("the link to engine %s broke: %s", self.name, error)
        finally:
            watchdog.cancel()
            # Closing our end is what ends the process: its reader thread sees the stream end.
            if not writer.is_closing():
                writer.write(encode_frame(Shutdown()))
                writer.close()
            self.unlinked()
            fate = await self._reap(process)
        return fate

    async def _serve(self, reader: asyncio.StreamReader, first_ready: "asyncio.Future[None]") -> None:
        frames = FrameBuffer()
        while data := await reader.read(READ_BYTES):
            for body in frames.feed(data):
                match report_decoder.decode(body):
                    case Resolved(folder):
                        if self._tokenizer is None:  # while the weights load
                            try:
                                self._tokenizer = await asyncio.to_thread(Tokenizer, folder)
                            except CheckpointError as error:
                                raise EngineStartFailed(str(error)) from error
                    case Ready(info):
                        self.welcome(info, first_ready)
                    case Fatal(message):
                        raise EngineStartFailed(message)
                    case step:
                        self.hear(step)

    def give_up(self) -> None:
        """See `EngineClient.give_up`."""
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
