"""gateway/graph/forms/form.py: the references of a form that lead out of it."""

import pytest

from engine.sampling_params import SamplingParams
from gateway.graph.call import CallSpec
from gateway.graph.forms.form import Branch, Condition, Form, Map, Repeat, references_of
from gateway.graph.references import Reference
from gateway.graph.segments import Input, Slot


def read(name: str) -> Input:
    return Input(Reference(name), "field")


def call(output: str | None, *reads: str, slots: tuple[str, ...] = ()) -> CallSpec:
    segments = [*map(read, reads), *(Slot(name, SamplingParams()) for name in slots), Slot(None, SamplingParams())]
    return CallSpec(model="m", segments=segments, output=output, parts=list(map(read, slots)) or None)


CONDITION = Condition([read("verdict")], "equals", '"x"')


@pytest.mark.parametrize(
    ("form", "names"),
    [
        (Map(read("list"), "item", call(None, "item", "index", "tone"), 10), {"list", "tone"}),
        (Map("[]", "item", call(None, "item", slots=("slot",)), 10), set()),
        (Branch(CONDITION, [call("a", "x"), call("b", "a")], [call("b", "y", "b2")]), {"verdict", "x", "y", "b2"}),
        (
            Repeat([call("verdict", "draft", "x")], {"draft": [read("draft")]}, {"draft": []}, CONDITION, 3, []),
            {"draft", "x"},
        ),
    ],
)
def test_names_that_a_form_reads(form: Form, names: set[str]) -> None:
    assert {part.reference.name for part in references_of(form)} == names
