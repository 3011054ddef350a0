"""A Semantic Variable: a text that will exist, assigned once, read by any number at any time.

Results meet their readers only here: a producer appends pieces, readers wait for them.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from enum import StrEnum
from types import TracebackType
from typing import TYPE_CHECKING, NamedTuple, Self

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

    final: bool
    """Whether nothing comes after it."""

    def __init__(self, value: str) -> None:
        self.final = value in ("ready", "failed", "cancelled")


class Piece(NamedTuple):
    """What one step added. `logprobs`: whatever the engine says of the tokens, passed through. `reasoning`: what the
    model told beside its answer; it is no part of the value."""

    text: str
    tokens: int = 0
    logprobs: tuple[object, ...] = ()
    reasoning: str = ""


def reasoning_of(pieces: Iterable[Piece]) -> str:
    """What the model told beside its answer, all of it."""
    return "".join([piece.reasoning for piece in pieces])


class ProducerRestarted(Exception):
    """What was read of a value so far is void: its producer begins again."""


class Variable:
    """Owner of a value's state. Only its producer or setter changes it; only on the event loop."""

    __slots__ = (
        "_changed",
        "_final",
        "_note",
        "_reading",
        "_watchers",
        "consumers",
        "deleted",
        "exposure_persisted",
        "failure",
        "interactive_subscribers",
        "is_exposed",
        "latency_subscribers",
        "name",
        "number",
        "pieces",
        "producer",
        "reserved",
        "restarts",
        "state",
        "subscribers",
        "unfinished_consumers",
        "value",
    )

    def __init__(self, name: str, note: "Callable[[Variable], None] | None" = None, number: int = 0) -> None:
        """`note` is called after every change of state. `number`: the how-many-th of its session; names come again."""
        self.name = name
        self.number = number
        self.state = VariableState.DECLARED
        self.value: str | None = None
        self.failure: Failure | None = None
        self.producer: Call | None = None
        self.consumers: list[Call] = []
        self.unfinished_consumers = 0
        """How many of the consumers have not ended. Scanning them would cost a graph the square of its edges."""
        self.subscribers = 0
        """Clients waiting for it or reading its stream now."""
        self.latency_subscribers = 0
        """Of these, those who want it soon."""
        self.interactive_subscribers = 0
        """Of these, those who wait for nothing else."""
        self.pieces: list[Piece] = []
        self.is_exposed = False
        """Whether a client has been given part of a value that is not whole yet, or is about to be."""
        self.exposure_persisted = False
        """Whether that is kept, so that it may be given."""
        self.deleted = False
        """Whether its name was taken from it: nobody new can find it."""
        self.reserved = False
        """Whether a value has been accepted that is about to be set."""
        self.restarts = 0
        """How often its producer began anew."""
        self._note = note
        self._reading = 0
        self._changed: list[asyncio.Future[None]] = []
        """Of whoever waits for a change; one each, since a shared one would have to be shielded, which costs more."""
        self._final: list[asyncio.Future[None]] = []
        """Of whoever waits for the end."""
        self._watchers: list[Callable[[], None]] = []

    @property
    def is_assigned(self) -> bool:
        """Whether it has a value or somebody who will make it; it takes no other then."""
        return self.producer is not None or self.reserved or self.state is not VariableState.DECLARED

    def set(self, value: str) -> None:
        """Gives a declared variable its value. Raises VariableAlreadySet."""
        if self.producer is not None or self.state is not VariableState.DECLARED:
            raise VariableAlreadySet(f"{self.name!r} is {self.state} already; a name is assigned once")
        if value:
            self.pieces.append(Piece(value))
        self._finish(VariableState.READY, value)

    def bind_producer(self, call: "Call") -> None:
        """Binds the variable to the call that will make it. Raises VariableAlreadySet."""
        if self.is_assigned:
            raise VariableAlreadySet(f"{self.name!r} is {self.state} already; a name is assigned once")
        self.producer = call
        self._move(VariableState.PENDING)

    def append(self, piece: Piece) -> None:
        """The producer made some more."""
        if self.state.final:
            return
        self.pieces.append(piece)
        if self.state is not VariableState.STREAMING:
            self._move(VariableState.STREAMING)
        self._wake_changed()

    def restart(self) -> bool:
        """The producer begins again. False, and nothing is changed, if a client was shown what it made before."""
        if self.is_exposed or self.state.final:
            return False
        if self.state is VariableState.STREAMING:
            self.pieces.clear()
            self.restarts += 1
            self._move(VariableState.PENDING)
            self._wake_changed()
        return True

    @property
    def text(self) -> str:
        """What there is of the value."""
        return "".join([piece.text for piece in self.pieces])

    def complete(self) -> None:
        """The producer is done: the value is all that was appended."""
        if not self.state.final:
            self._finish(VariableState.READY, self.text)

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

    def _move(self, state: VariableState) -> None:
        self.state = state
        if self._note is not None:
            self._note(self)

    def _finish(self, state: VariableState, value: str | None) -> None:
        self.value = value
        self.reserved = False
        self._move(state)
        self._wake_changed()
        waiting, self._final = self._final, []
        _wake(waiting)
        self._compact()

    def _compact(self) -> None:
        """One piece instead of one a token, once nobody is in the middle of them."""
        if self._reading or len(self.pieces) < 2 or any(piece.logprobs for piece in self.pieces):
            return
        text = self.text if self.value is None else self.value
        tokens, reasoning = sum([piece.tokens for piece in self.pieces]), reasoning_of(self.pieces)
        self.pieces = [Piece(text, tokens, reasoning=reasoning)]

    def _wake_changed(self) -> None:
        for tell in self._watchers:
            tell()
        if self._changed:
            waiting, self._changed = self._changed, []
            _wake(waiting)

    async def wait_final(self) -> None:
        """Waits until the variable is ready, failed or cancelled. Raises nothing of its own."""
        if not self.state.final:
            await self._wait(self._final)

    async def wait_changed(self) -> None:
        """Waits for the next piece, a new start or the end."""
        await self._wait(self._changed)

    async def _wait(self, waiting: "list[asyncio.Future[None]]") -> None:
        one = asyncio.get_running_loop().create_future()
        waiting.append(one)
        try:
            await one
        except asyncio.CancelledError:  # whoever asks again and again, for a moment each, leaves nothing behind
            if one in waiting:
                waiting.remove(one)
            raise

    def read(self, expose: "Callable[[Variable], Awaitable[None]] | None" = None) -> "Reader":
        """All of the value from its beginning, as it is made.

        `expose` is awaited before pieces of an unfinished value are given away to somebody to whom they cannot be
        unsaid.
        """
        return Reader(self, expose)


