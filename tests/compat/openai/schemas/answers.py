"""Answers that a rewritten schema allows, and schemas that several tests use."""

import json
from typing import Any

from llguidance import LLMatcher

from compat.openai.grammars import _byte_tokenizer
from compat.openai.schemas.policy import Enforcement

BEST, LENIENT = Enforcement.BEST_EFFORT, Enforcement.LENIENT
NAMED: dict[str, Any] = {"type": "object", "properties": {"a": {"type": "string"}}}
X = {"type": "object", "properties": {"x": {"type": "boolean"}}, "required": ["x"]}
Y = {"type": "object", "properties": {"y": {"type": "boolean"}}, "required": ["y"]}


def fits(schema: Any, value: Any) -> bool:
    """Return whether an answer that the rewritten schema constrains may be this value."""
    grammar = LLMatcher.grammar_from_json_schema(
        json.dumps(schema), overrides={"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
    )
    matcher = LLMatcher(_byte_tokenizer(), grammar)
    assert not matcher.is_error(), matcher.get_error()
    tokens = list(json.dumps(value).encode())
    return matcher.try_consume_tokens(tokens) == len(tokens) and bool(matcher.is_accepting())
