"""POST /v1/responses: OpenAI's newer way to ask for what a chat completion is."""

from functools import cached_property
from typing import Annotated, Any, Literal, Self

from pydantic import Field, JsonValue, ValidationError, ValidationInfo, field_validator, model_validator
from pydantic_core import PydanticCustomError

from compat.bounds import TokenCount
from compat.openai.base import FAULT, Metadata, Request, fault
from compat.openai.messages import FunctionDefinition, FunctionName, Message, NamedFunction, NamedTool, ToolDefinition
from compat.openai.requests import CacheRetention, ChatCompletionRequest, Generation, ServiceTier
from compat.openai.response_formats import JsonSchema, ResponseFormat, held_to
from compat.openai.responses.items import InputItem, as_messages
from compat.openai.schemas import Enforcement

_LOGPROBS = "message.output_text.logprobs"
_AS_IN_CHAT = (
    *("model", "temperature", "top_p", "top_k", "seed", "stop"),
    *(name for name in Generation.__annotations__ if name != "model"),
    *("parallel_tool_calls", "chat_template_kwargs", "top_logprobs"),
)
"""Fields that say the same in a chat completion."""


class FunctionTool(Request):
    """A function that the client can call for the model. Its parameters are enforced with `strict`, and also if
    `strict` is left out and they can be enforced."""

    type: Literal["function"]
    name: FunctionName
    description: str | None = None
    strict: bool | None = None  # before the parameters, whose check depends on it
    parameters: dict[str, JsonValue] | None = None

    @field_validator("parameters")
    @classmethod
    def _can_be_enforced(cls, parameters: Any, info: ValidationInfo) -> Any:
        if info.data.get("strict") and parameters is not None:
            held_to(parameters)
        return parameters

    @property
    def is_strict(self) -> bool:
        """Whether the parameters are enforced."""
        if self.strict is None and self.parameters is not None:
            try:
                held_to(self.parameters)
            except ValueError:
                return False
        return self.strict is not False


class FunctionChoice(Request):
    """The function that has to be called."""

    type: Literal["function"]
    name: str


class TextFormat(Request):
    """Any text, any JSON object, or JSON that is valid for a schema."""

    type: Literal["text", "json_object", "json_schema"]
    name: str | None = None
    strict: bool | None = None  # before the schema, whose check depends on it
    schema_: dict[str, JsonValue] | None = Field(None, alias="schema")
    description: str | None = None

    @field_validator("schema_")
    @classmethod
    def _can_be_enforced(cls, schema: Any, info: ValidationInfo) -> Any:
        if schema is not None:
            held_to(schema, Enforcement.STRICT if info.data.get("strict") else Enforcement.BEST_EFFORT)
        return schema

    @model_validator(mode="after")
    def _has_its_schema(self) -> Self:
        told = self.model_fields_set - {"type"}
        if self.type == "json_schema" and (self.schema_ is None or self.name is None):
            raise fault("schema" if self.schema_ is None else "name", "json_schema needs a name and a schema")
        if self.type != "json_schema" and told:
            field = min(told).replace("schema_", "schema")
            raise fault(field, f"{field} needs the type json_schema")
        return self


class TextOptions(Request):
    """What the text looks like."""

    format: TextFormat | None = None
    verbosity: Literal["low", "medium", "high"] | None = None


