"""gateway/graph/errors.py: messages of failures can be stored and sent."""

from hypothesis import given
from hypothesis import strategies as st

from gateway.graph.errors import LONGEST_MESSAGE, Failure, GraphError, TooLarge

_ANY_TEXT = st.text(st.characters(codec=None), max_size=50)
"""Texts with lone surrogates, which no encoding can represent."""


@given(_ANY_TEXT)
def test_a_message_is_unicode_text(message: str) -> None:
    stored = Failure("engine_failed", message).message
    stored.encode()
    assert Failure("engine_failed", stored).message == stored
    if all(not 0xD800 <= ord(character) <= 0xDFFF for character in message):
        assert stored == message
    else:
        assert "\ufffd" in stored or max(stored) >= "\U00010000", "surrogates are replaced, or joined to a character"


def test_a_long_message_is_cut() -> None:
    assert Failure("x", "a" * LONGEST_MESSAGE).message == "a" * LONGEST_MESSAGE
    assert len(Failure("x", "a" * 10_000).message) == LONGEST_MESSAGE
    assert len(Failure("x", "é" * 10_000).message) == LONGEST_MESSAGE


def test_equal_failures_are_one_value() -> None:
    assert {Failure("x", "\ud800"), Failure("x", "\ud801")} == {Failure("x", "\ufffd")}


def test_an_error_names_the_field_of_the_request() -> None:
    error = TooLarge("9 calls", "calls.8")
    assert (error.code, str(error), error.where) == ("too_large", "9 calls", "calls.8")
    assert GraphError("no").where is None
