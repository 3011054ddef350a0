"""Content blocks of a Messages request."""

from typing import Annotated, Literal, Self

from pydantic import Field, JsonValue, StringConstraints, model_validator

from compat.openai.base import Request, field_error
from compat.openai.messages import TextPart

_UPLOADS = "this server stores no files; send the content inline"

CacheControl = dict[str, JsonValue] | None
"""A hint without effect: the server itself decides what stays in the cache."""


class Block(Request):
    """Base of all blocks."""

    cache_control: CacheControl = None


class TextBlock(TextPart):
    """A text, which can stand in a chat completion as well. `citations` and `parsed_output` come from answers that a
    client sends back; they are ignored."""

    cache_control: CacheControl = None
    citations: list[JsonValue] | None = None
    parsed_output: JsonValue = None


class Base64Image(Request):
    """An image, encoded in base64."""

    type: Literal["base64"]
    media_type: Literal["image/jpeg", "image/png", "image/gif", "image/webp"]
    data: str = Field(min_length=1)

    @property
    def url(self) -> str:
        """The image as a data URL."""
        return f"data:{self.media_type};base64,{self.data}"


class UrlSource(Request):
    """An image or a document at a URL."""

    type: Literal["url"]
    url: str = Field(min_length=1, max_length=100_000)


class UploadedSource(Request):
    """A file that was uploaded before. It is refused."""

    type: Literal["file"]
    file_id: str

    @model_validator(mode="after")
    def _is_refused(self) -> Self:
        raise field_error("file_id", _UPLOADS)


class ImageBlock(Block):
    """An image. `transformations` is a hint without effect."""

    type: Literal["image"]
    source: Annotated[Base64Image | UrlSource | UploadedSource, Field(discriminator="type")]
    transformations: dict[str, JsonValue] | None = None


class TextSource(Request):
    """The text of a document."""

    type: Literal["text"]
    media_type: Literal["text/plain"] = "text/plain"
    data: str


class ContentSource(Request):
    """The text of a document, as blocks."""

    type: Literal["content"]
    content: str | list[Annotated[TextBlock | ImageBlock, Field(discriminator="type")]]


class Base64Document(Request):
    """A PDF file, encoded in base64."""

    type: Literal["base64"]
    media_type: Literal["application/pdf"]
    data: str = Field(min_length=1)

    @property
    def url(self) -> str:
        """The file as a data URL."""
        return f"data:{self.media_type};base64,{self.data}"


class UrlDocument(UrlSource):
    """A PDF file at a URL. It is refused."""

    @model_validator(mode="after")
    def _is_refused(self) -> Self:
        raise field_error("url", "documents are not fetched from URLs; send the text, or the file in base64")


class DocumentBlock(Block):
    """A document. `citations` is a hint without effect: answers have no citations."""

    type: Literal["document"]
    source: Annotated[
        TextSource | ContentSource | Base64Document | UrlDocument | UploadedSource, Field(discriminator="type")
    ]
    title: str | None = None
    context: str | None = None
    citations: dict[str, JsonValue] | None = None


class SearchResultBlock(Block):
    """A search result of the client's own search. `citations` is a hint without effect."""

    type: Literal["search_result"]
    title: str
    source: str
    content: list[TextBlock]
    citations: dict[str, JsonValue] | None = None


class ThinkingBlock(Block):
    """Reasoning of the model in an earlier answer. The model reads it again if the signature is this server's."""

    type: Literal["thinking"]
    thinking: str
    signature: str = Field("", max_length=100_000)


class RedactedThinkingBlock(Block):
    """Encrypted reasoning. It is ignored: only the server that wrote it can read it."""

    type: Literal["redacted_thinking"]
    data: str


ToolName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_.-]{1,128}$")]
ToolUseId = Annotated[str, StringConstraints(min_length=1, max_length=256)]


