"""The engine as a process: commands in and one frame a step out, over an inherited socket.

The main thread owns the engine and sleeps when there is nothing to do. A reader thread only enqueues. When the
other end closes, for whatever reason, the process ends: no engine outlives its gateway.
"""

import argparse
import logging
import os
import queue
import signal
import socket
import sys
import threading
import time

import msgspec

from engine.config import EngineConfig
from engine.errors import ContextError, EngineError
from engine.link import (
    Command,
    Fatal,
    Fill,
    FrameBuffer,
    FrameError,
    Free,
    Generate,
    Ready,
    Report,
    Rerank,
    Resolved,
    Shutdown,
    Step,
    Update,
    command_decoder,
    encode_frame,
)
from engine.loop import Engine

log = logging.getLogger("myna.engine")

_READ_BYTES = 1 << 18
_HEARTBEAT_SECONDS = 1.0


class Worker:
    """Serves one gateway over `connection`."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        # Bounded by the gateway, which admits only so many calls at a time.
        self._commands: queue.SimpleQueue[Command] = queue.SimpleQueue()

    def run(self, config: EngineConfig) -> int:
        """Loads the model, then serves until told to shut down. Returns the exit status."""
        threading.Thread(target=self._read, name="reader", daemon=True).start()
        try:
            engine = Engine(config, resolved=lambda folder: self._send(Resolved(str(folder))))
        except EngineError as error:
            self._send(Fatal(str(error)))
            return 1
        self._send(Ready(engine.info))
        self._serve(engine)
        return 0

    def _serve(self, engine: Engine) -> None:
        """Steps while there is work, until told to shut down."""
        taken, told = 0, (0, 0)
        last = time.monotonic()
        while True:
            updates: list[Update] = []
            while not self._commands.empty() or not (engine.has_work or updates):
                if self._commands.empty() and told != (taken, 0):
                    told = (taken, 0)
                    self._send(Step([], 0, engine.free_tokens, taken, *engine.pace))
                command = self._commands.get()  # blocks, at no cost, when there is nothing to do
                taken += 1
                if isinstance(command, Shutdown):
                    return
                if (refusal := _apply(engine, command)) is not None:
                    updates.append(refusal)
            updates.extend(engine.step())
            if updates or time.monotonic() - last > _HEARTBEAT_SECONDS:
                last, told = time.monotonic(), (taken, engine.running)
                self._send(Step(updates, told[1], engine.free_tokens, taken, *engine.pace))

    def _send(self, report: Report) -> None:
        try:
            self._connection.sendall(encode_frame(report))
        except (BrokenPipeError, ConnectionResetError):
            os._exit(0)  # the gateway is gone; the reader was about to say so

    def _read(self) -> None:
        """Enqueues commands until the stream ends, then ends the process, whatever it is doing."""
        buffer = FrameBuffer()
        try:
            while data := self._connection.recv(_READ_BYTES):
                for body in buffer.feed(data):
                    self._commands.put(command_decoder.decode(body))
        except (OSError, FrameError, msgspec.DecodeError) as error:
            log.error("the link to the gateway broke: %s", error)
        os._exit(0)


def _apply(engine: Engine, command: Command) -> Update | None:
    """Hands a command to the engine; a refusal becomes the context's error, and the context is freed."""
    try:
        match command:
            case Fill(context, tokens, parent, rank, scope, watched):
                engine.fill(context, tokens, parent=parent, rank=rank, scope=scope, watched=watched)
            case Generate(context, sampling, rank):
                engine.generate(context, sampling, rank=rank)
            case Free(context):
                engine.free_context(context)
            case Rerank(contexts, rank, watched):
                engine.rerank(contexts, rank, watched=watched)
            case Shutdown():
                raise AssertionError("handled by the loop")
    except ContextError as error:
        if isinstance(command, Fill | Generate):
            engine.free_context(command.context)
            return Update(command.context, error=(error.code, str(error)))
        log.warning("%s was refused: %s", type(command).__name__, error)
    return None


def main() -> int:
    """`python -m engine.worker --fd N --config JSON`, as a gateway starts it."""
    parser = argparse.ArgumentParser(prog="python -m engine.worker", description=__doc__)
    parser.add_argument("--fd", type=int, required=True, help="inherited socket to the gateway")
    parser.add_argument("--config", required=True, help="an EngineConfig as JSON")
    arguments = parser.parse_args()
    # A terminal's Ctrl-C reaches the whole process group; the gateway decides when the engine ends.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    logging.basicConfig(format="%(asctime)s %(name)s %(levelname)s %(message)s", level=logging.INFO)
    config = msgspec.json.decode(arguments.config, type=EngineConfig)
    return Worker(socket.socket(fileno=arguments.fd)).run(config)


if __name__ == "__main__":
    sys.exit(main())
