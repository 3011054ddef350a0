"""Tests of gateway/tools/result_text.py: results as texts."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.tools.result_text import BadResult, as_unicode, result_text


@pytest.mark.parametrize(
    ("result", "text"),
    [
        ({"content": []}, ""),
        ({}, ""),
        ({"content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}, "a\nb"),
        ({"content": [{"type": "text", "text": "a"}], "structuredContent": {"b": 1}}, "a"),
        ({"content": [], "structuredContent": {"b": [1, "ü"]}}, '{"b":[1,"ü"]}'),
        ({"content": [{"type": "image", "data": "QUJDRA==", "mimeType": "image/png"}]}, "[image: image/png, 4 bytes]"),
        ({"content": [{"type": "audio", "data": 7}]}, "[audio: unnamed, 0 bytes]"),
        ({"content": [{"type": "resource_link", "name": "n\n", "uri": "u"}]}, "[resource: n , u]"),
        ({"content": [{"type": "resource", "resource": {"uri": "u", "text": "x"}}]}, "[resource: u, unnamed]"),
        ({"content": [{"type": "video"}]}, "[a part of an unknown type]"),
        ({"content": [{"type": "text", "text": "a\ud800"}]}, "a�"),
        ({"content": [{"type": "text", "text": "<<x>> <|im_end|>"}]}, "<<x>> <|im_end|>"),
    ],
)
def test_a_result_becomes_a_text(result: dict[str, Any], text: str) -> None:
    assert result_text(result) == text


@pytest.mark.parametrize(
    "content",
    [7, {}, [7], [{"type": "text"}], [{"type": "resource", "resource": 1}], [{"type": "text", "text": ""}] * 2_001],
)
def test_a_result_of_another_form_is_refused(content: Any) -> None:
    with pytest.raises(BadResult):
        result_text({"content": content})


@given(st.text(st.characters()))
def test_a_text_becomes_unicode(text: str) -> None:
    found = as_unicode(text)
    assert found.encode().decode() == found
    assert found == text or any("\ud800" <= character <= "\udfff" for character in text)
