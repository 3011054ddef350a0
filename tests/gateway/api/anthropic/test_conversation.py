"""gateway/api/anthropic/conversation.py: blocks become the messages of a chat completion."""

from typing import Any

import pytest

from compat.anthropic import CountTokensRequest
from compat.anthropic.blocks import InputMessage, TextBlock
from gateway.api.anthropic.conversation import to_chat_messages
from gateway.errors import RequestError
from gateway.http.json_body import validate
from tests.compat.anthropic.test_blocks import ASSISTANT, PNG, TEXT, USER

PICTURE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0KGgo="}}


def text(said: str) -> dict[str, Any]:
    return {"type": "text", "text": said}


def converted(*messages: Any, system: Any = None, late: bool = True) -> list[dict[str, Any]]:
    """Return the messages as JSON, without fields that are not set. The signature `ours` is valid."""
    return converted_with_paths(*messages, system=system, late=late)[0]


def converted_with_paths(*messages: Any, system: Any = None, late: bool = True) -> tuple[list[dict[str, Any]], Any]:
    body = validate({"model": "m", "messages": list(messages), "system": system}, CountTokensRequest)
    found, paths = to_chat_messages(body, lambda thinking, signature: signature == "ours", takes_late_system=late)
    assert len(found) == len(paths)
    told = []
    for message in found:
        fields: dict[str, Any] = {"role": message.role, "content": message.parts}
        if message.tool_calls:
            fields["tool_calls"] = [
                (call.id, call.function.name, call.function.template_arguments) for call in message.tool_calls
            ]
        if message.tool_call_id is not None:
            fields["tool_call_id"] = message.tool_call_id
        if message.reasoning_text:
            fields["reasoning"] = message.reasoning_text
        told.append(fields)
    return told, paths


def user(*blocks: Any) -> dict[str, Any]:
    return {"role": "user", "content": list(blocks)}


