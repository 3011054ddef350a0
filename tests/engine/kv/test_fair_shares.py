"""engine/kv/fair_shares.py: what owners use within their shares fits the pool, and small owners take little of it."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from engine.kv.fair_shares import FairShares

CAPACITY = 320
USED = st.dictionaries(st.integers(0, 6), st.integers(0, 200), max_size=7)
MORE = st.lists(st.tuples(st.integers(0, 7), st.integers(0, 120)), max_size=20)


@given(USED, MORE, st.integers(0, 7))
def test_shares_follow_from_what_is_used(used: dict[int, int], more: list[tuple[int, int]], owner: int) -> None:
    shares, amounts = FairShares(CAPACITY, Counter(used)), Counter(used)
    for other, added in more:
        shares.add(other, added)
        amounts[other] += added
    assert shares.used(owner) == amounts[owner]
    amounts[owner] += 0
    small = [amount for other, amount in amounts.items() if amount <= CAPACITY // 32 and other != owner]
    equal = (CAPACITY - sum(small)) // (len(amounts) - len(small))
    assert shares.share(owner) == max(CAPACITY // len(amounts), equal)


@given(MORE)
def test_owners_within_their_shares_fit_the_pool(prompts: list[tuple[int, int]]) -> None:
    shares, amounts = FairShares(CAPACITY, Counter()), Counter[int]()
    for owner, tokens in prompts:
        shares.add(owner, tokens)
        amounts[owner] += tokens
    if all(amount <= shares.share(owner) for owner, amount in amounts.items()):
        assert amounts.total() <= CAPACITY


def test_small_owners_leave_their_room_to_others() -> None:
    shares = FairShares(CAPACITY, Counter(dict.fromkeys(range(50), 2) | {99: 250}))
    assert shares.share(98) == shares.share(99) - 110 == 110
