"""gateway/graph/forms/results.py: an element that is read early has the text that the complete list gives."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.graph.call import CallSpec
from gateway.graph.errors import UnresolvedPath
from gateway.graph.forms.form import Map
from gateway.graph.forms.results import call_of_element, read_element, reads_element, result_json
from gateway.graph.references import Reference, resolve
from tests.gateway.graph.test_session import put, session, spec

_KEYS = ["a", "0", "1", "x"]
_VALUES = st.recursive(
    st.none() | st.integers() | st.text() | st.sampled_from(["\ud800", "[1]", "<<x>>"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(_KEYS), inner, max_size=3),
    max_leaves=6,
)
_ANSWERS = st.text() | _VALUES.map(json.dumps) | st.sampled_from(["", "[1, 2", "{", "9" * 5_000, "[" * 3_000])


def add_map(form: Map) -> Any:
    return session().add(CallSpec(model="", form=form, output="rows")).output


@given(
    answers=st.lists(_ANSWERS, min_size=1, max_size=4),
    has_json=st.booleans(),
    keys=st.lists(st.sampled_from(_KEYS), max_size=3),
    data=st.data(),
)
def test_an_element_is_that_of_the_complete_list(
    answers: list[str], has_json: bool, keys: list[str], data: st.DataObject
) -> None:
    form = Map("[]", "item", spec(), 10, has_json_results=has_json)
    rows = add_map(form)
    index = data.draw(st.integers(0, len(answers) - 1))
    reference = Reference("rows", (str(index), *keys))
    whole = f"[{','.join(result_json(form, answer) for answer in answers)}]"
    texts = []
    for read in (lambda: resolve(whole, reference), lambda: read_element(rows, reference, answers[index])):
        try:
            texts.append(read())
        except UnresolvedPath as error:
            texts.append(f"error: {error}")
    assert texts[0] == texts[1]


@pytest.mark.parametrize(
    ("on_error", "path", "expected"),
    [
        ("fail", ("0",), True),
        ("null", ("7", "x"), True),
        ("skip", ("0",), False),
        ("fail", (), False),
        ("fail", ("x",), False),
        ("fail", ("-1",), False),
    ],
)
def test_which_references_read_an_element(on_error: Any, path: tuple[str, ...], expected: bool) -> None:
    rows = add_map(Map("[]", "item", spec(), 10, on_error))
    assert reads_element(rows, Reference("rows", path)) is expected


def test_a_variable_of_another_call_has_no_elements() -> None:
    graph = session()
    put(graph, "list", "[1]")
    for variable in (graph.variable("list"), graph.add(spec(output="other")).output):
        reference = Reference(variable.name, ("0",))
        assert not reads_element(variable, reference)
        assert call_of_element(variable, reference) is None
