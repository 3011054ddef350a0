"""Tests that hold for each storage of learned durations."""

from gateway.journal.gap_store import KEPT_SECONDS, MAX_ROWS, MAX_ROWS_OF_TENANT, GapStore, gaps_of
from gateway.programs import EndedGap

NOW = 1_000_000_000.0
"""Time of the tests, in seconds of the Unix clock."""


def gap(tenant: str = "t", word: str = "w", seconds: float = 2.0, ended: float = NOW) -> EndedGap:
    return EndedGap(tenant, word, seconds, ended)


async def stored(store: GapStore, now: float = NOW) -> list[EndedGap]:
    found, damaged = gaps_of(await store.load(now))
    assert damaged == 0
    return found


async def check_that_additions_join(store: GapStore, other: GapStore) -> None:
    """`other`: the storage of another gateway, or the same."""
    assert await stored(store) == await stored(other) == []
    await store.add([])
    await store.add([gap(seconds=1.0), gap(word="", ended=NOW + 1)])
    await other.add([gap(ended=NOW + 2), gap("u", ended=NOW + 3)])
    await store.add([gap(ended=NOW + 2)])
    for each in (store, other):
        assert await stored(each) == [
            gap(seconds=1.0),
            gap(word="", ended=NOW + 1),
            gap(ended=NOW + 2),
            gap("u", ended=NOW + 3),
        ]


async def check_that_old_rows_are_deleted(store: GapStore) -> None:
    await store.load(NOW)
    await store.add([gap(word="old"), gap(word="future", ended=NOW + 3 * KEPT_SECONDS)])
    await store.add([gap(ended=NOW + 10)])
    assert await stored(store, NOW + 10) == [gap(word="old"), gap(ended=NOW + 10)]
    assert await stored(store, NOW + 1 + KEPT_SECONDS) == [gap(ended=NOW + 10)]
    assert await stored(store, NOW) == [gap(ended=NOW + 10)], "deleted, not only hidden"


async def check_that_tenants_are_forgotten(store: GapStore, other: GapStore) -> None:
    """`other`: the storage of another gateway, or the same."""
    await store.load(NOW)
    await store.add([gap(tenant, word) for tenant in ("a", "b", "c", "ab") for word in ("", "w")])
    await other.add([gap("a", "of another")])
    await store.forget(["a", "c", "unknown"])
    assert {(one.tenant, one.word) for one in await stored(other)} == {
        (tenant, word) for tenant in ("b", "ab") for word in ("", "w")
    }
    await other.add([gap("a")])
    assert gap("a") in await stored(store)


async def check_that_rows_are_bounded_fairly(store: GapStore) -> None:
    await store.load(NOW)
    await store.add([gap("quiet", "w", 1.0, NOW - 5)])
    for number in range(12):
        await store.add([gap(f"loud {number}", f"w{word}", 1.0, NOW + word) for word in range(2 * MAX_ROWS_OF_TENANT)])
    found = await stored(store)
    assert MAX_ROWS - 12 <= len(found) <= MAX_ROWS
    assert gap("quiet", "w", 1.0, NOW - 5) in found
    of_one = [one for one in found if one.tenant == "loud 3"]
    assert [one.word for one in of_one] == [
        f"w{2 * MAX_ROWS_OF_TENANT - len(of_one) + place}" for place in range(len(of_one))
    ]
    await store.add([gap(f"tenant {number}", ended=NOW + 1000 + number) for number in range(MAX_ROWS + 10)])
    assert [one.tenant for one in await stored(store, NOW + 3000)] == [
        f"tenant {number + 10}" for number in range(MAX_ROWS)
    ]
