"""A prompt as segments, and the input that it is built from."""

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from gateway.errors import RequestError, field_path
from gateway.graph.references import NO_NAME
from gateway.graph.segments import Input, Segment, Slot
from gateway.prompts.tool_calls.tools import Tools


@dataclass(frozen=True)
class Prompt:
    """A prompt as segments.

    The last segment is the place of the answer. If the last message is an assistant's message with slots, `parts` are
    the parts of the answer instead: the answer is that message, once its slots have values.
    """

    segments: Sequence[Segment]
    parts: Sequence[str | Input] | None = None
    field: str = "messages"
    """Path of the field of the request that the prompt was built from."""


@dataclass(slots=True)
class ChatInput:
    """A conversation, and how its prompt is built.

    `messages`: as in the request; contents are strings or lists of parts. `references`: names for which
    `<<name>>` in a text is a reference. `slots`: slots that this call generates, by name. `template_options`: the
    client's `chat_template_kwargs`. `upstream_fields`: fields, by name, that only upstream servers support.
    """

    messages: Sequence[Mapping[str, Any]]
    references: Container[str] = NO_NAME
    slots: Mapping[str, Slot] = field(default_factory=dict)
    tools: Tools | None = None
    add_generation_prompt: bool = True
    continue_final_message: bool = False
    template_options: Mapping[str, Any] | None = None
    upstream_fields: Mapping[str, Any] | None = None
    where: str = ""
    """Path of the request in a larger one."""
    field: str = "messages"
    """Path of the messages in the request."""
    content_paths: Sequence[str] = ()
    """Paths of the contents of the messages, if they do not follow from `field`."""

    def path(self, field: str) -> str:
        """Return the path of one of the request's fields."""
        return field_path(self.where, field)

    def content_path(self, index: int) -> str:
        """Return the path of a message's content. A negative index is a message that the server has added."""
        path = self.content_paths[index] if self.content_paths and index >= 0 else f"{self.field}.{index}.content"
        return field_path(self.where, path)


def over_window(window: int, tokens: int, param: str) -> RequestError:
    """Return the error for a prompt with at least `tokens` tokens. `param`: path of the prompt in the request."""
    message = f"this model's window is {window} tokens, but the prompt has at least {tokens} tokens; shorten it"
    return RequestError(400, message, code="context_length_exceeded", param=param)
