"""All virtual keys in memory, by id and by digest."""

import heapq
import time
from collections.abc import Callable, Iterable, Sequence

from gateway.accounts.keys.virtual_key import KeyRecord
from gateway.errors import RequestError

_AUTHENTICATE = {"WWW-Authenticate": "Bearer"}


class KeyDirectory:
    """Owner of the records of all virtual keys. It authenticates without any access to the storage."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        """`clock`: current time, in seconds of the Unix clock."""
        self._clock = clock
        self._by_id: dict[str, KeyRecord] = {}
        self._by_digest: dict[bytes, tuple[KeyRecord, float | None]] = {}
        """Record of each accepted digest, and until when it is accepted."""

    def __len__(self) -> int:
        return len(self._by_id)

    def put(self, record: KeyRecord) -> KeyRecord | None:
        """Add or replace a record. Return the record before it."""
        before = self.remove(record.id)
        self._by_id[record.id] = record
        for digest, until in _digests_of(record):
            self._by_digest[digest] = record, until
        return before

    def remove(self, id: str) -> KeyRecord | None:
        """Remove a record, and return it."""
        record = self._by_id.pop(id, None)
        if record is not None:
            for digest, _ in _digests_of(record):
                self._by_digest.pop(digest, None)
        return record

    def get(self, id: str) -> KeyRecord | None:
        """Return the record of an id."""
        return self._by_id.get(id)

    def all(self) -> Iterable[KeyRecord]:
        """Return all records, in no particular order."""
        return list(self._by_id.values())

    def page(self, after: str | None, limit: int) -> tuple[Sequence[KeyRecord], bool]:
        """Return at most `limit` records, newest first, and whether there are more. `after`: id of the record before
        the first one. Raises RequestError 400 if there is no such record."""
        records: Iterable[KeyRecord] = self._by_id.values()
        if after is not None:
            last = self._by_id.get(after)
            if last is None:
                raise RequestError(400, f"there is no key {after!r}", code="invalid_value", param="after")
            records = (record for record in records if _age(record) < _age(last))
        found = heapq.nlargest(limit + 1, records, key=_age)
        return found[:limit], len(found) > limit

    def authenticate(self, digest: bytes) -> str | None:
        """Return the id of the key with this digest; None if there is none.

        Raises RequestError 401 if the key is disabled or has expired. The time does not depend on the stored keys: a
        client cannot choose the digest of what it sends.
        """
        found = self._by_digest.get(digest)
        if found is None:
            return None
        record, until = found
        if record.disabled or record.expires_at is not None or until is not None:
            if until is not None and self._clock() >= until:
                raise key_error("this API key was rotated, and is no longer accepted", "invalid_api_key")
            self.check(record)
        return record.id

    def check(self, record: KeyRecord | None) -> None:
        """Raise RequestError 401 if requests with the key are not accepted now. None: the key was deleted."""
        if record is None:
            raise key_error("this API key was deleted", "invalid_api_key")
        if record.disabled:
            raise key_error("this API key is disabled", "api_key_disabled")
        if record.is_expired(self._clock()):
            raise key_error("this API key has expired", "api_key_expired")


def _age(record: KeyRecord) -> tuple[int, str]:
    """Return the place of a record in the order of creation."""
    return record.created, record.id


def key_error(message: str, code: str) -> RequestError:
    """Return the error for a request with an API key that is not accepted."""
    return RequestError(401, message, code=code, headers=_AUTHENTICATE)


def _digests_of(record: KeyRecord) -> list[tuple[bytes, float | None]]:
    previous = [(bytes.fromhex(previous.digest), previous.until) for previous in record.previous]
    return [*previous, (bytes.fromhex(record.digest), None)]
