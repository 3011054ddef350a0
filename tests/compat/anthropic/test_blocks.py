"""compat/anthropic/blocks.py: every block type with missing, wrong, huge and hostile content."""

from typing import Any

import pytest
from pydantic import ValidationError

from compat.anthropic import MessagesRequest
from compat.anthropic.blocks import InputMessage
from gateway.errors import RequestError
from gateway.http.json_body import validate

PNG = {"type": "base64", "media_type": "image/png", "data": "iVBORw0KGgo="}
TEXT: dict[str, Any] = {"type": "text", "text": "x"}
USER: dict[str, dict[str, Any]] = {
    "text": TEXT,
    "image in base64": {"type": "image", "source": PNG},
    "image by URL": {"type": "image", "source": {"type": "url", "url": "https://x/y.png"}},
    "document as text": {"type": "document", "source": {"type": "text", "media_type": "text/plain", "data": "x"}},
    "document of blocks": {"type": "document", "source": {"type": "content", "content": [TEXT]}, "title": "t"},
    "document as PDF": {
        "type": "document",
        "source": {"type": "base64", "media_type": "application/pdf", "data": "JVBERi0="},
        "context": "c",
        "citations": {"enabled": True},
    },
    "search result": {"type": "search_result", "title": "t", "source": "s", "content": [TEXT]},
    "tool result": {"type": "tool_result", "tool_use_id": "c", "content": "y", "is_error": False},
    "tool result of blocks": {
        "type": "tool_result",
        "tool_use_id": "c",
        "content": [TEXT, {"type": "image", "source": PNG}, {"type": "tool_reference", "tool_name": "f"}],
    },
    "tool result without content": {"type": "tool_result", "tool_use_id": "c"},
}
ASSISTANT: dict[str, dict[str, Any]] = {
    "text": {**TEXT, "citations": None},
    "thinking": {"type": "thinking", "thinking": "hm", "signature": "s"},
    "empty thinking": {"type": "thinking", "thinking": "", "signature": ""},
    "redacted thinking": {"type": "redacted_thinking", "data": "x"},
    "tool use": {"type": "tool_use", "id": "c", "name": "f", "input": {"a": [1]}, "caller": {"type": "direct"}},
    "server tool": {"type": "server_tool_use", "id": "c", "name": "web_search", "input": {"query": "x"}},
    "tool of an MCP server": {"type": "mcp_tool_use", "id": "c", "name": "f", "server_name": "s", "input": {}},
    "search results": {
        "type": "web_search_tool_result",
        "tool_use_id": "c",
        "content": [{"type": "web_search_result", "title": "t", "url": "u", "encrypted_content": "e"}],
    },
    "failed search": {
        "type": "web_search_tool_result",
        "tool_use_id": "c",
        "content": {"type": "web_search_tool_result_error", "error_code": "unavailable"},
    },
    "compaction": {"type": "compaction", "content": "summary"},
}
PLACES = [
    *(pytest.param("user", block, id=name) for name, block in USER.items()),
    *(pytest.param("assistant", block, id=f"assistant's {name}") for name, block in ASSISTANT.items()),
]


def request(role: str, *blocks: Any) -> dict[str, Any]:
    """Return a request whose first message has these blocks."""
    messages = [{"role": role, "content": list(blocks)}, {"role": "user", "content": "go on"}]
    return {"model": "m", "max_tokens": 1, "messages": messages}


def refusal(body: dict[str, Any]) -> RequestError:
    with pytest.raises(RequestError) as error:
        validate(body, MessagesRequest)
    assert error.value.status == 400
    return error.value


@pytest.mark.parametrize(("role", "block"), PLACES)
def test_every_block_is_accepted_with_a_cache_hint(role: str, block: dict[str, Any]) -> None:
    validate(request(role, {**block, "cache_control": {"type": "ephemeral", "ttl": "1h"}}), MessagesRequest)


@pytest.mark.parametrize(("role", "block"), PLACES)
def test_unknown_fields_of_a_block_are_refused(role: str, block: dict[str, Any]) -> None:
    error = refusal(request(role, {**block, "unheard_of": 1}))
    assert (error.code, error.param) == ("unsupported_parameter", "messages.0.content.0.unheard_of")


@pytest.mark.parametrize(("role", "block"), PLACES)
def test_wrong_and_missing_fields_of_a_block_are_refused(role: str, block: dict[str, Any]) -> None:
    for name in block:
        for wrong in ([[[1]]], 7.5, {"a": {"b": []}}):
            if name in ("citations", "input", "content", "caller") and not isinstance(wrong, float):
                continue  # they may be any list, or any object
            error = refusal(request(role, {**block, name: wrong}))
            assert (error.param or "").split(".")[:4] == ["messages", "0", "content", "0"]
    required = {name: value for name, value in block.items() if name not in ("source", "id", "tool_use_id", "type")}
    if len(required) + 1 < len(block):
        assert refusal(request(role, {"type": block["type"], **required})).param is not None


def test_the_role_decides_which_blocks_a_message_may_have() -> None:
    for block in (USER["image by URL"], USER["document as text"], USER["search result"], USER["tool result"]):
        error = refusal(request("assistant", TEXT, block))
        assert error.param == "messages.0.content.1.type"
        assert f"only a user's message may have a block of type {block['type']}" in str(error)
    for name in ("thinking", "redacted thinking", "tool use", "compaction"):
        assert "only an assistant's message" in str(refusal(request("user", ASSISTANT[name])))
    assert "only have blocks of type text" in str(refusal(request("system", USER["image by URL"])))


@pytest.mark.parametrize(
    ("block", "reason"),
    [
        ({"type": "image", "source": {"type": "file", "file_id": "f"}}, "stores no files"),
        ({"type": "document", "source": {"type": "file", "file_id": "f"}}, "stores no files"),
        ({"type": "container_upload", "file_id": "f"}, "stores no files"),
        ({"type": "document", "source": {"type": "url", "url": "https://x/y.pdf"}}, "not fetched from URLs"),
    ],
)
def test_content_that_the_server_would_have_to_fetch_is_refused_with_a_reason(block: Any, reason: str) -> None:
    error = refusal(request("user", block))
    assert reason in str(error)
    assert (error.param or "").startswith("messages.0.content.0")


@pytest.mark.parametrize("content", [[{}] * 50_000, [1] * 50_000, [{"type": "text"}] * 50_000, [{"type": []}], [None]])
def test_many_and_hostile_blocks_are_refused_with_few_errors(content: Any) -> None:
    with pytest.raises(ValidationError) as error:
        InputMessage.model_validate({"role": "user", "content": content})
    assert error.value.error_count() < 50


def test_a_content_in_one_text_is_one_block() -> None:
    (block,) = InputMessage(role="user", content="x").blocks
    assert block.type == "text"
