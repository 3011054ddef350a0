"""Input items of a response: messages, function calls and their outputs."""

import json
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, get_args

from pydantic import (
    ConfigDict,
    Discriminator,
    Field,
    JsonValue,
    Tag,
    TypeAdapter,
    ValidationError,
    field_validator,
)

from compat.bounds import BoundedModel
from compat.openai.base import FIELD_ERROR, Request, field_error
from compat.openai.messages import MAX_TOOLS, CalledFunction, Message, ToolCall, arguments_of_input
from compat.openai.responses.opaque import read_compaction, read_reasoning
from compat.openai.responses.tools import SEARCH_NAME, ResponseTool, flat_name, mcp_name

ItemState = Literal["in_progress", "completed", "incomplete"] | None


class TextInput(Request):
    """A text part of a message.

    A client may send back a part of an earlier answer. Its other fields, such as `annotations`, are ignored.
    """

    type: Literal["input_text", "output_text"]
    text: str
    annotations: list[JsonValue] | None = None
    logprobs: list[JsonValue] | None = None
    parsed: JsonValue = None


class RefusalInput(Request):
    """A part of an assistant's message that is a refusal."""

    type: Literal["refusal"]
    refusal: str


class ImageInput(Request):
    """An image, as a URL or as a data URL."""

    type: Literal["input_image"]
    image_url: str
    detail: str | None = None


class FileInput(Request):
    """A file, encoded in base64."""

    type: Literal["input_file"]
    file_data: str
    filename: str | None = None


InputPart = Annotated[TextInput | RefusalInput | ImageInput | FileInput, Field(discriminator="type")]


def _parts(content: str | Sequence[InputPart]) -> str | list[dict[str, Any]]:
    return content if isinstance(content, str) else [_part(part) for part in content]


def _without_none(**fields: str | None) -> dict[str, str]:
    return {name: value for name, value in fields.items() if value is not None}


def _part(part: InputPart) -> dict[str, Any]:
    match part:
        case ImageInput():
            return {"type": "image_url", "image_url": _without_none(url=part.image_url, detail=part.detail)}
        case FileInput():
            return {"type": "file", "file": _without_none(file_data=part.file_data, filename=part.filename)}
        case RefusalInput():
            return {"type": "text", "text": part.refusal}
        case _:
            return {"type": "text", "text": part.text}


class MessageItem(Request):
    """A message of a conversation."""

    type: Literal["message"] = "message"
    role: Literal["user", "assistant", "system", "developer"]
    content: str | list[InputPart]
    id: str | None = None
    status: ItemState = None
    phase: str | None = None


class _CallerFields(Request):
    """Fields of a call that have no effect: its caller is always the model, and the client may answer it later."""

    caller: JsonValue = None
    async_: bool | None = Field(None, alias="async")
    created_by: str | None = None


class _NamedCallItem(_CallerFields):
    """Fields of a tool call that names the tool. `namespace`: that of the tool."""

    call_id: str
    name: str
    id: str | None = None
    status: ItemState = None
    namespace: str | None = None

    def _tool_call(self, arguments: str) -> ToolCall:
        name = flat_name(self.namespace, self.name)
        return ToolCall(id=self.call_id, function=CalledFunction(name=name, arguments=arguments))


class FunctionCallItem(CalledFunction, _NamedCallItem):
    """A tool call of the model. `namespace`: that of the tool."""

    type: Literal["function_call"]

    @property
    def tool_call(self) -> ToolCall:
        """The call as the model knows it."""
        return self._tool_call(self.arguments)


class CustomCallItem(_NamedCallItem):
    """A call of a custom tool."""

    type: Literal["custom_tool_call"]
    input: str

    @property
    def tool_call(self) -> ToolCall:
        """The call as the model knows it."""
        return self._tool_call(arguments_of_input(self.input))


class SearchCallItem(_CallerFields):
    """A search for tools by the model, which the client runs."""

    type: Literal["tool_search_call"]
    call_id: str | None = None
    arguments: JsonValue = None
    execution: Literal["server", "client"] | None = None
    id: str | None = None
    status: ItemState = None

    @property
    def tool_call(self) -> ToolCall:
        """The call as the model knows it."""
        arguments = self.arguments if isinstance(self.arguments, str) else json.dumps(self.arguments or {})
        return ToolCall(id=self.call_id or SEARCH_NAME, function=CalledFunction(name=SEARCH_NAME, arguments=arguments))


