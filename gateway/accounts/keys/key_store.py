"""Interface of the storage of virtual keys, and the storage in memory."""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from gateway.accounts.keys.virtual_key import KeyRecord


class KeyChange(NamedTuple):
    """A change of a key by another gateway. `record`: None if the key was deleted."""

    id: str
    record: KeyRecord | None


class KeyStore(Protocol):
    """Storage of virtual keys. All methods raise KeyStoreError if the storage fails."""

    async def load(self) -> Sequence[KeyRecord]:
        """Return all keys. Call it once, before `changes`."""

    async def create(self, record: KeyRecord) -> None:
        """Store a new key."""

    async def replace(self, before: KeyRecord, after: KeyRecord) -> bool:
        """Replace a key if the stored one is still `before`. Return whether it was replaced."""

    async def delete(self, id: str) -> None:
        """Delete a key."""

    async def changes(self) -> Sequence[KeyChange]:
        """Return changes since this method or `load` ran last, of this gateway and of others, in order."""


class MemoryKeyStore:
    """Storage of a server without a journal. The directory has the keys; they are lost when the process ends."""

    async def load(self) -> Sequence[KeyRecord]:
        """Return nothing. See `KeyStore.load`."""
        return ()

    async def create(self, record: KeyRecord) -> None:
        """Do nothing. See `KeyStore.create`."""

    async def replace(self, before: KeyRecord, after: KeyRecord) -> bool:
        """Return true: no other gateway changes the key. See `KeyStore.replace`."""
        return True

    async def delete(self, id: str) -> None:
        """Do nothing. See `KeyStore.delete`."""

    async def changes(self) -> Sequence[KeyChange]:
        """Return nothing. See `KeyStore.changes`."""
        return ()
