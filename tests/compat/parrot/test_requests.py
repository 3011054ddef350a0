"""compat/parrot/requests.py: templates with parameters, and values that are refused."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from compat.parrot.requests import (
    MAX_OUTPUTS,
    MAX_PLACEHOLDERS,
    Parameter,
    Read,
    SamplingConfig,
    SemanticCall,
    pieces,
)
from tests.fakes.counted_text import CountedKey


def call(template: str, *parameters: dict[str, Any], **more: Any) -> SemanticCall:
    return SemanticCall.model_validate({"session_id": 1, "template": template, "parameters": list(parameters), **more})


def value(name: str, text: str = "v") -> dict[str, Any]:
    return {"name": name, "is_output": False, "value": text}


def output(name: str) -> dict[str, Any]:
    return {"name": name, "is_output": True}


NAMES = st.from_regex(r"[a-z_][a-z0-9_]{0,5}", fullmatch=True)
TEXTS = st.text().filter(lambda text: "{{" not in text and "}}" not in text and not text.endswith("{"))


@given(st.lists(st.tuples(TEXTS, NAMES), min_size=1, max_size=6))
def test_pieces_join_to_the_template(parts: list[tuple[str, str]]) -> None:
    template = "".join(f"{text}{{{{{name}}}}}" for text, name in parts)
    parsed = call(template, *(value(name) for name in dict.fromkeys(name for _, name in parts)))
    found = list(pieces(parsed))
    assert "".join(piece if isinstance(piece, str) else f"{{{{{piece.name}}}}}" for piece in found) == template
    assert [piece.name for piece in found if isinstance(piece, Parameter)] == [name for _, name in parts]
    assert "" not in found


def test_many_parameters_take_linear_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CountedKey, "comparisons", 0)
    names = [CountedKey(f"p{index}") for index in range(2_000)]
    parameters = [Parameter.model_construct(name=name, is_output=False, value="v") for name in names]
    template = "".join(f"{{{{{name}}}}}" for name in names)
    many = SemanticCall.model_construct(template=template, parameters=parameters)
    assert many._template_and_parameters_agree() is many
    assert CountedKey.comparisons <= 5 * 2_000, "2,000,000 if each is compared with those before it"


@pytest.mark.parametrize(
    ("template", "parameters", "message"),
    [
        ("{{a}}", [], "a placeholder 'a', but there is no such parameter"),
        ("text", [value("a")], "no placeholder {{a}} for the parameter 'a'"),
        ("{{a}}", [value("a"), value("a")], "duplicate parameter 'a'"),
        ("{{a}}" * (MAX_PLACEHOLDERS + 1), [value("a")], "at most 10000 placeholders"),
        ("{{o0}}", [output(f"o{index}") for index in range(MAX_OUTPUTS + 1)], "1001 outputs"),
        ("{{a}}", [{"name": "a", "is_output": True, "value": "x"}], "an output cannot have a value"),
        ("{{a}}", [{"name": "a", "is_output": False}], "either var_id or value"),
        ("{{a}}", [{**value("a"), "var_id": "v"}], "either var_id or value"),
        ("{{a}}", [{**value("a"), "sampling_config": {}}], "only an output can have sampling_config"),
    ],
)
def test_templates_and_parameters_that_do_not_agree(template: str, parameters: list[Any], message: str) -> None:
    with pytest.raises(ValidationError) as refused:
        call(template, *parameters)
    assert message in str(refused.value)


@pytest.mark.parametrize(
    "field",
    [
        {"temperature": 2.5},
        {"top_p": 0.0},
        {"max_gen_length": 0},
        {"n": 2},
        {"best_of": 2},
        {"length_penalty": 0.5},
        {"stop_str": ""},
        {"stop_str": "x" * 1_001},
        {"logit_bias": {"a": 1.0}},
        {"logit_bias": {"1": 101.0}},
        {"stop_token_ids": [-1]},
        {"beams": 3},
    ],
)
def test_sampling_that_cannot_be_is_refused(field: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        SamplingConfig.model_validate(field)


def test_values_without_an_effect_are_accepted() -> None:
    config = SamplingConfig.model_validate({"n": 1, "best_of": 1, "length_penalty": 1.0, "repetition_penalty": 1.0})
    assert (config.temperature, config.top_p, config.max_gen_length) == (0.8, 0.95, 1024)


@pytest.mark.parametrize("criteria", ["latency", "THROUGHPUT", "TTFT", "tpot"])
def test_criteria_in_any_case(criteria: str) -> None:
    assert call("x", output_criteria=criteria).output_criteria == criteria.lower()
    assert Read(session_id=1, criteria=criteria).criteria == criteria.lower()


@pytest.mark.parametrize(
    ("schema", "body"),
    [
        (Read, {"session_id": 1, "criteria": "speed"}),
        (Read, {"session_id": "1"}),
        (Read, {"session_id": 2**65 + 1}),
        (SemanticCall, {"session_id": 1, "template": "x", "parameters": [], "output_criteria": ""}),
        (SemanticCall, {"session_id": 1, "template": "x", "parameters": [], "model_type": "image"}),
    ],
)
def test_other_values_are_refused(schema: type[BaseModel], body: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        schema.model_validate(body)
