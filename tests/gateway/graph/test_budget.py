"""gateway/graph/budget.py: what the calls of a session may use."""

import random
from types import SimpleNamespace
from typing import Any, cast

import pytest

from gateway.accounts.prices import Price
from gateway.graph.budget import FREE, Budget, BudgetExceeded, Limits
from gateway.graph.call import Call, Times, Usage


def call(id: str, prompt: int = 0) -> Any:
    spec = SimpleNamespace(model="m", form=None)
    made = Call(id, cast(Any, spec), {}, {}, cast(Any, None), Times(0.0), cast(Any, None), 0)
    made.usage = Usage(prompt=prompt)
    return made


def generate(budget: Budget, target: Any, tokens: int) -> int:
    """Add tokens to a call until the budget is exhausted, and return their number."""
    target.times.started = 1.0
    for made in range(tokens):
        if budget.is_exhausted:
            return made
        target.usage.completion += 1
        budget.charge(target)
    return tokens


def test_an_answer_ends_with_the_token_that_reaches_the_limit() -> None:
    ends: list[int] = []
    budget = Budget("s", Limits(tokens=10), lambda model: FREE, lambda: ends.append(1))
    first = call("a", prompt=4)
    budget.admit(first)
    assert generate(budget, first, 100) == 6
    assert (budget.tokens, budget.is_exhausted, ends) == (10, True, [1])
    with pytest.raises(BudgetExceeded, match="10 of 10 tokens"):
        budget.admit(call("b"))


def test_a_prompt_that_leaves_no_room_is_refused_and_others_are_not() -> None:
    budget = Budget("s", Limits(tokens=10), lambda model: FREE)
    with pytest.raises(
        BudgetExceeded, match="no room for this call: used 0 of 10 tokens, and its prompt counts as 12 tokens"
    ):
        budget.admit(call("a", prompt=12))
    with pytest.raises(BudgetExceeded):
        budget.admit(call("a", prompt=10))
    assert (budget.tokens, budget.is_exhausted) == (0, False)
    budget.admit(call("b", prompt=9))


def test_cost_is_limited_with_the_prices_of_cached_tokens() -> None:
    price = Price(prompt=1e6, cached=0.0, completion=2e6)
    budget = Budget("s", Limits(cost=20.0), lambda model: price)
    first = call("a", prompt=10)
    budget.admit(first)
    assert budget.cost == 10.0
    first.usage.cached = 6
    assert generate(budget, first, 100) == 8
    assert budget.cost == 20.0


def test_shared_calls_use_nothing() -> None:
    budget = Budget("s", Limits(tokens=10), lambda model: FREE)
    shared = call("a", prompt=9)
    budget.admit(shared)
    shared.leader = call("b")
    budget.charge(shared)
    assert budget.tokens == 0


@pytest.mark.parametrize("seed", range(20))
def test_parallel_calls_exceed_a_limit_by_at_most_one_token_each(seed: int) -> None:
    chance = random.Random(seed)
    budget = Budget("s", Limits(tokens=chance.randrange(20, 400)), lambda model: FREE)
    running: list[Any] = []
    for number in range(60):
        for each in list(running):
            if budget.is_exhausted:
                break
            each.usage.completion += 1
            budget.charge(each)
            if chance.random() < 0.1:
                running.remove(each)
        new = call(str(number), prompt=chance.randrange(1, 30))
        try:
            budget.admit(new)
        except BudgetExceeded:
            continue
        new.times.started = 1.0
        running.append(new)
    assert budget.tokens <= (budget.limits.tokens or 0)
