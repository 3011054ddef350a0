"""docs/openai-compatibility.md against the schemas: every field stands in its table, and nothing else does."""

import re
from pathlib import Path

from compat.openai import REFUSED, ChatCompletionRequest, CompletionRequest
from compat.openai.responses import ResponseRequest

DOCUMENT = Path("docs/openai-compatibility.md")


def tables() -> dict[str, set[str]]:
    """Fields by the heading of their table."""
    found: dict[str, set[str]] = {}
    heading = ""
    for line in DOCUMENT.read_text().splitlines():
        if line.startswith("## "):
            heading = line.removeprefix("## ")
        elif line.startswith("| `"):
            found.setdefault(heading, set()).update(re.findall(r"`(\w+)`", line.split("|")[1]))
    return found


def test_every_field_is_in_the_table_it_belongs_to() -> None:
    chat, completion = set(ChatCompletionRequest.model_fields), set(CompletionRequest.model_fields)
    documented = tables()
    common = documented["Chat and completions"]
    assert common | documented["Chat"] == chat | (common & completion)
    assert common | documented["Completions"] == completion | (common & chat)
    assert documented["Responses"] == set(ResponseRequest.model_fields)
    assert documented["Refused, and why"] == set(REFUSED)
    assert not set(REFUSED) & (chat | completion | set(ResponseRequest.model_fields)), "refused and honoured"
