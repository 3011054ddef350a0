"""Messages that the journal stores as integers are restored unchanged."""

from array import array
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.graph.segments import Messages
from gateway.journal.message_codec import characters, decode_messages, encode_messages, has_marks, text_of

# bytes like those of marks, and characters that are difficult for codecs: lone surrogates, the last one, zeros
ODD = st.sampled_from("\0\x03\x11\u1100\ud800\udfff\U0010ffff")
TEXT = st.lists(st.one_of(ODD, st.text())).map("".join)
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


@given(
    messages=st.lists(MESSAGES, min_size=1, max_size=4),
    fields=st.sampled_from([{}, {"tools": [{"name": "\U0001f600"}]}]),
    continued=st.none() | CONTENTS,
    is_open=st.booleans(),
)
def test_messages_are_preserved(messages: list[Any], fields: dict[str, Any], continued: Any, is_open: bool) -> None:
    if continued is not None:
        messages, fields = [{"content": continued}, *messages], {}
    segment = Messages(messages, fields, continues=continued is not None, is_open=is_open, weight=7)
    restored = decode_messages(encode_messages(segment), 7)
    assert (restored.messages, restored.fields) == (messages, fields)
    assert (restored.continues, restored.is_open, restored.weight) == (continued is not None, is_open, 7)


def test_the_stored_form_is_that_of_earlier_versions() -> None:
    segment = Messages(
        [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}], {"a": 1}, is_open=True
    )
    marks = [0x110000 + index for index in range(4)]

    def codes(text: str) -> list[int]:
        return [ord(character) for character in text]

    first = [marks[1], *codes('{"role":"user"}'), marks[2], *codes("hi"), marks[3]]
    second = [marks[1], *codes('{"role":"assistant"}'), marks[2], *codes("yo")]
    assert encode_messages(segment).tolist() == [marks[0], *codes('{"a":1}'), *first, *second]


@given(TEXT)
def test_texts_are_preserved_and_are_not_messages(text: str) -> None:
    assert text_of(characters(text)) == text
    assert not has_marks(characters(text))


@pytest.mark.parametrize("length", [4095, 4096, 4097, 8192, 10_000])
def test_long_texts_are_preserved(length: int) -> None:
    messages = [{"role": "user", "content": "ab\ud800" * (length // 3) + "x" * (length % 3)}]
    assert decode_messages(encode_messages(Messages(messages)), None).messages == messages


def test_text_between_messages_is_invalid() -> None:
    numbers = encode_messages(Messages([{"role": "user", "content": ""}]))
    with pytest.raises(ValueError, match="between two messages"):
        decode_messages(numbers + characters("lost"), None)


def test_a_message_without_content_is_decoded() -> None:
    numbers = array("i", (0x110001, *characters('{"role":"assistant"}')))
    assert decode_messages(numbers, None).messages == [{"role": "assistant"}]
