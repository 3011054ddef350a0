"""Tests of gateway/prompts/content_parser.py: contents of messages become texts, references, slots and media."""

from collections.abc import Container
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.sampling_params import SamplingParams
from gateway.graph.errors import SlotWithoutPlace, TooLarge
from gateway.graph.references import EVERY_NAME, MAX_REFERENCES, NO_NAME, Reference
from gateway.graph.segments import Input, Slot
from gateway.prompts.content_parser import ContentParser, Media
from gateway.prompts.tool_calls.description import Verbatim

PLAN = Slot("plan", SamplingParams(), where="semantic.slots.plan")
NOTE = Slot("note", SamplingParams(), where="semantic.slots.note")
IMAGE = {"type": "image_url", "image_url": {"url": "data:,"}}


def parse(
    content: Any, *, assistant: bool = False, references: Container[str] = EVERY_NAME, slots: Any = None
) -> list[Any]:
    return ContentParser(references, slots or {}).parse(content, "m", is_assistant=assistant)


def reference(name: str, *path: str, where: str = "m") -> Input:
    return Input(Reference(name, path), where)


def test_texts_and_references() -> None:
    assert parse("Say <<a>> and <<b.0>>!") == ["Say ", reference("a"), " and ", reference("b", "0"), "!"]
    assert parse("Say <<a>>", references=NO_NAME) == ["Say <<a>>"]
    assert parse("") == []


def test_each_text_of_a_list_starts_on_its_own_line_and_has_its_own_path() -> None:
    assert parse(["one", "<<a>>", IMAGE, "two"]) == [
        "one",
        "\n",
        reference("a", where="m.1.text"),
        Media(IMAGE),
        "two",
    ]
    assert parse([IMAGE, IMAGE]) == [Media(IMAGE), Media(IMAGE)]


def test_texts_of_the_server_have_no_references_and_do_not_shift_the_paths_of_the_client() -> None:
    content = [Verbatim("<<tool>>"), "<<a>>", Verbatim("x"), "<<b>>"]
    texts = ["<<tool>>", "\n", reference("a", where="m.0.text"), "\n", "x", "\n", reference("b", where="m.1.text")]
    assert parse(content) == texts


def test_the_first_place_of_a_slot_in_an_assistant_message_is_where_it_is_generated() -> None:
    parser = ContentParser(EVERY_NAME, {"plan": PLAN, "note": NOTE})
    assert parser.parse("<<plan>>", "m", is_assistant=False) == [reference("plan")], "a user's message only reads it"
    with pytest.raises(SlotWithoutPlace, match="no assistant message contains <<plan>>") as refusal:
        parser.check_slots()
    assert refusal.value.where == "semantic.slots.plan"
    pieces = parser.parse("<<plan.0>> <<plan>> <<plan>>", "m", is_assistant=True)
    assert pieces == [reference("plan", "0"), " ", PLAN, " ", reference("plan")]
    assert parser.parse("<<plan>>", "m", is_assistant=True) == [reference("plan")], "also in later messages"
    assert parser.placed == {"plan"}
    with pytest.raises(SlotWithoutPlace, match="<<note>>"):
        parser.check_slots()
    parser.parse("<<note>>", "m", is_assistant=True)
    parser.check_slots()


def test_the_parts_of_the_answer_are_those_of_the_last_content_with_slots() -> None:
    parser = ContentParser(EVERY_NAME, {"plan": PLAN})
    parser.parse(["It is", "<<plan>>!"], "m", is_assistant=True)
    assert parser.answer_parts() == ["It is", "\n", reference("plan", where="m.1.text"), "!"]
    parser.parse("Go on, <<plan>>.", "m", is_assistant=False)
    assert parser.answer_parts() is None


def test_references_of_all_messages_together_are_limited() -> None:
    parser = ContentParser(EVERY_NAME, {})
    half = "<<a>>" * (MAX_REFERENCES // 2)
    for _ in range(2):
        parser.parse(half, "m", is_assistant=False)
    with pytest.raises(TooLarge, match=f"more than {MAX_REFERENCES} references") as refusal:
        parser.parse("<<a>>", "messages.2.content", is_assistant=False)
    assert refusal.value.where == "messages.2.content"


TEXTS = st.lists(st.sampled_from(["<<a>>", "x", " ", "<<", "<<b.0>>"]), max_size=6).map("".join)


@given(st.lists(TEXTS, max_size=4))
def test_a_list_of_texts_is_read_as_one_text_with_line_breaks(texts: list[str]) -> None:
    def text_of(pieces: list[Any]) -> str:
        return "".join(str(piece.reference) if isinstance(piece, Input) else piece for piece in pieces)

    assert text_of(parse(texts)) == text_of(parse("\n".join(texts))) == "\n".join(texts)
