"""The engine server: it receives commands from its connections and sends each of them one report per step.

The serving thread owns the engine, and sleeps while there is nothing to do. Other threads only post commands.
"""

import logging
import queue
import time
from collections import OrderedDict
from collections.abc import Sequence
from typing import Protocol

from engine.engine import Engine
from engine.errors import ContextError
from engine.kv.cache import LastBlock
from engine.protocol import Command, Embed, Fill, Free, Generate, Report, Rerank, Retain, Shutdown, StepReport, Update

log = logging.getLogger("myna.engine")

_HEARTBEAT_SECONDS = 1.0
MAX_FREED = 1024
"""Maximum number of freed contexts of a connection that `Retain` can name."""


class FrameSink(Protocol):
    """Output of a connection to a gateway."""

    def send(self, report: Report) -> None:
        """Send a report, or start to send it."""


class Connection:
    """Connection to one gateway, which numbers its contexts itself."""

    def __init__(self, sink: FrameSink) -> None:
        self.sink = sink
        self.numbers: dict[int, int] = {}
        """The engine's context numbers by the gateway's."""
        self.last_blocks: OrderedDict[int, LastBlock] = OrderedDict()
        """Last blocks of the contexts that were freed last, by the gateway's numbers, the oldest first."""
        self.received_count = 0
        """Number of commands received."""
        self.idle_since_count = -1
        """Number of commands received when the engine last reported to be idle; -1 if it was busy since."""


class EngineServer:
    """Owner of the connections. Any thread may call `post`; the rest belongs to the serving thread."""

    def __init__(self) -> None:
        # The gateways bound its size: they admit only so many calls at a time.
        self._inbox: queue.SimpleQueue[tuple[Connection, Sequence[Command] | None]] = queue.SimpleQueue()
        self._connections: list[Connection] = []
        self._owners: dict[int, tuple[Connection, int]] = {}
        self._last_number = 0

    def post(self, connection: Connection, commands: Sequence[Command] | None) -> None:
        """Enqueue commands of a gateway, to be applied before the next step. None means that the gateway is gone: its
        contexts are freed."""
        self._inbox.put((connection, commands))

    def serve(self, engine: Engine) -> None:
        """Run steps while there is work, until a connection sends `Shutdown`."""
        last = time.monotonic()
        while True:
            updates_of: dict[Connection, list[Update]] = {}
            while not self._inbox.empty() or not (engine.has_work or updates_of):
                if self._inbox.empty():
                    self._report_idle(engine)
                connection, commands = self._inbox.get()  # blocks while there is nothing to do
                if commands is None:
                    self._drop(engine, connection)
                    continue
                if connection not in self._connections:
                    self._connections.append(connection)
                for command in commands:
                    if isinstance(command, Shutdown):
                        return
                    connection.received_count += 1
                    if (refusal := self._apply(engine, connection, command)) is not None:
                        updates_of.setdefault(connection, []).append(refusal)
            for update in engine.step():
                if update.context in self._owners:
                    connection, update.context = self._owners[update.context]
                    updates_of.setdefault(connection, []).append(update)
            beat = time.monotonic() - last > _HEARTBEAT_SECONDS
            if updates_of or beat:
                last = time.monotonic()
                for connection in self._connections if beat else updates_of:
                    connection.idle_since_count = -1 if engine.active_contexts else connection.received_count
                    connection.sink.send(self._report(engine, connection, updates_of.get(connection, [])))

    def _report(self, engine: Engine, connection: Connection, updates: list[Update]) -> StepReport:
        return StepReport(
            updates,
            engine.active_contexts,
            engine.free_tokens,
            connection.received_count,
            *engine.step_times,
            *engine.draft_counts,
        )

    def _report_idle(self, engine: Engine) -> None:
        """Report idleness to the connections that sent commands since the last such report."""
        for connection in self._connections:
            if connection.idle_since_count != connection.received_count:
                connection.idle_since_count = connection.received_count
                connection.sink.send(self._report(engine, connection, []))

    def _drop(self, engine: Engine, connection: Connection) -> None:
        for number in connection.numbers.values():
            engine.free_context(number)
            del self._owners[number]
        connection.numbers = {}
        connection.last_blocks.clear()
        if connection in self._connections:
            self._connections.remove(connection)

    def _number(self, connection: Connection, context: int) -> int:
        """Return the engine's number of a gateway's context, a new one on first use."""
        if context not in connection.numbers:
            connection.last_blocks.pop(context, None)
            self._last_number += 1
            connection.numbers[context] = self._last_number
            self._owners[self._last_number] = connection, context
        return connection.numbers[context]

    def _apply(self, engine: Engine, connection: Connection, command: Command) -> Update | None:
        """Apply a command to the engine. If the engine rejects it, free the context and return an update with the
        error."""
        try:
            match command:
                case Fill(context, tokens, parent, rank, scope, interactive, start, pausable):
                    before = None if parent is None else connection.numbers.get(parent, 0)  # no context has number 0
                    number = self._number(connection, context)
                    engine.fill(
                        number,
                        tokens,
                        parent=before,
                        rank=rank,
                        scope=scope,
                        interactive=interactive,
                        start=start,
                        pausable=pausable,
                    )
                case Generate(context, sampling, rank, heals):
                    engine.generate(self._number(connection, context), sampling, rank=rank, heals=heals)
                case Embed(context, tokens, rank, scope, interactive):
                    number = self._number(connection, context)
                    engine.embed(number, tokens, rank=rank, scope=scope, interactive=interactive)
                case Free(context):
                    number = connection.numbers.pop(context, 0)
                    if self._owners.pop(number, None) is not None:
                        last_block = engine.free_context(number)
                        if last_block is not None:
                            connection.last_blocks[context] = last_block
                        if len(connection.last_blocks) > MAX_FREED:
                            connection.last_blocks.popitem(last=False)
                case Retain(context, returns):
                    if context in connection.last_blocks:
                        engine.retain(connection.last_blocks[context], returns)
                case Rerank(contexts, rank, interactive):
                    known = [connection.numbers[context] for context in contexts if context in connection.numbers]
                    engine.rerank(known, rank, interactive=interactive)
                case Shutdown():
                    raise AssertionError("handled by the loop")
        except ContextError as error:
            if isinstance(command, Fill | Generate | Embed):
                self._apply(engine, connection, Free(command.context))
                return Update(command.context, error=(error.code, str(error)))
            log.warning("%s was rejected: %s", type(command).__name__, error)
        except Exception as error:  # a bug here must not abort the work of other gateways
            log.exception("a command failed")
            if isinstance(command, Fill | Generate | Embed):
                self._apply(engine, connection, Free(command.context))
                return Update(command.context, error=("internal_error", f"internal error: {error!r}"))
        return None
