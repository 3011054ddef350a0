"""docs/openai-compatibility.md and docs/anthropic-compatibility.md against the schemas: every field stands in its table,
and nothing else does."""

import re
from pathlib import Path
from typing import get_args

from compat.anthropic import REFUSED_BY_MESSAGES, MessagesRequest, StopReason
from compat.anthropic.blocks import ContentBlock
from compat.openai import REFUSED, ChatCompletionRequest, CompletionRequest
from compat.openai.responses import ResponseRequest

OPENAI, ANTHROPIC = Path("docs/openai-compatibility.md"), Path("docs/anthropic-compatibility.md")


def tables(document: Path) -> dict[str, set[str]]:
    """Fields by the heading of their table."""
    found: dict[str, set[str]] = {}
    heading = ""
    for line in document.read_text().splitlines():
        if line.startswith("## "):
            heading = line.removeprefix("## ")
        elif line.startswith("| `"):
            found.setdefault(heading, set()).update(re.findall(r"`(\w+)`", line.split("|")[1]))
    return found


def test_every_field_is_in_the_table_it_belongs_to() -> None:
    chat, completion = set(ChatCompletionRequest.model_fields), set(CompletionRequest.model_fields)
    documented = tables(OPENAI)
    common = documented["Chat and completions"]
    assert common | documented["Chat"] == chat | (common & completion)
    assert common | documented["Completions"] == completion | (common & chat)
    assert documented["Responses"] == set(ResponseRequest.model_fields)
    assert documented["Refused, and why"] == set(REFUSED)
    assert not set(REFUSED) & (chat | completion | set(ResponseRequest.model_fields)), "refused and honoured"


def test_every_field_of_anthropics_api_is_in_its_table() -> None:
    documented = tables(ANTHROPIC)
    assert documented["Fields"] == set(MessagesRequest.model_fields)
    assert documented["Refused fields"] == set(REFUSED_BY_MESSAGES)
    types = {type for block in get_args(ContentBlock) for type in get_args(block.model_fields["type"].annotation)}
    assert documented["Messages"] == types
    text = ANTHROPIC.read_text()
    assert all(f"`{reason}`" in text for reason in get_args(StopReason))