class ToolOutputItem(_CallerFields):
    """The output of a tool call."""

    type: Literal["function_call_output", "custom_tool_call_output"]
    call_id: str
    output: str | list[InputPart]
    id: str | None = None
    status: ItemState = None
    namespace: str | None = None
    name: str | None = None


class SearchOutputItem(Request):
    """The tools that a search has found. The model may call them from here on."""

    type: Literal["tool_search_output"]
    call_id: str | None = None
    tools: list[ResponseTool] = Field(max_length=MAX_TOOLS)
    execution: Literal["server", "client"] | None = None
    id: str | None = None
    status: ItemState = None
    created_by: str | None = None

    @property
    def description(self) -> str:
        """The result of the search as the model reads it."""
        names = [getattr(tool, "name", tool.type) for tool in self.tools]
        return json.dumps({"found": names})


class AdditionalToolsItem(Request):
    """Tools that the model may call from here on, besides those of the request."""

    type: Literal["additional_tools"]
    tools: list[ResponseTool] = Field(max_length=MAX_TOOLS)
    role: str | None = None
    id: str | None = None
    status: ItemState = None


class ReasoningPart(Request):
    """A text of a reasoning item."""

    type: Literal["reasoning_text", "summary_text"]
    text: str


class ReasoningInput(Request):
    """The model's reasoning in an earlier response, as a text or as the content that this server encoded. Encrypted
    content of other servers is ignored."""

    type: Literal["reasoning"]
    summary: list[ReasoningPart] = Field(default_factory=list)
    content: list[ReasoningPart] | None = None
    id: str | None = None
    encrypted_content: str | None = None
    status: ItemState = None

    @property
    def reasoning_text(self) -> str:
        """The complete reasoning."""
        return "".join([part.text for part in self.content or ()]) or read_reasoning(self.encrypted_content or "")


class CompactionItem(Request):
    """A summary of earlier items, which this server encoded."""

    type: Literal["compaction"]
    encrypted_content: str
    id: str | None = None
    created_by: str | None = None
    status: ItemState = None

    @field_validator("encrypted_content")
    @classmethod
    def _is_ours(cls, content: str) -> str:
        if read_compaction(content) is None:
            raise ValueError("this summary was not made by this server; send the conversation itself")
        return content

    @property
    def summary(self) -> str:
        """Summary of the items."""
        return read_compaction(self.encrypted_content) or ""


class McpListItem(BoundedModel):
    """The tools that an MCP server listed for an earlier response. It is not listed again."""

    model_config = ConfigDict(extra="ignore", strict=True)

    type: Literal["mcp_list_tools"]
    server_label: str | None = None


class _McpCallFields(Request):
    """A call of a tool of an MCP server."""

    id: str
    server_label: str
    name: str
    arguments: str

    @property
    def tool_call(self) -> ToolCall:
        """The call as the model knows it."""
        name = mcp_name(self.server_label, self.name)
        return ToolCall(id=self.id, function=CalledFunction(name=name, arguments=self.arguments))


class McpCallItem(_McpCallFields):
    """A tool call that was run in an earlier response, with its result."""

    type: Literal["mcp_call"]
    output: str | None = None
    error: JsonValue = None
    approval_request_id: str | None = None
    status: Literal["in_progress", "calling", "completed", "incomplete", "failed"] | None = None


class McpApprovalRequestItem(_McpCallFields):
    """A tool call that an earlier response asked the client to approve."""

    type: Literal["mcp_approval_request"]
    status: ItemState = None


class McpApprovalResponseItem(Request):
    """The client's decision whether a tool call is run."""

    type: Literal["mcp_approval_response"]
    approval_request_id: str
    approve: bool
    reason: str | None = None
    id: str | None = None
    status: ItemState = None

    @property
    def refusal(self) -> str:
        """The result of the call that the model reads if the client does not approve it."""
        return f"{NOT_APPROVED}: {self.reason}" if self.reason else NOT_APPROVED


NOT_APPROVED = "error: the user did not approve this call"


def mcp_result(output: str | None, error: Any) -> str:
    """Return the result of a tool call as the model reads it."""
    if error is None:
        return output or ""
    if isinstance(error, dict):
        content = error.get("content")
        if isinstance(content, list):
            texts = [part["text"] for part in content if isinstance(part, dict) and isinstance(part.get("text"), str)]
            return f"error: {' '.join(texts)}"
        error = error.get("message", "")
    return f"error: {error}"


HostedCallType = Literal["web_search_call", "file_search_call", "code_interpreter_call", "image_generation_call"]