def _wake(waiting: "list[asyncio.Future[None]]") -> None:
    for one in waiting:
        if not one.done():  # whoever waited may have gone
            one.set_result(None)


class Reader:
    """One reader's place in a variable. A context manager; `more` may be cancelled and called again."""

    def __init__(self, variable: Variable, expose: Callable[[Variable], Awaitable[None]] | None) -> None:
        self._variable = variable
        self._show = expose
        self._at = 0
        self._starts = variable.restarts
        self._tell: Callable[[], None] | None = None

    def __enter__(self) -> Self:
        self._variable._reading += 1
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._tell is not None:
            self._variable._watchers.remove(self._tell)
            self._tell = None
        self._variable._reading -= 1
        if self._variable.state.final:
            self._variable._compact()

    async def more(self) -> Sequence[Piece]:
        """The next pieces, waited for; none if the variable is final and that was all. Raises ProducerRestarted if
        some were read before."""
        while True:
            if self.must_expose:
                await self.expose()
            if (pieces := self.take()) or self.ended:
                return pieces
            await self._variable.wait_changed()

    # for whoever would rather be called back

    def watch(self, tell: Callable[[], None]) -> None:
        """`tell` is called whenever there is more to take, or no more will come, until this is left. It must not raise,
        and neither take anything nor change the variable."""
        assert self._tell is None, "one at a time"
        self._tell = tell
        self._variable._watchers.append(tell)

    def take(self) -> Sequence[Piece]:
        """The next pieces, as far as they are there and need not be shown first. Raises ProducerRestarted if some were
        taken before."""
        variable = self._variable
        if variable.restarts != self._starts:
            if self._at:
                raise ProducerRestarted
            self._starts = variable.restarts
        if self._at == len(variable.pieces) or self.must_expose:
            return ()
        pieces = variable.pieces[self._at :]
        self._at += len(pieces)
        return pieces

    @property
    def ended(self) -> bool:
        """Whether the variable is final and all of it was taken."""
        return self._variable.state.final and self._at == len(self._variable.pieces)

    @property
    def must_expose(self) -> bool:
        """Whether there is something to take as soon as it was shown."""
        variable = self._variable
        return (
            self._show is not None
            and not variable.exposure_persisted
            and self._at < len(variable.pieces)
            and not variable.state.final
        )

    async def expose(self) -> None:
        """Says that pieces of an unfinished value are given away, and returns once that is kept."""
        if self._show is not None:
            await self._show(self._variable)
