"""JSON bodies: errors name the invalid field, and memory is released."""

import json
import threading
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer, make_mocked_request

from compat.openai import ChatCompletionRequest
from gateway.errors import RequestError
from gateway.http import json_body as bodies
from gateway.http.json_body import read_json
from gateway.http.middleware.errors import errors
from gateway.runtime.json_codec import encode_json


async def error_of(body: Any) -> RequestError:
    request = make_mocked_request("POST", "/")
    request._read_bytes = body if isinstance(body, bytes) else json.dumps(body).encode()
    with pytest.raises(RequestError) as error:
        await read_json(request, ChatCompletionRequest)
    return error.value


VALID: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "x"}]}


@pytest.mark.parametrize(
    ("change", "param", "message"),
    [
        ({"messages": [{"role": "user", "content": {"a": 1}}]}, "messages.0.content", "valid string or a valid list"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages.0.content.0.text", "required"),
        ({"messages": [{"role": "user", "content": [{}]}]}, "messages.0.content.0.type", "this field is required"),
        (
            {"messages": [{"role": "user", "content": [{"type": "input_text"}]}]},
            "messages.0.content.0.type",
            "Input should be 'text', 'refusal', 'image_url', 'input_audio', 'file', 'video_url' or 'audio_url'",
        ),
        ({"tools": [{"type": "web_search"}]}, "tools.0.type", "Input should be 'function' or 'custom'"),
        ({"tools": [{"name": "x"}]}, "tools.0.type", "this field is required"),
        (
            {"messages": [{"role": "assistant", "tool_calls": [{"id": "a", "type": "x"}]}]},
            "messages.0.tool_calls.0.type",
            "Input should be 'function' or 'custom'",
        ),
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
async def test_an_error_names_the_field_of_the_request(change: dict[str, Any], param: str, message: str) -> None:
    error = await error_of({**VALID, **change})
    assert error.param == param
    assert message in str(error)


async def test_a_lone_surrogate_is_refused() -> None:
    error = await error_of(b'{"model": "\\ud800"}')
    assert error.code == "invalid_json"


def test_answers_preserve_all_characters() -> None:
    assert encode_json({"text": "é\u2028😀"}).decode() == '{"text":"é\u2028😀"}'


async def test_a_body_is_released_when_its_request_is_answered() -> None:
    seen: list[web.Request] = []

    async def handle(request: web.Request) -> web.Response:
        seen.append(request)
        assert len(await request.read()) == 1_000_000
        raise RequestError(400, "no")

    app = web.Application(middlewares=[errors], client_max_size=1 << 21)
    app.router.add_post("/", handle)
    async with TestClient(TestServer(app)) as client, client.post("/", data=b"x" * 1_000_000) as answer:
        assert answer.status == 400
        assert not seen[0]._read_bytes, "aiohttp retains the request while its connection is open"


async def test_many_objects_are_checked_in_a_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    threads: list[threading.Thread] = []
    validate = bodies.validate

    def record_and_check(*arguments: Any) -> Any:
        threads.append(threading.current_thread())
        return validate(*arguments)

    monkeypatch.setattr(bodies, "validate", record_and_check)
    for count in (1, 9_000):
        body = {**VALID, "messages": [{"role": "user", "content": [{"type": "text", "text": "x" * 40}] * count}]}
        request = make_mocked_request("POST", "/")
        request._read_bytes = json.dumps(body).encode()
        await read_json(request, ChatCompletionRequest)
    assert [thread is threading.main_thread() for thread in threads] == [True, False]
