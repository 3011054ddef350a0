"""Messages of a conversation, and the tools that may be called in it."""

import json
from typing import Annotated, Any, Literal, Self

from pydantic import ConfigDict, Field, JsonValue, StringConstraints, field_validator, model_validator

from compat.bounds import BoundedModel
from compat.openai.base import Request
from compat.openai.forms import Schema


class TextPart(Request):
    """A text part of a message's content."""

    type: Literal["text"]
    text: str


class MediaPart(BoundedModel):
    """A part that is no text: what is in it stays what it is, for whoever reads it.

    Its type names the field that holds it.
    """

    model_config = ConfigDict(extra="allow", strict=True)

    type: Literal["image_url", "input_audio", "file", "video_url", "audio_url"]

    @model_validator(mode="after")
    def _holds_something(self) -> Self:
        if not (self.model_extra or {}).get(self.type):
            raise ValueError(f"a part of type {self.type} holds it in {self.type}")
        return self

    @property
    def wired(self) -> dict[str, Any]:
        """As it came."""
        return {"type": self.type, **(self.model_extra or {})}

    @property
    def length(self) -> int:
        """Characters, about."""
        held = (self.model_extra or {})[self.type]
        texts = held.values() if isinstance(held, dict) else [held]
        return sum(len(text) for text in texts if isinstance(text, str))


Part = Annotated[TextPart | MediaPart, Field(discriminator="type")]


class CalledFunction(Request):
    """What an assistant called, with arguments as JSON."""

    name: str
    arguments: str

    @field_validator("arguments")
    @classmethod
    def _are_json(cls, arguments: str) -> str:
        try:
            json.loads(arguments or "{}")
        except ValueError as error:
            raise ValueError(f"arguments are JSON: {error}") from None
        return arguments


class ToolCall(Request):
    """A call in an assistant's message."""

    id: str
    type: Literal["function"] = "function"
    function: CalledFunction


class Message(Request):
    """One message of a conversation."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[Part] | None = None
    name: str | None = None
    tool_calls: list[ToolCall] | None = None
    tool_call_id: str | None = None
    # what the model told beside its answer, as servers have it; a template may write it
    reasoning_content: str | None = None
    reasoning: str | None = None
    # what clients pass on from answers, where there was nothing
    refusal: None = None
    audio: None = None
    function_call: None = None
    annotations: list[JsonValue] | None = Field(None, max_length=0)

    @model_validator(mode="after")
    def _is_whole(self) -> Self:
        if self.tool_calls and self.role != "assistant":
            raise ValueError("only an assistant calls tools")
        if self.content is None and not self.tool_calls:
            raise ValueError("a message needs content")
        if self.role != "assistant":
            if self.reasoned:
                raise ValueError("only an assistant reasons")
        elif self.media:
            raise ValueError("an assistant says text")
        if (self.tool_call_id is None) == (self.role == "tool"):
            raise ValueError("a tool's message, and no other, names the call that it answers in tool_call_id")
        return self

    @property
    def reasoned(self) -> str:
        """What the model told beside its answer, by whichever name."""
        return self.reasoning_content or self.reasoning or ""

    @property
    def media(self) -> list[MediaPart]:
        """The parts of the content that are no text."""
        return [part for part in self.content if isinstance(part, MediaPart)] if isinstance(self.content, list) else []

    @property
    def parts(self) -> str | list[str | dict[str, Any]]:
        """The content, or its parts: texts, and what is no text as it came."""
        if isinstance(self.content, list):
            return [part.text if isinstance(part, TextPart) else part.wired for part in self.content]
        return self.content or ""

    @property
    def length(self) -> int:
        """Characters of the content."""
        if isinstance(self.content, list):
            return sum([len(part.text) if isinstance(part, TextPart) else part.length for part in self.content])
        return len(self.content or "")

    @property
    def called(self) -> list[dict[str, Any]]:
        """Its calls as templates know them: arguments are no text there."""
        return [
            {
                "id": call.id,
                "type": "function",
                "function": {"name": call.function.name, "arguments": json.loads(call.function.arguments or "{}")},
            }
            for call in self.tool_calls or ()
        ]


FunctionName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_.-]{1,64}$")]


class FunctionDefinition(Request):
    """A function that the client can call for the model."""

    name: FunctionName
    description: str | None = None
    parameters: Schema | None = None
    strict: bool | None = None


class ToolDefinition(Request):
    """A tool: a function."""

    type: Literal["function"]
    function: FunctionDefinition


class NamedFunction(Request):
    """A function by its name."""

    name: str


class NamedTool(Request):
    """The tool that has to be called."""

    type: Literal["function"]
    function: NamedFunction
