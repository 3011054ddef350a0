"""gateway/telemetry/span_texts.py: prompts and answers as attributes of spans."""

import tracemalloc
from collections.abc import Sequence
from typing import Any

import msgspec
import pytest

from engine.sampling_params import SamplingParams
from gateway.graph.call import Call, CallSpec, Rendering
from gateway.graph.errors import Failure
from gateway.graph.references import Reference
from gateway.graph.segments import Characters, Input, Messages, Segment, Slot, Text, Trim
from gateway.graph.session import Session
from gateway.graph.variable import Piece
from gateway.telemetry.span_texts import MAX_BYTES, text_attributes

ANSWER = Slot(None, SamplingParams())


def decode(model: str, tokens: Sequence[int]) -> str:
    return "".join(f"<{model}{token}>" for token in tokens)


def call_of(*segments: Segment, **values: str) -> Call:
    """Return a call with the segments, whose inputs have the values."""
    session = Session("s", "", 1000.0, 60.0)
    variables = {f"v{name}": value for name, value in values.items()}
    spec = CallSpec(model="m", segments=[*segments, ANSWER], output="out", inputs=variables)
    addition = session.add_all([spec])
    session.set_values(addition)
    return addition.calls[0]


def texts(call: Call) -> dict[str, Any]:
    """Return the attributes as values, and check their sizes."""
    found = {}
    for each in msgspec.json.decode(f"[{text_attributes(call, decode)}]"):
        value = each["value"]["stringValue"]
        assert len(value.encode()) <= MAX_BYTES
        found[each["key"]] = msgspec.json.decode(value)
    return found


def inputs(call: Call) -> Any:
    return texts(call)["gen_ai.input.messages"]


def answered(text: str, reasoning: str = "") -> Any:
    call = call_of(Characters("q"))
    call.output.append(Piece(text, 1, (), reasoning))
    call.finish_reason = "stop"
    (message,) = texts(call)["gen_ai.output.messages"]
    assert (message["role"], message["finish_reason"]) == ("assistant", "stop")
    return message["parts"]


def text(content: str) -> dict[str, str]:
    return {"type": "text", "content": content}


def test_messages_for_an_upstream_server() -> None:
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": ["Look:", {"type": "image_url", "image_url": {"url": "https://x/y.png"}}]},
        {
            "role": "assistant",
            "content": None,
            "reasoning_content": "hm",
            "tool_calls": [{"id": "1", "type": "function", "function": {"name": "f", "arguments": {"a": [1]}}}],
        },
        {"role": "tool", "content": "42", "tool_call_id": "1"},
    ]
    assert inputs(call_of(Messages(messages))) == [
        {"role": "system", "parts": [text("Be brief.")]},
        {"role": "user", "parts": [text("Look:"), {"type": "uri", "modality": "image", "uri": "https://x/y.png"}]},
        {
            "role": "assistant",
            "parts": [
                {"type": "reasoning", "content": "hm"},
                {"type": "tool_call", "id": "1", "name": "f", "arguments": {"a": [1]}},
            ],
        },
        {"role": "tool", "parts": [{"type": "tool_call_response", "id": "1", "response": "42"}]},
    ]


def test_values_of_references_stand_in_their_messages() -> None:
    call = call_of(
        Messages([{"role": "user", "content": "Say "}], is_open=True),
        Input(Reference("va"), "messages.0.content"),
        Messages([{"content": " and "}], continues=True, is_open=True),
        Input(Reference("va", ("key",)), "messages.0.content"),
        Messages([{"content": "."}, {"role": "user", "content": "Now."}], continues=True),
        a='{"key": 1}',
    )
    assert inputs(call) == [
        {"role": "user", "parts": [text('Say {"key": 1} and <<va.key>>.')]},
        {"role": "user", "parts": [text("Now.")]},
    ]


def test_a_prompt_of_tokens_is_one_message() -> None:
    call = call_of(Text([1, 2]), Characters("Hello "), Trim(left=True), Input(Reference("va"), "m"), Text([3]), a="Bee")
    assert inputs(call) == [{"role": "user", "parts": [text("<m1><m2>Hello Bee<m3>")]}]


def test_a_slot_in_a_prompt_is_part_of_it() -> None:
    session = Session("s", "", 1000.0, 60.0)
    segments = [Characters("Name: "), Slot("name", SamplingParams()), Characters(" Age: "), ANSWER]
    (call,) = session.add_all([CallSpec(model="m", segments=segments, output="out")]).calls
    call.slots["name"].append(Piece("Ann", 1))
    assert inputs(call) == [{"role": "user", "parts": [text("Name: Ann Age: ")]}]


