"""The engines there are, and whether they take work."""

import asyncio
from collections.abc import Sequence
from typing import Protocol

from gateway.engines.base import Engine, NoEngine


class ManagedEngine(Engine, Protocol):
    """An engine that has to be brought up and taken down."""

    async def start(self) -> None:
        """Returns when it is ready."""

    async def close(self) -> None:
        """Ends it."""


class EnginePool:
    """Owner of the engines. See `Engines`."""

    def __init__(self, wait_seconds: float) -> None:
        """`wait_seconds`: how long a call waits for an engine that is restarting."""
        self._wait_seconds = wait_seconds
        self._engines: dict[str, list[ManagedEngine]] = {}
        self._changed = asyncio.Event()

    def add(self, model: str, engine: ManagedEngine) -> None:
        """An engine serves `model` from now on, whenever it is ready."""
        self._engines.setdefault(model, []).append(engine)
        self.changed()

    @property
    def engines(self) -> list[ManagedEngine]:
        """All of them."""
        return [engine for engines in self._engines.values() for engine in engines]

    @property
    def ready(self) -> bool:
        """Whether every model has an engine that takes work."""
        return bool(self._engines) and all(any(e.ready for e in engines) for engines in self._engines.values())

    def changed(self) -> None:
        """An engine became ready or stopped being so."""
        self._changed.set()
        self._changed = asyncio.Event()

    async def serving(self, model: str) -> Sequence[Engine]:
        """See `Engines.serving`."""
        try:
            async with asyncio.timeout(self._wait_seconds):
                while not (ready := [engine for engine in self._engines.get(model, ()) if engine.ready]):
                    await self._changed.wait()
        except TimeoutError:
            raise NoEngine(f"no engine for {model} was ready within {self._wait_seconds:g} s") from None
        return ready

    async def close(self) -> None:
        """Ends all engines."""
        await asyncio.gather(*(engine.close() for engine in self.engines))
