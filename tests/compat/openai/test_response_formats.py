"""compat/openai/response_formats.py: texts of schemas, patterns and choices."""

import pytest
from llguidance import LLMatcher

from compat.openai.grammars import _byte_tokenizer
from compat.openai.response_formats import choice_grammar, validate_regex, validate_schema


@pytest.mark.parametrize(
    "text", ["[" * 5000 + "]" * 5000, "{", "[1]", "3", '{"a": NaN}', "x" * 300_000, '{"a": "\ud800"}']
)
def test_a_text_that_is_not_a_schema_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="schema"):
        validate_schema(text)


@pytest.mark.parametrize("pattern", ["[^\\s\\S]", "a[^\\s\\S]b", "(", "(a)\\1", "x" * 70_000])
def test_patterns_that_cannot_be_enforced_are_refused(pattern: str) -> None:
    with pytest.raises(ValueError, match="regex") as refused:
        validate_regex(pattern)
    assert len(str(refused.value)) < 400


def test_choices_are_limited() -> None:
    for choices in ([f"text number {index}" for index in range(100_000)], ["x" * 300_000], ["a", ""]):
        with pytest.raises(ValueError, match="choice"):
            choice_grammar(choices)
    grammar = choice_grammar([f"text number {index}" for index in range(10_000)])
    matcher = LLMatcher(_byte_tokenizer(), LLMatcher.grammar_from_lark(grammar))
    assert matcher.consume_tokens(list(b"text number 9999"))
    assert matcher.is_accepting()