class ReasoningOptions(Request):
    """How much the model is to reason. What it tells beside its answer is told as it is, not summed up."""

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
    # the conversation that it goes on with, and whether it can be gone on with itself
    previous_response_id: str | None = None
    store: bool | None = None
    # what is told
    include: list[Literal["message.output_text.logprobs", "reasoning.encrypted_content"]] | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    stream_options: ResponseStreamOptions | None = None
    # made while nobody waits
    background: bool | None = None
    # hints without effect: the client makes the calls, and a prompt that is too long is refused
    truncation: Literal["auto", "disabled"] | None = None
    service_tier: ServiceTier | None = None
    max_tool_calls: Annotated[int, Field(ge=1)] | None = None
    prompt_cache_retention: CacheRetention | None = None
    # taken and passed on to nobody: they concern OpenAI's own bookkeeping
    metadata: Metadata | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None

    @model_validator(mode="after")
    def _is_a_chat_completion(self) -> Self:
        if self.top_logprobs and not self.wants_logprobs:
            raise fault("top_logprobs", f"top_logprobs needs {_LOGPROBS!r} in include")
        if self.background and self.store is False:
            raise fault("background", "background needs store: without it, no client could retrieve the answer")
        if self.stream_options is not None and not self.stream:
            raise fault("stream_options", "stream_options needs stream to be true")
        if self.structured_outputs is not None and self._form is not None:
            message = "text.format and structured_outputs cannot both be given"
            raise fault("structured_outputs", message)
        if not self.conversation[0]:
            raise fault("input", "input has no message")
        try:
            _ = self.chat  # refused here is what would be refused later
        except ValidationError as error:
            raise _fault_here(error) from None
        return self

    @property
    def wants_logprobs(self) -> bool:
        """Whether log probabilities are told."""
        return _LOGPROBS in (self.include or ())

    @property
    def _form(self) -> TextFormat | None:
        """What the answer is held to, if to something."""
        form = None if self.text is None else self.text.format
        return None if form is None or form.type == "text" else form

    @cached_property
    def conversation(self) -> tuple[list[Message], list[str]]:
        """The input's messages, and for each the path of its content."""
        if isinstance(self.input, str):
            return [Message(role="user", content=self.input)], ["input"]
        return as_messages(self.input, "input")

    @property
    def form_told(self) -> dict[str, Any]:
        """The format of the text as a response contains it: with all of its fields."""
        if self._form is None:
            return {"type": "text"}
        if self._form.type != "json_schema":
            return {"type": self._form.type}
        told = self._form.model_dump(by_alias=True)
        return {**told, "strict": bool(self._form.strict)}

    @property
    def choice_told(self) -> str | dict[str, Any]:
        """Which tools have to be called, as an answer says it."""
        choice = self.tool_choice
        return choice.model_dump() if isinstance(choice, FunctionChoice) else choice or "auto"

    @property
    def tools_told(self) -> list[dict[str, Any]]:
        """The tools, as an answer says them."""
        return [{**tool.model_dump(), "strict": tool.is_strict} for tool in self.tools or ()]

    @cached_property
    def chat(self) -> ChatCompletionRequest:
        """The chat completion that asks the same, of the input alone. Raises ValidationError."""
        told: dict[str, Any] = {name: value for name in _AS_IN_CHAT if (value := getattr(self, name)) is not None}
        told["messages"] = self.conversation[0]
        told["max_completion_tokens"] = self.max_output_tokens
        if self.wants_logprobs:
            told["logprobs"] = True
        if self.reasoning is not None:
            told["reasoning_effort"] = self.reasoning.effort
        if self.text is not None:
            told["verbosity"] = self.text.verbosity
        if self._form is not None:
            told["response_format"] = _format(self._form)
        if self.tools:
            told["tools"] = [_tool(tool) for tool in self.tools]
        if self.tool_choice is not None:
            choice = self.tool_choice
            if isinstance(choice, FunctionChoice):
                told["tool_choice"] = NamedTool(type="function", function=NamedFunction(name=choice.name))
            else:
                told["tool_choice"] = choice
        return ChatCompletionRequest(**told)


def _format(form: TextFormat) -> ResponseFormat:
    if form.type != "json_schema":
        return ResponseFormat(type=form.type)
    schema = JsonSchema.model_validate({"name": form.name, "schema": form.schema_, "strict": form.strict})
    return ResponseFormat(type="json_schema", json_schema=schema)


def _tool(tool: FunctionTool) -> ToolDefinition:
    function = FunctionDefinition(
        name=tool.name,
        description=tool.description,
        parameters=tool.parameters,
        strict=tool.is_strict,
    )
    return ToolDefinition(type="function", function=function)


_IN_CHAT = {
    "max_completion_tokens": "max_output_tokens",
    "messages": "input",
    "reasoning_effort": "reasoning.effort",
    "response_format": "text.format",
    "verbosity": "text.verbosity",
}
"""Names in a response's request of fields that a chat completion names differently."""


def _fault_here(error: ValidationError) -> PydanticCustomError:
    """Return the error of the equivalent chat completion, with the path of the field in the response's request."""
    problem = error.errors()[0]
    path = [str(step) for step in problem["loc"]]
    if problem["type"] == FAULT:
        path.append(problem["ctx"]["field"])
    first, *others = path
    message = problem["msg"].removeprefix("Value error, ")
    return fault(".".join([_IN_CHAT.get(first, first), *others]), message)
