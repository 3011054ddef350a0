"""What a response is asked with: messages, calls that were made, and what came of them."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, JsonValue, Tag, TypeAdapter, ValidationError

from compat.openai.base import FAULT, Request, fault
from compat.openai.messages import CalledFunction, Message, ToolCall

ItemState = Literal["in_progress", "completed", "incomplete"] | None


class TextInput(Request):
    """A text part of a message. What a client passes on from an answer besides the text says nothing new."""

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
    """An image, by its URL or in it."""

    type: Literal["input_image"]
    image_url: str
    detail: str | None = None


class FileInput(Request):
    """A file, in base64."""

    type: Literal["input_file"]
    file_data: str
    filename: str | None = None


InputPart = Annotated[TextInput | RefusalInput | ImageInput | FileInput, Field(discriminator="type")]


def _parts(content: str | Sequence[InputPart]) -> str | list[dict[str, Any]]:
    return content if isinstance(content, str) else [_part(part) for part in content]


def _given(**fields: str | None) -> dict[str, str]:
    return {name: value for name, value in fields.items() if value is not None}


def _part(part: InputPart) -> dict[str, Any]:
    match part:
        case ImageInput():
            return {"type": "image_url", "image_url": _given(url=part.image_url, detail=part.detail)}
        case FileInput():
            return {"type": "file", "file": _given(file_data=part.file_data, filename=part.filename)}
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
    """A call that the model made."""

    type: Literal["function_call"]
    call_id: str
    id: str | None = None
    status: ItemState = None
    caller: None = None
    namespace: None = None


class FunctionCallOutputItem(Request):
    """What came of it."""

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
    """What the model told beside its answer. Whatever is encrypted says nothing here."""

    type: Literal["reasoning"]
    summary: list[ReasoningPart] = Field(default_factory=list)
    content: list[ReasoningPart] | None = None
    id: str | None = None
    encrypted_content: str | None = None
    status: ItemState = None

    @property
    def told(self) -> str:
        """All of it."""
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
        custom_error_type=FAULT,
        custom_error_message="an item's type must be message, function_call, function_call_output or reasoning",
        custom_error_context={"field": "type"},
    ),
]


_ITEMS: TypeAdapter[list[InputItem]] = TypeAdapter(list[InputItem])


def items_of(input: Any) -> list[InputItem]:
    """A request's `input`, from JSON. Raises ValidationError."""
    return [MessageItem(role="user", content=input)] if isinstance(input, str) else _ITEMS.validate_python(input)


def listed(input: Any, id: str) -> list[dict[str, Any]]:
    """The same as a list of items, each with an id: its own, or one made of this one and its place."""
    items = [{"role": "user", "content": input}] if isinstance(input, str) else input
    return [_listed(item, f"{id}_{index}") for index, item in enumerate(items)]


_BEGINNINGS = {"message": "msg", "function_call": "fc", "function_call_output": "fco", "reasoning": "rs"}


def _listed(item: Mapping[str, Any], place: str) -> dict[str, Any]:
    kind = item.get("type") or "message"
    told: dict[str, Any] = {"id": f"{_BEGINNINGS[kind]}_{place}", "type": kind, "status": "completed"}
    told |= {name: value for name, value in item.items() if value is not None}
    if kind == "message" and isinstance(told["content"], str):
        says = "output_text" if told["role"] == "assistant" else "input_text"
        told["content"] = [{"type": says, "text": told["content"]}]
    if kind == "message" and told["role"] == "assistant":
        told["content"] = [{"annotations": [], **part} for part in told["content"]]
    if kind == "reasoning":
        told.setdefault("summary", [])
    return told


def as_messages(items: Sequence[InputItem], where: str) -> tuple[list[Message], list[str]]:
    """The items as a conversation, and for each message the path of its content, the items being at `where`.

    Calls that follow each other are one message, with what the model said before them, and with its reasoning; other
    reasoning is left out, as OpenAI does.
    """
    messages: list[Message] = []
    paths: list[str] = []
    joins = False
    called: list[ToolCall] = []  # calls of the last message, as long as more may join it
    reasoned: str | None = None
    for index, item in enumerate(items):
        if not isinstance(item, FunctionCallItem):
            called = []
        match item:
            case MessageItem():
                paths.append(f"{where}.{index}.content")
                messages.append(_message({"role": item.role, "content": _parts(item.content)}, paths[-1]))
                joins = item.role == "assistant"
                reasoned = reasoned if joins else None
            case FunctionCallItem():
                call = ToolCall(id=item.call_id, function=CalledFunction(name=item.name, arguments=item.arguments))
                if not joins:
                    messages.append(Message.model_construct(role="assistant"))
                    paths.append(f"{where}.{index}")
                if not called:
                    before = messages[-1]
                    told = {"tool_calls": called, "reasoning_content": before.reasoning_content or reasoned}
                    messages[-1] = before.model_copy(update=told)
                called.append(call)
                joins, reasoned = True, None
            case FunctionCallOutputItem():
                answer = {"role": "tool", "content": _parts(item.output), "tool_call_id": item.call_id}
                paths.append(f"{where}.{index}.output")
                messages.append(_message(answer, paths[-1]))
                joins, reasoned = False, None
            case ReasoningInput():
                joins, reasoned = False, item.told or None
    return messages, paths


def _message(content: dict[str, Any], where: str) -> Message:
    """Return the message of an item. Raises an error that names `where`, the path of the item's content."""
    try:
        return Message.model_validate(content)
    except ValidationError as error:
        raise fault(where, error.errors()[0]["msg"]) from None
