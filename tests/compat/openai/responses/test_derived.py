"""compat/openai/responses/derived.py: requests about responses have the fields of such a request."""

from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from compat.openai.responses import ResponseRequest
from compat.openai.responses.derived import CompactRequest, InputTokensRequest

HINTS = {"personality"}
"""Fields that only the requests about responses have."""


@pytest.mark.parametrize("kind", [InputTokensRequest, CompactRequest])
def test_all_fields_are_those_of_a_response(kind: type[BaseModel]) -> None:
    assert set(kind.model_fields) - HINTS <= set(ResponseRequest.model_fields)
    assert kind.model_validate({"model": "m", "input": "x", "instructions": None})


@pytest.mark.parametrize(
    ("kind", "content"),
    [
        (CompactRequest, {"input": "x"}),
        (CompactRequest, {"model": "m", "input": "x", "tools": []}),
        (InputTokensRequest, {"input": "x", "personality": "x" * 65}),
        (InputTokensRequest, {"input": "x", "temperature": 0.5}),
        (InputTokensRequest, {"input": []}),
    ],
)
def test_invalid_requests(kind: type[BaseModel], content: Any) -> None:
    with pytest.raises(ValidationError):
        kind.model_validate(content)
