"""compat/openai/responses/opaque.py: what a client keeps for the server comes back unchanged."""

import pytest

from compat.openai.responses.opaque import read_compaction, read_reasoning, write_compaction, write_reasoning


@pytest.mark.parametrize("text", ["", "plain", "Zürich 😀\n\0", "x" * 10_000])
def test_texts_come_back(text: str) -> None:
    assert read_reasoning(write_reasoning(text)) == text
    assert read_compaction(write_compaction(text)) == text


@pytest.mark.parametrize(
    "content", ["", "gAAAAA", "myna.reasoning.1.a", "myna.compaction.1.!", "myna.compaction.1.gA=="]
)
def test_contents_of_others_are_not_read(content: str) -> None:
    assert read_reasoning(content) == ""
    assert read_compaction(content) is None


def test_reasoning_is_no_summary() -> None:
    assert read_compaction(write_reasoning("x")) is None
    assert read_reasoning(write_compaction("x")) == ""
