"""gateway/graph/references.py"""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.graph.errors import BadReference, TooLarge, UnresolvedPath
from gateway.graph.references import MAX_REFERENCES, NO_NAME, Reference, check_name, find_names, parse, resolve

names = st.from_regex(r"[A-Za-z_][A-Za-z0-9_]{0,63}", fullmatch=True)
keys = st.text(st.characters(exclude_characters=".<>", exclude_categories=["Z", "C"]), min_size=1, max_size=8)
literals = st.text(st.characters(exclude_characters="<\\"), max_size=10)


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("", []),
        ("no reference", ["no reference"]),
        ("<<a>>", [Reference("a")]),
        ("x <<a>> y", ["x ", Reference("a"), " y"]),
        ("<<a>><<b>>", [Reference("a"), Reference("b")]),
        ("<<plan.steps.0.title>>", [Reference("plan", ("steps", "0", "title"))]),
        (r"\<<a>>", ["<<a>>"]),
        (r"x\<<a>>y<<b>>", ["x<<a>>y", Reference("b")]),
        ("<<<a>>>", ["<", Reference("a"), ">"]),
        ("cout << x >> y", ["cout << x >> y"]),
        ("<<EOF\ntext\nEOF", ["<<EOF\ntext\nEOF"]),
        ("<< a >>", ["<< a >>"]),
        ("<<1a>>", ["<<1a>>"]),
        ("<<a.>>", ["<<a.>>"]),
        ("<<a..b>>", ["<<a..b>>"]),
        ("<<é>>", ["<<é>>"]),
        (f"<<{'n' * 64}>>", [Reference("n" * 64)]),
        (f"<<{'n' * 65}>>", [f"<<{'n' * 65}>>"]),
        ("<<a>", ["<<a>"]),
        (r"\\<<a>>", ["\\<<a>>"]),
    ],
)
def test_grammar(text: str, pieces: list[str | Reference]) -> None:
    assert list(parse(text)) == pieces


@given(
    parts=st.lists(st.one_of(literals, st.builds(Reference, names, st.lists(keys, max_size=3).map(tuple))), max_size=6)
)
def test_written_references_are_parsed_back(parts: list[str | Reference]) -> None:
    merged: list[str | Reference] = []
    for part in parts:
        if isinstance(part, str) and merged and isinstance(merged[-1], str):
            merged[-1] += part
        elif part != "":
            merged.append(part)
    assert list(parse("".join(str(part) for part in parts))) == merged


@given(text=st.text("<>\\ab._ 0", max_size=40))
def test_names_that_are_no_references_are_literal_text(text: str) -> None:
    assert "".join(str(piece) for piece in parse(text, NO_NAME)) == text
    assert all(isinstance(piece, str) or piece.name == "a" for piece in parse(text, frozenset("a")))
    if "a" not in find_names(text):
        assert "".join(str(piece) for piece in parse(text, frozenset("a"))) == text


def test_known_names_among_unknown_ones_are_references() -> None:
    text = r"<<interface>> <<a.b>> \<<a>> \<<interface>> kernel<<<n>>>"
    pieces = ["<<interface>> ", Reference("a", ("b",)), r" <<a>> \<<interface>> kernel<<<n>>>"]
    assert list(parse(text, frozenset("a"))) == pieces
    many = "<<b>>" * (MAX_REFERENCES + 1)
    assert list(parse(many, frozenset("a"))) == [many]
    assert set(find_names(text)) == {"interface", "a", "n"}


@given(text=st.text("<>\\ab._ 0", max_size=40))
def test_parsing_loses_no_text(text: str) -> None:
    pieces = list(parse(text))
    assert all(pieces), "no empty pieces"
    again = "".join(str(piece) for piece in pieces)
    # only the backslashes of escapes are removed
    assert len(text) - len(again) == sum(
        1 for index in range(len(text)) if text[index] == "\\" and escapes(text[index:])
    )


def escapes(text: str) -> bool:
    first = next(iter(parse(text)), "")
    return isinstance(first, str) and first.startswith("<<")


@given(text=st.text(max_size=40))
def test_escaped_text_is_literal(text: str) -> None:
    escaped = text.replace("<<", r"\<<")
    assert all(isinstance(piece, str) for piece in parse(escaped))


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ((), '{"steps": [{"title": "One", "n": 1}], "ok": true, "0": "zero"}'),
        (("steps", "0", "title"), "One"),
        (("steps", "0"), '{"title":"One","n":1}'),
        (("ok",), "true"),
        (("0",), "zero"),
    ],
)
def test_paths_select_parts_of_json(path: tuple[str, ...], text: str) -> None:
    value = '{"steps": [{"title": "One", "n": 1}], "ok": true, "0": "zero"}'
    assert resolve(value, Reference("plan", path)) == text


@given(value=st.dictionaries(keys, st.text(), min_size=1))
def test_strings_are_inserted_without_quotes(value: dict[str, str]) -> None:
    for key, text in value.items():
        assert resolve(json.dumps(value), Reference("v", (key,))) == text


@pytest.mark.parametrize(
    ("value", "path", "words"),
    [
        ("not json", ("a",), "not JSON"),
        ('{"a": 1}', ("b",), "v has no 'b'"),
        ('{"a": [1]}', ("a", "1"), r"v\.a has no '1'"),
        ('{"a": [1]}', ("a", "-1"), "has no '-1'"),
        ('{"a": 1}', ("a", "b"), r"v\.a has no 'b'"),
    ],
)
def test_an_unresolved_path_is_reported_with_its_last_valid_part(value: str, path: tuple[str, ...], words: str) -> None:
    with pytest.raises(UnresolvedPath, match=words):
        resolve(value, Reference("v", path))


@pytest.mark.parametrize("name", ["", "1a", "a-b", "a b", "é", "n" * 65, "a.b"])
def test_an_invalid_name_is_rejected(name: str) -> None:
    with pytest.raises(BadReference, match="not a variable name"):
        check_name(name, "semantic.output")


@pytest.mark.parametrize(
    ("value", "path", "words"),
    [
        ('{"a": "\\ud800"}', ("a",), "lone surrogate"),
        ('{"a": {"b": "x\\udfff"}}', ("a",), "lone surrogate"),
        ("[" * 100_000 + "]" * 100_000, ("0",), "not JSON: it is nested too deeply"),
        ("[1]", ("1" * 5000,), "cannot be resolved"),
        ("[1]", ("١",), "cannot be resolved"),
        ('{"a": ' + "9" * 5000 + "}", ("a",), "not JSON"),
    ],
)
def test_a_path_into_a_hostile_value_fails_with_a_message(value: str, path: tuple[str, ...], words: str) -> None:
    with pytest.raises(UnresolvedPath, match=words):
        resolve(value, Reference("v", path))


@given(st.integers(1, 3000))
def test_a_path_into_a_deep_value_resolves_or_fails(depth: int) -> None:
    value = "[" * depth + "1" + "]" * depth
    try:
        text = resolve(value, Reference("v", ("0",)))
    except UnresolvedPath:
        text = None
    assert text == value[1:-1] if depth < 500 else text in (None, value[1:-1])


def test_the_number_of_references_in_a_text_is_limited() -> None:
    assert len(list(parse("<<a>>" * MAX_REFERENCES))) == MAX_REFERENCES
    with pytest.raises(TooLarge, match="more than 10000 references"):
        for _ in parse("<<a>>" * (MAX_REFERENCES + 1)):
            pass
    assert len(list(parse(r"\<<a>>" * (MAX_REFERENCES + 1)))) == 1, "escaped references do not count"
