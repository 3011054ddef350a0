"""JSON codec: limits of documents, and integers of any size."""

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.runtime.json_codec import MAX_DEPTH, MAX_KEYS, MAX_VALUES, BadJson, decode_json, encode_json

SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
VALUES = st.recursive(SCALARS, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=40)


@given(VALUES)
def test_documents_within_the_limits_are_preserved(value: Any) -> None:
    assert json.loads(encode_json(value)) == value
    if not any(abs(n) >= 2**63 for n in _integers(value)):
        assert decode_json(encode_json(value)) == value


def _integers(value: Any) -> list[int]:
    if isinstance(value, dict):
        return [n for child in value.values() for n in _integers(child)]
    if isinstance(value, list):
        return [n for child in value for n in _integers(child)]
    return [value] if isinstance(value, int) else []


@given(st.integers(1, 4000), st.sampled_from(["[]", "{}", "[{"]), st.booleans())
def test_depth_is_limited_and_never_exhausts_the_stack(depth: int, kind: str, closed: bool) -> None:
    opening = {"[]": "[", "{}": '{"a":', "[{": '[{"a":'}[kind]
    closing = {"[]": "]", "{}": "}", "[{": "}]"}[kind]
    text = opening * depth + "1" + closing * (depth if closed else 0)
    levels = depth * (2 if kind == "[{" else 1)
    if closed and levels <= MAX_DEPTH:
        assert json.loads(text) == decode_json(text.encode())
    elif not closed or levels > MAX_DEPTH + 1:  # pydantic's parser counts one level more
        with pytest.raises(BadJson):
            decode_json(text.encode())


def test_brackets_in_strings_do_not_count() -> None:
    text = "[{," * MAX_VALUES
    assert decode_json(json.dumps(text).encode()) == text


@pytest.mark.parametrize(
    ("document", "message"),
    [
        (b"[" + b"1," * MAX_VALUES + b"1]", "values; at most"),
        (b"{" + b",".join(b'"%d":1' % n for n in range(MAX_KEYS + 1)) + b"}", "members; at most"),
        (b"[" + b",".join([b'{"a":1}'] * (MAX_KEYS + 1)) + b"]", "members; at most"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"a": ' + b"9" * 5000 + b"}", "not JSON"),
        (b'{"a": "\\ud800 x"}', "not JSON"),
        (b'{"a": "\xed\xa0\x80"}', "not JSON"),
        (b"", "not JSON"),
    ],
)
def test_too_large_or_invalid_documents_are_refused_with_a_reason(document: bytes, message: str) -> None:
    with pytest.raises(BadJson, match=message):
        decode_json(document)


def test_integers_of_any_size_are_encoded() -> None:
    class Answer(msgspec.Struct):
        value: int

    assert encode_json(Answer(10**30)) == b'{"value":%d}' % 10**30
    assert encode_json({"text": "é", "n": [2**64]}) == '{"text":"é","n":[18446744073709551616]}'.encode()
