"""gateway/graph/forms/names.py: calls of forms read and generate other names than in the request."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.sampling_params import SamplingParams
from gateway.graph.call import CallSpec
from gateway.graph.errors import UnresolvedPath
from gateway.graph.forms.form import Binding, Branch, Condition, Map, Repeat, ToolRun
from gateway.graph.forms.names import bind, bind_template
from gateway.graph.references import Reference
from gateway.graph.segments import Characters, Input, Segment, Slot

ANSWER = Slot(None, SamplingParams())


def read(name: str, *path: str, in_json: bool = False) -> Input:
    return Input(Reference(name, path), "field", in_json)


def call(output: str | None, *segments: Segment) -> CallSpec:
    return CallSpec(model="m", segments=[*segments, ANSWER], output=output)


def test_names_of_inputs_slots_and_outputs_change() -> None:
    spec = CallSpec(
        model="m",
        segments=[read("a", "k"), Slot("slot", SamplingParams()), read("other")],
        output="out",
        parts=["x ", read("slot")],
    )
    bound = bind(spec, {"a": "a@1", "slot": "slot@1", "out": "out@1"}, {})
    assert bound.segments == [read("a@1", "k"), Slot("slot@1", SamplingParams()), read("other")]
    assert (bound.parts, bound.names) == (["x ", read("slot@1")], ["slot@1", "out@1"])
    assert bind(spec, {}, {}) is spec


def test_values_replace_references_with_their_paths() -> None:
    element = json.dumps({"k": ['say "<<x>>"\n', 2]})
    spec = call("out", read("item", "k", "0", in_json=True), read("item", "k"), read("item"), read("index"))
    bound = bind(spec, {}, {"item": element, "index": "7"})
    assert bound.segments == [
        Characters(r"say \"<<x>>\"\n"),
        Characters(r'["say \"<<x>>\"\n",2]'),
        Characters(element),
        Characters("7"),
        ANSWER,
    ], "a value is data: no reference in it is read"
    with pytest.raises(UnresolvedPath, match="has no 'missing'"):
        bind(call("out", read("item", "missing")), {}, {"item": element})


def test_the_names_of_an_inner_map_hide_those_around_it() -> None:
    inner = Map(read("item", "l"), "item", call(None, read("item"), read("index"), read("tone")), 10)
    bound = bind(CallSpec(model="", form=inner), {"tone": "tone@1"}, {"item": '{"l":[1]}', "index": "0"})
    assert isinstance(bound.form, Map)
    assert bound.form.over == "[1]"
    assert list(bound.form.call.segments) == [read("item"), read("index"), read("tone@1"), ANSWER]


def test_the_names_of_an_inner_repeat_hide_those_around_it() -> None:
    inner = Repeat(
        calls=[call("draft", read("draft"), read("text"))],
        first={"text": [read("text")]},
        carry={"text": [read("draft"), read("tone")]},
        until=Condition([read("draft")], "equals", '"x"'),
        max_rounds=2,
        exports=["draft"],
    )
    names = {"draft": "draft@9", "tone": "tone@9"}
    bound = bind(CallSpec(model="", form=inner, output="draft"), names, {"text": "first"})
    form = bound.form
    assert isinstance(form, Repeat)
    assert bound.output == "draft@9", "the form's own output is a name of the scope around it"
    assert (form.exports, form.first) == (["draft"], {"text": ["first"]})
    assert list(form.calls[0].segments) == [read("draft"), read("text"), ANSWER]
    assert (form.carry, form.until.value) == ({"text": [read("draft"), read("tone@9")]}, [read("draft")])


def test_the_outputs_of_an_inner_branch_are_names_of_the_scope_around_it() -> None:
    inner = Branch(Condition([read("v")], "equals", '"x"'), [call("a"), call("b", read("a"))], [call("b")])
    spec = CallSpec(model="", form=inner, output="b", more_outputs=["a"])
    bound = bind(spec, {"a": "a@1", "b": "b@1", "v": "v@1"}, {})
    form = bound.form
    assert isinstance(form, Branch)
    assert (bound.output, bound.more_outputs, form.condition.value) == ("b@1", ["a@1"], [read("v@1")])
    assert [side.output for side in (*form.then, *form.otherwise)] == ["a@1", "b@1", "b@1"]
    assert form.then[1].segments[0] == read("a@1")


def test_names_in_the_arguments_of_a_tool_are_bound_once() -> None:
    form = ToolRun("s", "t", '{"x": "<<a>> <<item>>"}', [read("a"), read("item")], Binding({"a": "a", "item": "item"}))
    first = bind(CallSpec(model="", form=form), {"a": "a@1"}, {"item": "v"}).form
    assert isinstance(first, ToolRun)
    assert (first.inputs, first.binding) == ([read("a@1")], Binding({"a": "a@1"}, {"item": "v"}))
    second = bind(CallSpec(model="", form=first), {"a@1": "a@2", "item": "no"}, {"a": "no"}).form
    assert isinstance(second, ToolRun)
    assert (second.inputs, second.binding) == ([read("a@2")], Binding({"a": "a@2"}, {"item": "v"}))


letters = st.sampled_from("abcd")
mappings = st.dictionaries(letters, letters)


@given(st.lists(st.text(max_size=2) | letters.map(read)), mappings, mappings)
def test_binding_twice_is_binding_to_the_names_of_names(
    template: list[str | Input], first: dict[str, str], second: dict[str, str]
) -> None:
    both = {name: second.get(first.get(name, name), first.get(name, name)) for name in "abcd"}
    twice = bind_template(bind_template(template, first, {}), second, {})
    assert twice == bind_template(template, both, {})
