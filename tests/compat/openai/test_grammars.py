"""Tests of compat/openai/grammars.py: patterns, choices, and messages of llguidance."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from llguidance import LLMatcher

from compat.openai.grammars import _byte_tokenizer, client_message
from compat.openai.response_formats import choice_grammar, validate_regex


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


@given(st.text())
@example("panic: assertion failed\n<backtrace>\n   0: <unknown>")
@example("NoExtensionBias\n<non-verbose/>")
@example("regex parse error:\n    (\n    ^\nerror: unclosed group")
def test_errors_of_the_library_become_one_short_line(error: str) -> None:
    message = client_message(error)
    assert 0 < len(message) <= 201
    assert message.isprintable()
    assert "backtrace" not in message
    assert "panic" not in message
