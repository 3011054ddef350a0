"""Messages of a conversation, and the tools that the model may call."""

import json
from functools import cached_property
from typing import Annotated, Any, Literal, Self

from pydantic import (
    ConfigDict,
    Discriminator,
    Field,
    JsonValue,
    StringConstraints,
    Tag,
    ValidationInfo,
    field_validator,
    model_validator,
)

from compat.bounds import BoundedModel
from compat.openai.base import Request, field_error
from compat.openai.response_formats import enforced_schema
from compat.openai.schemas.enforceable import unenforced_keywords
from compat.openai.schemas.policy import Enforcement

MAX_TOOLS = 512
"""Maximum number of tools of a request. OpenAI allows 128; agents with several MCP servers send more."""


class TextPart(Request):
    """A text part of a message's content."""

    type: Literal["text"]
    text: str


class RefusalPart(Request):
    """A part of an assistant's message that is a refusal."""

    type: Literal["refusal"]
    refusal: str

    @property
    def text(self) -> str:
        """Return the text that the model reads."""
        return self.refusal


class MediaPart(BoundedModel):
    """A part that is not text. Its content is forwarded unchanged to an upstream server.

    The field that holds the content has the name of the part's type.
    """

    model_config = ConfigDict(extra="allow", strict=True)

    type: Literal["image_url", "input_audio", "file", "video_url", "audio_url"]

    @model_validator(mode="after")
    def _has_content(self) -> Self:
        if not (self.model_extra or {}).get(self.type):
            raise field_error(self.type, f"a part of type {self.type} needs the field {self.type}")
        return self

    @property
    def original(self) -> dict[str, Any]:
        """The part as the client sent it."""
        return {"type": self.type, **(self.model_extra or {})}

    @property
    def length(self) -> int:
        """Approximate length of the content, in characters."""
        content = (self.model_extra or {})[self.type]
        texts = content.values() if isinstance(content, dict) else [content]
        return sum(len(text) for text in texts if isinstance(text, str))


Part = Annotated[TextPart | RefusalPart | MediaPart, Field(discriminator="type")]


class CalledFunction(Request):
    """A function that an assistant called. Its arguments are JSON, unless the model was cut off or wrote other text.

    `parsed_arguments`: the arguments as the openai package's helpers add them. They are ignored.
    """

    name: str
    arguments: str
    parsed_arguments: JsonValue = None

    @property
    def template_arguments(self) -> Any:
        """Arguments for chat templates: a dict, or the text if it is not a JSON object."""
        try:
            arguments = json.loads(self.arguments or "{}")
        except (ValueError, RecursionError):
            return self.arguments
        return arguments if isinstance(arguments, dict) else self.arguments


class ToolCall(Request):
    """A tool call in an assistant's message. `index`: its position, which is set in deltas of a stream."""

    id: str
    type: Literal["function"] = "function"
    function: CalledFunction
    index: int | None = None


INPUT_FIELD = "input"
"""Name of the argument that holds the input of a custom tool, which a model reads as a function."""


def arguments_of_input(text: str) -> str:
    """Return the arguments of a custom tool's function for an input."""
    return json.dumps({INPUT_FIELD: text}, ensure_ascii=False)


class CalledCustomTool(Request):
    """A custom tool that an assistant called, and its input."""

    name: str
    input: str


class ChatCustomToolCall(Request):
    """A call of a custom tool in an assistant's message. `index`: its position, which is set in deltas of a stream."""

    id: str
    type: Literal["custom"]
    custom: CalledCustomTool
    index: int | None = None

    @cached_property
    def function(self) -> CalledFunction:
        """The call as the model reads it."""
        return CalledFunction(name=self.custom.name, arguments=arguments_of_input(self.custom.input))


def _kind_of_call(call: Any) -> str:
    """Return the type of a tool call; `function` if it is left out."""
    kind = call.get("type") if isinstance(call, dict) else getattr(call, "type", None)
    return kind if isinstance(kind, str) else "function"


AnyToolCall = Annotated[
    Annotated[ToolCall, Tag("function")] | Annotated[ChatCustomToolCall, Tag("custom")], Discriminator(_kind_of_call)
]


