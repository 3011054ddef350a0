"""Tests of gateway/prompts/prompt.py: paths of fields in a request."""

import pytest

from gateway.prompts.prompt import ChatInput, over_window


@pytest.mark.parametrize(
    ("chat", "first", "added", "tools"),
    [
        (ChatInput([]), "messages.0.content", "messages.-1.content", "tools"),
        (ChatInput([], where="calls.2"), "calls.2.messages.0.content", "calls.2.messages.-1.content", "calls.2.tools"),
        (ChatInput([], field="input"), "input.0.content", "input.-1.content", "tools"),
        (
            ChatInput([], field="input", content_paths=["instructions", "input.0.content"], where="calls.2"),
            "calls.2.instructions",
            "calls.2.input.-1.content",
            "calls.2.tools",
        ),
    ],
)
def test_paths_of_fields(chat: ChatInput, first: str, added: str, tools: str) -> None:
    assert chat.content_path(0) == first
    assert chat.content_path(-1) == added, "a message that the server has added has no path in the request"
    assert chat.path("tools") == tools


def test_the_error_for_a_long_prompt_names_window_and_field() -> None:
    error = over_window(512, 600, "messages")
    assert (error.status, error.code, error.param) == (400, "context_length_exceeded", "messages")
    assert "this model's window is 512 tokens, but the prompt has at least 600 tokens" in str(error)
