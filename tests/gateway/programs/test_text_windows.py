"""gateway/programs/text_windows.py: equal windows have equal hashes, and the filter finds each common text."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.programs.text_windows import PERIOD, STRIDE, WINDOW, Keys, WindowFilter, hash_indexed_windows

SHORTEST = WINDOW + PERIOD - 1
TEXTS = st.text(st.characters(exclude_categories=()), max_size=120)
"""Texts with characters of one to four bytes, and with surrogates."""
LONG_TEXT = "".join(random.Random(1).choices("abcdefgh ", k=20_000))


def hashes(text: str) -> Keys:
    return hash_indexed_windows(text, len(text))


def filter_with(text: str, capacity: int = 1_000) -> WindowFilter:
    windows = WindowFilter(capacity)
    windows.add(hashes(text))
    return windows


@settings(max_examples=300)
@given(TEXTS, st.integers(0, 150))
def test_hashes_are_those_of_windows_from_every_25th_position_on(text: str, end: int) -> None:
    found = hash_indexed_windows(text, end)
    positions = range(0, max(0, min(end, len(text) - WINDOW + 1)), PERIOD)
    assert found.shape == (len(positions), STRIDE + 1)
    for position, row in zip(positions, found[:, :STRIDE].tolist(), strict=True):
        for shift, key in enumerate(row):
            if position + shift + WINDOW <= len(text):
                assert key == hash_indexed_windows(text[position + shift :], 1)[0, 0]


def test_different_windows_have_different_hashes() -> None:
    windows = {LONG_TEXT[place + shift :][:WINDOW] for place in range(0, 19_900, PERIOD) for shift in range(STRIDE)}
    assert len(set(hash_indexed_windows(LONG_TEXT, 19_900)[:, :STRIDE].ravel().tolist())) == len(windows)


@settings(max_examples=500)
@given(
    TEXTS,
    st.text(st.characters(exclude_categories=()), min_size=SHORTEST, max_size=80),
    TEXTS,
    TEXTS,
    TEXTS,
    st.booleans(),
)
def test_the_indexed_window_of_each_common_text_is_found(
    before: str, common: str, after: str, searched_before: str, searched_after: str, is_long: bool
) -> None:
    text = before + common + after
    if is_long:
        searched_after += LONG_TEXT[:1_000]
    found = filter_with(text).find(searched_before + common + searched_after, 1_000)
    positions = [place for place, _ in found]
    assert positions == sorted(set(positions))
    indexed = {
        (len(searched_before) + place - len(before), hashes(text)[place // PERIOD, 0])
        for place in range(0, len(text) - WINDOW + 1, PERIOD)
        if len(before) <= place <= len(before) + len(common) - WINDOW
    }
    assert indexed
    assert indexed <= set(found)


@pytest.mark.parametrize("length", [0, 1, WINDOW - 1])
def test_texts_without_a_window_have_no_hashes(length: int) -> None:
    assert hashes("a" * length).shape == (0, STRIDE + 1)
    assert filter_with("a" * 100).find("a" * length, 10) == []


@settings(max_examples=200)
@given(st.lists(st.tuples(st.integers(0, 9), st.booleans()), max_size=40))
def test_hashes_that_were_added_are_found_until_they_are_removed_as_often(steps: list[tuple[int, bool]]) -> None:
    texts = [LONG_TEXT[100 * number : 100 * number + 100] for number in range(10)]
    present: list[int] = []
    windows = WindowFilter(100)
    for number, adds in steps:
        keys = hashes(texts[number])
        if adds:
            windows.add(keys)
            present.append(number)
        elif number in present:
            windows.remove(keys)
            present.remove(number)
    for number in present:
        assert {key for _, key in windows.find(texts[number], 1_000)} >= set(hashes(texts[number])[:, 0].tolist())
    for number in present:
        windows.remove(hashes(texts[number]))
    assert windows.find(LONG_TEXT, len(LONG_TEXT)) == []


def test_the_filter_excludes_most_hashes_that_were_not_added() -> None:
    added, searched = LONG_TEXT[:10_000], LONG_TEXT[10_000:]
    windows = filter_with(added, len(hashes(added)))
    assert len(windows.find(searched, 20_000)) < 10_000 / 3


def test_false_positives_do_not_use_up_the_limit() -> None:
    other, own = LONG_TEXT[:10_000], LONG_TEXT[-100:]
    windows = filter_with(other, 300)  # nearly half of the slots are in use
    windows.add(hashes(own))
    found = windows.find(LONG_TEXT[10_000:], 10_000)
    assert len(found) > 500, "there are false positives"
    assert set(hashes(own)[:, 0].tolist()) <= {key for _, key in found}
    assert windows.find(LONG_TEXT[10_000:], len(found)) == found


def test_the_number_of_positions_is_limited() -> None:
    windows = filter_with("a" * 100)
    assert [place for place, _ in windows.find("a" * 5_000, 1_000)] == list(range(1_000))
    assert len(windows.find("a" * 5_000, 10_000)) == 5_000 - WINDOW + 1


def test_counts_that_are_full_exclude_nothing_that_is_present() -> None:
    """Add many more hashes than the filter is made for, more often than it counts. Remove them as often as it counts."""
    windows, keys, kept = WindowFilter(1), hashes(LONG_TEXT), LONG_TEXT[:100]
    for _ in range(300):
        windows.add(keys)
    windows.add(hashes(kept))
    for _ in range(255):
        windows.remove(keys)
    assert {key for _, key in windows.find(kept, 1_000)} >= set(hashes(kept)[:, 0].tolist())
