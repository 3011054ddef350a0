"""gateway/runtime/json_repair.py: valid JSON is unchanged, and everything else becomes valid JSON."""

import itertools
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.runtime.json_repair import JsonRepairer, repair_json
from tests.fakes.counted_text import CountedText

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=4),
    max_leaves=12,
)
OBJECTS = st.dictionaries(st.text(max_size=6), VALUES, max_size=5) | st.lists(VALUES, max_size=5)
WRITINGS = st.sampled_from([{}, {"indent": 1}, {"separators": (" ,\t", " :\n")}, {"ensure_ascii": False}])
NOISE = st.one_of(
    st.text(st.sampled_from("{}[]\"':,=\\ \nu0e1-.+tabrue\x00/<>é"), max_size=40),
    st.text(st.sampled_from('{}[]",:\\ 1x'), max_size=12),
)


def pushed(text: str, cuts: list[int]) -> tuple[list[str], str]:
    """Return the pieces of JSON for a text that arrives in pieces, and the last piece."""
    repairer = JsonRepairer()
    places = sorted({0, len(text), *(cut % (len(text) + 1) for cut in cuts)})
    pieces = [repairer.push(text[begin:end]) for begin, end in itertools.pairwise(places)]
    return pieces, repairer.finish()


@given(OBJECTS, WRITINGS, st.lists(st.integers(0, 400)))
def test_valid_objects_and_lists_are_returned_unchanged(value: Any, writing: dict[str, Any], cuts: list[int]) -> None:
    text = json.dumps(value, **writing)
    pieces, last = pushed(text, cuts)
    assert "".join([*pieces, last]) == text
    assert last == "", "all of it was returned before the end"


@given(st.one_of(NOISE, NOISE.map(lambda text: "{" + text), st.text()), st.lists(st.integers(0, 60)))
def test_any_text_becomes_valid_json_however_it_is_cut(text: str, cuts: list[int]) -> None:
    pieces, last = pushed(text, cuts)
    repaired = "".join([*pieces, last])
    json.loads(repaired)
    assert repaired == repair_json(text)


@given(OBJECTS, st.integers(0, 400))
def test_a_cut_object_keeps_its_beginning(value: Any, cut: int) -> None:
    text = json.dumps(value)
    cut = max(1, min(cut, len(text)))
    repairer = JsonRepairer()
    begun = repairer.push(text[:cut])
    assert begun + repairer.held == text[:cut]
    json.loads(begun + repairer.finish())


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("{'a': 'it\\'s', b: True, c: None}", {"a": "it's", "b": True, "c": None}),
        ('{"a": 1,}', {"a": 1}),
        ('{"a": [1, 2,],, "b": 3}', {"a": [1, 2], "b": 3}),
        ('{"a": 1 "b": 2}', {"a": 1, "b": 2}),
        ('{"a": {"b": [1}', {"a": {"b": [1]}}),
        ('{{"a": 1}}', {"a": 1}),
        ('{"a": 1}}}', {"a": 1}),
        ('{"a": "two\nlines\tand \\d"}', {"a": "two\nlines\tand \\d"}),
        ('{"a": "say "hi" now"}', {"a": 'say "hi" now'}),
        ('{"a": hello world, "b": .5}', {"a": "hello world", "b": ".5"}),
        ('{"a" => 1, "b" = 2}', {"a": 1, "b": 2}),
        ('{"a": "x', {"a": "x"}),
        ('{"a": "x\\', {"a": "x\\"}),
        ('{"a": "x\\u00', {"a": "x\\u00"}),
        ('{"a"', {"a": None}),
        ('{"a":', {"a": None}),
        ('{"a": , "b": 1}', {"a": None, "b": 1}),
        ("", {}),
        (" null ", {}),
        ('"{\\"a\\": 1}"', {"a": 1}),
        ('```json\n{"a": 1,}\n```', {"a": 1}),
        ("city=Paris", {"arguments": "city=Paris"}),
        ('"Paris"', {"arguments": "Paris"}),
        ("5", 5),
    ],
)
def test_what_models_write(text: str, value: Any) -> None:
    assert json.loads(repair_json(text)) == value


def test_text_after_the_object_is_ignored_and_counted() -> None:
    repairer = JsonRepairer()
    assert repairer.push('{"a": 1}} and') == '{"a": 1}'
    assert (repairer.has_ended, repairer.consumed) == (True, 8)
    assert repairer.push("more") + repairer.finish() == ""


@pytest.mark.parametrize(
    ("begin", "part", "count", "end"),
    [
        ("[" * 300_000, "}", 300_000, ""),
        ('{"a": "', '" ' + " " * 900 + '"', 80_000, ""),
        ("{", "," + " " * 300, 200_000, ""),
        ("```x", " ", 3_000_000, "x"),
        ('{"a": 1,', " ", 20_000_000, '"b": 2}'),
        ('{"a": "b"', " ", 20_000_000, "}"),
    ],
    ids=range(6),
)
def test_hostile_text_takes_linear_time(begin: str, part: str, count: int, end: str) -> None:
    """Repair text that takes more than ten minutes if each step copies the text, or searches all open brackets or the
    rest of the text: the test's time limit ends it."""
    repair_json(begin + part * count + end)


def test_white_space_is_not_copied_for_each_character() -> None:
    text = CountedText(" " * 100_000)
    assert repair_json(text) == "{}"
    assert text.copied <= 2 * len(text)


@pytest.mark.parametrize("text", ["NaN", "Infinity", "-Infinity", "```\nNaN\n```", "[NaN, Infinity]"])
def test_numbers_that_only_python_has_are_no_json(text: str) -> None:
    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is not JSON")

    json.loads(repair_json(text), parse_constant=refuse)


@pytest.mark.parametrize("text", ['"\\ud800"', '"{\\"a\\": \\"\\ud800\\"}"', "\ud800"])
def test_text_in_place_of_an_object_has_no_lone_surrogate(text: str) -> None:
    repaired = repair_json(text)
    assert isinstance(json.loads(repaired.encode()), dict)
    assert "?" in repaired