class HostedCallItem(BoundedModel):
    """A call of a tool that OpenAI ran, in the history of a conversation that OpenAI answered before. It is omitted."""

    model_config = ConfigDict(extra="ignore", strict=True)

    type: HostedCallType


class ItemReference(Request):
    """A reference to an item that the server has stored. It is replaced by the item before the model is asked."""

    type: Literal["item_reference"] | None = None
    id: Annotated[str, Field(min_length=1, max_length=128)]


def _kind(item: Any) -> Any:
    if isinstance(item, dict):
        kind = item.get("type")
        if kind is None:
            return "item_reference" if item.keys() <= {"id", "type"} and "id" in item else "message"
    else:
        kind = getattr(item, "type", None) or ("item_reference" if isinstance(item, ItemReference) else None)
    if kind == "custom_tool_call_output":
        return "function_call_output"
    return "hosted_call" if isinstance(kind, str) and kind in get_args(HostedCallType) else kind


_LISTED_TYPES = (
    "message, function_call, function_call_output, custom_tool_call, custom_tool_call_output, tool_search_call, "
    "tool_search_output, additional_tools, mcp_list_tools, mcp_call, mcp_approval_request, mcp_approval_response, "
    "reasoning, compaction or item_reference"
)


InputItem = Annotated[
    Annotated[MessageItem, Tag("message")]
    | Annotated[FunctionCallItem, Tag("function_call")]
    | Annotated[CustomCallItem, Tag("custom_tool_call")]
    | Annotated[SearchCallItem, Tag("tool_search_call")]
    | Annotated[ToolOutputItem, Tag("function_call_output")]
    | Annotated[SearchOutputItem, Tag("tool_search_output")]
    | Annotated[AdditionalToolsItem, Tag("additional_tools")]
    | Annotated[ReasoningInput, Tag("reasoning")]
    | Annotated[CompactionItem, Tag("compaction")]
    | Annotated[McpListItem, Tag("mcp_list_tools")]
    | Annotated[McpCallItem, Tag("mcp_call")]
    | Annotated[McpApprovalRequestItem, Tag("mcp_approval_request")]
    | Annotated[McpApprovalResponseItem, Tag("mcp_approval_response")]
    | Annotated[HostedCallItem, Tag("hosted_call")]
    | Annotated[ItemReference, Tag("item_reference")],
    Discriminator(
        _kind,
        custom_error_type=FIELD_ERROR,
        custom_error_message=f"an item's type must be {_LISTED_TYPES}",
        custom_error_context={"field": "type"},
    ),
]


_ITEMS: TypeAdapter[list[InputItem]] = TypeAdapter(list[InputItem])


def items_of(input: Any) -> list[InputItem]:
    """Return the items of a request's `input`, from JSON. Raises ValidationError if an item is invalid."""
    return [MessageItem(role="user", content=input)] if isinstance(input, str) else _ITEMS.validate_python(input)


def input_items_with_ids(input: Any, id: str) -> list[dict[str, Any]]:
    """Return a request's `input` as a list of JSON items, each with an id: its own, or `id` with its position."""
    items = [{"role": "user", "content": input}] if isinstance(input, str) else input
    return [_complete_item(item, f"{id}_{index}") for index, item in enumerate(items)]


_ID_PREFIXES = {
    "message": "msg",
    "function_call": "fc",
    "function_call_output": "fco",
    "custom_tool_call": "ctc",
    "custom_tool_call_output": "ctco",
    "tool_search_call": "tsc",
    "tool_search_output": "tso",
    "additional_tools": "at",
    "reasoning": "rs",
    "compaction": "cmp",
    "mcp_list_tools": "mcpl",
    "mcp_call": "mcp",
    "mcp_approval_request": "mcpr",
    "mcp_approval_response": "mcpa",
}


def _complete_item(item: Mapping[str, Any], suffix: str) -> dict[str, Any]:
    kind = item.get("type") or "message"
    complete: dict[str, Any] = {"id": f"{_ID_PREFIXES.get(kind, 'item')}_{suffix}", "type": kind, "status": "completed"}
    complete |= {name: value for name, value in item.items() if value is not None}
    if kind == "message" and isinstance(complete["content"], str):
        part_type = "output_text" if complete["role"] == "assistant" else "input_text"
        complete["content"] = [{"type": part_type, "text": complete["content"]}]
    if kind == "message" and complete["role"] == "assistant":
        complete["content"] = [{"annotations": [], **part} for part in complete["content"]]
    if kind == "message":
        complete["content"] = [
            {"detail": "auto", **part} if part["type"] == "input_image" else part for part in complete["content"]
        ]
    if kind == "reasoning":
        complete.setdefault("summary", [])
    if kind in ("tool_search_call", "tool_search_output"):
        complete.setdefault("execution", "client")
    if kind == "additional_tools":
        complete.setdefault("role", "developer")
    if kind in ("compaction", "additional_tools", "mcp_list_tools", "mcp_approval_request", "mcp_approval_response"):
        complete.pop("status", None)
    return complete


