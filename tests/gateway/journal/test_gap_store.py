"""gateway/journal/gap_store.py: rows of learned durations: their format, their merge and their shares."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.journal.gap_store import GapRow, fair_share, gaps_of, merged_rows
from gateway.programs import EndedGap
from gateway.programs.tool_times import MAX_AGE_SECONDS, SAMPLES

times = st.floats(0, 80_000).map(lambda value: round(value, 3))
durations = st.floats(0, 3_600).map(lambda value: round(value, 3))
gaps = st.builds(EndedGap, st.sampled_from("ab"), st.sampled_from(["", "w"]), durations, times)

NOW = 1e6


def _stored(rows: list[GapRow]) -> dict[tuple[str, str], str]:
    return {(row.tenant, row.word): row.gaps for row in rows}


@given(st.lists(gaps, max_size=60), st.lists(gaps, max_size=60))
def test_additions_of_two_gateways_are_both_in_the_rows(first: list[EndedGap], second: list[EndedGap]) -> None:
    rows = merged_rows(first, {}, NOW)
    stored = _stored(rows)
    later = {(row.tenant, row.word): row for row in (*rows, *merged_rows(second, stored, NOW))}
    found, damaged = gaps_of(later.values())
    assert damaged == 0
    assert set(found) == {*first, *second}
    assert [gap.ended for gap in found] == sorted(gap.ended for gap in found)
    for row in later.values():
        ended = [gap.ended for gap in (*first, *second) if (gap.tenant, gap.word) == (row.tenant, row.word)]
        assert row.updated == max(ended)


@given(st.lists(gaps, min_size=1))
def test_gaps_that_are_added_again_change_nothing(added: list[EndedGap]) -> None:
    rows = merged_rows(added, {}, NOW)
    assert merged_rows(added, _stored(rows), NOW) == rows


def test_a_row_has_the_latest_durations_of_a_day() -> None:
    many = [EndedGap("t", "w", float(number), 1000.0 + number) for number in range(2 * SAMPLES)]
    (row,) = merged_rows(many, {}, NOW)
    assert gaps_of([row])[0] == many[SAMPLES:]
    newest = EndedGap("t", "w", 1.0, 1000.0 + SAMPLES + MAX_AGE_SECONDS + 0.5)
    (later,) = merged_rows([newest], {("t", "w"): row.gaps}, NOW)
    assert gaps_of([later])[0] == [*many[SAMPLES + 1 :], newest]


def test_after_the_clock_was_set_back_new_durations_are_stored() -> None:
    ahead = [EndedGap("t", "w", float(number), 2 * NOW + number) for number in range(SAMPLES)]
    stored = _stored(merged_rows(ahead, {}, 3 * NOW))
    new = [EndedGap("t", "w", 99.5, NOW + number) for number in range(1, 10)]
    (row,) = merged_rows(new, stored, NOW)
    assert set(new) <= set(gaps_of([row])[0])


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "[2,[[1.0,2.0]]]",
        "[1,[[1.0]]]",
        "[1,[[1.0,-2.0]]]",
        "[1,[[1.0,1e9]]]",
        "[1,[[1e999,1.0]]]",
        7,
        b"\xff",
    ],
)
def test_a_row_that_cannot_be_read_is_counted_and_replaced(text: Any) -> None:
    good = GapRow("t", "good", 5.0, "[1,[[5.0,2.0]]]")
    assert gaps_of([GapRow("t", "w", 1.0, text), good]) == ([EndedGap("t", "good", 2.0, 5.0)], 1)
    (row,) = merged_rows([EndedGap("t", "w", 2.0, 3.0)], {("t", "w"): text}, NOW)
    assert gaps_of([row]) == ([EndedGap("t", "w", 2.0, 3.0)], 0)


@given(st.lists(st.integers(1, 200), max_size=30), st.integers(30, 500))
def test_shares_fit_and_leave_nothing_unused(counts: list[int], total: int) -> None:
    share = fair_share(counts, total)

    def used(share: int) -> int:
        return sum(min(count, share) for count in counts)

    assert used(share) <= total
    assert used(share) == sum(counts) or used(share + 1) > total
