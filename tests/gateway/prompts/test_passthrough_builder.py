"""Tests of gateway/prompts/passthrough_builder.py: messages are forwarded as the client sent them."""

import json
from collections.abc import Container
from typing import Any

import pytest

from engine.sampling_params import SamplingParams
from gateway.errors import RequestError
from gateway.graph.call import CallSpec
from gateway.graph.errors import SlotWithoutPlace
from gateway.graph.prefix_hash import prefix_keys
from gateway.graph.references import EVERY_NAME, NO_NAME, Reference
from gateway.graph.segments import Characters, Input, Messages, Slot
from gateway.graph.session import Session
from gateway.prompts.passthrough_builder import MEDIA_WEIGHT, PassthroughPromptBuilder
from gateway.prompts.prompt import ChatInput
from gateway.prompts.tool_calls.tools import Tool, Tools
from tests.gateway.prompts.test_template_builder import ANSWER, TOOL, user


@pytest.mark.parametrize("content", ["Say \ud83d\ude00", ["one", "two"], "", []])
@pytest.mark.parametrize("tools", [None, Tools([TOOL], "auto")])
@pytest.mark.parametrize(("opens", "continues"), [(True, False), (False, False), (False, True)])
def test_message_passthrough_is_the_same_with_and_without_references(
    content: Any, tools: Tools | None, opens: bool, continues: bool
) -> None:
    messages = [{"role": "system", "content": "Be brief."}, {"role": "assistant", "name": "it", "content": content}]
    plain, named = (
        PassthroughPromptBuilder().chat(
            ChatInput(
                messages,
                references=references,
                tools=tools,
                add_generation_prompt=opens,
                continue_final_message=continues,
                template_options={"a": 1},
            ),
            ANSWER,
        )
        for references in (NO_NAME, EVERY_NAME)
    )
    assert plain.segments == named.segments
    assert plain.segments[-1] is named.segments[-1] is ANSWER


@pytest.mark.parametrize("references", [NO_NAME, EVERY_NAME])
def test_the_weight_of_an_image_does_not_depend_on_its_size(references: Container[str]) -> None:
    prompts = PassthroughPromptBuilder()
    weights = []
    for length in (100, 1_000_000):
        image = {"type": "image_url", "image_url": {"url": "x" * length}}
        messages = [{"role": "user", "content": ["What is it?", image, image]}]
        text, _ = prompts.chat(ChatInput(messages, references=references), ANSWER).segments
        assert isinstance(text, Messages)
        assert text.size > length
        weights.append(text.length)
        call = Session("", "t", 0.0, 60.0).add(CallSpec(model="m", segments=[text, ANSWER]))
        lengths = [key.tokens for key in prefix_keys(call)]
        assert lengths == sorted(lengths)
        assert lengths[-1] == text.length
    assert weights[0] == weights[1] == pytest.approx(2 * MEDIA_WEIGHT, rel=0.1)
    plain, _ = prompts.chat(ChatInput(user("What is it?"), references=references), ANSWER).segments
    assert isinstance(plain, Messages)
    assert plain.length == plain.size


def test_a_template_becomes_texts_and_references() -> None:
    assert PassthroughPromptBuilder().template(["a", "", ANSWER, "b"]) == [Characters("a"), ANSWER, Characters("b")]


PROMPTS = PassthroughPromptBuilder()
PLAN = Slot("plan", SamplingParams(), where="semantic.slots.plan")
IMAGE = {"type": "image_url", "image_url": {"url": "data:,"}}


