"""Bounded tables that all tenants share. A tenant never loses an entry to a tenant that has more entries."""

from collections import OrderedDict
from collections.abc import Hashable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")


class EntryCounts:
    """Owner of the number of entries of each tenant. Every method takes constant time, however many tenants there are.

    A table that is full forgets an entry of the tenant with the most entries. So a tenant that has at most an equal
    share, counted over the tenants that have entries, loses none.
    """

    def __init__(self) -> None:
        self._counts: dict[str, int] = {}
        self._tenants: dict[int, OrderedDict[str, None]] = {}
        """Tenants by their number of entries, the one that has had this number for the longest time first."""
        self._most = 0
        self._total = 0

    def __len__(self) -> int:
        return self._total

    @property
    def largest(self) -> str:
        """The tenant with the most entries. Raises KeyError if there are no entries."""
        return next(iter(self._tenants[self._most]))

    def count(self, tenant: str) -> int:
        """Return the number of the tenant's entries."""
        return self._counts.get(tenant, 0)

    def add(self, tenant: str) -> None:
        """Count a new entry of the tenant."""
        self._set(tenant, self.count(tenant) + 1)
        self._most = max(self._most, self._counts[tenant])

    def remove(self, tenant: str) -> None:
        """Uncount an entry of the tenant, which has one."""
        self._set(tenant, self._counts[tenant] - 1)
        if self._most not in self._tenants:
            self._most -= 1

    def _set(self, tenant: str, count: int) -> None:
        before = self._counts.pop(tenant, 0)
        self._total += count - before
        if before:
            equals = self._tenants[before]
            del equals[tenant]
            if not equals:
                del self._tenants[before]
        if count:
            self._counts[tenant] = count
            self._tenants.setdefault(count, OrderedDict())[tenant] = None


@dataclass(slots=True)
class _Entry(Generic[Value]):
    tenant: str
    value: Value


class SharedTable(Generic[Key, Value]):
    """Owner of a bounded number of entries of all tenants. A key belongs to one tenant.

    If the table is full, the least recently used entry of the tenant with the most entries is forgotten.
    """

    def __init__(self, max_entries: int) -> None:
        """`max_entries`: maximum number of entries of all tenants together."""
        self._max_entries = max_entries
        self._entries: OrderedDict[Key, _Entry[Value]] = OrderedDict()
        """Entries of all tenants, the least recently used first."""
        self._keys: dict[str, OrderedDict[Key, None]] = {}
        """Keys of each tenant, the least recently used first."""
        self._counts = EntryCounts()

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: Key) -> Value | None:
        """Return the value of a key, None if there is none. This is no use of the entry."""
        entry = self._entries.get(key)
        return None if entry is None else entry.value

    def oldest(self) -> tuple[Key, Value] | None:
        """Return the least recently used entry of all tenants, None if the table is empty."""
        for key, entry in self._entries.items():
            return key, entry.value
        return None

    def items(self) -> Iterator[tuple[str, Value]]:
        """Yield the tenant and the value of each entry, the least recently used first."""
        for entry in self._entries.values():
            yield entry.tenant, entry.value

    def put(self, tenant: str, key: Key, value: Value) -> list[Value]:
        """Add an entry, in place of an earlier one of the same key, as the most recently used one. Return the values
        that were forgotten to make room."""
        self.pop(key)
        self._entries[key] = _Entry(tenant, value)
        self._keys.setdefault(tenant, OrderedDict())[key] = None
        self._counts.add(tenant)
        forgotten: list[Value] = []
        while len(self._entries) > self._max_entries:
            oldest = next(iter(self._keys[self._counts.largest]))
            forgotten.append(self._entries[oldest].value)
            self.pop(oldest)
        return forgotten

    def touch(self, key: Key) -> None:
        """Mark an entry as the most recently used one. Do nothing if there is none."""
        entry = self._entries.get(key)
        if entry is not None:
            self._entries.move_to_end(key)
            self._keys[entry.tenant].move_to_end(key)

    def pop(self, key: Key) -> Value | None:
        """Forget an entry. Return its value, None if there is none."""
        entry = self._entries.pop(key, None)
        if entry is None:
            return None
        keys = self._keys[entry.tenant]
        del keys[key]
        if not keys:
            del self._keys[entry.tenant]
        self._counts.remove(entry.tenant)
        return entry.value

    def pop_tenant(self, tenant: str, most: int | None = None) -> list[Value]:
        """Forget entries of a tenant, the least recently used first, at most `most` of them. Return their values."""
        keys = list(islice(self._keys.get(tenant, ()), most))
        values = [self._entries[key].value for key in keys]
        for key in keys:
            self.pop(key)
        return values
