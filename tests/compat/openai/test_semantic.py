"""compat/openai/semantic.py: the extension's part of requests, and the requests of its own endpoints."""

from typing import Any

import pytest
from pydantic import BaseModel

from compat.openai.semantic import GraphRequest, Semantic, SessionRequest, SlotRequest, Transform, VariableRequest
from gateway.errors import RequestError
from gateway.http.json_body import validate


@pytest.mark.parametrize("id", ["a", "a.b", "...", "_", "-", ".a", "..a", "a:b", "x" * 128])
def test_ids_of_sessions(id: str) -> None:
    assert validate({"id": id}, SessionRequest).id == id
    assert validate({"session": id}, Semantic).session == id


@pytest.mark.parametrize("id", ["", ".", "..", "a/b", "a b", "ä", "x" * 129, "a\n"])
def test_ids_that_cannot_be_part_of_a_path_are_refused(id: str) -> None:
    with pytest.raises(RequestError) as refused:
        validate({"id": id}, SessionRequest)
    assert refused.value.param == "id"


def test_defaults() -> None:
    semantic = validate({}, Semantic)
    assert (semantic.session, semantic.inputs, semantic.slots, semantic.defer, semantic.share) == (
        None,
        {},
        {},
        None,
        True,
    )
    assert validate({}, GraphRequest).outputs is None, "without outputs, all results are answered"
    assert validate({}, SessionRequest).metadata == {}


@pytest.mark.parametrize(
    ("schema", "body", "param"),
    [
        (Transform, {"group": 1}, "group"),
        (Transform, {"regex": "a", "group": -1}, "group"),
        (Transform, {"json": ""}, "json"),
        (Transform, {"strip": "yes"}, "strip"),
        (SlotRequest, {"regex": "a", "response_format": {"type": "json_object"}}, "regex"),
        (SlotRequest, {"regex": "("}, "regex"),
        (SlotRequest, {"max_tokens": 0}, "max_tokens"),
        (Semantic, {"slots": {f"s{index}": {} for index in range(1_001)}}, "slots"),
        (Semantic, {"objective": "speed"}, "objective"),
        (Semantic, {"inputs": []}, "inputs"),
        (SessionRequest, {"ttl": 0}, "ttl"),
        (SessionRequest, {"ttl": float("inf")}, "ttl"),
        (SessionRequest, {"metadata": {str(index): "x" for index in range(17)}}, "metadata"),
        (VariableRequest, {"template": "x" * 2_000_001}, "template"),
        (GraphRequest, {"variables": []}, "variables"),
    ],
)
def test_an_error_names_the_field(schema: type[BaseModel], body: dict[str, Any], param: str) -> None:
    with pytest.raises(RequestError) as refused:
        validate(body, schema)
    assert refused.value.param == param


@pytest.mark.parametrize("body", [{}, {"value": "a", "template": "b"}])
def test_a_variable_has_a_value_or_a_template(body: dict[str, Any]) -> None:
    with pytest.raises(RequestError, match="either value or template"):
        validate(body, VariableRequest)


@pytest.mark.parametrize("body", [{"value": None}, {"value": {"a": [1]}}, {"template": "<<a>>"}, {"template": ""}])
def test_each_of_them_alone_is_enough(body: dict[str, Any]) -> None:
    assert validate(body, VariableRequest).model_fields_set == set(body)
