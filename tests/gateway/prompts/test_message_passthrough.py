"""Message passthrough: encoded messages decode to the same messages."""

from array import array
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.prompts.message_passthrough import (
    END,
    MESSAGE,
    PassthroughTokenizer,
    characters,
    message_mark,
    options_mark,
    read,
    write,
)

# bytes like those of marks, and characters that are difficult for codecs: lone surrogates, the last one, zeros
ODD = st.sampled_from("\0\x03\x11\u1100\ud800\udfff\U0010ffff")
TEXT = st.lists(st.one_of(ODD, st.text())).map("".join)


@settings(deadline=None)
@given(st.lists(TEXT, min_size=1, max_size=6), st.booleans(), st.booleans())
def test_conversations_are_preserved(contents: list[str], has_options: bool, unfinished: bool) -> None:
    options = {"tools": [{"name": "\U0001f600"}]} if has_options else {}
    tokens = options_mark(options) if options else array("i")
    for index, content in enumerate(contents):
        tokens.extend(message_mark({"role": "user", "name": f"n{index}"}))
        tokens.extend(characters(content))
        tokens.append(END)
    if unfinished:
        tokens.pop()
    decoded = read(tokens)
    assert decoded.messages == [
        {"role": "user", "name": f"n{index}", "content": text} for index, text in enumerate(contents)
    ]
    assert (decoded.options, decoded.unfinished, decoded.text) == (options, unfinished, None)


CALL = {"id": "call_1", "type": "function", "function": {"name": "look", "arguments": {"at": ["it"]}}}
TEXT_PARTS = st.fixed_dictionaries({"type": st.just("text"), "text": TEXT.filter(bool)})
PAYLOADS = st.one_of(st.text(), st.dictionaries(st.text("ab"), st.text(), max_size=2))
MEDIA = st.fixed_dictionaries({"type": st.just("image_url"), "image_url": PAYLOADS})
# consecutive texts are joined
PARTS = st.lists(st.tuples(MEDIA, st.none() | TEXT_PARTS), min_size=1, max_size=3).map(
    lambda pairs: [part for pair in pairs for part in pair if part is not None]
)
CONTENTS = st.one_of(TEXT, PARTS, st.tuples(TEXT_PARTS, PARTS).map(lambda both: [both[0], *both[1]]))
MESSAGES = st.fixed_dictionaries(
    {"role": st.sampled_from(["system", "user", "assistant", "tool"]), "content": CONTENTS},
    optional={"name": st.text("abc"), "tool_call_id": st.just("call_1"), "tool_calls": st.just([CALL])},
)


@settings(deadline=None)
@given(st.lists(MESSAGES, min_size=1, max_size=4), st.sampled_from([{}, {"tools": []}]), st.booleans())
def test_the_attached_decoded_form_equals_the_decoded_sequence(
    messages: list[dict[str, Any]], options: dict[str, Any], unfinished: bool
) -> None:
    written = write(options, messages, unfinished=unfinished)
    assert read(array("i", written)) == read(written)
    assert (written.decoded.messages, written.decoded.options, written.decoded.unfinished) == (
        messages,
        options,
        unfinished,
    )


@settings(deadline=None)
@given(TEXT)
def test_texts_are_preserved(text: str) -> None:
    decoded = read(characters(text))
    assert (decoded.text, decoded.messages) == (text, [])
    assert PassthroughTokenizer().decode(characters(text)) == text


@pytest.mark.parametrize("length", [4095, 4096, 4097, 8192, 10_000])
def test_long_texts_are_preserved(length: int) -> None:
    text = "ab\ud800" * (length // 3) + "x" * (length % 3)
    tokens = message_mark({"role": "user"})
    tokens.extend(characters(text))
    tokens.append(END)
    assert read(tokens).messages == [{"role": "user", "content": text}]


def test_text_between_messages_is_invalid() -> None:
    tokens = message_mark({"role": "user"})
    tokens.append(END)
    tokens.extend(characters("lost"))
    with pytest.raises(ValueError, match="between two messages"):
        read(tokens)


def test_a_message_without_content_is_decoded() -> None:
    tokens = array("i", (MESSAGE,))
    tokens.extend(characters('{"role":"assistant"}'))
    assert read(tokens).messages == [{"role": "assistant"}]
