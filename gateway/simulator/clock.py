"""Event loop on virtual time: waiting takes no real time."""

import asyncio
import selectors
from collections.abc import Coroutine
from typing import Any, TypeVar

_Result = TypeVar("_Result")


class _VirtualSelector(selectors.BaseSelector):
    """Selector that never waits: where the loop would sleep, it sets the clock forward."""

    def __init__(self) -> None:
        self.now = 0.0
        self._real = selectors.SelectSelector()

    def register(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        return self._real.register(fileobj, events, data)

    def unregister(self, fileobj: Any) -> selectors.SelectorKey:
        return self._real.unregister(fileobj)

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None:
            raise RuntimeError("all tasks wait and no timer is set: the simulation would never end")
        self.now += max(0.0, timeout)
        return []

    def get_map(self) -> Any:
        return self._real.get_map()

    def close(self) -> None:
        self._real.close()


class VirtualLoop(asyncio.SelectorEventLoop):
    """Event loop on virtual time. The time is 0 at its start, and moves only when no task can run."""

    def __init__(self) -> None:
        self._selector = _VirtualSelector()
        super().__init__(self._selector)

    def time(self) -> float:
        """Return the virtual time, in seconds."""
        return self._selector.now


def run(work: Coroutine[Any, Any, _Result]) -> _Result:
    """Run a coroutine to its end on virtual time. Raises RuntimeError if it would wait for ever."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(work)
