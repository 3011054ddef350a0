"""Decide whether an answer that a rewritten schema constrains may be a value."""

import json
from typing import Any

from llguidance import LLMatcher

from compat.openai.grammars import _byte_tokenizer


def fits(schema: Any, value: Any) -> bool:
    """Return whether an answer that the rewritten schema constrains may be this value."""
    grammar = LLMatcher.grammar_from_json_schema(
        json.dumps(schema), overrides={"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
    )
    matcher = LLMatcher(_byte_tokenizer(), grammar)
    assert not matcher.is_error(), matcher.get_error()
    tokens = list(json.dumps(value).encode())
    return matcher.try_consume_tokens(tokens) == len(tokens) and bool(matcher.is_accepting())
