"""gateway/graph/limits.py"""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

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


@given(st.lists(st.tuples(st.sampled_from("abcd"), st.integers(1, 40)), max_size=60))
def test_only_tenants_above_an_equal_share_are_cut(added: list[tuple[str, int]]) -> None:
    limit, held = SharedLimit(100), Counter[str]()
    for tenant, amount in added:
        limit.add(tenant, amount)
        held[tenant] += amount
        for other in limit.excess_holders():
            assert held[other] >= 100 / len([name for name in held if held[name]])
            limit.remove(other)
            held[other] -= 1
        assert not limit.is_full
        assert held.total() == sum(map(limit.amount, "abcd"))