def found_tools(items: Sequence[InputItem]) -> list[ResponseTool]:
    """Return the tools that these items add to those of the request: tools that a search has found, and others."""
    return [tool for item in items if isinstance(item, SearchOutputItem | AdditionalToolsItem) for tool in item.tools]


SUMMARY_INTRODUCTION = "Summary of the conversation so far:"
"""Text before the summary of a compacted conversation."""


def to_messages(items: Sequence[InputItem], where: str) -> tuple[list[Message], list[str]]:
    """Return the items as messages of a conversation, and the path of each message's content.

    `where`: path of the items. Consecutive tool calls become one message, together with the assistant's text before
    them and with the reasoning. Other reasoning is omitted, as in OpenAI's API. A call that the client has approved has
    no result here.
    """
    messages: list[Message] = []
    paths: list[str] = []
    can_join = False
    tool_calls: list[ToolCall] = []  # those of the last message, while further ones may join it
    reasoning: str | None = None

    def add(message: dict[str, Any], path: str) -> None:
        paths.append(path)
        messages.append(_message(message, path))

    for index, item in enumerate(items):
        path = f"{where}.{index}"
        if not isinstance(item, _ToolCallItem):
            tool_calls = []
        match item:
            case MessageItem():
                add({"role": item.role, "content": _parts(item.content)}, f"{path}.content")
                can_join = item.role == "assistant"
                reasoning = reasoning if can_join else None
            case McpCallItem() if item.approval_request_id is not None:  # its request is the call
                add(_mcp_output(item, item.approval_request_id), f"{path}.output")
                can_join, reasoning = False, None
            case FunctionCallItem() | CustomCallItem() | SearchCallItem() | McpCallItem() | McpApprovalRequestItem():
                if not can_join:
                    messages.append(Message.model_construct(role="assistant"))
                    paths.append(path)
                if not tool_calls:
                    before = messages[-1]
                    update = {"tool_calls": tool_calls, "reasoning_content": before.reasoning_content or reasoning}
                    messages[-1] = before.model_copy(update=update)
                tool_calls.append(item.tool_call)
                can_join, reasoning = True, None
                if isinstance(item, McpCallItem):
                    add(_mcp_output(item, item.id), f"{path}.output")
                    can_join, tool_calls = False, []
            case McpApprovalResponseItem(approve=False):
                refusal = {"role": "tool", "content": item.refusal, "tool_call_id": item.approval_request_id}
                add(refusal, f"{path}.reason")
                can_join, reasoning = False, None
            case ToolOutputItem():
                output = {"role": "tool", "content": _parts(item.output), "tool_call_id": item.call_id}
                add(output, f"{path}.output")
                can_join, reasoning = False, None
            case SearchOutputItem():
                call_id = item.call_id or SEARCH_NAME
                add({"role": "tool", "content": item.description, "tool_call_id": call_id}, path)
                can_join, reasoning = False, None
            case CompactionItem():
                content = f"{SUMMARY_INTRODUCTION}\n{item.summary}"
                add({"role": "user", "content": content}, f"{path}.encrypted_content")
                can_join, reasoning = False, None
            case ReasoningInput():
                can_join, reasoning = False, item.reasoning_text or None
            case ItemReference():
                raise field_error(path, "a reference to an item is possible in the input of a response alone")
    return messages, paths


_ToolCallItem = FunctionCallItem | CustomCallItem | SearchCallItem | McpCallItem | McpApprovalRequestItem


def _mcp_output(item: McpCallItem, call_id: str) -> dict[str, Any]:
    return {"role": "tool", "content": mcp_result(item.output, item.error), "tool_call_id": call_id}


def _message(content: dict[str, Any], where: str) -> Message:
    """Return the message of an item. Raises an error that names `where`, the path of the item's content."""
    try:
        return Message.model_validate(content)
    except ValidationError as error:
        raise field_error(where, error.errors()[0]["msg"]) from None