def assistant(*blocks: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": list(blocks)}


ASKED = {"role": "user", "content": "go on"}
GO_ON = {"role": "user", "content": "go on"}


def test_texts_and_their_paths() -> None:
    talk = [ASKED, {"role": "assistant", "content": "yes"}, user(text("a"), text("b"))]
    messages, paths = converted_with_paths(*talk, system=[text("s"), text("t")])
    assert messages == [
        {"role": "system", "content": ["s", "t"]},
        GO_ON,
        {"role": "assistant", "content": "yes"},
        {"role": "user", "content": ["a", "b"]},
    ]
    assert paths == ["system", "messages.0.content", "messages.1.content", "messages.2.content"]


def test_consecutive_messages_of_one_role_are_one_message() -> None:
    call = {**ASSISTANT["tool use"], "id": "d"}
    result = {"type": "tool_result", "tool_use_id": "c", "content": "x"}
    messages, paths = converted_with_paths(
        ASKED, ASKED, assistant(text("a")), assistant(text("b"), ASSISTANT["tool use"]), assistant(call), user(result)
    )
    assert messages == [
        {"role": "user", "content": ["go on", "go on"]},
        {"role": "assistant", "content": "a\nb", "tool_calls": [("c", "f", {"a": [1]}), ("d", "f", {"a": [1]})]},
        {"role": "tool", "tool_call_id": "c", "content": "x"},
    ]
    assert paths == ["messages.0.content", "messages.2.content", "messages.5.content.0.content"]


def test_system_messages_at_the_beginning_belong_to_the_system_prompt() -> None:
    early = {"role": "system", "content": "early"}
    assert converted(early, early, ASKED, system="s", late=False) == [
        {"role": "system", "content": ["s", "early", "early"]},
        GO_ON,
    ]


def test_a_late_system_message_is_a_users_text_if_the_template_needs_that() -> None:
    late = {"role": "system", "content": [text("now"), text("then")]}
    talk = [ASKED, late, assistant(text("yes")), late, ASKED]
    assert [message["role"] for message in converted(*talk)] == ["user", "system", "assistant", "system", "user"]
    marked = "<system>\nnow\nthen\n</system>"
    assert converted(*talk, late=False) == [
        {"role": "user", "content": ["go on", marked]},
        {"role": "assistant", "content": "yes"},
        {"role": "user", "content": [marked, "go on"]},
    ]


def test_tool_results_are_messages_and_their_images_follow() -> None:
    results = [
        {"type": "tool_result", "tool_use_id": "a", "content": [TEXT, {"type": "image", "source": PNG}]},
        {"type": "tool_result", "tool_use_id": "b", "content": "no such file", "is_error": True},
        {"type": "tool_result", "tool_use_id": "c", "is_error": True},
        {"type": "tool_result", "tool_use_id": "d", "content": []},
    ]
    assert converted(user(*results, text("next"))) == [
        {"role": "tool", "tool_call_id": "a", "content": "x"},
        {"role": "tool", "tool_call_id": "b", "content": "Error: no such file"},
        {"role": "tool", "tool_call_id": "c", "content": "Error"},
        {"role": "tool", "tool_call_id": "d", "content": ""},
        {"role": "user", "content": [PICTURE, "next"]},
    ]
    assert converted(user(text("before"), results[1], text("after"))) == [
        {"role": "user", "content": "before"},
        {"role": "tool", "tool_call_id": "b", "content": "Error: no such file"},
        {"role": "user", "content": "after"},
    ]


@pytest.mark.parametrize(
    ("block", "content"),
    [
        (USER["image in base64"], [PICTURE]),
        (USER["image by URL"], [{"type": "image_url", "image_url": {"url": "https://x/y.png"}}]),
        (USER["document as text"], ["<document>", "x", "</document>"]),
        (USER["document of blocks"], ['<document title="t">', "x", "</document>"]),
        (
            USER["document as PDF"],
            [
                "c",
                {
                    "type": "file",
                    "file": {"filename": "document.pdf", "file_data": "data:application/pdf;base64,JVBERi0="},
                },
            ],
        ),
        (USER["search result"], "t\ns\nx"),
    ],
)
def test_blocks_of_a_user(block: Any, content: Any) -> None:
    assert converted(user(block)) == [{"role": "user", "content": content}]


@pytest.mark.parametrize(
    ("block", "said"),
    [
        (ASSISTANT["thinking"], ""),
        (ASSISTANT["empty thinking"], ""),
        (ASSISTANT["redacted thinking"], ""),
        (ASSISTANT["server tool"], '[web_search: {"query":"x"}]'),
        (ASSISTANT["tool of an MCP server"], "[f: {}]"),
        (ASSISTANT["search results"], '[{"type":"web_search_result","title":"t","url":"u"}]'),
        (ASSISTANT["failed search"], '{"type":"web_search_tool_result_error","error_code":"unavailable"}'),
        ({"type": "mcp_tool_result", "tool_use_id": "c", "content": [text("a"), text("b")]}, "a\nb"),
        ({"type": "mcp_tool_result", "tool_use_id": "c", "content": "a"}, "a"),
        (ASSISTANT["compaction"], "summary"),
    ],
)
def test_blocks_of_an_assistant(block: Any, said: str) -> None:
    message = converted(ASKED, assistant(block), ASKED)[1]
    assert message == {"role": "assistant", "content": said}
    around = converted(ASKED, assistant(text("a"), block, text("b"), text("c")), ASKED)[1]
    assert around["content"].replace("\n", "").startswith("a" + said.replace("\n", ""))
    assert around["content"].endswith("bc"), "the text blocks of an answer are one text"


def test_only_signed_reasoning_is_shown() -> None:
    thoughts = [{"type": "thinking", "thinking": name, "signature": name} for name in ("theirs", "ours")]
    message = converted(ASKED, assistant(*thoughts, text("a")), ASKED)[1]
    assert message == {"role": "assistant", "content": "a", "reasoning": "ours"}


def test_arguments_that_were_no_object_are_shown_as_text() -> None:
    call = {**ASSISTANT["tool use"], "input": {"INVALID_JSON": '{"a'}}
    assert converted(ASKED, assistant(call), ASKED)[1]["tool_calls"] == [("c", "f", '{"a')]
    call["input"] = {"INVALID_JSON": "x", "b": 1}
    assert converted(ASKED, assistant(call), ASKED)[1]["tool_calls"] == [("c", "f", call["input"])]


def test_a_conversation_without_a_message_is_refused() -> None:
    with pytest.raises(RequestError) as refused:
        converted({"role": "system", "content": []})
    assert (refused.value.status, refused.value.param) == (400, "messages")


def test_many_messages_of_one_role_take_linear_time() -> None:
    """Join messages, which takes more than ten minutes if the text so far is copied for each: the test's time limit
    ends it. There are more than a request may have, because copies for fewer messages are too fast."""
    block = TextBlock(type="text", text="x" * 600)
    for role in ("user", "assistant", "system"):
        messages = [InputMessage(role="user", content="x"), *[InputMessage(role=role, content=[block])] * 100_000]
        body = CountTokensRequest.model_construct(model="m", messages=messages)
        found, _ = to_chat_messages(body, lambda thinking, signature: True, takes_late_system=False)
        assert len(found) == (2 if role == "assistant" else 1)
