"""Tests of gateway/tools/messages.py: messages of servers, and their limits."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.tools.messages import BadMessage, failure_message, failure_of, max_message_bytes, one_line, parse_message
from gateway.tools.protocol import PROTOCOL_ERROR, TOO_LARGE, UNAVAILABLE


@pytest.mark.parametrize("size", [10, 50_000, 500_000])
async def test_a_message_is_parsed(size: int) -> None:
    message = {"jsonrpc": "2.0", "id": 1, "result": {"text": "[{," * size, "list": [1] * 100}}
    assert await parse_message(json.dumps(message).encode()) == message


@pytest.mark.parametrize(
    ("raw", "code"),
    [
        (b"", PROTOCOL_ERROR),
        (b"hello", PROTOCOL_ERROR),
        (b"[1]", PROTOCOL_ERROR),
        (b"\xff", PROTOCOL_ERROR),
        (b'{"a": "\\ud800', PROTOCOL_ERROR),
        (b'{"a":' + b"[" * 300 + b"]" * 300 + b"}", PROTOCOL_ERROR),
        (b'{"a":' + b"[" * 90_000 + b"]" * 90_000 + b"}", PROTOCOL_ERROR),
        (b'{"a":[' + b"1," * 200_000 + b"1]}", TOO_LARGE),
        (b'{"id":7,"result":{"content":[' + b"1," * 3_000 + b"1]}}", TOO_LARGE),
    ],
)
async def test_a_bad_message_is_refused_in_one_line(raw: bytes, code: str) -> None:
    with pytest.raises(BadMessage) as caught:
        await parse_message(raw)
    assert caught.value.code == code
    assert str(caught.value) == one_line(str(caught.value))


@pytest.mark.parametrize("text", [b'"a\xffb"', b'"a\\ud800b"', b'"a\\udc00b"'])
async def test_invalid_unicode_is_replaced(text: bytes) -> None:
    assert await parse_message(b'{"text": ' + text + b"}") == {"text": "a�b"}


@given(st.text(), st.integers(0, 5))
def test_a_line_has_no_breaks(text: str, repeats: int) -> None:
    line = one_line(text * 10**repeats if len(text) < 5 else text)
    assert len(line) <= 300
    assert line == "" or line.isprintable()


def test_failures_of_the_transport_have_codes_of_their_own() -> None:
    for code in (TOO_LARGE, UNAVAILABLE, PROTOCOL_ERROR):
        message: dict[str, Any] = failure_message(3, code, "why")
        assert (failure_of(message["error"]["code"]), message["id"]) == (code, 3)
    assert failure_of(-32602) is None


def test_messages_may_be_larger_than_results() -> None:
    assert max_message_bytes(1) == 4 << 20
    assert max_message_bytes(10 << 20) > 40 << 20
