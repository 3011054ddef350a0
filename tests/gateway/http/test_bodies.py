"""gateway/http/bodies.py: where a refusal says the fault is."""

import json
from typing import Any

import pytest
from aiohttp.test_utils import make_mocked_request

from compat.openai import ChatCompletionRequest
from gateway.errors import RequestError
from gateway.http.bodies import encode_json, read_json


async def refusal(body: Any) -> RequestError:
    request = make_mocked_request("POST", "/")
    request._read_bytes = body if isinstance(body, bytes) else json.dumps(body).encode()
    with pytest.raises(RequestError) as error:
        await read_json(request, ChatCompletionRequest)
    return error.value


GOOD: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "x"}]}


@pytest.mark.parametrize(
    ("change", "param", "words"),
    [
        ({"messages": [{"role": "user", "content": {"a": 1}}]}, "messages.0.content", "valid string or a valid list"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages.0.content.0.text", "required"),
        ({"messages": "x"}, "messages", "valid list"),
        ({"stop": [1]}, "stop.0", "valid string"),
        ({"logit_bias": {"5": "x"}}, "logit_bias.5", "valid number"),
        ({"semantic": {"inputs": []}}, "semantic.inputs", "valid dictionary"),
        (
            {"messages": [{"role": "user", "content": [{"type": "text", "text": "x"}] * 10_001}]},
            "messages.0.content",
            "at most 10000",
        ),
        ({"new_thing": 1}, "new_thing", "'new_thing' is not supported"),
    ],
)
async def test_a_refusal_names_the_field_of_the_request(change: dict[str, Any], param: str, words: str) -> None:
    error = await refusal({**GOOD, **change})
    assert error.param == param
    assert words in str(error)


async def test_half_a_surrogate_is_no_text() -> None:
    error = await refusal(b'{"model": "\\ud800"}')
    assert error.code == "invalid_json"


def test_answers_keep_every_character() -> None:
    assert encode_json({"text": "é\u2028😀"}).decode() == '{"text":"é\u2028😀"}'
