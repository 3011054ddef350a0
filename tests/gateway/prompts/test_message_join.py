"""Pieces of a prompt for an upstream server are joined to the messages that a client would have sent by hand."""

import hashlib
from collections.abc import Container
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from engine.sampling_params import SamplingParams
from gateway.graph.references import EVERY_NAME, NO_NAME
from gateway.graph.segments import Input, Messages, PromptContent, Segment, Slot, json_of, update_digest
from gateway.prompts.message_join import join_messages
from gateway.prompts.passthrough_builder import PassthroughPromptBuilder
from gateway.prompts.prompt import ChatInput
from tests.fakes.prompt_contents import content_of

ANSWER = Slot(None, SamplingParams())
VALUE = "the <value>"
IMAGE = {"type": "image_url", "image_url": {"url": "data:,"}}
TEXTS = st.lists(st.sampled_from(["<<a>>", "x", " ", "\n", "é"]), max_size=6).map("".join)
CONTENTS = TEXTS | st.lists(st.one_of(TEXTS, st.just(IMAGE)), max_size=4)
ROLES = st.sampled_from(["user", "assistant"])
CONVERSATIONS = st.lists(st.fixed_dictionaries({"role": ROLES, "content": CONTENTS}), min_size=1, max_size=4)


def pasted(value: Any) -> Any:
    """Return the value with all references replaced."""
    if isinstance(value, str):
        return value.replace("<<a>>", VALUE)
    if isinstance(value, list):
        return [pasted(item) for item in value]
    return {key: pasted(item) for key, item in value.items()} if isinstance(value, dict) else value


def filled(segments: list[Segment]) -> list[PromptContent]:
    """Return what a context is filled with before the answer."""
    contents: list[PromptContent] = []
    for segment in segments[:-1]:
        assert not isinstance(segment, Slot)
        contents.append(VALUE if isinstance(segment, Input) else content_of(segment))
    return contents


def digest(contents: list[PromptContent]) -> bytes:
    found = hashlib.blake2b()
    for content in contents:
        update_digest(found, content)
    return found.digest()


def texts_joined(messages: Any) -> list[Any]:
    """Return the messages with adjacent texts of lists joined by line breaks, as those with references are."""
    joined = []
    for message in messages:
        content: Any = message["content"]
        if isinstance(content, list):
            parts: list[Any] = []
            for part in content:
                if part["type"] == "text" and parts and parts[-1]["type"] == "text":
                    parts[-1] = {"type": "text", "text": parts[-1]["text"] + "\n" + part["text"]}
                else:
                    parts.append(part)
            content = [part for part in parts if part["type"] != "text" or part["text"]]
        joined.append({**message, "content": content})
    return joined


@given(CONVERSATIONS, st.booleans())
def test_a_prompt_with_references_equals_the_same_prompt_by_hand(messages: list[Any], continues: bool) -> None:
    builder = PassthroughPromptBuilder()
    options: dict[str, Any] = {"continue_final_message": continues, "template_options": {"b": 1}}
    cut = filled(list(builder.chat(ChatInput(messages, references=EVERY_NAME, **options), ANSWER).segments))
    whole = filled(list(builder.chat(ChatInput(pasted(messages), references=EVERY_NAME, **options), ANSWER).segments))
    plain = filled(list(builder.chat(ChatInput(pasted(messages), **options), ANSWER).segments))
    by_reference, by_hand, sent = (
        join_messages([piece for piece in pieces if isinstance(piece, str | Messages)])
        for pieces in (cut, whole, plain)
    )
    assert (by_reference.messages, by_reference.fields) == (by_hand.messages, by_hand.fields)
    assert by_reference.is_open == by_hand.is_open == sent.is_open == continues
    assert texts_joined(sent.messages) == list(by_hand.messages)
    assert digest(cut) == digest(whole), "calls with equal prompts are coalesced"


def test_different_prompts_have_different_digests() -> None:
    def of(*contents: Any) -> bytes:
        return digest(list(contents))

    one = Messages([{"role": "user", "content": "ab"}])
    two = Messages([{"role": "user", "content": "a"}, {"role": "user", "content": "b"}])
    assert (
        len(
            {of(one), of(two), of(Messages(one.messages, is_open=True)), of("ab"), of(Messages(one.messages, {"t": 1}))}
        )
        == 5
    )


@given(CONVERSATIONS, st.sampled_from([NO_NAME, EVERY_NAME]))
def test_the_builder_computes_a_digest_for_each_json_value(messages: list[Any], references: Container[str]) -> None:
    chat = ChatInput(messages, references=references, template_options={"b": 1})
    for segment in PassthroughPromptBuilder().chat(chat, ANSWER).segments:
        if isinstance(segment, Messages):
            assert segment.digests is not None, "otherwise the event loop computes them"
            assert len(segment.digests) == len(list(json_of(segment)))
            restored = Messages(segment.messages, segment.fields, segment.continues, segment.is_open)
            assert len(restored.json_digests()) == len(segment.digests)
