"""Generations that wait for their grammars, which a thread compiles."""

from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass

from engine.grammar import Grammars, Matcher
from engine.sampling_params import SamplingParams
from engine.sequence import TokenSequence

_POLL_SECONDS = 0.02
"""Longest wait for a grammar if there is no other work, in seconds. New commands wait that long too."""
_FRESH_SECONDS = 0.003
"""Longest wait for grammars that have just arrived, in seconds. Most are compiled by then, which saves a step."""


@dataclass(frozen=True)
class Start:
    """How a generation begins: its parameters, the maximum number of its tokens, that number with the tokens of the
    prefix, and the prefix. See `Generation`."""

    sampling: SamplingParams
    limit: int
    room: int
    prefix: bytes


@dataclass(frozen=True)
class PendingGeneration:
    """A `generate` command whose grammar is compiled in a thread. Its sequence has no generation until that is done."""

    sequence: TokenSequence
    start: Start
    matcher: Future[Matcher]


class PendingGenerations:
    """Owner of these commands, by context."""

    def __init__(self, grammars: Grammars) -> None:
        self._grammars = grammars
        self._pending: dict[int, PendingGeneration] = {}
        self._has_new = False
        """Whether a grammar arrived since the last `take_compiled`."""

    def __len__(self) -> int:
        return len(self._pending)

    def __contains__(self, context: int) -> bool:
        return context in self._pending

    def add(self, sequence: TokenSequence, start: Start) -> None:
        """Start to compile the grammar of a command."""
        matcher = self._grammars.compile(start.sampling, sequence.scope, start.prefix.decode())
        self._pending[sequence.id] = PendingGeneration(sequence, start, matcher)
        self._has_new = True

    def cancel(self, context: int) -> None:
        """Remove the command of a context, if there is one."""
        if (pending := self._pending.pop(context, None)) is not None:
            pending.matcher.cancel()

    def take_compiled(self, *, is_idle: bool) -> list[PendingGeneration]:
        """Remove the commands whose grammars are compiled, or failed to compile, and return them. Wait for one if the
        engine is idle."""
        futures = [pending.matcher for pending in self._pending.values()]
        if is_idle:
            wait(futures, _POLL_SECONDS, FIRST_COMPLETED)
        elif self._has_new:
            wait(futures, _FRESH_SECONDS)
        self._has_new = False
        compiled = [pending for pending in self._pending.values() if pending.matcher.done()]
        for pending in compiled:
            del self._pending[pending.sequence.id]
        return compiled
