"""gateway/graph/limits.py"""

from collections import Counter
from typing import Any
from unittest import mock

from hypothesis import given
from hypothesis import strategies as st

from gateway.graph import limits
from gateway.graph.limits import SharedLimit

TENANTS = "abcd"
STEPS = st.lists(st.tuples(st.sampled_from(TENANTS), st.integers(-6, 12)), max_size=80)


@given(st.integers(1, 40), st.booleans(), STEPS)
def test_no_tenant_can_keep_the_others_out(total: int, several: bool, steps: list[tuple[str, int]]) -> None:
    bound, model = SharedLimit(total, several=several), Counter[str]()
    for tenant, amount in steps:
        if amount < 0:
            amount = min(-amount, model[tenant])
            if amount:
                bound.remove(tenant, amount)
                model[tenant] -= amount
        elif amount and bound.has_room(tenant, amount):
            bound.add(tenant, amount)
            model[tenant] += amount
        held = {name: count for name, count in model.items() if count}
        assert {name: bound.amount(name) for name in held} == held
        assert bound.is_full == (sum(held.values()) >= total)
        assert max(held.values(), default=0) <= bound.own
        assert sum(held.values()) <= total * 2
        if several:
            newcomers = [name for name in TENANTS if name not in held]
            room_for_one = total >= len(held) + 1 and bound.own >= 1
            assert all(bound.has_room(name) for name in newcomers) or not room_for_one


def test_a_single_tenant_may_hold_the_whole_limit() -> None:
    bound = SharedLimit(8, several=False)
    bound.add("", 7)
    assert bound.has_room("")
    bound.add("")
    assert not bound.has_room("")
    assert bound.largest_holder == ""


def test_one_of_several_tenants_may_hold_three_quarters() -> None:
    bound = SharedLimit(8)
    assert bound.has_room("a", 6)
    assert not bound.has_room("a", 7)
    assert SharedLimit(8, own=2).own == 2


@given(st.lists(st.tuples(st.sampled_from("abcd"), st.integers(1, 40)), max_size=60), st.integers(50, 1_000))
def test_only_tenants_with_an_equal_share_are_cut(added: list[tuple[str, int]], total: int) -> None:
    limit, held = SharedLimit(total), Counter[str]()
    goal = total - total // 64
    for tenant, amount in added:
        limit.add(tenant, amount)
        held[tenant] += amount
        was_full, tenants = limit.is_full, len(held)
        for other in limit.excess_holders():
            assert was_full
            assert held[other] >= goal / tenants, "a tenant below an equal share loses nothing"
            limit.remove(other)
            held[other] -= 1
        held = +held
        assert not limit.is_full
        assert held.total() == sum(map(limit.amount, "abcd"))


def test_tenants_are_sorted_rarely() -> None:
    limit, sorted_often = SharedLimit(6_400), 0
    for number in range(6_399):
        limit.add(str(number % 640))

    def count(*arguments: Any, **options: Any) -> Any:
        nonlocal sorted_often
        sorted_often += 1
        return sorted(*arguments, **options)

    with mock.patch.object(limits, "sorted", count, create=True):
        for number in range(1_000):
            limit.add(str(number % 640))
            for tenant in limit.excess_holders():
                limit.remove(tenant)
    assert 1 <= sorted_often <= 20
