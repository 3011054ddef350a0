"""What a journal is kept in, as the journal sees it: a file, or a database that other gateways use as well."""

import asyncio
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import msgspec

SCHEMA = 2
"""Of what is kept; see `records`. A storage says which one it was made with."""


class JournalError(Exception):
    """The storage cannot be used; the message names it and says what can be done."""


class LeaseLost(Exception):
    """Other gateways have taken this one for dead, and its sessions are theirs now."""


class Entry(NamedTuple):
    """Facts of one session: its key, the number of the first of them, and all as JSON, `[key, facts]`."""

    session: int
    first: int
    facts: bytes


class Opened(NamedTuple):
    """A new session: its key, and what it is called."""

    session: int
    tenant: str
    id: str


Row = tuple[int, Iterable[tuple[int, msgspec.Raw]]]
"""What is kept, as it is read again: a number to name it by if it is damaged, and keys of sessions with their facts."""


@dataclass(frozen=True)
class Batch:
    """What is kept at once: facts, sessions that are new, the keys of those that ended, and tenants and ids of those
    that expired."""

    entries: Sequence[Entry]
    ended: Sequence[int]
    expired: Sequence[tuple[str, str]]
    opened: Sequence[Opened] = ()


class Storage(Protocol):
    """Used on the event loop alone. Of `commit`, only one is on its way at a time."""

    name: str
    """For complaints."""

    @property
    def failures(self) -> tuple[type[BaseException], ...]:
        """What `commit` fails with for reasons that are not ours. Then the batch may be given again, kept or not, with
        more behind it."""

    @property
    def refusals(self) -> tuple[type[BaseException], ...]:
        """Exceptions of `commit` that are caused by the content of the batch: a retry would fail again."""

    def new_key(self) -> int:
        """For a session; no other has had it whose facts are still there."""

    def commit(self, batch: Batch) -> "asyncio.Future[None]":
        """Keeps all of it or nothing. Fails with LeaseLost where nothing that happens here counts any more."""

    def damaged(self, row: int, problem: object) -> JournalError:
        """The error that says so of a row."""

    async def close(self) -> None:
        """Gives it back."""
