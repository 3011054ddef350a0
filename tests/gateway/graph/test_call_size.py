"""Tests of gateway/graph/call_size.py: memory that calls count towards the limits of a session."""

import json
from typing import Any

import pytest

from engine.sampling_params import SamplingParams
from gateway.graph.call import CallSpec, Rendering
from gateway.graph.call_size import spec_bytes
from gateway.graph.errors import TooLarge
from gateway.graph.forms.form import Branch, Condition, Map, Repeat
from gateway.graph.references import Reference
from gateway.graph.segments import Characters, Input, Messages, Segment, Slot, Text
from gateway.graph.transform import Transform
from tests.gateway.graph.test_session import put, session


def test_references_count_towards_the_bytes_of_a_session() -> None:
    graph = session(bytes=100_000)
    put(graph, "a", "x")
    with pytest.raises(TooLarge, match="the maximum is"):
        graph.add_variable("t", template=[Input(Reference("a"), "template")] * 1000)
    graph.add_variable("t", template=[Input(Reference("a"), "template")] * 100)
    assert graph.resources.bytes > 100 * 100


def test_parameters_count_towards_the_bytes_of_a_session() -> None:
    costly = SamplingParams(
        logit_bias=dict.fromkeys(range(1_000), 1.0), prediction="x" * 50_000, stop_token_ids=(1,) * 500
    )
    slots = [Slot(f"s{number}", costly) for number in range(10)]
    graph = session(bytes=1_000_000)
    graph.add(CallSpec(model="m", segments=[Text([1]), *slots, Slot(None, costly)]))
    assert 150_000 < graph.resources.bytes < 250_000, "parameters that slots share count once"
    other = SamplingParams(json_schema="x" * 1_000_000)
    with pytest.raises(TooLarge, match="the maximum is"):
        graph.add(CallSpec(model="m", segments=[Text([1]), Slot(None, other)]))


PLAIN = Slot(None, SamplingParams())
BASE = spec_bytes(CallSpec(model="m", segments=[PLAIN]))
NAME = Input(Reference("a"), "m")


@pytest.mark.parametrize(
    ("segments", "size"),
    [
        ([Text([1] * 100)], 400),
        ([Text([1] * 100, weight=5)], 400),
        ([Characters("é" * 100)], 400),
        ([Messages([{"role": "user", "content": "x"}], size=100, weight=5)], 400),
        ([NAME, NAME], 400),
        ([Slot("a", SamplingParams())], 500),
        ([Slot("a", SamplingParams(), Transform(regex="x" * 30, json="y" * 7))], 537),
        ([Slot("a", SamplingParams(stop=("xx", "yyy")))], 505),
        ([Slot("a", SamplingParams(stop_token_ids=(1, 2)))], 580),
    ],
)
def test_memory_of_segments(segments: list[Segment], size: int) -> None:
    assert spec_bytes(CallSpec(model="m", segments=[*segments, PLAIN])) == BASE + size


def test_memory_of_fallbacks_and_parts() -> None:
    rendering: Any = [Text([1] * 50), PLAIN]
    spec = CallSpec(model="m", segments=rendering, fallbacks=[Rendering("n", rendering)], parts=["é" * 10, NAME])
    assert spec_bytes(spec) == BASE + 200 + 200 + 20 + 200


def test_a_text_that_several_parameters_share_counts_once() -> None:
    schema = "x" * 1_000
    slots = [Slot(f"s{number}", SamplingParams(json_schema=schema, seed=number)) for number in range(3)]
    one = spec_bytes(CallSpec(model="m", segments=[*slots[:1], PLAIN]))
    assert spec_bytes(CallSpec(model="m", segments=[*slots, PLAIN])) == one + 2 * 500


def test_a_call_without_texts_and_references_has_no_size_of_its_own() -> None:
    assert BASE == spec_bytes(CallSpec(model="", parts=[])) == 0, "CALL_BYTES covers it"


def nested(text: str, depth: int) -> CallSpec:
    spec = CallSpec(model="m", segments=[Characters(text), PLAIN])
    for _ in range(depth):
        spec = CallSpec(model="", form=Map("[]", "item", spec, 10))
    return spec


def test_a_form_counts_the_prompts_inside_it() -> None:
    text = "x" * 1_000
    for depth in (1, 2, 8):
        assert spec_bytes(nested(text, depth)) - spec_bytes(nested("", depth)) == 4 * len(text)
    call = nested(text, 0)
    yes = Condition([text, NAME], "equals", json.dumps(text))
    branch = CallSpec(model="", form=Branch(yes, [call], [call, call], text))
    repeat = CallSpec(model="", form=Repeat([call], {"a": [text]}, {"a": [text]}, yes, 100, []))
    assert 3 * 4_000 + 3_000 < spec_bytes(branch) < 3 * 4_000 + 7_000
    assert 4_000 + 4_000 < spec_bytes(repeat) < 4_000 + 7_000