class ToolUseBlock(Block):
    """A tool call of the model."""

    type: Literal["tool_use"]
    id: ToolUseId
    name: str = Field(min_length=1, max_length=256)
    input: dict[str, JsonValue]
    caller: dict[str, JsonValue] | None = None
    toolset_name: str | None = None


class ToolReferenceBlock(Block):
    """The name of a tool that a tool search has found."""

    type: Literal["tool_reference"]
    tool_name: str


ResultPart = Annotated[
    TextBlock | ImageBlock | DocumentBlock | SearchResultBlock | ToolReferenceBlock, Field(discriminator="type")
]


class ToolResultBlock(Block):
    """The result of a tool that the client has run."""

    type: Literal["tool_result"]
    tool_use_id: ToolUseId
    content: str | list[ResultPart] | None = None
    is_error: bool | None = None
    toolset_name: str | None = None


class ServerToolUseBlock(Block):
    """A call of a tool that another server ran during its answer. The model reads it as text."""

    type: Literal["server_tool_use", "mcp_tool_use"]
    id: ToolUseId
    name: str
    input: dict[str, JsonValue]
    server_name: str | None = None
    caller: dict[str, JsonValue] | None = None


class ServerToolResultBlock(Block):
    """The result of such a tool. The model reads it as text, without encrypted parts."""

    type: Literal[
        "web_search_tool_result",
        "web_fetch_tool_result",
        "code_execution_tool_result",
        "bash_code_execution_tool_result",
        "text_editor_code_execution_tool_result",
        "tool_search_tool_result",
        "advisor_tool_result",
        "mcp_tool_result",
    ]
    tool_use_id: ToolUseId
    content: str | list[JsonValue] | dict[str, JsonValue] | None = None
    is_error: bool | None = None
    caller: dict[str, JsonValue] | None = None


class CompactionBlock(Block):
    """The summary of the conversation before it. The model reads it as text."""

    type: Literal["compaction"]
    content: str | None = None
    encrypted_content: str | None = None
    signature: str | None = None
    tool_changes: list[JsonValue] | None = None


class ContainerUploadBlock(Block):
    """A file for a container. It is refused."""

    type: Literal["container_upload"]
    file_id: str

    @model_validator(mode="after")
    def _is_refused(self) -> Self:
        raise field_error("file_id", _UPLOADS)


ContentBlock = (
    TextBlock
    | ImageBlock
    | DocumentBlock
    | SearchResultBlock
    | ThinkingBlock
    | RedactedThinkingBlock
    | ToolUseBlock
    | ToolResultBlock
    | ServerToolUseBlock
    | ServerToolResultBlock
    | CompactionBlock
    | ContainerUploadBlock
)

ONLY_USER = ("image", "document", "search_result", "tool_result", "container_upload")
"""Types of blocks that only a user's message may have."""
ONLY_ASSISTANT = ("thinking", "redacted_thinking", "tool_use", "compaction")
"""Types of blocks that only an assistant's message may have."""


class InputMessage(Request):
    """One message of a conversation. A system message may stand anywhere; it has only text."""

    role: Literal["user", "assistant", "system"]
    content: str | list[Annotated[ContentBlock, Field(discriminator="type")]]

    @model_validator(mode="after")
    def _blocks_fit_the_role(self) -> Self:
        for index, block in enumerate(() if isinstance(self.content, str) else self.content):
            if self.role == "system" and block.type != "text":
                raise field_error(f"content.{index}.type", "a system message may only have blocks of type text")
            if self.role == "assistant" and block.type in ONLY_USER:
                raise field_error(
                    f"content.{index}.type", f"only a user's message may have a block of type {block.type}"
                )
            if self.role == "user" and block.type in ONLY_ASSISTANT:
                message = f"only an assistant's message may have a block of type {block.type}"
                raise field_error(f"content.{index}.type", message)
        return self

    @property
    def blocks(self) -> list[ContentBlock]:
        """The content as blocks."""
        return [TextBlock(type="text", text=self.content)] if isinstance(self.content, str) else list(self.content)
