"""Short form of `python -m bench.hostile`: one key cannot harm another. Latencies are not asserted, except timeouts."""

import pytest

from bench.attacks import ATTACKS, LONG
from bench.hostile import Row, hostile

pytestmark = pytest.mark.slow

OTHER_KEY_SECONDS = 60.0
"""Latency, in seconds, from which a request of the other key counts as failed."""


def faults(rows: list[Row], ends: list[str]) -> list[str]:
    found = [f"{row.name}: {fault}" for row in rows for fault in row.faults]
    found += [
        f"{row.name}: the other key waited {max(row.waits):.0f} s" for row in rows if max(row.waits) > OTHER_KEY_SECONDS
    ]
    return found + ends


async def test_no_attack_of_one_key_harms_another() -> None:
    rows, ends = await hostile(["--kv-tokens", "16384"], short=True, requests=1000, rounds=2)
    assert faults(rows, ends) == []
    assert len(rows) == len(ATTACKS) - len(LONG) + 3
    by_name = {row.name: row for row in rows}
    assert by_name["as many sessions as there may be"].answers["413"] > 0, "the attack reached the limit"
    assert by_name["calls on a value that never comes"].answers["429"] > 0
    assert by_name["deep, wide and wrong bodies"].answers["400"] > 30
    assert by_name["1000 random requests"].answers["200"] > 100
