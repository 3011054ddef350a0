"""gateway/graph/forms/expansion.py: the calls that forms add, with names that no client can choose."""

import dataclasses

import pytest

from engine.sampling_params import SamplingParams
from gateway.graph.call import CallSpec
from gateway.graph.errors import BadReference
from gateway.graph.forms.expansion import element_call, round_calls, side_calls
from gateway.graph.forms.form import Branch, Condition, Map, Repeat
from gateway.graph.references import Reference, check_name
from gateway.graph.segments import Characters, Input, Segment, Slot

ANSWER = Slot(None, SamplingParams())
YES = Condition(["x"], "equals", '"x"')


def read(name: str) -> Input:
    return Input(Reference(name), "field")


def call(output: str | None, *segments: Segment) -> CallSpec:
    return CallSpec(model="m", segments=[*segments, ANSWER], output=output)


def test_an_element_has_names_of_its_own_and_a_digest() -> None:
    form = Map("[]", "item", call(None, Slot("slot", SamplingParams()), read("item")), 10)
    first, other = element_call(form, "c", "results", 3, "text"), element_call(form, "c", "results", 3, "else")
    assert first.names == ["results.3.slot", "results.3"]
    assert first.segments[1] == Characters("text")
    assert first.origin is not None
    assert other.origin is not None
    assert (first.origin.call, first.origin.place) == ("c", "3")
    assert first.origin.digest != other.origin.digest, "another run of the list may give other elements"
    assert element_call(form, "c", "results", 3, "text") == first


def test_an_element_of_a_map_may_be_a_form_whose_outputs_are_the_element_s() -> None:
    branch = Branch(YES, [call("a"), call("b", read("a"))], [call("b")])
    form = Map("[]", "item", CallSpec(model="", form=branch, output="b", more_outputs=["a"]), 10)
    element = element_call(form, "c", "results", 0, "x")
    assert element.names == ["results.0.a", "results.0"]
    assert isinstance(element.form, Branch)
    sides = side_calls(element.form, "d", "then")
    assert [side.output for side in sides] == ["results.0.a@then", "results.0@then"]
    assert sides[1].segments[0] == read("results.0.a@then")
    assert [side.output for side in side_calls(element.form, "d", "else")] == ["results.0@else"]


def test_rounds_read_the_round_before() -> None:
    form = Repeat(
        calls=[call("revised", read("draft"), read("outer"))],
        first={"draft": ["begin"]},
        carry={"draft": [read("revised"), read("draft")]},
        until=YES,
        max_rounds=3,
        exports=["revised"],
    )
    first, second = round_calls(form, "c", "", 1), round_calls(form, "c", "s.", 2)
    assert [spec.output for spec in first + second] == ["draft@1", "revised@1", "s.draft@2", "s.revised@2"]
    assert (first[0].parts, second[0].parts) == (["begin"], [read("s.revised@1"), read("s.draft@1")])
    assert list(second[1].segments) == [read("s.draft@2"), read("outer"), ANSWER]
    assert [spec.origin and spec.origin.place for spec in second] == ["2.carry.draft", "2.0"]


def test_names_that_forms_make_are_no_names_for_clients() -> None:
    form = Map("[]", "item", dataclasses.replace(call(None), segments=[Slot("slot", SamplingParams()), ANSWER]), 10)
    repeat = Repeat([call("draft")], {}, {}, YES, 3, ["draft"])
    specs = [element_call(form, "c", "r", 0, "x"), *round_calls(repeat, "c", "", 1)]
    for name in [name for spec in specs for name in spec.names]:
        with pytest.raises(BadReference):
            check_name(name, "field")
