"""Tests of compat/openai/response_formats.py: schemas as texts."""

import pytest

from compat.openai.response_formats import validate_schema


@pytest.mark.parametrize(
    "text", ["[" * 5000 + "]" * 5000, "{", "[1]", "3", '{"a": NaN}', "x" * 300_000, '{"a": "\ud800"}']
)
def test_a_text_that_is_not_a_schema_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="schema"):
        validate_schema(text)
