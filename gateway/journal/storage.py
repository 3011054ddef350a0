"""Interface of the journal's storage: a file, or a database that several gateways share."""

import asyncio
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import msgspec

SCHEMA = 5
"""Version of the stored records; see `records`. Each storage contains the version of its newest records."""
READABLE_SCHEMAS = (2, 3, 4, SCHEMA)
"""Versions whose records this version reads. A storage of an older one of them gets the current version."""


class JournalError(Exception):
    """The storage cannot be used. The message names the storage and the remedy."""


class LeaseLost(Exception):
    """Other gateways have marked this one as dead, and taken over its sessions."""


class Entry(NamedTuple):
    """Facts of one session: its key, the number of the first fact, and all facts as JSON, `[key, facts]`."""

    session: int
    first: int
    facts: bytes


class NewSession(NamedTuple):
    """A new session: its key, its tenant and its id."""

    session: int
    tenant: str
    id: str


Row = tuple[int, Iterable[tuple[int, msgspec.Raw]]]
"""Stored facts as they are read: a number that identifies the row in errors, and session keys with their facts."""


@dataclass(frozen=True)
class Batch:
    """Content of one commit.

    Entries with facts, keys of sessions that ended, tenants and ids of sessions that expired, and new sessions.
    """

    entries: Sequence[Entry]
    ended: Sequence[int]
    expired: Sequence[tuple[str, str]]
    opened: Sequence[NewSession] = ()


class Storage(Protocol):
    """Storage of a journal. It is used on the event loop only, with one `commit` at a time."""

    name: str
    """Name for error messages."""

    @property
    def failures(self) -> tuple[type[BaseException], ...]:
        """Exceptions of `commit` that are faults of the storage. Then the journal commits the batch again, with later
        facts. It may have been stored or not."""

    @property
    def refusals(self) -> tuple[type[BaseException], ...]:
        """Exceptions of `commit` that are caused by the content of the batch: a retry would fail again."""

    def new_key(self) -> int:
        """Return a session key that no other session with stored facts has."""

    def commit(self, batch: Batch) -> "asyncio.Future[None]":
        """Store all of the batch or nothing. Raises LeaseLost once other gateways have taken over the sessions."""

    def damage_error(self, row: int, problem: object) -> JournalError:
        """Return the error for a damaged row."""

    async def close(self) -> None:
        """Close the storage."""
