"""gateway/programs/text_windows.py: equal windows have equal hashes, and the filter finds each that was added."""

import random

from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.programs.text_windows import PERIOD, WINDOW, WindowFilter, hash_indexed_windows, hash_windows

TEXTS = st.text(st.characters(exclude_categories=()), max_size=120)
"""Texts with characters of one to four bytes, and with surrogates."""
LONGER = st.text(min_size=WINDOW, max_size=80)
LONG_TEXT = "".join(random.Random(1).choices("abcdefgh ", k=20_000))


@settings(max_examples=300)
@given(TEXTS, LONGER, TEXTS)
def test_windows_have_the_same_hashes_in_all_texts(before: str, text: str, after: str) -> None:
    alone = hash_windows(text).tolist()
    assert len(alone) == len(text) - WINDOW + 1
    assert hash_windows(before + text + after).tolist()[len(before) : len(before) + len(alone)] == alone


@settings(max_examples=300)
@given(TEXTS, st.integers(0, 150))
def test_indexed_hashes_are_those_of_every_25th_window(text: str, end: int) -> None:
    expected = hash_windows(text).tolist()[:end:PERIOD] if len(text) >= WINDOW else []
    assert hash_indexed_windows(text, end) == expected


def test_different_windows_have_different_hashes() -> None:
    windows = {LONG_TEXT[place : place + WINDOW] for place in range(len(LONG_TEXT) - WINDOW + 1)}
    assert len(set(hash_windows(LONG_TEXT).tolist())) == len(windows)


@settings(max_examples=200)
@given(st.lists(st.tuples(st.integers(0, 40), st.booleans())))
def test_the_filter_finds_each_hash_that_was_added(steps: list[tuple[int, bool]]) -> None:
    searched = hash_windows(LONG_TEXT[:200])
    keys, present = searched.tolist(), set()
    windows = WindowFilter(100)
    for number, adds in steps:
        if adds and number not in present:
            windows.add([keys[number]])
            present.add(number)
        elif not adds and number in present:
            windows.remove([keys[number]])
            present.remove(number)
    assert {(number, keys[number]) for number in present} <= set(windows.find(searched, 1_000))
    windows.remove([keys[number] for number in present])
    assert windows.find(searched, 1_000) == []


def test_the_filter_finds_the_same_in_many_hashes_as_in_few() -> None:
    """Add, find and remove hashes with a filter so small that they collide."""
    searched = hash_windows(LONG_TEXT)
    keys, windows = list(dict.fromkeys(searched.tolist()[::40])), WindowFilter(100)
    windows.add(keys)
    for gone in (keys[::2], keys[1::2]):
        few = [
            (start + place, key)
            for start in range(0, len(searched), 1_000)
            for place, key in windows.find(searched[start : start + 1_000], 1_000)
        ]
        assert windows.find(searched, len(searched)) == few
        assert few
        windows.remove(gone)
    assert windows.find(searched, len(searched)) == []


def test_the_filter_excludes_most_hashes_that_were_not_added() -> None:
    searched = hash_windows(LONG_TEXT)
    windows = WindowFilter(5_000)
    windows.add(set(searched[:5_000].tolist()))
    assert len(windows.find(searched[5_000:], 20_000)) < 15_000 / 3
    assert windows.find(searched, 3) == [(place, searched[place].item()) for place in range(3)]


def test_counts_that_are_full_exclude_nothing_that_is_present() -> None:
    """Add many more hashes than the filter is made for, and remove all but one."""
    searched = hash_windows(LONG_TEXT)
    keys = list(dict.fromkeys(searched.tolist()))
    windows = WindowFilter(1)
    for _ in range(100):
        windows.add(keys)
    for _ in range(100):
        windows.remove(keys[1:])
    assert (0, keys[0]) in windows.find(searched, len(searched))
