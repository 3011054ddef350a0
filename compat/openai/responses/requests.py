"""Request of POST /v1/responses, and its conversion to a chat completion."""

from collections.abc import Sequence
from functools import cached_property
from typing import Annotated, Any, Literal, Self, TypeGuard

from pydantic import Field, JsonValue, PrivateAttr, ValidationError, ValidationInfo, field_validator, model_validator
from pydantic_core import PydanticCustomError

from compat.bounds import TokenCount
from compat.openai.base import FIELD_ERROR, Metadata, Request, field_error
from compat.openai.custom_tools import SmallGrammars
from compat.openai.messages import MAX_TOOLS, Message, NamedFunction, NamedTool
from compat.openai.requests import CacheOptions, CacheRetention, ChatCompletionRequest, Generation, ServiceTier
from compat.openai.response_formats import JsonSchema, ResponseFormat, enforced_schema
from compat.openai.responses.items import InputItem, ItemReference, found_tools, to_messages
from compat.openai.responses.tools import (
    AllowedTools,
    FlatTool,
    HostedTool,
    McpChoice,
    McpTool,
    NamedChoice,
    ResponseTool,
    SearchTool,
    ToolChoice,
    flat_tools,
)
from compat.openai.schemas.policy import Enforcement

_LOGPROBS = "message.output_text.logprobs"
_SHARED_FIELDS = (
    *("model", "temperature", "top_p", "top_k", "seed", "stop"),
    *(name for name in Generation.__annotations__ if name != "model"),
    *("parallel_tool_calls", "chat_template_kwargs", "top_logprobs"),
)
"""Fields with the same meaning in a chat completion."""


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
    """Reasoning effort, a hint. The response contains the complete reasoning, whatever the other fields are."""

    effort: str | None = Field(None, min_length=1, max_length=32)
    summary: Literal["auto", "concise", "detailed", "none"] | None = None
    generate_summary: Literal["auto", "concise", "detailed"] | None = None
    context: Literal["auto", "current_turn", "all_turns"] | None = None
    mode: Annotated[str, Field(max_length=32)] | None = None


class ResponseStreamOptions(Request):
    """Options of a stream. `include_obfuscation` is a hint without effect: events have no padding."""

    include_obfuscation: bool | None = None


class ConversationId(Request):
    """A conversation, by its id."""

    id: str


MAX_MCP_SERVERS = 16
"""Maximum number of MCP servers of a request."""

Includable = Literal[
    "message.output_text.logprobs",
    "reasoning.encrypted_content",
    # about tools that only OpenAI has, and items that clients know anyway: without effect
    "file_search_call.results",
    "web_search_call.results",
    "web_search_call.action.sources",
    "message.input_image.image_url",
    "computer_call_output.output.image_url",
    "code_interpreter_call.outputs",
]


