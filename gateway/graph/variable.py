"""A Semantic Variable: a named text, assigned once, that any number of consumers and clients read at any time.

A producer appends pieces. Consumers and clients wait for them. Results pass between them only here.
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
    """State of a variable, as the API reports it. See docs/api.md."""

    DECLARED = "declared"
    PENDING = "pending"
    STREAMING = "streaming"
    READY = "ready"
    FAILED = "failed"
    CANCELLED = "cancelled"
    SKIPPED = "skipped"

    is_final: bool
    """Whether the state never changes again."""

    def __init__(self, value: str) -> None:
        self.is_final = value in ("ready", "failed", "cancelled", "skipped")


class Piece(NamedTuple):
    """Text that one step of the engine added.

    `logprobs`: the engine's entries for the tokens, passed through. `reasoning`: the model's reasoning in this step,
    which is not part of the value.
    """

    text: str
    tokens: int = 0
    logprobs: tuple[object, ...] = ()
    reasoning: str = ""


def reasoning_of(pieces: Iterable[Piece]) -> str:
    """Return the reasoning of all pieces."""
    return "".join([piece.reasoning for piece in pieces])


class ProducerRestarted(Exception):
    """The producer restarts: the pieces read so far are invalid."""


class Variable:
    """Owner of a value's state. Only its producer or the code that sets it changes it, and only on the event loop."""

    __slots__ = (
        "_active_readers",
        "_change_futures",
        "_final_futures",
        "_on_change",
        "_watchers",
        "consumers",
        "exposure_persisted",
        "failure",
        "interactive_subscribers",
        "is_deleted",
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
        """`note` is called after every change of state. `number` counts the session's variables, because a name can be
        used again after its variable was deleted."""
        self.name = name
        self.number = number
        self.state = VariableState.DECLARED
        self.value: str | None = None
        self.failure: Failure | None = None
        self.producer: Call | None = None
        self.consumers: list[Call] = []
        self.unfinished_consumers = 0
        """Number of consumers that have not ended. Scanning them would cost a graph the square of its edges."""
        self.subscribers = 0
        """Number of clients that wait for the variable or read its stream."""
        self.latency_subscribers = 0
        """Number of subscribers that want the value soon."""
        self.interactive_subscribers = 0
        """Number of latency subscribers that wait for nothing else."""
        self.pieces: list[Piece] = []
        self.is_exposed = False
        """Whether part of an unfinished value was sent to a client, or is about to be."""
        self.exposure_persisted = False
        """Whether the journal has stored the exposure, so that pieces may be sent."""
        self.is_deleted = False
        """Whether the variable lost its name, so that no request finds it."""
        self.reserved = False
        """Whether a client set a value that the journal has not stored yet. The variable gets it afterwards."""
        self.restarts = 0
        """Number of times the producer started again."""
        self._on_change = note
        self._active_readers = 0
        self._change_futures: list[asyncio.Future[None]] = []
        """One future for each task that waits for a change. A shared future would need a shield, which costs more."""
        self._final_futures: list[asyncio.Future[None]] = []
        """One future for each task that waits for a final state."""
        self._watchers: list[Callable[[], None]] = []

    @property
    def is_assigned(self) -> bool:
        """Whether the variable has a producer, a reserved value (`reserved`) or a final state.

        If so, no client can set it and no other call can produce it.
        """
        return self.producer is not None or self.reserved or self.state is not VariableState.DECLARED

    def set(self, value: str) -> None:
        """Set the value of a declared variable. Raises VariableAlreadySet."""
        if self.producer is not None or self.state is not VariableState.DECLARED:
            raise VariableAlreadySet(f"{self.name!r} is {self.state} already; a name is assigned once in a session")
        if value:
            self.pieces.append(Piece(value))
        self._finish(VariableState.READY, value)

    def bind_producer(self, call: "Call") -> None:
        """Bind the variable to the call that produces it. Raises VariableAlreadySet."""
        if self.is_assigned:
            raise VariableAlreadySet(f"{self.name!r} is {self.state} already; a name is assigned once in a session")
        self.producer = call
        self._set_state(VariableState.PENDING)

    def append(self, piece: Piece) -> None:
        """Append a piece from the producer. Do nothing if the variable is final."""
        if self.state.is_final:
            return
        self.pieces.append(piece)
        if self.state is not VariableState.STREAMING:
            self._set_state(VariableState.STREAMING)
        self._wake_changed()

    def restart(self) -> bool:
        """Discard all pieces, because the producer starts again. Return False, and change nothing, if the value is
        exposed or final."""
        if self.is_exposed or self.state.is_final:
            return False
        if self.state is VariableState.STREAMING:
            self.pieces.clear()
            self.restarts += 1
            self._set_state(VariableState.PENDING)
            self._wake_changed()
        return True

    @property
    def text(self) -> str:
        """The value, or the part of it that exists."""
        return "".join([piece.text for piece in self.pieces])

    def complete(self) -> None:
        """Make the variable ready, with all appended text as its value."""
        if not self.state.is_final:
            self._finish(VariableState.READY, self.text)

    def fail(self, failure: Failure) -> None:
        """Make the variable failed, unless it is final."""
        if not self.state.is_final:
            self.failure = failure
            self._finish(VariableState.FAILED, None)

    def skip(self, value: str | None, failure: Failure) -> None:
        """Make the variable skipped, because the calls that would generate it are not added. `value`: the text that
        readers get; None: they fail because of `failure`."""
        if self.state.is_final:
            return
        self.pieces = [Piece(value)] if value else []
        self.failure = failure if value is None else None
        self._finish(VariableState.SKIPPED, value)

    def cancel(self, failure: Failure) -> None:
        """Make the variable cancelled, unless it is final."""
        if not self.state.is_final:
            self.failure = failure
            self._finish(VariableState.CANCELLED, None)

    def _set_state(self, state: VariableState) -> None:
        self.state = state
        if self._on_change is not None:
            self._on_change(self)

    def _finish(self, state: VariableState, value: str | None) -> None:
        self.value = value
        self.reserved = False
        self._set_state(state)
        self._wake_changed()
        waiting, self._final_futures = self._final_futures, []
        _wake(waiting)
        self._compact()

    def _compact(self) -> None:
        """Merge all pieces into one, unless a reader is in the middle of them or pieces have logprobs."""
        if self._active_readers or len(self.pieces) < 2 or any(piece.logprobs for piece in self.pieces):
            return
        text = self.text if self.value is None else self.value
        tokens, reasoning = sum([piece.tokens for piece in self.pieces]), reasoning_of(self.pieces)
        self.pieces = [Piece(text, tokens, reasoning=reasoning)]

    def _wake_changed(self) -> None:
        for notify in self._watchers:
            notify()
        if self._change_futures:
            waiting, self._change_futures = self._change_futures, []
            _wake(waiting)

    @property
    def has_value(self) -> bool:
        """Whether the variable is final and readers get a text."""
        return self.value is not None and self.state.is_final

    async def wait_final(self) -> None:
        """Wait until the variable is ready, failed or cancelled. It raises no error of its own."""
        if not self.state.is_final:
            await self._wait(self._final_futures)

    async def wait_changed(self) -> None:
        """Wait for the next piece, a restart or a final state."""
        await self._wait(self._change_futures)

    async def _wait(self, waiting: "list[asyncio.Future[None]]") -> None:
        future = asyncio.get_running_loop().create_future()
        waiting.append(future)
        try:
            await future
        except (
            asyncio.CancelledError
        ):  # a client that polls with short timeouts must not leave a future behind each time
            if future in waiting:
                waiting.remove(future)
            raise

    def read(self, expose: "Callable[[Variable], Awaitable[None]] | None" = None) -> "Reader":
        """Return a reader of the value from its beginning.

        The reader awaits `expose` before it returns pieces of an unfinished value. Pass it if the pieces cannot be
        recalled after they were read.
        """
        return Reader(self, expose)


def _wake(waiting: "list[asyncio.Future[None]]") -> None:
    for future in waiting:
        if not future.done():  # the waiting task may have been cancelled
            future.set_result(None)


class Reader:
    """Position of one reader in a variable. A context manager; `next_pieces` may be cancelled and called again."""

    def __init__(self, variable: Variable, expose: Callable[[Variable], Awaitable[None]] | None) -> None:
        self._variable = variable
        self._expose = expose
        self._position = 0
        self._starts = variable.restarts
        self._notify: Callable[[], None] | None = None

    def __enter__(self) -> Self:
        self._variable._active_readers += 1
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._notify is not None:
            self._variable._watchers.remove(self._notify)
            self._notify = None
        self._variable._active_readers -= 1
        if self._variable.state.is_final:
            self._variable._compact()

    async def next_pieces(self) -> Sequence[Piece]:
        """Wait for the next pieces and return them; return none if the variable is final and all were read.

        Raises ProducerRestarted if the producer restarted after pieces were read.
        """
        while True:
            if self.must_expose:
                await self.expose()
            if (pieces := self.take_available()) or self.is_exhausted:
                return pieces
            await self._variable.wait_changed()

    # callback interface

    def watch(self, notify: Callable[[], None]) -> None:
        """Call `notify` whenever pieces arrive or no more can arrive, until the reader's context exits.

        `notify` must not raise, take pieces or change the variable.
        """
        assert self._notify is None, "a reader has one callback"
        self._notify = notify
        self._variable._watchers.append(notify)

    def take_available(self) -> Sequence[Piece]:
        """Return the pieces that exist and need no exposure first. Raises ProducerRestarted if the producer restarted
        after pieces were taken."""
        variable = self._variable
        if variable.restarts != self._starts:
            if self._position:
                raise ProducerRestarted
            self._starts = variable.restarts
        if self._position == len(variable.pieces) or self.must_expose:
            return ()
        pieces = variable.pieces[self._position :]
        self._position += len(pieces)
        return pieces

    @property
    def is_exhausted(self) -> bool:
        """Whether the variable is final and all pieces were taken."""
        return self._variable.state.is_final and self._position == len(self._variable.pieces)

    @property
    def must_expose(self) -> bool:
        """Whether the next pieces can be taken only after `expose`."""
        variable = self._variable
        return (
            self._expose is not None
            and not variable.exposure_persisted
            and self._position < len(variable.pieces)
            and not variable.state.is_final
        )

    async def expose(self) -> None:
        """Mark the value as exposed, and wait until the journal has stored that."""
        if self._expose is not None:
            await self._expose(self._variable)