class Message(Request):
    """One message of a conversation."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[Part] | None = None
    name: str | None = None
    tool_calls: list[AnyToolCall] | None = None
    tool_call_id: str | None = None
    # the model's reasoning, under both names that servers use; chat templates may write it
    reasoning_content: str | None = None
    reasoning: str | None = None
    # fields that clients copy from answers; only `refusal` is used
    refusal: str | None = None
    audio: None = None
    function_call: None = None
    annotations: list[JsonValue] | None = None
    parsed: JsonValue = None

    @model_validator(mode="after")
    def _is_complete(self) -> Self:
        if self.role != "assistant":
            self._check_assistant_fields()
        elif self.media:
            raise field_error("content", "the content of an assistant's message must be text")
        if self.content is None and not self.tool_calls and not self.refusal:
            raise field_error("content", "a message needs content")
        if (self.tool_call_id is None) == (self.role == "tool"):
            message = "tool_call_id is required in messages of the role tool, and not allowed in others"
            raise field_error("tool_call_id", message)
        return self

    def _check_assistant_fields(self) -> None:
        """Raise an error if a message of another role has fields that only an assistant's message may have."""
        if self.tool_calls:
            raise field_error("tool_calls", "only an assistant's message may have tool_calls")
        if self.reasoning_text:
            field = "reasoning_content" if self.reasoning_content else "reasoning"
            raise field_error(field, f"only an assistant's message may have {field}")
        if self.refusal:
            raise field_error("refusal", "only an assistant's message may have a refusal")
        if isinstance(self.content, list) and any(isinstance(part, RefusalPart) for part in self.content):
            raise field_error("content", "only an assistant's message may have a refusal")

    @property
    def reasoning_text(self) -> str:
        """The model's reasoning, under either name."""
        return self.reasoning_content or self.reasoning or ""

    @property
    def media(self) -> list[MediaPart]:
        """The parts of the content that are not text."""
        return [part for part in self.content if isinstance(part, MediaPart)] if isinstance(self.content, list) else []

    @property
    def parts(self) -> str | list[str | dict[str, Any]]:
        """The content as one text or as a list of parts: texts, and other parts as the client sent them."""
        if isinstance(self.content, list):
            return [part.original if isinstance(part, MediaPart) else part.text for part in self.content]
        return self.content or self.refusal or ""

    @property
    def length(self) -> int:
        """Length of the content, in characters."""
        if isinstance(self.content, list):
            return sum([part.length if isinstance(part, MediaPart) else len(part.text) for part in self.content])
        return len(self.content or self.refusal or "")

    @property
    def template_fields(self) -> dict[str, Any]:
        """Fields of the message that chat templates read, without its tool calls. `developer` is OpenAI's newer name
        for `system`."""
        fields: dict[str, Any] = {
            "role": "system" if self.role == "developer" else self.role,
            "content": self.parts,
        }
        if self.name is not None:
            fields["name"] = self.name
        if self.reasoning_text:
            fields["reasoning_content"] = self.reasoning_text
        return fields

    @property
    def template_tool_calls(self) -> list[dict[str, Any]]:
        """Tool calls for chat templates. Arguments are dicts, or texts if they are not JSON objects."""
        return [
            {
                "id": tool_call.id,
                "type": "function",
                "function": {
                    "name": tool_call.function.name,
                    "arguments": tool_call.function.template_arguments,
                },
            }
            for tool_call in self.tool_calls or ()
        ]


FunctionName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_.-]{1,64}$")]


class DescribedFunction(Request):
    """Name, description and parameters of a function. With `strict`, the parameters must be enforceable."""

    name: FunctionName
    description: str | None = None
    strict: bool | None = None  # before the parameters, whose check depends on it
    parameters: dict[str, JsonValue] | None = None

    @field_validator("parameters")
    @classmethod
    def _can_be_enforced(cls, parameters: Any, info: ValidationInfo) -> Any:
        if info.data.get("strict") and parameters is not None:
            enforced_schema(parameters)
        return parameters


class FunctionDefinition(DescribedFunction):
    """A function that the client can call for the model."""

    @property
    def enforced(self) -> dict[str, Any]:
        """Schema that constrains the arguments of a forced or strict tool call. Raises ValueError only if `strict`."""
        schema = {"type": "object", "properties": {}} if self.parameters is None else self.parameters
        return enforced_schema(schema, Enforcement.STRICT if self.strict else Enforcement.LENIENT)

    @property
    def unenforced(self) -> list[str]:
        """Keywords of the schema that do not constrain the arguments of a forced tool call."""
        return [] if self.strict or self.parameters is None else unenforced_keywords(self.parameters)


class ToolDefinition(Request):
    """A tool that is a function."""

    type: Literal["function"]
    function: FunctionDefinition


class NamedFunction(Request):
    """A reference to a function or to a custom tool by its name."""

    name: str


class NamedTool(Request):
    """The function that the model has to call, or may call."""

    type: Literal["function"]
    function: NamedFunction

    @property
    def name(self) -> str:
        """Name of the function."""
        return self.function.name


class NamedCustomTool(Request):
    """The custom tool that the model has to call, or may call."""

    type: Literal["custom"]
    custom: NamedFunction

    @property
    def name(self) -> str:
        """Name of the tool."""
        return self.custom.name


class AllowedToolSet(Request):
    """Tools that the model may call, or, if the mode is `required`, has to call."""

    mode: Literal["auto", "required"]
    tools: list[Annotated[NamedTool | NamedCustomTool, Field(discriminator="type")]] = Field(
        min_length=1, max_length=MAX_TOOLS
    )


class AllowedTools(Request):
    """A choice of the tools that the model reads."""

    type: Literal["allowed_tools"]
    allowed_tools: AllowedToolSet
