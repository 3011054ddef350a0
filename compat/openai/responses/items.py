"""Input items of a response: messages, function calls and their outputs."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, JsonValue, Tag, TypeAdapter, ValidationError

from compat.openai.base import FIELD_ERROR, Request, field_error
from compat.openai.messages import CalledFunction, Message, ToolCall

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


class FunctionCallItem(CalledFunction):
    """A tool call of the model."""

    type: Literal["function_call"]
    call_id: str
    id: str | None = None
    status: ItemState = None
    caller: None = None
    namespace: None = None


class FunctionCallOutputItem(Request):
    """The output of a tool call."""

    type: Literal["function_call_output"]
    call_id: str
    output: str | list[InputPart]
    id: str | None = None
    status: ItemState = None
    caller: None = None
    namespace: None = None
    name: str | None = None


class ReasoningPart(Request):
    """A text of a reasoning item."""

    type: Literal["reasoning_text", "summary_text"]
    text: str


class ReasoningInput(Request):
    """The model's reasoning in an earlier response. Encrypted content is ignored."""

    type: Literal["reasoning"]
    summary: list[ReasoningPart] = Field(default_factory=list)
    content: list[ReasoningPart] | None = None
    id: str | None = None
    encrypted_content: str | None = None
    status: ItemState = None

    @property
    def reasoning_text(self) -> str:
        """The complete reasoning."""
        return "".join([part.text for part in self.content or ()])


def _kind(item: Any) -> Any:
    return item.get("type", "message") if isinstance(item, dict) else getattr(item, "type", None)


InputItem = Annotated[
    Annotated[MessageItem, Tag("message")]
    | Annotated[FunctionCallItem, Tag("function_call")]
    | Annotated[FunctionCallOutputItem, Tag("function_call_output")]
    | Annotated[ReasoningInput, Tag("reasoning")],
    Discriminator(
        _kind,
        custom_error_type=FIELD_ERROR,
        custom_error_message="an item's type must be message, function_call, function_call_output or reasoning",
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


_ID_PREFIXES = {"message": "msg", "function_call": "fc", "function_call_output": "fco", "reasoning": "rs"}


def _complete_item(item: Mapping[str, Any], suffix: str) -> dict[str, Any]:
    kind = item.get("type") or "message"
    complete: dict[str, Any] = {"id": f"{_ID_PREFIXES[kind]}_{suffix}", "type": kind, "status": "completed"}
    complete |= {name: value for name, value in item.items() if value is not None}
    if kind == "message" and isinstance(complete["content"], str):
        part_type = "output_text" if complete["role"] == "assistant" else "input_text"
        complete["content"] = [{"type": part_type, "text": complete["content"]}]
    if kind == "message" and complete["role"] == "assistant":
        complete["content"] = [{"annotations": [], **part} for part in complete["content"]]
    if kind == "reasoning":
        complete.setdefault("summary", [])
    return complete


def to_messages(items: Sequence[InputItem], where: str) -> tuple[list[Message], list[str]]:
    """Return the items as messages of a conversation, and the path of each message's content.

    `where`: path of the items. Consecutive tool calls become one message, together with the assistant's text before
    them and with the reasoning. Other reasoning is omitted, as in OpenAI's API.
    """
    messages: list[Message] = []
    paths: list[str] = []
    can_join = False
    tool_calls: list[ToolCall] = []  # those of the last message, while further ones may join it
    reasoning: str | None = None
    for index, item in enumerate(items):
        if not isinstance(item, FunctionCallItem):
            tool_calls = []
        match item:
            case MessageItem():
                paths.append(f"{where}.{index}.content")
                messages.append(_message({"role": item.role, "content": _parts(item.content)}, paths[-1]))
                can_join = item.role == "assistant"
                reasoning = reasoning if can_join else None
            case FunctionCallItem():
                tool_call = ToolCall(id=item.call_id, function=CalledFunction(name=item.name, arguments=item.arguments))
                if not can_join:
                    messages.append(Message.model_construct(role="assistant"))
                    paths.append(f"{where}.{index}")
                if not tool_calls:
                    before = messages[-1]
                    update = {"tool_calls": tool_calls, "reasoning_content": before.reasoning_content or reasoning}
                    messages[-1] = before.model_copy(update=update)
                tool_calls.append(tool_call)
                can_join, reasoning = True, None
            case FunctionCallOutputItem():
                answer = {"role": "tool", "content": _parts(item.output), "tool_call_id": item.call_id}
                paths.append(f"{where}.{index}.output")
                messages.append(_message(answer, paths[-1]))
                can_join, reasoning = False, None
            case ReasoningInput():
                can_join, reasoning = False, item.reasoning_text or None
    return messages, paths


def _message(content: dict[str, Any], where: str) -> Message:
    """Return the message of an item. Raises an error that names `where`, the path of the item's content."""
    try:
        return Message.model_validate(content)
    except ValidationError as error:
        raise field_error(where, error.errors()[0]["msg"]) from None
