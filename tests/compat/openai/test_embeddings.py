"""compat/openai/embeddings.py: inputs are texts or tokens."""

from typing import Any

import pytest
from pydantic import ValidationError

from compat.openai.embeddings import MAX_INPUTS, OwnEmbeddingRequest


@pytest.mark.parametrize(
    ("content", "inputs"),
    [("a", ["a"]), (["a", "b"], ["a", "b"]), ([1, 2], [[1, 2]]), ([[1], [2, 3]], [[1], [2, 3]])],
)
def test_inputs(content: Any, inputs: Any) -> None:
    assert OwnEmbeddingRequest.model_validate({"model": "m", "input": content}).input == inputs


WRONG: list[Any] = ["", [], [""], ["a", ""], ["a", [1]], [[]], [[1], []], [-1], [2**31], [1.5], [True], 5, None, [None]]


@pytest.mark.parametrize("content", [*WRONG, {"a": 1}, ["a"] * (MAX_INPUTS + 1)])
def test_invalid_inputs(content: Any) -> None:
    with pytest.raises(ValidationError):
        OwnEmbeddingRequest.model_validate({"model": "m", "input": content})


@pytest.mark.parametrize("field", [{"dimensions": 0}, {"encoding_format": "int8"}, {"truncate": True}])
def test_invalid_fields(field: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        OwnEmbeddingRequest.model_validate({"model": "m", "input": "a", **field})
