"""Tests of gateway/runtime/schema_checker/pattern_cache.py: patterns are compiled once and take linear time."""

import pytest

from gateway.runtime.schema_checker.pattern_cache import PatternCache
from gateway.runtime.schema_checker.work_budget import NoVerdict, WorkBudget
from tests.gateway.runtime.schema_checker.verdicts import found


def test_a_catastrophic_pattern_takes_linear_time() -> None:
    """Check that RE2 searches. Python's `re` takes seconds for 25 characters, and twice as long for each more: the
    test's time limit ends it."""
    assert found({"pattern": "^(a+)+$"}, "a" * 50_000 + "b") == "$: pattern: the string does not match"


def test_a_pattern_is_compiled_once() -> None:
    patterns, budget = PatternCache(), WorkBudget(10_000)
    assert patterns.matches("^a+$", "aa", budget)
    compiling = 10_000 - budget.left
    assert not patterns.matches("^a+$", "b", budget)
    assert 10_000 - budget.left <= compiling + 2, "only the search costs"


def test_a_pattern_that_re2_lacks_is_rejected_once() -> None:
    patterns, budget = PatternCache(), WorkBudget(10_000)
    for _ in range(2):
        with pytest.raises(NoVerdict, match="RE2 does not have"):
            patterns.matches("(?=a)b", "b", budget)
        left, budget = budget.left, WorkBudget(1)
    assert (left, budget.left) == (1, 1)


def test_white_space_beyond_ascii_gets_no_verdict() -> None:
    patterns, budget = PatternCache(), WorkBudget(10_000)
    assert patterns.matches(r"^\s$", " ", budget)
    with pytest.raises(NoVerdict, match="white space"):
        patterns.matches(r"^\s$", "\N{NO-BREAK SPACE}", budget)
