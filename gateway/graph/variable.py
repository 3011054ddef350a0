"""A Semantic Variable: a text that will exist, assigned once, read by any number at any time.

Results meet their readers only here: a producer appends pieces, readers wait for them.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

from gateway.graph.errors import Failure, VariableAlreadySet

if TYPE_CHECKING:
    from gateway.graph.call import Call


class VariableState(StrEnum):
    """See API.md, Vocabulary."""

    DECLARED = "declared"
    PENDING = "pending"
    STREAMING = "streaming"
    READY = "ready"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def final(self) -> bool:
        """Whether nothing comes after it."""
        return self in (VariableState.READY, VariableState.FAILED, VariableState.CANCELLED)


@dataclass(frozen=True)
class Piece:
    """What one step added. `logprobs`: whatever the engine says of the tokens, passed through."""

    text: str
    tokens: int = 0
    logprobs: tuple[object, ...] = ()


class Variable:
    """Owner of a value's state. Only its producer or setter changes it; only on the event loop."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.state = VariableState.DECLARED
        self.value: str | None = None
        self.failure: Failure | None = None
        self.producer: Call | None = None
        self.consumers: list[Call] = []
        self.readers = 0
        """Clients waiting for it or reading its stream now."""
        self.pieces: list[Piece] = []
        self.shown = False
        """Whether a reader has been given part of a value that is still being made."""
        self._changed: asyncio.Future[None] | None = None
        self._final: asyncio.Future[None] | None = None

    @property
    def assigned(self) -> bool:
        """Whether it has a value or somebody who will make it; it takes no other then."""
        return self.producer is not None or self.state is not VariableState.DECLARED

    def set(self, value: str) -> None:
        """Gives a declared variable its value. Raises VariableAlreadySet."""
        if self.assigned:
            raise VariableAlreadySet(f"{self.name!r} is {self.state} already; a name is assigned once")
        self.pieces.append(Piece(value))
        self._finish(VariableState.READY, value)

    def produced_by(self, call: "Call") -> None:
        """Binds the variable to the call that will make it. Raises VariableAlreadySet."""
        if self.assigned:
            raise VariableAlreadySet(f"{self.name!r} is {self.state} already; a name is assigned once")
        self.producer = call
        self.state = VariableState.PENDING

    def append(self, piece: Piece) -> None:
        """The producer made some more."""
        if self.state.final:
            return
        self.state = VariableState.STREAMING
        self.pieces.append(piece)
        self._wake_changed()

    def start_over(self) -> bool:
        """The producer begins again. False, and nothing is changed, if somebody was shown what it made before."""
        if self.shown or self.state.final:
            return False
        self.pieces.clear()
        self.state = VariableState.PENDING
        return True

    def complete(self) -> None:
        """The producer is done: the value is all that was appended."""
        if not self.state.final:
            self._finish(VariableState.READY, "".join(piece.text for piece in self.pieces))

    def fail(self, failure: Failure) -> None:
        """There will be no value."""
        if not self.state.final:
            self.failure = failure
            self._finish(VariableState.FAILED, None)

    def cancel(self, failure: Failure) -> None:
        """Nobody wanted the value any more."""
        if not self.state.final:
            self.failure = failure
            self._finish(VariableState.CANCELLED, None)

    def _finish(self, state: VariableState, value: str | None) -> None:
        self.state = state
        self.value = value
        self._wake_changed()
        if self._final is not None and not self._final.done():
            self._final.set_result(None)

    def _wake_changed(self) -> None:
        changed, self._changed = self._changed, None
        if changed is not None and not changed.done():
            changed.set_result(None)

    async def final(self) -> None:
        """Waits until the variable is ready, failed or cancelled. Raises nothing of its own."""
        if not self.state.final:
            if self._final is None:
                self._final = asyncio.get_running_loop().create_future()
            await asyncio.shield(self._final)  # one reader leaving leaves the others waiting

    async def more(self, at: int) -> Sequence[Piece]:
        """The pieces from index `at` on, waited for; none if the variable is final and that was all.

        May be cancelled and called again: a reader's place is its own.
        """
        while at >= len(self.pieces) and not self.state.final:
            if self._changed is None:
                self._changed = asyncio.get_running_loop().create_future()
            await asyncio.shield(self._changed)
        self.shown = self.shown or at < len(self.pieces)
        return self.pieces[at:]