def test_the_prompt_of_the_model_that_answered() -> None:
    session = Session("s", "", 1000.0, 60.0)
    other = Rendering("other", [Text([7]), ANSWER])
    (call,) = session.add_all([CallSpec(model="m", segments=[Text([1]), ANSWER], fallbacks=[other])]).calls
    call.model = "other"
    assert inputs(call) == [{"role": "user", "parts": [text("<other7>")]}]


def test_answers() -> None:
    assert answered("Paris") == [text("Paris")]
    assert answered("Paris", "hm") == [{"type": "reasoning", "content": "hm"}, text("Paris")]
    two = 'Yes.\n<tool_call>\n{"name": "f", "arguments": {"a": 1}}\n</tool_call>\n<tool_call>{"name": "g"}</tool_call>'
    assert answered(two) == [
        text("Yes."),
        {"type": "tool_call", "name": "f", "arguments": {"a": 1}},
        {"type": "tool_call", "name": "g", "arguments": None},
    ]
    for broken in ("<tool_call>no JSON</tool_call>", '<tool_call>{"name": "f"', "<tool_call>[1]</tool_call> "):
        assert "".join(part["content"] for part in answered(broken)) == broken.rstrip()


def test_a_failed_call_and_one_without_an_answer() -> None:
    call = call_of(Characters("q"))
    assert list(texts(call)) == ["gen_ai.input.messages"]
    call.output.append(Piece("Par", 1))
    call.failure = Failure("engine_failed", "it died", call.id)
    assert texts(call)["gen_ai.output.messages"][0]["finish_reason"] == "error"


@pytest.mark.parametrize("letter", ["a", '"', "\x01", "é", "\U0001f600"])
def test_long_texts_are_cut_in_the_middle(letter: str) -> None:
    (message,) = inputs(call_of(Characters(f"begin{letter * 100_000}end")))
    content = message["parts"][0]["content"]
    assert content.startswith("begin")
    assert content.endswith("end")
    assert content.count("… [cut] …") == 1
    (part,) = answered(letter * 100_000)
    assert "… [cut] …" in part["content"]


def test_many_tokens_are_not_decoded() -> None:
    (message,) = inputs(call_of(Text(range(1_000_000))))
    content = message["parts"][0]["content"]
    assert content.startswith("<m0>")
    assert content.endswith("<m999999>")


def test_the_last_messages_are_kept() -> None:
    messages = [{"role": "user", "content": f"{number} {'x' * 1000}"} for number in range(1000)]
    found = inputs(call_of(Messages(messages)))
    assert found[-1]["parts"][0]["content"].startswith("999 ")
    assert 20 < len(found) < 40
    left_out = 1000 - (len(found) - 1)
    assert found[0] == {"role": "system", "parts": [text(f"[{left_out} messages before this one are cut]")]}
    long = [{"role": "user", "content": "x" * 100_000}, {"role": "user", "content": "y" * 100_000}]
    assert [message["parts"][0]["content"][:1] for message in inputs(call_of(Messages(long)))] == ["x", "y"]


def test_hostile_messages() -> None:
    parts: list[Any] = [{"type": "image_url", "image_url": {"url": f"https://{number}"}} for number in range(100_000)]
    assert inputs(call_of(Messages([{"role": "user", "content": parts}]))) == [
        {"role": "user", "parts": [text("[cut]")]}
    ]
    data = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{'A' * 100_000}"}}
    sound = {"type": "input_audio", "input_audio": {"data": "A" * 100_000, "format": "wav"}}
    (message,) = inputs(call_of(Messages([{"role": "r" * 100_000, "content": [data, sound]}])))
    assert message["parts"] == [
        {"type": "uri", "modality": "image", "uri": "data:image/png;base64,… [cut] …"},
        {"type": "input_audio"},
    ]
    arguments = {"parts": 5, "type": {"type": "x" * 100_000}}
    tool_call = {"id": "1", "function": {"name": "f", "arguments": arguments}}
    (message,) = inputs(call_of(Messages([{"role": "assistant", "content": None, "tool_calls": [tool_call]}])))
    assert "… [cut] …" in message["parts"][0]["arguments"]


def test_a_large_value_that_a_prompt_repeats_is_not_copied_as_often() -> None:
    value = "v" * 1_000_000
    reference = Input(Reference("va"), "m")
    call = call_of(Characters("begin "), *[reference] * 300, Characters(" end"), a=value)
    tracemalloc.start()
    try:
        (message,) = inputs(call)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 4 * len(value), "300 MB as a whole"
    assert message["parts"][0]["content"].startswith("begin v")
    assert message["parts"][0]["content"].endswith("v end")


def test_an_answer_with_many_opening_marks() -> None:
    """Describe an answer that takes more than an hour if the end of each mark is searched in the rest of the answer:
    the test's time limit ends it."""
    answered("<tool_call>" * 2_000_000)
