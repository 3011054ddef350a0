"""The engine as a child process: commands in and one report per step out, over an inherited socket.

A reader thread only enqueues. When the other end closes, for whatever reason, the process ends: no engine outlives its
gateway.
"""

import argparse
import logging
import os
import signal
import socket
import sys
import threading
import traceback
from pathlib import Path

import msgspec

from engine.config import EngineConfig
from engine.engine import Engine
from engine.errors import EngineError
from engine.protocol import (
    FatalReport,
    FolderReport,
    FrameBuffer,
    FrameError,
    ReadyReport,
    Report,
    command_decoder,
    encode_frame,
)
from engine.server.core import Connection, EngineServer

log = logging.getLogger("myna.engine")

_READ_BYTES = 1 << 18


class Worker:
    """Server of one gateway over `connection`."""

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection
        self._server = EngineServer()
        self._connection = Connection(self)

    def run(self, config: EngineConfig) -> int:
        """Load the model and serve until `Shutdown`. Return the exit status."""
        threading.Thread(target=self._read, name="reader", daemon=True).start()
        try:
            engine = Engine(config, on_resolved=lambda folder: self.send(FolderReport(str(folder))))
        except EngineError as error:
            self.send(FatalReport(str(error)))
            return 1
        except Exception as error:
            log.debug("the engine cannot start", exc_info=True)
            self.send(FatalReport(f"{config.model} cannot be loaded: {_in_a_line(error)}"))
            return 1
        self.send(ReadyReport(engine.info))
        self._server.serve(engine)
        return 0

    def send(self, report: Report) -> None:
        """Send a report; see `FrameSink`. Wait until the gateway accepts it."""
        try:
            self._socket.sendall(encode_frame(report))
        except (BrokenPipeError, ConnectionResetError):
            os._exit(0)  # the gateway is gone; the reader thread would end the process as well

    def _read(self) -> None:
        """Read commands from the socket and post them to the engine server, until the stream ends.

        Then end the process, even in the middle of a step.
        """
        buffer = FrameBuffer()
        try:
            while data := self._socket.recv(_READ_BYTES):
                if commands := [command_decoder.decode(body) for body in buffer.feed(data)]:
                    self._server.post(self._connection, commands)
        except (OSError, FrameError, msgspec.DecodeError) as error:
            log.error("the connection to the gateway broke: %s", error)
        os._exit(0)


def _in_a_line(error: Exception) -> str:
    """Return an unexpected error as one line: its type, its text, and where it was raised."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text} ({Path(frame.filename).name}, line {frame.lineno})"


def main() -> int:
    """Run `python -m engine.server.worker --fd N --config JSON`, as a gateway starts it."""
    parser = argparse.ArgumentParser(prog="python -m engine.server.worker", description=__doc__)
    parser.add_argument("--fd", type=int, required=True, help="file descriptor of the inherited socket to the gateway")
    parser.add_argument("--config", required=True, help="EngineConfig as JSON")
    arguments = parser.parse_args()
    # Ctrl-C and the hangup of a terminal reach the whole process group, but the gateway decides when the engine ends.
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    logging.basicConfig(format="%(asctime)s %(name)s %(levelname)s %(message)s", level=logging.INFO)
    config = msgspec.json.decode(arguments.config, type=EngineConfig)
    return Worker(socket.socket(fileno=arguments.fd)).run(config)


if __name__ == "__main__":
    sys.exit(main())
