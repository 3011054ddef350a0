"""gateway/programs/shared_table.py: a bounded table in which each tenant has its share."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.programs.shared_table import EntryCounts, SharedTable

TENANTS = "abcd"
OPERATIONS = st.lists(
    st.tuples(st.sampled_from(["put", "touch", "pop", "pop_tenant"]), st.integers(0, 39)), max_size=200
)


@given(OPERATIONS, st.integers(1, 12))
def test_a_full_table_forgets_the_oldest_entry_of_the_tenant_with_the_most(
    operations: list[tuple[str, int]], most: int
) -> None:
    table: SharedTable[int, str] = SharedTable(most)
    expected: dict[int, str] = {}
    """Tenants by key, the least recently used first."""
    for operation, key in operations:
        tenant = TENANTS[key % len(TENANTS)]
        if operation == "put":
            expected.pop(key, None)
            expected[key] = tenant
            counts = Counter(expected.values())
            forgotten = table.put(tenant, key, str(key))
            assert len(forgotten) == max(0, len(expected) - most)
            for value in forgotten:
                loser = expected[int(value)]
                assert counts[loser] == max(counts.values())
                assert counts[loser] > most // len(counts), "a tenant with an equal share loses nothing"
                assert int(value) == next(other for other in expected if expected[other] == loser)
                del expected[int(value)]
        elif operation == "touch":
            table.touch(key)
            if key in expected:
                expected[key] = expected.pop(key)
        elif operation == "pop":
            assert table.pop(key) == (str(key) if expected.pop(key, None) else None)
        else:
            gone = [other for other in expected if expected[other] == tenant]
            assert table.pop_tenant(tenant) == [str(other) for other in gone]
            for other in gone:
                del expected[other]
        assert len(table) == len(expected)
        assert table.oldest() == next(((other, str(other)) for other in expected), None)
        assert list(table.items()) == [(expected[other], str(other)) for other in expected]
        assert [table.get(other) for other in range(40)] == [str(k) if k in expected else None for k in range(40)]


@given(st.lists(st.sampled_from(TENANTS), max_size=60), st.data())
def test_counts_know_the_tenant_with_the_most(added: list[str], data: st.DataObject) -> None:
    entries, counts = EntryCounts(), Counter[str]()
    for tenant in added:
        entries.add(tenant)
        counts[tenant] += 1
        if data.draw(st.booleans()):
            gone = data.draw(st.sampled_from(sorted(counts.elements())))
            entries.remove(gone)
            counts[gone] -= 1
        assert len(entries) == counts.total()
        assert [entries.count(name) for name in TENANTS] == [counts[name] for name in TENANTS]
        if counts.total():
            assert counts[entries.largest] == max(counts.values())
        else:
            with pytest.raises(KeyError):
                _ = entries.largest
