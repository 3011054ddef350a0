"""Make, change and delete virtual keys: in the storage, and in this gateway's memory."""

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, TypeVar

import msgspec

from gateway.accounts.accounts import Accounts, SpendTotals
from gateway.accounts.errors import KeyStoreError
from gateway.accounts.keys.key_store import KeyStore, MemoryKeyStore
from gateway.accounts.keys.virtual_key import KeyRecord, digest_of, new_key_id, new_secret
from gateway.accounts.ledger.usage_query import LedgerError
from gateway.accounts.limits.periods import window_at
from gateway.errors import RequestError

log = logging.getLogger("myna.keys")

_Result = TypeVar("_Result")

_ATTEMPTS = 5
"""Maximum number of attempts at a change that another gateway's change of the same key has overtaken."""
MAX_KEYS = 100_000
"""Maximum number of virtual keys: all are in memory."""


class KeyAdmin:
    """Owner of the changes of virtual keys. All methods raise KeyStoreError if the storage fails; then the keys are
    unchanged."""

    def __init__(
        self,
        accounts: Accounts,
        store: KeyStore | None = None,
        spend: SpendTotals | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """`spend`: what keys have spent before this process started; None if the accounts know it themselves."""
        self._accounts = accounts
        self._store = store or MemoryKeyStore()
        self._spend = spend
        self._clock = clock
        self._changing = asyncio.Lock()
        """Lock of changes and of their application, so that the memory follows the order of the storage."""

    async def load(self) -> None:
        """Load all keys from the storage, and what they have used of their budgets."""
        for record in await self._store.load():
            await self._put(record)

    async def refresh(self) -> None:
        """Apply the changes of other gateways."""
        async with self._changing:
            while changes := await self._store.changes():
                for id, record in changes:
                    if record is None:
                        self._accounts.remove(id)
                    elif record != self._accounts.directory.get(id):
                        await self._put(record)

    async def _put(self, record: KeyRecord) -> None:
        kinds = self._accounts.put(record)
        limits = self._accounts.limits_of(record.id)
        if not kinds or self._spend is None or limits is None:
            return
        window = window_at(record.budget_period, self._clock())
        try:
            tokens, cost = await self._spend.totals(record.id, window.start)
        except LedgerError as error:
            raise KeyStoreError(f"what the key {record.id} has used is unknown: {error}") from error
        for kind in kinds:
            limits.count_past_use(kind, cost if kind == "budget_cost" else tokens)

    def get(self, id: str) -> KeyRecord:
        """Return a key. Raises RequestError 404 if there is none."""
        record = self._accounts.directory.get(id)
        if record is None:
            raise RequestError(404, f"there is no key {id!r}", code="key_not_found")
        return record

    async def create(self, fields: Mapping[str, Any]) -> tuple[KeyRecord, str]:
        """Create a key with these fields of KeyRecord. Return its record, and the key, which nothing stores. Raises
        RequestError if there are too many keys."""
        if len(self._accounts.directory) >= MAX_KEYS:
            raise RequestError(409, f"there are {MAX_KEYS} keys, the maximum; delete some", code="too_many_keys")
        secret = new_secret()
        record = KeyRecord(
            id=new_key_id(), digest=digest_of(secret).hex(), created=int(self._clock()), **_with_tuples(fields)
        )
        await self._change(self._create(record))
        log.info("key %s was created", record.id)
        return record, secret

    async def _create(self, record: KeyRecord) -> None:
        async with self._changing:
            await self._store.create(record)
            await self._put(record)

    async def update(self, id: str, fields: Mapping[str, Any]) -> KeyRecord:
        """Change fields of a key, and return its record. Raises RequestError 404."""
        values = _with_tuples(fields)
        record = await self._replace(id, lambda before: msgspec.structs.replace(before, **values))
        log.info("key %s was changed: %s", id, ", ".join(sorted(fields)) or "nothing")
        return record

    async def rotate(self, id: str, grace: float) -> tuple[KeyRecord, str]:
        """Replace the secret of a key. Return its record, and the new key. Raises RequestError 404.

        `grace`: time for which the previous key is still accepted, in seconds. Sessions and responses stay.
        """
        secret = new_secret()
        digest = digest_of(secret).hex()
        record = await self._replace(id, lambda before: before.rotated(digest, self._clock(), grace))
        log.info("key %s was rotated", id)
        return record, secret

    async def delete(self, id: str) -> None:
        """Delete a key. Its calls are cancelled and its sessions end. Raises RequestError 404."""
        self.get(id)
        await self._change(self._delete(id))
        log.info("key %s was deleted", id)

    async def _delete(self, id: str) -> None:
        async with self._changing:
            await self._store.delete(id)
            self._accounts.remove(id)

    async def _replace(self, id: str, change: Callable[[KeyRecord], KeyRecord]) -> KeyRecord:
        return await self._change(self._try_replace(id, change))

    async def _try_replace(self, id: str, change: Callable[[KeyRecord], KeyRecord]) -> KeyRecord:
        for _ in range(_ATTEMPTS):
            async with self._changing:
                before = self.get(id)
                after = change(before)
                if await self._store.replace(before, after):
                    await self._put(after)
                    return after
            await self.refresh()
        raise KeyStoreError(f"the key {id} changes too often; try again")

    async def _change(self, work: Coroutine[Any, Any, _Result]) -> _Result:
        """Await a change, also if the client disconnects: the memory must follow the storage."""
        return await asyncio.shield(asyncio.ensure_future(work))


def _with_tuples(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return fields of KeyRecord, with tuples in place of lists."""
    return {name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()}