def test_messages_are_forwarded_with_all_their_fields() -> None:
    call = {"id": "1", "type": "function", "function": {"name": "look", "arguments": {}}}
    messages = [
        {"role": "system", "content": ["Be", "brief."], "name": "boss"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": ["see", IMAGE], "tool_call_id": "1"},
    ]
    whole, answer = PROMPTS.chat(ChatInput(messages), ANSWER).segments
    assert answer is ANSWER
    assert isinstance(whole, Messages)
    assert whole.messages == [
        {"role": "system", "content": "Be\nbrief.", "name": "boss"},
        messages[1],
        {"role": "tool", "content": [{"type": "text", "text": "see"}, IMAGE], "tool_call_id": "1"},
    ]
    assert (whole.fields, whole.is_open, whole.continues) == ({}, False, False)


def test_messages_are_cut_at_references() -> None:
    messages = [*user("Hi."), {"role": "user", "name": "me", "content": ["Read <<a>>", IMAGE, "<<b>>"]}]
    first, a, middle, b, last, answer = PROMPTS.chat(ChatInput(messages, references=EVERY_NAME), ANSWER).segments
    assert (a, b) == (
        Input(Reference("a"), "messages.1.content.0.text"),
        Input(Reference("b"), "messages.1.content.2.text"),
    )
    assert isinstance(first, Messages)
    assert isinstance(middle, Messages)
    assert isinstance(last, Messages)
    assert first.messages == [*user("Hi."), {"role": "user", "name": "me", "content": "Read "}]
    assert middle.messages == [{"content": [IMAGE]}]
    assert last.messages == [{"content": ""}]
    assert [(part.continues, part.is_open) for part in (first, middle, last)] == [
        (False, True),
        (True, True),
        (True, False),
    ]
    assert answer is ANSWER


def test_a_last_message_with_slots_is_the_answer() -> None:
    messages = [*user("Plan."), {"role": "assistant", "content": "Plan: <<plan>>. Of <<it>>"}]
    prompt = PROMPTS.chat(ChatInput(messages, references=EVERY_NAME, slots={"plan": PLAN}), ANSWER)
    before, slot = prompt.segments
    assert slot is PLAN, "text behind the last slot is not sent"
    assert isinstance(before, Messages)
    assert before.is_open
    where = "messages.1.content"
    assert prompt.parts == ["Plan: ", Input(Reference("plan"), where), ". Of ", Input(Reference("it"), where)]
    chat = ChatInput(messages, references=EVERY_NAME, slots={"plan": PLAN}, add_generation_prompt=False)
    assert PROMPTS.chat(chat, ANSWER).segments == prompt.segments, "the slots need no generation prompt"
    later = PROMPTS.chat(ChatInput([*messages, *user("Go on.")], references=EVERY_NAME, slots={"plan": PLAN}), ANSWER)
    assert later.parts is None
    assert later.segments[-1] is ANSWER
    assert PLAN in later.segments


def test_slots_need_a_place_and_no_continuation() -> None:
    with pytest.raises(SlotWithoutPlace, match="<<plan>>"):
        PROMPTS.chat(ChatInput(user("<<plan>>"), references=EVERY_NAME, slots={"plan": PLAN}), ANSWER)
    chat = ChatInput(
        [{"role": "assistant", "content": "<<plan>>"}],
        references=EVERY_NAME,
        slots={"plan": PLAN},
        continue_final_message=True,
        where="calls.1",
    )
    with pytest.raises(RequestError, match="continue_final_message is not needed") as refusal:
        PROMPTS.chat(chat, ANSWER)
    assert refusal.value.param == "calls.1.continue_final_message"


@pytest.mark.parametrize("references", [NO_NAME, EVERY_NAME])
@pytest.mark.parametrize(
    ("options", "fields"),
    [
        ({}, {}),
        ({"add_generation_prompt": False}, {"add_generation_prompt": False}),
        ({"add_generation_prompt": False, "continue_final_message": True}, {}),
        ({"template_options": {"a": 1}}, {"chat_template_kwargs": {"a": 1}}),
        ({"upstream_fields": {"user": "me"}}, {"user": "me"}),
        ({"tools": Tools([Tool("now")], "none")}, {}),
        ({"tools": Tools([Tool("now")])}, {"tools": [Tool("now").as_upstream()]}),
    ],
)
def test_fields_of_the_upstream_request(
    options: dict[str, Any], fields: dict[str, Any], references: Container[str]
) -> None:
    segments = PROMPTS.chat(ChatInput(user("x"), references=references, **options), ANSWER).segments
    assert isinstance(segments[0], Messages)
    assert segments[0].fields == fields
    assert segments[0].is_open is options.get("continue_final_message", False)


@pytest.mark.parametrize(
    "messages",
    [
        user("x" * 1000),
        user("é\n" * 500),
        [{"role": "user", "name": "n" * 1000, "content": ""}],
        [*user("<<a>>" * 20), {"role": "assistant", "content": "y" * 1000}],
    ],
)
def test_sizes_are_about_those_of_the_request(messages: list[dict[str, Any]]) -> None:
    for references in (NO_NAME, EVERY_NAME):
        tools = Tools([Tool("look", "z" * 300)])
        segments = PROMPTS.chat(ChatInput(messages, references=references, tools=tools), ANSWER).segments
        known = [segment for segment in segments if isinstance(segment, Messages)]
        sent = json.dumps({"messages": messages, **known[0].fields}, ensure_ascii=False, separators=(",", ":"))
        assert sum(segment.size for segment in known) == pytest.approx(len(sent), rel=0.35)
        assert all(segment.length == segment.size for segment in known), "there is no image"


def test_a_completion_forwards_the_text() -> None:
    prompt = PROMPTS.completion("Say <<a>>!", ANSWER, references=EVERY_NAME)
    assert prompt.segments == [Characters("Say "), Input(Reference("a"), "prompt"), Characters("!"), ANSWER]
    assert PROMPTS.unbounded() is PROMPTS, "the upstream server limits the length"


def test_a_cache_control_changes_no_prefix_key() -> None:
    keys = []
    for fields in ({}, {"cache_control": True}, {"effort": "low"}, {"effort": "low", "cache_control": True}):
        segments = PassthroughPromptBuilder().chat(ChatInput(user("Hi"), upstream_fields=fields), ANSWER).segments
        assert isinstance(segments[0], Messages)
        assert segments[0].fields == fields, "servers with Anthropic's API get it"
        call = Session("", "t", 0.0, 60.0).add(CallSpec(model="m", segments=segments))
        keys.append(prefix_keys(call, own=False))
    assert keys[0] == keys[1] != keys[2] == keys[3]
