"""Request of POST /v1/responses, and its conversion to a chat completion."""

from functools import cached_property
from typing import Annotated, Any, Literal, Self

from pydantic import Field, JsonValue, ValidationError, ValidationInfo, field_validator, model_validator
from pydantic_core import PydanticCustomError

from compat.bounds import TokenCount
from compat.openai.base import FIELD_ERROR, Metadata, Request, field_error
from compat.openai.messages import FunctionDefinition, FunctionName, Message, NamedFunction, NamedTool, ToolDefinition
from compat.openai.requests import CacheRetention, ChatCompletionRequest, Generation, ServiceTier
from compat.openai.response_formats import JsonSchema, ResponseFormat, enforced_schema
from compat.openai.responses.items import InputItem, to_messages
from compat.openai.schemas.policy import Enforcement

_LOGPROBS = "message.output_text.logprobs"
_SHARED_FIELDS = (
    *("model", "temperature", "top_p", "top_k", "seed", "stop"),
    *(name for name in Generation.__annotations__ if name != "model"),
    *("parallel_tool_calls", "chat_template_kwargs", "top_logprobs"),
)
"""Fields with the same meaning in a chat completion."""


class FunctionTool(Request):
    """A function that the client can run for the model. Its parameters are enforced with `strict`, and also if `strict`
    is omitted and they can be enforced."""

    type: Literal["function"]
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

    @property
    def is_strict(self) -> bool:
        """Return whether the parameters are enforced."""
        if self.strict is None and self.parameters is not None:
            try:
                enforced_schema(self.parameters)
            except ValueError:
                return False
        return self.strict is not False


class FunctionChoice(Request):
    """The function that the model has to call."""

    type: Literal["function"]
    name: str


class TextFormat(Request):
    """Format of the text: any text, any JSON object, or JSON that is valid for a schema."""

    type: Literal["text", "json_object", "json_schema"]
    name: str | None = None
    strict: bool | None = None  # before the schema, whose check depends on it
    schema_: dict[str, JsonValue] | None = Field(None, alias="schema")
    description: str | None = None

    @field_validator("schema_")
    @classmethod
    def _can_be_enforced(cls, schema: Any, info: ValidationInfo) -> Any:
        if schema is not None:
            enforced_schema(schema, Enforcement.STRICT if info.data.get("strict") else Enforcement.BEST_EFFORT)
        return schema

    @model_validator(mode="after")
    def _has_its_schema(self) -> Self:
        others = self.model_fields_set - {"type"}
        if self.type == "json_schema" and (self.schema_ is None or self.name is None):
            raise field_error("schema" if self.schema_ is None else "name", "json_schema needs a name and a schema")
        if self.type != "json_schema" and others:
            field = min(others).replace("schema_", "schema")
            raise field_error(field, f"{field} needs the type json_schema")
        return self


class TextOptions(Request):
    """Options of the answer's text."""

    format: TextFormat | None = None
    verbosity: Literal["low", "medium", "high"] | None = None


class ReasoningOptions(Request):
    """Reasoning effort. The response contains the complete reasoning, whatever `summary` is."""

    effort: str | None = Field(None, min_length=1, max_length=32)
    summary: Literal["auto", "concise", "detailed"] | None = None


class ResponseStreamOptions(Request):
    """Options of a stream. `include_obfuscation` is a hint without effect: events have no padding."""

    include_obfuscation: bool | None = None


