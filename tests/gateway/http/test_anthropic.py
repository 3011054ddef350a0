"""gateway/http/anthropic.py: errors in Anthropic's format, validated by the types of its package."""

import json
from typing import Any

import pytest
from aiohttp.test_utils import make_mocked_request
from anthropic.types import ErrorResponse

from gateway.errors import RequestError
from gateway.http.anthropic import anthropic_error_body, anthropic_status, request_id_headers, speaks_anthropic
from gateway.runtime.json_codec import encode_json


def body_of(error: RequestError) -> Any:
    return json.loads(encode_json(anthropic_error_body(error, str(error), error.param, "req_1")))


@pytest.mark.parametrize(
    ("path", "headers", "expected"),
    [
        ("/v1/messages", {}, True),
        ("/v1/messages?beta=true", {}, True),
        ("/v1/messages/count_tokens", {}, True),
        ("/v1/messages/batches", {}, True),
        ("/v1/messagesx", {}, False),
        ("/v1/models", {}, False),
        ("/v1/models", {"anthropic-version": "2023-06-01"}, True),
        ("/v1/models", {"Anthropic-Version": "2023-06-01"}, True),
        ("/v1/chat/completions", {"x-api-key": "k"}, False),
    ],
)
def test_the_path_or_the_version_shows_the_api(path: str, headers: dict[str, str], expected: bool) -> None:
    request = make_mocked_request("POST", path, headers)
    assert speaks_anthropic(request) == expected
    assert request_id_headers(request, "r") == {"x-request-id": "r", **({"request-id": "r"} if expected else {})}


@pytest.mark.parametrize(
    ("status", "answered", "type"),
    [
        (400, 400, "invalid_request_error"),
        (401, 401, "authentication_error"),
        (403, 403, "permission_error"),
        (404, 404, "not_found_error"),
        (405, 405, "invalid_request_error"),
        (409, 409, "invalid_request_error"),
        (422, 422, "invalid_request_error"),
        (429, 429, "rate_limit_error"),
        (500, 500, "api_error"),
        (503, 529, "overloaded_error"),
        (504, 504, "timeout_error"),
    ],
)
def test_each_status_has_its_type(status: int, answered: int, type: str) -> None:
    error = RequestError(status, "why", code="a_code", param="messages.0")
    assert anthropic_status(error) == answered
    parsed = ErrorResponse.model_validate(body_of(error))
    assert (parsed.error.type, parsed.error.message, parsed.request_id) == (type, "why", "req_1")
    assert body_of(error)["error"]["details"] == {"error_code": "a_code", "param": "messages.0"}


def test_a_body_that_is_too_large_has_a_type_of_its_own() -> None:
    assert body_of(RequestError(413, "why"))["error"] == {"type": "request_too_large", "message": "why", "details": {}}


@pytest.mark.parametrize(
    ("message", "told"),
    [
        ("this model's window is 96 tokens, but the prompt has at least 120 tokens; shorten it", "120 tokens > 96"),
        ("this model's window is 96 tokens, but the prompt has at least 96 tokens; shorten it", "96 tokens > 95"),
        ("the prompt's 120 tokens leave no room in the window of 96", "120 tokens > 96"),
        ("600 tokens do not fit: the model's window is 8192 tokens and the KV pool holds 512", "600 tokens > 599"),
        (
            "This model's maximum context length is 4096 tokens. However, you requested 5000 tokens (4900 in the "
            "messages, 100 in the completion).",
            "5000 tokens > 4096",
        ),
        ("request (5000 tokens) exceeds the available context size (4096 tokens)", "5000 tokens > 4096"),
        ("The input (5000 tokens) is longer than the model's context length (4096 tokens).", "5000 tokens > 4096"),
    ],
)
def test_an_overflow_has_anthropics_message(message: str, told: str) -> None:
    error = RequestError(400, message, code="context_length_exceeded", param="messages")
    assert body_of(error)["error"]["message"] == f"prompt is too long: {told} maximum"


@pytest.mark.parametrize("message", ["too long", "the context window is full", "window 5", "9" * 2_000])
def test_an_overflow_without_numbers_is_quoted(message: str) -> None:
    error = RequestError(400, message, code="context_length_exceeded")
    assert body_of(error)["error"]["message"] == f"prompt is too long: {message}"
