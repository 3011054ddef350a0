"""OpenAI's conversations: lists of items that the server stores and that responses continue."""

from typing import Annotated, Any, Literal, Self, TypedDict

import msgspec
from pydantic import Field, model_validator

from compat.openai.base import Metadata, Request, field_error
from compat.openai.custom_tools import SmallGrammars
from compat.openai.responses.items import InputItem, ItemReference

MAX_NEW_ITEMS = 1_000
"""Maximum number of items that one request adds. OpenAI allows 20."""


class _WithItems(Request):
    @model_validator(mode="after")
    def _has_no_reference(self) -> Self:
        for index, item in enumerate(getattr(self, "items", None) or ()):
            if isinstance(item, ItemReference):
                raise field_error(f"items.{index}", "a conversation stores items, not references to them")
        return self


class ConversationRequest(_WithItems):
    """POST /v1/conversations."""

    items: Annotated[list[InputItem] | None, SmallGrammars] = Field(None, max_length=MAX_NEW_ITEMS)
    metadata: Metadata | None = None


class ConversationUpdate(Request):
    """POST /v1/conversations/{id}."""

    metadata: Metadata


class ConversationItemsRequest(_WithItems):
    """POST /v1/conversations/{id}/items."""

    items: Annotated[list[InputItem], SmallGrammars] = Field(min_length=1, max_length=MAX_NEW_ITEMS)


class Conversation(msgspec.Struct, frozen=True, kw_only=True):
    """A conversation, without its items. `created_at`: Unix time in seconds."""

    id: str
    object: Literal["conversation"] = "conversation"
    created_at: int
    metadata: dict[str, str]


class ConversationDeleted(msgspec.Struct, frozen=True):
    """DELETE /v1/conversations/{id}."""

    id: str
    object: Literal["conversation.deleted"] = "conversation.deleted"
    deleted: Literal[True] = True


ConversationItem = dict[str, Any]
"""An item of a conversation, as JSON."""


class StoredItem(TypedDict):
    """The fields that every item of a conversation has."""

    id: str
    type: str
