"""The engines of each model, and whether they accept work."""

import asyncio
from collections.abc import Sequence

from gateway.engines.protocol import Engine, NoEngine
from gateway.telemetry.engine_status import EngineStatus


class EnginePool:
    """Owner of the list of engines. It implements `Engines`."""

    def __init__(self, wait_seconds: float) -> None:
        """`wait_seconds`: maximum wait of a call for an engine that is restarting, in seconds."""
        self._wait_seconds = wait_seconds
        self._engines: dict[str, list[Engine]] = {}
        self._changed = asyncio.Event()

    def add(self, model: str, engine: Engine) -> None:
        """Add an engine of `model`. It gets work whenever it is ready."""
        self._engines.setdefault(model, []).append(engine)
        self.notify_change()

    @property
    def is_ready(self) -> bool:
        """Whether every model has an engine that accepts work."""
        groups = self._engines.values()
        return bool(groups) and all(any(engine.is_ready for engine in group) for group in groups)

    def describe(self) -> Sequence[tuple[EngineStatus, Sequence[str]]]:
        """Return the state of each engine, with the models that it serves."""
        models: dict[Engine, list[str]] = {engine: [] for group in self._engines.values() for engine in group}
        for model, group in self._engines.items():
            for engine in group:
                models[engine].append(model)
        return [(engine.describe(), names) for engine, names in models.items()]

    def notify_change(self) -> None:
        """Wake the calls that wait, because an engine became ready or stopped being so."""
        self._changed.set()
        self._changed = asyncio.Event()

    async def find_ready(self, model: str, *, wait: bool = True) -> Sequence[Engine]:
        """Return the ready engines of a model. See `Engines.find_ready`."""
        if ready := self._ready(model):
            return ready
        if not wait:
            raise NoEngine(f"no engine for {model} is ready")
        try:
            async with asyncio.timeout(self._wait_seconds):
                while not (ready := self._ready(model)):
                    await self._changed.wait()
        except TimeoutError:
            raise NoEngine(f"no engine for {model} was ready within {self._wait_seconds:g} s") from None
        return ready

    def _ready(self, model: str) -> list[Engine]:
        return [engine for engine in self._engines.get(model, ()) if engine.is_ready]