class ResponseRequest(Generation):
    """POST /v1/responses."""

    input: str | list[InputItem] = Field(min_length=1)
    instructions: str | None = None
    max_output_tokens: TokenCount | None = None
    text: TextOptions | None = None
    reasoning: ReasoningOptions | None = None
    tools: list[FunctionTool] | None = Field(None, max_length=128)
    tool_choice: Literal["none", "auto", "required"] | FunctionChoice | None = None
    parallel_tool_calls: bool | None = None
    chat_template_kwargs: dict[str, JsonValue] | None = None
    # the conversation to continue, and whether to store this response for continuation
    previous_response_id: str | None = None
    store: bool | None = None
    # output
    include: list[Literal["message.output_text.logprobs", "reasoning.encrypted_content"]] | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    stream_options: ResponseStreamOptions | None = None
    # run without a waiting client
    background: bool | None = None
    # hints without effect: the client runs the tool calls, and a prompt that is too long is refused
    truncation: Literal["auto", "disabled"] | None = None
    service_tier: ServiceTier | None = None
    max_tool_calls: Annotated[int, Field(ge=1)] | None = None
    prompt_cache_retention: CacheRetention | None = None
    # accepted and ignored: only OpenAI's own service uses them
    metadata: Metadata | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None

    @model_validator(mode="after")
    def _is_a_chat_completion(self) -> Self:
        if self.top_logprobs and not self.includes_logprobs:
            raise field_error("top_logprobs", f"top_logprobs needs {_LOGPROBS!r} in include")
        if self.background and self.store is False:
            raise field_error("background", "background needs store: without it, no client could retrieve the answer")
        if self.stream_options is not None and not self.stream:
            raise field_error("stream_options", "stream_options needs stream to be true")
        if self.structured_outputs is not None and self._output_format is not None:
            message = "only one of text.format and structured_outputs is allowed"
            raise field_error("structured_outputs", message)
        if not self.messages_with_paths[0]:
            raise field_error("input", "input has no message")
        try:
            _ = self.chat  # an invalid chat completion must be refused here, not later
        except ValidationError as error:
            raise _chat_field_error(error) from None
        return self

    @property
    def includes_logprobs(self) -> bool:
        """Return whether the response has log probabilities."""
        return _LOGPROBS in (self.include or ())

    @property
    def _output_format(self) -> TextFormat | None:
        """Constraint of the text's form, if any."""
        output_format = None if self.text is None else self.text.format
        return None if output_format is None or output_format.type == "text" else output_format

    @cached_property
    def messages_with_paths(self) -> tuple[list[Message], list[str]]:
        """Messages of the input, and the path of each message's content."""
        if isinstance(self.input, str):
            return [Message(role="user", content=self.input)], ["input"]
        return to_messages(self.input, "input")

    @property
    def echoed_format(self) -> dict[str, Any]:
        """Format of the text for the response object, with all of its fields."""
        if self._output_format is None:
            return {"type": "text"}
        if self._output_format.type != "json_schema":
            return {"type": self._output_format.type}
        format_fields = self._output_format.model_dump(by_alias=True)
        return {**format_fields, "strict": bool(self._output_format.strict)}

    @property
    def echoed_tool_choice(self) -> str | dict[str, Any]:
        """Tool choice for the response object."""
        choice = self.tool_choice
        return choice.model_dump() if isinstance(choice, FunctionChoice) else choice or "auto"

    @property
    def echoed_tools(self) -> list[dict[str, Any]]:
        """Tools as the response object repeats them."""
        return [{**tool.model_dump(), "strict": tool.is_strict} for tool in self.tools or ()]

    @cached_property
    def chat(self) -> ChatCompletionRequest:
        """Equivalent chat completion, of the input alone. Raises ValidationError if it is invalid."""
        fields: dict[str, Any] = {name: value for name in _SHARED_FIELDS if (value := getattr(self, name)) is not None}
        fields["messages"] = self.messages_with_paths[0]
        fields["max_completion_tokens"] = self.max_output_tokens
        if self.includes_logprobs:
            fields["logprobs"] = True
        if self.reasoning is not None:
            fields["reasoning_effort"] = self.reasoning.effort
        if self.text is not None:
            fields["verbosity"] = self.text.verbosity
        if self._output_format is not None:
            fields["response_format"] = _format(self._output_format)
        if self.tools:
            fields["tools"] = [_tool(tool) for tool in self.tools]
        if self.tool_choice is not None:
            choice = self.tool_choice
            if isinstance(choice, FunctionChoice):
                fields["tool_choice"] = NamedTool(type="function", function=NamedFunction(name=choice.name))
            else:
                fields["tool_choice"] = choice
        return ChatCompletionRequest(**fields)


def _format(output_format: TextFormat) -> ResponseFormat:
    if output_format.type != "json_schema":
        return ResponseFormat(type=output_format.type)
    fields = {"name": output_format.name, "schema": output_format.schema_, "strict": output_format.strict}
    schema = JsonSchema.model_validate(fields)
    return ResponseFormat(type="json_schema", json_schema=schema)


def _tool(tool: FunctionTool) -> ToolDefinition:
    function = FunctionDefinition(
        name=tool.name,
        description=tool.description,
        parameters=tool.parameters,
        strict=tool.is_strict,
    )
    return ToolDefinition(type="function", function=function)


_RESPONSE_FIELDS = {
    "max_completion_tokens": "max_output_tokens",
    "messages": "input",
    "reasoning_effort": "reasoning.effort",
    "response_format": "text.format",
    "verbosity": "text.verbosity",
}
"""Names in a response's request for fields that have other names in a chat completion."""


def _chat_field_error(error: ValidationError) -> PydanticCustomError:
    """Return the first validation error of the equivalent chat completion, with the field's path as the client wrote it
    in its /v1/responses request."""
    problem = error.errors()[0]
    path = [str(step) for step in problem["loc"]]
    if problem["type"] == FIELD_ERROR:
        path.append(problem["ctx"]["field"])
    first, *others = path
    message = problem["msg"].removeprefix("Value error, ")
    return field_error(".".join([_RESPONSE_FIELDS.get(first, first), *others]), message)
