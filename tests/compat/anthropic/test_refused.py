"""compat/anthropic/refused.py: known fields that are refused say why."""

import pytest

from compat.anthropic import REFUSED_BY_MESSAGES, CountTokensRequest, MessagesRequest
from compat.openai import REFUSED
from gateway.errors import RequestError
from gateway.http.json_body import validate


@pytest.mark.parametrize("field", sorted(REFUSED_BY_MESSAGES))
@pytest.mark.parametrize("kind", [MessagesRequest, CountTokensRequest])
def test_the_error_contains_the_reason(field: str, kind: type[CountTokensRequest]) -> None:
    body = {"model": "m", "messages": [{"role": "user", "content": "x"}]}
    limit = {"max_tokens": 1} if kind is MessagesRequest else {}
    with pytest.raises(RequestError) as error:
        validate({**body, **limit, field: "x"}, kind)
    assert (error.value.code, error.value.param) == ("unsupported_parameter", field)
    assert REFUSED_BY_MESSAGES[field] in str(error.value)
    assert field not in REFUSED, "one reason for each field"
