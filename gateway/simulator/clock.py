"""An event loop on which waiting takes no time."""

import asyncio
import selectors
from collections.abc import Coroutine
from typing import Any, TypeVar

_Result = TypeVar("_Result")


class _Idle(selectors.BaseSelector):
    """Waits for nothing: where the loop would sleep, its clock is set forward."""

    def __init__(self) -> None:
        self.now = 0.0
        self._real = selectors.SelectSelector()

    def register(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        return self._real.register(fileobj, events, data)

    def unregister(self, fileobj: Any) -> selectors.SelectorKey:
        return self._real.unregister(fileobj)

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None:
            raise RuntimeError("everybody waits and nothing is under way: the simulation would never end")
        self.now += max(0.0, timeout)
        return []

    def get_map(self) -> Any:
        return self._real.get_map()

    def close(self) -> None:
        self._real.close()


class VirtualLoop(asyncio.SelectorEventLoop):
    """Its `time` is in seconds since it began, and moves only when nobody has anything to do."""

    def __init__(self) -> None:
        self._idle = _Idle()
        super().__init__(self._idle)

    def time(self) -> float:
        """Seconds of virtual time."""
        return self._idle.now


def run(work: Coroutine[Any, Any, _Result]) -> _Result:
    """Runs a coroutine to its end on virtual time. Raises RuntimeError if it would wait for ever."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(work)
