"""Client of a listening engine of this project. It connects, watches the connection, and connects again."""

import asyncio
import logging
import ssl
import tempfile
from collections.abc import Callable
from pathlib import Path

import msgspec

from engine.errors import CheckpointError
from engine.protocol import (
    VERSION,
    FrameBuffer,
    FrameError,
    Hello,
    Refusal,
    Welcome,
    encode_frame,
    report_decoder,
    welcome_decoder,
)
from engine.tokenizer import Tokenizer
from gateway.engines.local.client import READ_BYTES, EngineClient, EngineStartFailed

log = logging.getLogger("myna.engines")

_CONNECT_SECONDS = 10.0
"""Timeout of a connection attempt, and of the handshake, in seconds."""


class TcpEngine(EngineClient):
    """Owner of one connection to a listening engine. See `EngineClient`. Closing leaves the engine running."""

    def __init__(
        self,
        name: str,
        host: str,
        port: int,
        token: str,
        on_change: Callable[[], None],
        *,
        tls: ssl.SSLContext | None = None,
        hang_seconds: float = 60.0,
        start_timeout: float = 0.0,
    ) -> None:
        """See `EngineClient`. The connection to an engine that hangs is closed and opened again."""
        super().__init__(name, on_change, hang_seconds=hang_seconds, start_timeout=start_timeout)
        self._host, self._port, self._token, self._tls = host, port, token, tls

    async def run_once(self, first_ready: "asyncio.Future[None]") -> str:
        """Connect to the engine and serve the connection until it ends."""
        where = f"{self._host}:{self._port}"
        try:
            async with asyncio.timeout(_CONNECT_SECONDS):
                reader, writer = await asyncio.open_connection(self._host, self._port, ssl=self._tls)
        except TimeoutError:
            return f"{where} did not answer within {_CONNECT_SECONDS:g} s"
        except OSError as error:  # includes errors of TLS
            return f"{where} cannot be reached: {error.strerror or error}"
        self.on_connected(writer)
        watchdog = asyncio.create_task(self.watch(), name=f"watch {self.name}")
        try:
            await self._serve(reader, writer, first_ready)
            return f"{where} closed the connection"
        except TimeoutError:
            return f"{where} does not speak the protocol of myna engines"
        except (FrameError, msgspec.DecodeError, OSError) as error:
            return f"the connection to {where} failed: {error}"
        finally:
            watchdog.cancel()
            writer.close()
            self.on_disconnected()

    async def _serve(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, first_ready: "asyncio.Future[None]"
    ) -> None:
        frames = FrameBuffer()
        writer.write(encode_frame(Hello(self._token, VERSION)))
        async with asyncio.timeout(_CONNECT_SECONDS):
            bodies: list[bytes] = []
            while not bodies:
                if not (data := await reader.read(READ_BYTES)):
                    return
                bodies = list(frames.feed(data))
        answer, *reports = bodies
        await self._handshake(welcome_decoder.decode(answer), first_ready)
        while True:
            for body in reports:
                self.on_step(report_decoder.decode(body))
            if not (data := await reader.read(READ_BYTES)):
                return
            reports = list(frames.feed(data))

    async def _handshake(self, answer: Welcome | Refusal, first_ready: "asyncio.Future[None]") -> None:
        if isinstance(answer, Refusal):
            raise EngineStartFailed(f"the engine at {self._host}:{self._port} rejects the connection: {answer.message}")
        if self._tokenizer is None:
            try:
                self._tokenizer = await asyncio.to_thread(_tokenizer, answer.files)
            except CheckpointError as error:
                raise EngineStartFailed(f"the engine's tokenizer cannot be loaded: {error}") from error
        elif self.info is not None and answer.info.model != self.info.model:
            raise EngineStartFailed(f"the engine serves {answer.info.model}, but served {self.info.model} before")
        self.on_ready(answer.info, first_ready)

    def abort_engine(self) -> None:
        """Close the connection immediately. See `EngineClient.abort_engine`."""
        if self._writer is not None:
            self._writer.transport.abort()


def _tokenizer(files: dict[str, bytes]) -> Tokenizer:
    """Load a tokenizer from files of another machine. Raises CheckpointError."""
    with tempfile.TemporaryDirectory() as folder:
        for name, content in files.items():
            (Path(folder) / Path(name).name).write_bytes(content)
        return Tokenizer(folder)
