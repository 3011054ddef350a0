"""engine/sampling_params.py: what parameters say about themselves, and how they cross the connection."""

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.protocol import Generate
from engine.sampling_params import SamplingParams

PARAMETERS = st.builds(
    SamplingParams,
    max_tokens=st.none() | st.integers(0, 9),
    temperature=st.floats(0, 2),
    top_p=st.floats(0, 1),
    seed=st.none() | st.integers(-(2**63), 2**63 - 1),
    logit_bias=st.dictionaries(st.integers(0, 9), st.floats(-100, 100)),
    stop=st.lists(st.text(), max_size=3).map(tuple),
    regex=st.none() | st.text(),
    thinks=st.sampled_from([None, "perhaps", "begun"]),
    prediction=st.text(),
)


@given(PARAMETERS)
def test_parameters_cross_the_connection(sampling: SamplingParams) -> None:
    assert sampling.specified is sampling.specified, "computed once, and not part of the frame"
    frame = msgspec.msgpack.encode(Generate(1, sampling))
    received = msgspec.msgpack.decode(frame, type=Generate).sampling
    assert received == sampling
    assert received.prediction == sampling.prediction


def test_a_frame_of_another_version_may_omit_or_add_parameters() -> None:
    frame = {"type": "generate", "context": 1, "sampling": {"top_k": 3, "unknown": True}}
    received = msgspec.msgpack.decode(msgspec.msgpack.encode(frame), type=Generate)
    assert received.sampling == SamplingParams(top_k=3)


def test_specified_parameters_differ_from_the_defaults_or_were_given() -> None:
    assert SamplingParams().specified == {}
    assert SamplingParams(top_k=3, temperature=1.0, given=("temperature",)).specified == {
        "top_k": 3,
        "temperature": 1.0,
        "given": ("temperature",),
    }


@pytest.mark.parametrize(
    ("fields", "deterministic"),
    [({}, False), ({"temperature": 0.0}, True), ({"seed": 0}, True), ({"top_p": 0.0}, True), ({"top_k": 1}, False)],
)
def test_which_parameters_give_the_same_text_every_time(fields: dict[str, Any], deterministic: bool) -> None:
    assert SamplingParams(**fields).is_deterministic is deterministic


@pytest.mark.parametrize("name", ["regex", "json_schema", "grammar"])
def test_a_constraint_may_be_an_empty_text(name: str) -> None:
    assert not SamplingParams().is_constrained
    constraint: dict[str, Any] = {name: ""}
    assert SamplingParams(**constraint).is_constrained


def test_top_p_of_zero_becomes_greedy() -> None:
    sampling = SamplingParams(top_p=0.5)
    assert sampling.with_positive_top_p is sampling
    greedy = SamplingParams(top_p=0.0, temperature=1.5, seed=3).with_positive_top_p
    assert (greedy.top_p, greedy.temperature, greedy.seed) == (1.0, 0.0, 3)
