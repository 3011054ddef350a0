"""gateway/api/anthropic/token_estimate.py: tokens of prompts that only an upstream server can count."""

from array import array
from typing import Any

import pytest

from engine.tokenizer import Tokenizer
from gateway.api.anthropic.token_estimate import estimate_tokens
from gateway.graph.segments import Characters, Messages, Text

TEXTS = [
    "The quick brown fox jumps over the lazy dog. " * 40,
    "def total(prices: list[float]) -> float:\n    return sum(price for price in prices if price > 0)\n" * 40,
]


def messages(content: Any, **fields: Any) -> Messages:
    return Messages([{"role": "user", "content": content}], fields)


def test_tokens_are_counted_exactly() -> None:
    assert estimate_tokens([Text(array("i", range(5))), Text(array("i", range(2)))]) == 7


@pytest.mark.parametrize("text", TEXTS)
def test_texts_are_estimated(tokenizer: Tokenizer, text: str) -> None:
    exact = len(tokenizer.encode(text))
    for segment in (Characters(text), messages(text), messages([{"type": "text", "text": text}])):
        assert exact < estimate_tokens([segment]) < exact * 2


def test_the_size_of_an_image_does_not_count() -> None:
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * 1_000_000}}
    assert 1_500 <= estimate_tokens([messages([{"type": "text", "text": "x"}, image])]) < 1_600


def test_tools_count() -> None:
    tools = [{"type": "function", "function": {"name": "f", "description": "d" * 3_000}}]
    assert estimate_tokens([messages("x", tools=tools)]) > 1_000
