"""Elements of a JSON list that are found while its text grows."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.graph.forms.list_scanner import BadList, ListScanner, text_of

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4),
    max_leaves=12,
)


def scan(text: str, path: tuple[str, ...] = (), size: int = 1) -> list[str]:
    """Return the elements of a whole text that arrives in pieces of `size` characters."""
    scanner = ListScanner(path)
    elements = []
    for begin in range(0, len(text), size):
        elements += scanner.push(text[begin : begin + size])
    scanner.close(text)
    return elements


@given(st.lists(JSON, max_size=6), st.sampled_from([None, 1]), st.booleans(), st.integers(1, 9))
def test_the_elements_are_those_of_the_parsed_list(
    values: list[Any], indent: int | None, ascii: bool, size: int
) -> None:
    text = json.dumps(values, indent=indent, ensure_ascii=ascii)
    assert scan(text, size=size) == [text_of(value) for value in values]


@given(st.data())
def test_a_path_leads_to_the_list(data: st.DataObject) -> None:
    expected = data.draw(st.lists(JSON, max_size=4))
    value: Any = expected
    path: list[str] = []
    for _ in range(data.draw(st.integers(0, 3))):
        if data.draw(st.booleans()):
            before = data.draw(st.lists(JSON, max_size=3))
            value = [*before, value, *data.draw(st.lists(JSON, max_size=2))]
            path.insert(0, str(len(before)))
        else:
            key = data.draw(st.text("abc01", min_size=1, max_size=2))
            others = data.draw(st.dictionaries(st.text('abc01{[,:"\\', max_size=3), JSON, max_size=3))
            first = {name: other for name, other in others.items() if name != key}
            value = {**first, key: value, "z": data.draw(JSON)}
            path.insert(0, key)
    text = json.dumps(value)
    assert scan(text, tuple(path), size=data.draw(st.integers(1, 7))) == [text_of(item) for item in expected]


def test_an_element_is_returned_before_the_next_one_begins() -> None:
    scanner = ListScanner(("steps",))
    assert scanner.push('{"title": "[1, 2]", "steps": [{"a": [1,') == []
    assert scanner.push(" 2]}") == []
    assert scanner.push(",") == ['{"a":[1,2]}']
    assert scanner.push('"x, ]"') == []
    assert scanner.push("]") == ["x, ]"]
    assert scanner.is_closed


def test_text_after_the_list_is_ignored() -> None:
    assert scan('[1, 2] and so on ["no"]') == ["1", "2"]


@pytest.mark.parametrize(
    ("text", "path", "reason"),
    [
        ("", (), "not JSON"),
        ("The steps are: [1, 2]", (), "not JSON"),
        ("Well, [1, 2]", (), "not JSON"),
        ('{"steps": [1]}', (), "is an object, not a list"),
        ('"[1]"', (), "is a string, not a list"),
        ('{"steps": "[1]", "b": [2]}', ("steps",), "at 'steps' is a string, not a list"),
        ('{"steps": [1]}', ("stages",), "nothing at 'stages'"),
        ("[[1], 2]", ("1",), "at '1' is a number, not a list"),
        ("[1, 2", (), "not JSON"),
        ("[1, oops, 3]", (), "element 1 of the list is not JSON: 'oops'"),
        ("[1,]", (), "element 1 of the list is not JSON"),
        ("[1}", (), "the list is not JSON"),
        ("[" * 100_000, (), "nested too deeply|not JSON"),
    ],
)
def test_a_text_without_the_list_is_an_error(text: str, path: tuple[str, ...], reason: str) -> None:
    with pytest.raises(BadList, match=reason):
        scan(text, path, size=100)


def test_a_deep_element_is_an_error() -> None:
    with pytest.raises(BadList, match="element 0 of the list is not JSON"):
        scan("[" + "[" * 50_000 + "]" * 50_000 + "]", size=1000)
