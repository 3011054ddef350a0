"""Tests of gateway/graph/segments.py: contents of contexts, their sizes, and digests of prompts."""

from array import array
from collections.abc import Sequence
from hashlib import blake2b
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from gateway.graph.segments import (
    Characters,
    Messages,
    PromptContent,
    Text,
    Trim,
    Trimmer,
    content_size,
    tokens_of_content,
    update_digest,
)

HELLO = Messages([{"role": "user", "content": "Hello"}], size=30, weight=7)


def digest(contents: Sequence[PromptContent]) -> bytes:
    found = blake2b()
    for content in contents:
        update_digest(found, content)
    return found.digest()


def cut(text: Any, positions: list[int]) -> list[Any]:
    bounds = [0, *sorted(position % (len(text) + 1) for position in positions), len(text)]
    return [text[begin:end] for begin, end in pairwise(bounds)]


POSITIONS = st.lists(st.integers(0, 20), max_size=3)
TEXTS = st.text("aé\ud83d \xff", max_size=6)


@pytest.mark.parametrize(
    ("segment", "length"),
    [
        (Text([1, 2, 3]), 3),
        (Text([1, 2, 3], weight=9), 9),
        (Characters("é!"), 2),
        (Characters("é!", weight=1), 1),
        (HELLO, 7),
        (Messages([], size=30), 30),
    ],
)
def test_length_of_a_segment_for_estimates(segment: Any, length: int) -> None:
    assert segment.length == length


@pytest.mark.parametrize(("content", "size"), [([1, 2, 3], 3), ("é!", 2), (HELLO, 30)])
def test_size_of_what_fills_a_context(content: PromptContent, size: int) -> None:
    assert content_size(content) == size


def test_an_engine_of_tokens_accepts_nothing_else() -> None:
    assert tokens_of_content(array("i", [1, 2])) == array("i", [1, 2])
    for content in ("text", HELLO):
        with pytest.raises(AssertionError, match="accepts tokens"):
            tokens_of_content(content)


@given(st.lists(st.integers(0, 2**31 - 1), max_size=12), POSITIONS)
def test_tokens_have_one_digest_however_they_are_divided(tokens: list[int], positions: list[int]) -> None:
    assert digest(cut(tokens, positions)) == digest([array("i", tokens)])


@given(TEXTS, POSITIONS)
@example("\ud83d\ude00", [1])
def test_a_text_has_one_digest_however_it_is_divided(text: str, positions: list[int]) -> None:
    assert digest(cut(text, positions)) == digest([text])


ROLES = st.sampled_from(["user", "assistant"])
MESSAGES = st.lists(st.fixed_dictionaries({"role": ROLES, "content": TEXTS}), min_size=1, max_size=3)


def divided(messages: list[dict[str, Any]], at: int, position: int) -> list[Messages]:
    """Return the messages as two segments. The first one ends within message `at`."""
    left, right = cut(messages[at]["content"], [position])
    return [
        Messages([*messages[:at], {**messages[at], "content": left}], is_open=True),
        Messages([{"content": right}, *messages[at + 1 :]], continues=True),
    ]


@given(MESSAGES, st.integers(0, 2), st.integers(0, 20))
def test_messages_have_one_digest_however_they_are_divided(
    messages: list[dict[str, Any]], at: int, position: int
) -> None:
    whole = digest([Messages(messages)])
    assert digest(divided(messages, at % len(messages), position)) == whole
    parts = [{**message, "content": [{"type": "text", "text": message["content"]}]} for message in messages]
    assert digest([Messages(parts)]) == whole, "a list of one text is the text"


@given(MESSAGES, MESSAGES)
def test_different_messages_have_different_digests(one: list[dict[str, Any]], other: list[dict[str, Any]]) -> None:
    assert (digest([Messages(one)]) == digest([Messages(other)])) == (one == other)


IMAGE = {"type": "image_url", "image_url": {"url": "x"}}


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (Messages([{"role": "user", "content": "x"}]), Messages([{"role": "user", "content": "x", "name": "n"}])),
        (Messages([{"role": "user", "content": "x"}]), Messages([{"role": "user", "content": "x"}], {"tools": []})),
        (Messages([{"role": "user", "content": "x"}]), Messages([{"role": "user", "content": "x"}], is_open=True)),
        (Messages([{"role": "user", "content": [IMAGE]}]), Messages([{"role": "user", "content": []}])),
        (
            Messages([{"role": "user", "content": [IMAGE, "x"]}]),
            Messages([{"role": "user", "content": ["x", IMAGE]}]),
        ),
        (Messages([{"role": "user", "content": "ab"}]), Messages([{"role": "user", "content": "a"}] * 2)),
    ],
)
def test_what_else_the_digest_of_messages_depends_on(one: Messages, other: Messages) -> None:
    assert digest([one]) != digest([other])
    assert digest([one]) == digest([one])


def test_texts_that_are_not_valid_unicode_have_digests_of_their_own() -> None:
    texts = ["\ud83d", "\ude00", "?"]
    assert len({digest([text]) for text in texts}) == 3
    assert len({digest([Messages([{"role": "user", "content": text}])]) for text in texts}) == 3


def test_a_text_that_looks_like_fields_of_a_request_has_another_digest() -> None:
    message = {"content": "x"}
    fields = [Messages([message], {"a": 1}, continues=True), Messages([message], continues=True)]
    assert digest(["y", fields[0]]) != digest(['y{"a": 1}', fields[1]])


@given(pieces=st.lists(st.sampled_from(["", " ", "\n", "a", " a ", "\tb", "a b ", "\xa0", "é\n\n"]), max_size=8))
def test_pieces_are_trimmed_as_their_joined_text(pieces: list[str]) -> None:
    text = "".join(pieces)
    for trim, expected in ((Trim(left=True), text.lstrip()), (Trim(right=True), text.rstrip())):
        trimmer = Trimmer(trim)
        assert "".join(map(trimmer.push, pieces)) == (expected if trim.right else text.lstrip())
    both = Trimmer(Trim(left=True, right=True))
    assert "".join(map(both.push, pieces)) == text.strip()
    assert both.release() in ("", text[len(text.rstrip()) :])
    assert both.push(" x ") == " x ", "nothing is removed after the release"
    lines = Trimmer(Trim(left=True, right=True, lines=True))
    assert "".join(map(lines.push, pieces)) == text.strip("\n")
