"""compat/openai/relayed.py: known fields are checked, all others are passed on."""

from typing import Any

import pytest
from pydantic import ValidationError

from compat.openai.relayed import (
    EmbeddingRequest,
    ImageRequest,
    RelayedBody,
    RerankRequest,
    ScoreRequest,
    SpeechRequest,
)


@pytest.mark.parametrize(
    ("schema", "fields"),
    [
        (EmbeddingRequest, {"input": [[1, 2], [3]], "dimensions": 5, "user": None}),
        (RerankRequest, {"query": {"text": "q"}, "documents": [{"text": "a"}], "top_n": 1}),
        (ScoreRequest, {"anything": 1e300}),
        (SpeechRequest, {"input": "a", "speed": 1.5}),
        (ImageRequest, {"prompt": "a", "size": "1x1"}),
    ],
)
def test_unknown_fields_are_passed_on(schema: type[RelayedBody], fields: dict[str, Any]) -> None:
    assert schema.model_validate({"model": "m", **fields}).model == "m"


@pytest.mark.parametrize("model", [None, "", 5, "x" * 1_001])
def test_a_request_names_its_model(model: Any) -> None:
    with pytest.raises(ValidationError):
        ScoreRequest.model_validate({"model": model})


def test_the_number_of_fields_is_limited() -> None:
    with pytest.raises(ValidationError):
        ScoreRequest.model_validate({"model": "m", **{f"f{number}": 1 for number in range(2_000)}})
