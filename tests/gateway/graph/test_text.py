"""gateway/graph/text.py, and failures, which can always be stored."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.graph.errors import LONGEST_MESSAGE, BadText, Failure
from gateway.graph.text import check_text, has_surrogate, size_of

ANYTHING = st.text(st.characters(min_codepoint=0, max_codepoint=0x10FFFF, categories=None))
"""Strings that may contain surrogates and control characters."""


@given(ANYTHING)
def test_a_text_is_valid_if_it_can_be_encoded_in_utf_8(text: str) -> None:
    try:
        size = len(text.encode())
    except UnicodeEncodeError:
        assert has_surrogate(text)
        with pytest.raises(BadText, match=r"the value is not Unicode text: .* U\+D[8-F]"):
            check_text(text, "the value")
        return
    assert not has_surrogate(text)
    assert check_text(text, "the value") is text
    assert size_of(text) == size


@given(ANYTHING)
def test_the_message_of_a_failure_is_valid_text(message: str) -> None:
    message_of_failure = Failure("code", message).message
    message_of_failure.encode()
    if not has_surrogate(message) and len(message) <= LONGEST_MESSAGE:
        assert message_of_failure == message


def test_the_length_of_a_failure_message_is_limited() -> None:
    assert len(Failure("code", "é" * 10**6).message) == LONGEST_MESSAGE
    assert len(Failure("code", "e" * 10**6).message) == LONGEST_MESSAGE
