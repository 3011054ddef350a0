"""gateway/graph/prefix_hash.py: beginnings are equal as far as texts are, and no further."""

import random
from array import array
from collections.abc import Sequence

from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.graph.call import CallSpec, SamplingParams, Slot, Text
from gateway.graph.prefix_hash import PrefixKey, prefix_keys
from gateway.graph.session import Session


def found(tokens: Sequence[int], *, tenant: str = "t", model: str = "m") -> list[PrefixKey]:
    spec = CallSpec(model=model, segments=[Text(tokens), Slot(None, SamplingParams())])
    return prefix_keys(Session("s", tenant, 0.0, 60.0).add(spec), own=False)


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 7000), st.integers(0, 1500), st.integers(0, 1500), st.randoms(use_true_random=False))
def test_two_texts_share_the_borders_before_they_part(common: int, one: int, other: int, pick: random.Random) -> None:
    begin = [pick.randrange(50_000) for _ in range(common)]
    left = found([*begin, 1, *(pick.randrange(50_000) for _ in range(one))])
    right = found([*begin, 2, *(pick.randrange(50_000) for _ in range(other))])
    shared = [border for border in left if border.tokens <= common]
    assert shared == [border for border in right if border.tokens <= common]
    assert not {border.key for border in left[len(shared) :]} & {border.key for border in right[len(shared) :]}


def test_they_lie_close_together_at_first_and_wider_apart_far_on() -> None:
    tokens = list(range(6000))
    assert [b.tokens for b in found(tokens[:300])] == [128, 256, 300]
    assert [b.tokens for b in found(tokens)][-6:] == [4096 - 128, 4096, 4608, 5184, 5832, 6000]
    assert [b.tokens for b in found(tokens[:4096])][-2:] == [4096 - 128, 4096]
    assert [b.ends for b in found(tokens[:300])] == [False, False, True]
    assert [b.tokens for b in found([])] == [0]


def test_a_text_that_ends_at_a_border_is_the_beginning_of_a_longer_one() -> None:
    tokens = list(range(6000))
    for end in (128, 256, 4096, 4608, 5184):
        assert found(tokens[:end])[-1].key in {border.key for border in found(tokens)}


def test_what_holds_the_numbers_does_not_matter_and_whose_they_are_does() -> None:
    tokens = [7, 8, 9] * 100
    assert found(tokens) == found(array("i", tokens)) == found(tuple(tokens))
    assert not {b.key for b in found(tokens)} & {b.key for b in found(tokens, tenant="other")}
    assert not {b.key for b in found(tokens)} & {b.key for b in found(tokens, model="other")}
