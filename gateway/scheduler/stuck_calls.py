"""Find calls that can make no progress. Each one is a bug of this server: there should be none."""

from collections.abc import Callable, Iterable

from gateway.graph.call import Call
from gateway.graph.session import Session


class StuckCallDetector:
    """Owner of the calls that were seen without a task. They may get one soon, so they are stuck the second time."""

    def __init__(self, has_task: Callable[[str], bool]) -> None:
        """`has_task`: whether the call with that id has a task, or is about to get one."""
        self._has_task = has_task
        self._without_task: dict[str, Call] = {}

    def find(self, running: Iterable[Call], sessions: Iterable[Session]) -> list[tuple[Call, str]]:
        """Return the stuck calls, with the reason. Call it every few seconds.

        `running`: calls with a task. `sessions`: sessions in which it searches for unfinished calls without a task.
        """
        stuck = [
            (call, f"waits for {call.awaits.name!r}, which gets no value")
            for call in running
            if call.awaits is not None and call.is_stuck
        ]
        before, self._without_task = (
            self._without_task,
            {
                call.id: call
                for session in sessions
                if session.unfinished_calls and not session.is_closed
                for call in session.calls.values()
                if not call.state.is_final and not self._has_task(call.id)
            },
        )
        stuck += [(call, "has no coroutine") for id, call in self._without_task.items() if id in before]
        return stuck
