"""One engine for those who are linked to it: their commands in, and one frame a step to each whom it concerns.

The thread that serves owns the engine, and sleeps when there is nothing to do. Others only post.
"""

import logging
import queue
import time
from collections.abc import Sequence
from typing import Protocol

from engine.engine import Engine
from engine.errors import ContextError
from engine.protocol import Command, Fill, Free, Generate, Report, Rerank, Shutdown, Step, Update

log = logging.getLogger("myna.engine")

_HEARTBEAT_SECONDS = 1.0


class FrameSink(Protocol):
    """The way to a gateway."""

    def send(self, report: Report) -> None:
        """Sends it, or begins to."""


class Link:
    """A gateway, as the hub knows it: its contexts have numbers of its own choosing."""

    def __init__(self, outlet: FrameSink) -> None:
        self.outlet = outlet
        self.numbers: dict[int, int] = {}
        """The engine's numbers, by the gateway's."""
        self.taken = 0
        """Commands taken in."""
        self.rested = -1
        """How many had been, when it was last told that nothing is left to do."""


class EngineServer:
    """Owner of the links. `post` may be called by any thread; all else is the serving one's."""

    def __init__(self) -> None:
        # Bounded by the gateways, which admit only so many calls at a time.
        self._inbox: queue.SimpleQueue[tuple[Link, Sequence[Command] | None]] = queue.SimpleQueue()
        self._links: list[Link] = []
        self._owners: dict[int, tuple[Link, int]] = {}
        self._next = 0

    def post(self, link: Link, commands: Sequence[Command] | None) -> None:
        """A gateway's commands, all of which are taken in before the next step; None when it is gone, and what it
        wanted with it."""
        self._inbox.put((link, commands))

    def serve(self, engine: Engine) -> None:
        """Steps while there is work, until one of the links is told to shut down."""
        last = time.monotonic()
        while True:
            said: dict[Link, list[Update]] = {}
            while not self._inbox.empty() or not (engine.has_work or said):
                if self._inbox.empty():
                    self._rest(engine)
                link, commands = self._inbox.get()  # blocks, at no cost, when there is nothing to do
                if commands is None:
                    self._drop(engine, link)
                    continue
                if link not in self._links:
                    self._links.append(link)
                for command in commands:
                    if isinstance(command, Shutdown):
                        return
                    link.taken += 1
                    if (refusal := self._apply(engine, link, command)) is not None:
                        said.setdefault(link, []).append(refusal)
            for update in engine.step():
                if update.context in self._owners:
                    link, update.context = self._owners[update.context]
                    said.setdefault(link, []).append(update)
            beat = time.monotonic() - last > _HEARTBEAT_SECONDS
            if said or beat:
                last = time.monotonic()
                for link in self._links if beat else said:
                    link.rested = -1 if engine.running else link.taken
                    link.outlet.send(self._step(engine, link, said.get(link, [])))

    def _step(self, engine: Engine, link: Link, updates: list[Update]) -> Step:
        return Step(updates, engine.running, engine.free_tokens, link.taken, *engine.pace, *engine.drafts)

    def _rest(self, engine: Engine) -> None:
        """Tells all that nothing is left to do, who were not told since they last said something."""
        for link in self._links:
            if link.rested != link.taken:
                link.rested = link.taken
                link.outlet.send(self._step(engine, link, []))

    def _drop(self, engine: Engine, link: Link) -> None:
        for number in link.numbers.values():
            engine.free_context(number)
            del self._owners[number]
        link.numbers = {}
        if link in self._links:
            self._links.remove(link)

    def _number(self, link: Link, context: int) -> int:
        """The engine's number for a gateway's context, a new one if it has none."""
        if context not in link.numbers:
            self._next += 1
            link.numbers[context] = self._next
            self._owners[self._next] = link, context
        return link.numbers[context]

    def _apply(self, engine: Engine, link: Link, command: Command) -> Update | None:
        """Hands a command to the engine; a refusal becomes the context's error, and the context is freed."""
        try:
            match command:
                case Fill(context, tokens, parent, rank, scope, interactive):
                    before = None if parent is None else link.numbers.get(parent, 0)  # 0 is nobody's
                    number = self._number(link, context)
                    engine.fill(number, tokens, parent=before, rank=rank, scope=scope, interactive=interactive)
                case Generate(context, sampling, rank):
                    engine.generate(self._number(link, context), sampling, rank=rank)
                case Free(context):
                    number = link.numbers.pop(context, 0)
                    if self._owners.pop(number, None) is not None:
                        engine.free_context(number)
                case Rerank(contexts, rank, interactive):
                    known = [link.numbers[context] for context in contexts if context in link.numbers]
                    engine.rerank(known, rank, interactive=interactive)
                case Shutdown():
                    raise AssertionError("handled by the loop")
        except ContextError as error:
            if isinstance(command, Fill | Generate):
                self._apply(engine, link, Free(command.context))
                return Update(command.context, error=(error.code, str(error)))
            log.warning("%s was refused: %s", type(command).__name__, error)
        except Exception as error:  # a fault of ours: it must not take everybody else's work with it
            log.exception("a command failed")
            if isinstance(command, Fill | Generate):
                self._apply(engine, link, Free(command.context))
                return Update(command.context, error=("internal_error", f"internal error: {error!r}"))
        return None
