"""compat/openai/conversations.py: requests about conversations."""

from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from compat.openai.conversations import ConversationItemsRequest, ConversationRequest, ConversationUpdate

USER = {"role": "user", "content": "x"}


def test_valid_requests() -> None:
    assert ConversationRequest.model_validate({}).items is None
    assert len(ConversationRequest.model_validate({"items": [USER] * 1_000, "metadata": None}).items or ()) == 1_000
    assert ConversationItemsRequest.model_validate({"items": [USER]}).items
    assert ConversationUpdate.model_validate({"metadata": {}}).metadata == {}


@pytest.mark.parametrize(
    ("kind", "content"),
    [
        (ConversationRequest, {"items": [USER] * 1_001}),
        (ConversationRequest, {"items": [{"id": "msg_1"}]}),
        (ConversationRequest, {"id": "mine"}),
        (ConversationItemsRequest, {"items": None}),
        (ConversationUpdate, {"metadata": {"a" * 65: ""}}),
        (ConversationUpdate, {"metadata": None}),
    ],
)
def test_invalid_requests(kind: type[BaseModel], content: Any) -> None:
    with pytest.raises(ValidationError):
        kind.model_validate(content)
