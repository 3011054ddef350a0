"""gateway/prompts/message_passthrough.py: whatever messages hold comes back as it was."""

from array import array
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.prompts.message_passthrough import (
    END,
    MESSAGE,
    TranscriptTokenizer,
    characters,
    message_mark,
    options_mark,
    read,
    write,
)

# what lies beside marks in memory, or is in the way of codecs: halves of pairs, the last character there is, zeros
ODD = st.sampled_from("\0\x03\x11\u1100\ud800\udfff\U0010ffff")
TEXT = st.lists(st.one_of(ODD, st.text())).map("".join)


@settings(deadline=None)
@given(st.lists(TEXT, min_size=1, max_size=6), st.booleans(), st.booleans())
def test_a_conversation_comes_back(contents: list[str], optioned: bool, unfinished: bool) -> None:
    options = {"tools": [{"name": "\U0001f600"}]} if optioned else {}
    tokens = options_mark(options) if options else array("i")
    for at, content in enumerate(contents):
        tokens.extend(message_mark({"role": "user", "name": f"n{at}"}))
        tokens.extend(characters(content))
        tokens.append(END)
    if unfinished:
        tokens.pop()
    said = read(tokens)
    assert said.messages == [{"role": "user", "name": f"n{at}", "content": text} for at, text in enumerate(contents)]
    assert (said.options, said.unfinished, said.text) == (options, unfinished, None)


CALL = {"id": "call_1", "type": "function", "function": {"name": "look", "arguments": {"at": ["it"]}}}
SAID = st.fixed_dictionaries({"type": st.just("text"), "text": TEXT.filter(bool)})
HELD = st.one_of(st.text(), st.dictionaries(st.text("ab"), st.text(), max_size=2))
MEDIA = st.fixed_dictionaries({"type": st.just("image_url"), "image_url": HELD})
# texts that follow each other are one
PARTS = st.lists(st.tuples(MEDIA, st.none() | SAID), min_size=1, max_size=3).map(
    lambda pairs: [part for pair in pairs for part in pair if part is not None]
)
CONTENTS = st.one_of(TEXT, PARTS, st.tuples(SAID, PARTS).map(lambda both: [both[0], *both[1]]))
MESSAGES = st.fixed_dictionaries(
    {"role": st.sampled_from(["system", "user", "assistant", "tool"]), "content": CONTENTS},
    optional={"name": st.text("abc"), "tool_call_id": st.just("call_1"), "tool_calls": st.just([CALL])},
)


@settings(deadline=None)
@given(st.lists(MESSAGES, min_size=1, max_size=4), st.sampled_from([{}, {"tools": []}]), st.booleans())
def test_what_was_written_says_what_can_be_read_of_it(
    messages: list[dict[str, Any]], options: dict[str, Any], unfinished: bool
) -> None:
    written = write(options, messages, unfinished=unfinished)
    assert read(array("i", written)) == read(written)
    assert (written.said.messages, written.said.options, written.said.unfinished) == (messages, options, unfinished)


@settings(deadline=None)
@given(TEXT)
def test_a_text_comes_back(text: str) -> None:
    said = read(characters(text))
    assert (said.text, said.messages) == (text, [])
    assert TranscriptTokenizer().decode(characters(text)) == text


@pytest.mark.parametrize("length", [4095, 4096, 4097, 8192, 10_000])
def test_a_long_text_comes_back(length: int) -> None:
    text = "ab\ud800" * (length // 3) + "x" * (length % 3)
    tokens = message_mark({"role": "user"})
    tokens.extend(characters(text))
    tokens.append(END)
    assert read(tokens).messages == [{"role": "user", "content": text}]


def test_text_between_messages_was_not_written_here() -> None:
    tokens = message_mark({"role": "user"})
    tokens.append(END)
    tokens.extend(characters("lost"))
    with pytest.raises(ValueError, match="between two messages"):
        read(tokens)


def test_a_message_without_content_is_read_as_far_as_it_goes() -> None:
    tokens = array("i", (MESSAGE,))
    tokens.extend(characters('{"role":"assistant"}'))
    assert read(tokens).messages == [{"role": "assistant"}]
