"""The engine as a process: commands in and one frame a step out, over an inherited socket.

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
from engine.protocol import Fatal, FrameBuffer, FrameError, Ready, Report, Resolved, command_decoder, encode_frame
from engine.server.core import EngineServer, Link

log = logging.getLogger("myna.engine")

_READ_BYTES = 1 << 18


class Worker:
    """Serves one gateway over `connection`."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._hub = EngineServer()
        self._link = Link(self)

    def run(self, config: EngineConfig) -> int:
        """Loads the model, then serves until told to shut down. Returns the exit status."""
        threading.Thread(target=self._read, name="reader", daemon=True).start()
        try:
            engine = Engine(config, resolved=lambda folder: self.send(Resolved(str(folder))))
        except EngineError as error:
            self.send(Fatal(str(error)))
            return 1
        except Exception as error:
            log.debug("the engine cannot start", exc_info=True)
            self.send(Fatal(f"{config.model} cannot be loaded: {_in_a_line(error)}"))
            return 1
        self.send(Ready(engine.info))
        self._hub.serve(engine)
        return 0

    def send(self, report: Report) -> None:
        """See `FrameSink`. Waits until the gateway takes it."""
        try:
            self._connection.sendall(encode_frame(report))
        except (BrokenPipeError, ConnectionResetError):
            os._exit(0)  # the gateway is gone; the reader was about to say so

    def _read(self) -> None:
        """Posts commands until the stream ends, then ends the process, whatever it is doing."""
        buffer = FrameBuffer()
        try:
            while data := self._connection.recv(_READ_BYTES):
                if commands := [command_decoder.decode(body) for body in buffer.feed(data)]:
                    self._hub.post(self._link, commands)
        except (OSError, FrameError, msgspec.DecodeError) as error:
            log.error("the link to the gateway broke: %s", error)
        os._exit(0)


def _in_a_line(error: Exception) -> str:
    """Return an unexpected error as one line: its type, its text, and where it was raised."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text} ({Path(frame.filename).name}, line {frame.lineno})"


def main() -> int:
    """`python -m engine.server.worker --fd N --config JSON`, as a gateway starts it."""
    parser = argparse.ArgumentParser(prog="python -m engine.server.worker", description=__doc__)
    parser.add_argument("--fd", type=int, required=True, help="inherited socket to the gateway")
    parser.add_argument("--config", required=True, help="an EngineConfig as JSON")
    arguments = parser.parse_args()
    # A terminal's Ctrl-C reaches the whole process group; the gateway decides when the engine ends.
    # So does the hangup of a terminal.
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    logging.basicConfig(format="%(asctime)s %(name)s %(levelname)s %(message)s", level=logging.INFO)
    config = msgspec.json.decode(arguments.config, type=EngineConfig)
    return Worker(socket.socket(fileno=arguments.fd)).run(config)


if __name__ == "__main__":
    sys.exit(main())
