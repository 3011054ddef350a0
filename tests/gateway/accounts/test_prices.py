"""Prices: forms of the settings, patterns, costs."""

import pytest

from gateway.accounts.prices import Price, Prices, parse_price


def test_a_price_has_two_or_three_numbers() -> None:
    assert parse_price("3/15") == Price(3.0, 3.0, 15.0)
    assert parse_price("3/0.3/15") == Price(3.0, 0.3, 15.0)


@pytest.mark.parametrize("text", ["", "3", "3/", "a/b", "-1/2", "nan/1", "inf/1", "1/2/3/4", "1e300/1"])
def test_other_forms_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not PROMPT/COMPLETION"):
        parse_price(text)


def test_cached_tokens_have_their_own_price() -> None:
    assert Price(3.0, 0.3, 15.0).cost(1_000_000, 400_000, 100_000) == pytest.approx(0.6 * 3 + 0.4 * 0.3 + 0.1 * 15)


def test_a_name_goes_before_patterns_and_a_long_pattern_before_a_short_one() -> None:
    prices = Prices({"*": Price(1, 1, 1), "gpt-*": Price(2, 2, 2), "gpt-4": Price(3, 3, 3), "a[b]*": Price(4, 4, 4)})
    assert [prices.of(name).prompt for name in ("other", "gpt-5", "gpt-4", "a[b]c", "ab")] == [1, 2, 3, 4, 1]


def test_a_model_without_a_price_costs_nothing() -> None:
    assert not Prices({})
    assert Prices({"a": Price(1, 1, 1)}).of("b").cost(10, 5, 10) == 0
