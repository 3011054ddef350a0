"""compat/openai/refused.py: known fields that are refused say why."""

import pytest

from compat.openai import ChatCompletionRequest, CompletionRequest
from compat.openai.refused import REFUSED
from compat.openai.responses import ResponseRequest
from gateway.errors import RequestError
from gateway.http.json_body import validate


@pytest.mark.parametrize("field", sorted(REFUSED))
def test_the_error_contains_the_reason(field: str) -> None:
    valid = {
        ChatCompletionRequest: {"model": "m", "messages": [{"role": "user", "content": "x"}]},
        CompletionRequest: {"model": "m", "prompt": "x"},
        ResponseRequest: {"model": "m", "input": "x"},
    }
    refused = 0
    for schema, body in valid.items():
        if field in schema.model_fields:
            continue
        with pytest.raises(RequestError) as error:
            validate({**body, field: "x"}, schema)
        assert (error.value.code, error.value.param) == ("unsupported_parameter", field)
        assert REFUSED[field] in str(error.value)
        refused += 1
    assert refused, "no request accepts it"


def test_reasons_are_parts_of_a_sentence() -> None:
    for field, reason in REFUSED.items():
        assert reason == reason.strip().rstrip("."), field
        assert reason[0].islower() or reason.split()[0].isupper(), field