class ResponseRequest(Generation):
    """POST /v1/responses."""

    input: Annotated[str | list[InputItem] | None, SmallGrammars] = Field(None, min_length=1)
    instructions: str | None = None
    max_output_tokens: TokenCount | None = None
    text: TextOptions | None = None
    reasoning: ReasoningOptions | None = None
    tools: Annotated[list[ResponseTool] | None, SmallGrammars] = Field(None, max_length=MAX_TOOLS)
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    chat_template_kwargs: dict[str, JsonValue] | None = None
    # the conversation to continue, and whether to store this response for continuation
    previous_response_id: str | None = None
    conversation: str | ConversationId | None = None
    store: bool | None = None
    # output
    include: list[Includable] | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    stream_options: ResponseStreamOptions | None = None
    # run without a waiting client
    background: bool | None = None
    # limits the calls of MCP tools; the client runs those of its own
    max_tool_calls: Annotated[int, Field(ge=1)] | None = None
    # hints without effect: a prompt that is too long is refused
    truncation: Literal["auto", "disabled"] | None = None
    service_tier: ServiceTier | None = None
    prompt_cache_retention: CacheRetention | None = None
    prompt_cache_options: CacheOptions | None = None
    # accepted and ignored: only OpenAI's own service uses them
    metadata: Metadata | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    client_metadata: dict[str, str] | None = None

    _earlier_tools: Sequence[ResponseTool] = PrivateAttr(())
    """Tools that items of earlier turns have added."""
    _mcp_functions: Sequence[FlatTool] | None = PrivateAttr(None)
    """Tools of the request's MCP servers; None until they are listed."""

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
        if self.previous_response_id is not None and self.conversation is not None:
            message = "only one of previous_response_id and conversation is allowed"
            raise field_error("conversation", message)
        if self.references:
            return self  # it is checked again once they are replaced by their items
        labels = [tool.server_label for _, tool in self.mcp_tools]
        if len(labels) > MAX_MCP_SERVERS:
            raise field_error("tools", f"at most {MAX_MCP_SERVERS} MCP servers are allowed")
        for position, (index, tool) in enumerate(self.mcp_tools):
            if tool.server_label in labels[:position]:
                raise field_error(f"tools.{index}.server_label", "two MCP servers have the same server_label")
        if not self.messages_with_paths[0] and not self.continues:
            raise field_error("input", "input has no message; set previous_response_id to continue a response")
        try:
            _ = self.chat  # an invalid chat completion must be refused here, not later
        except ValidationError as error:
            raise _chat_field_error(error) from None
        return self

    @property
    def references(self) -> list[ItemReference]:
        """References to stored items in the input."""
        return [] if isinstance(self.input, str) else [item for item in self.input or () if _is_reference(item)]

    @property
    def conversation_id(self) -> str | None:
        """Id of the conversation that the response continues."""
        return self.conversation.id if isinstance(self.conversation, ConversationId) else self.conversation

    @property
    def continues(self) -> bool:
        """Return whether the response continues earlier items."""
        return self.previous_response_id is not None or self.conversation is not None

    @property
    def includes_encrypted_reasoning(self) -> bool:
        """Return whether reasoning items have `encrypted_content`."""
        return "reasoning.encrypted_content" in (self.include or ())

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
        return to_messages(self.input or (), "input")

    @cached_property
    def flat_tools(self) -> dict[str, FlatTool]:
        """Tools that the model reads, by the names under which it knows them. Raises ValueError if two have the same
        name."""
        found = [] if self.input is None or isinstance(self.input, str) else found_tools(self.input)
        tools = flat_tools(self.tools or (), [*self._earlier_tools, *found])
        tools += self._mcp_functions or ()
        by_name = {tool.flat_name: tool for tool in tools}
        if len(by_name) < len(tools):
            raise field_error("tools", "two tools have the same name")
        if len(tools) > MAX_TOOLS:
            raise field_error("tools", f"at most {MAX_TOOLS} tools are allowed, those of namespaces included")
        return by_name

    def with_earlier_tools(self, tools: Sequence[ResponseTool]) -> "ResponseRequest":
        """Return the request with tools that items of earlier turns have added. Raises ValueError if there are too
        many."""
        request = self.model_copy()
        request._earlier_tools = tools
        return request._with_new_chat()

    def with_mcp_functions(self, functions: Sequence[FlatTool]) -> "ResponseRequest":
        """Return the request with the tools that its MCP servers have listed. Raises ValueError if there are too many,
        or if the client has one of the same name."""
        request = self.model_copy()
        request._mcp_functions = functions
        return request._with_new_chat()

    def _with_new_chat(self) -> "ResponseRequest":
        for name in ("flat_tools", "chat"):
            self.__dict__.pop(name, None)
        _ = self.chat  # invalid tools must be refused here, not later
        return self

    @property
    def mcp_tools(self) -> list[tuple[int, McpTool]]:
        """The MCP servers of the request, with their positions among the tools."""
        return [(index, tool) for index, tool in enumerate(self.tools or ()) if isinstance(tool, McpTool)]

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
        return "auto" if choice is None else choice if isinstance(choice, str) else choice.model_dump(exclude_none=True)

    @property
    def echoed_tools(self) -> list[dict[str, Any]]:
        """Tools as the response object repeats them: those that the model can call."""
        return [
            tool.echoed
            for tool in self.tools or ()
            if not isinstance(tool, HostedTool) and not (isinstance(tool, SearchTool) and not tool.is_run_by_client)
        ]

    @cached_property
    def chat(self) -> ChatCompletionRequest:
        """Equivalent chat completion, of the input alone. Raises ValidationError if it is invalid."""
        fields: dict[str, Any] = {name: value for name in _SHARED_FIELDS if (value := getattr(self, name)) is not None}
        # the messages of earlier turns are added later
        fields["messages"] = self.messages_with_paths[0] or [Message(role="user", content="")]
        fields["max_completion_tokens"] = self.max_output_tokens
        if self.includes_logprobs:
            fields["logprobs"] = True
        if self.reasoning is not None:
            fields["reasoning_effort"] = self.reasoning.effort
        if self.text is not None:
            fields["verbosity"] = self.text.verbosity
        if self._output_format is not None:
            fields["response_format"] = _format(self._output_format)
        fields |= self._tool_fields
        return ChatCompletionRequest(**fields)

    @property
    def _tool_fields(self) -> dict[str, Any]:
        """Tools of the equivalent chat completion, and which of them the model may or must call."""
        tools, choice = list(self.flat_tools.values()), self.tool_choice
        fields: dict[str, Any] = {}
        if self._mcp_functions is None and self.mcp_tools and choice != "none":
            choice = None  # it is checked once the tools are known
        match choice:
            case AllowedTools():
                tools = choice.choose(tools)
                fields["tool_choice"] = choice.mode if tools or choice.mode == "required" else None
            case NamedChoice():
                chosen = next((tool for tool in tools if _names(choice, tool)), None)
                if chosen is None:
                    message = f"the request has no tool {choice.name!r} of the type {choice.type}"
                    raise field_error("tool_choice", message)
                fields["tool_choice"] = NamedTool(type="function", function=NamedFunction(name=chosen.flat_name))
            case McpChoice():
                tools = choice.choose(tools)
                fields["tool_choice"] = "required"
            case str():
                fields["tool_choice"] = choice
        if tools:
            fields["tools"] = [tool.definition for tool in tools]
        return fields


def _is_reference(item: Any) -> TypeGuard[ItemReference]:
    return isinstance(item, ItemReference)


def _names(choice: NamedChoice, tool: FlatTool) -> bool:
    """Return whether the choice names the tool. Without a namespace it may name a tool of any."""
    return (choice.type, choice.name) == (tool.kind, tool.name) and choice.namespace in (None, tool.namespace)


def _format(output_format: TextFormat) -> ResponseFormat:
    if output_format.type != "json_schema":
        return ResponseFormat(type=output_format.type)
    fields = {"name": output_format.name, "schema": output_format.schema_, "strict": output_format.strict}
    schema = JsonSchema.model_validate(fields)
    return ResponseFormat(type="json_schema", json_schema=schema)


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
