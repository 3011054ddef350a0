"""gateway/graph/prefix_hash.py: prefix keys are equal as far as the texts are equal, and no further."""

import random
from array import array
from collections.abc import Sequence
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from engine.sampling_params import SamplingParams
from gateway.graph.call import CallSpec
from gateway.graph.prefix_hash import PrefixKey, prefix_hashes, prefix_keys
from gateway.graph.segments import Messages, Segment, Slot, Text
from gateway.graph.session import Session
from tests.gateway.graph.test_session import put, session, spec


def keys_of(tokens: Sequence[int], *, tenant: str = "t", model: str = "m") -> list[PrefixKey]:
    spec = CallSpec(model=model, segments=[Text(tokens), Slot(None, SamplingParams())])
    return prefix_keys(Session("s", tenant, 0.0, 60.0).add(spec), own=False)


@settings(max_examples=60)
@given(st.integers(0, 7000), st.integers(0, 1500), st.integers(0, 1500), st.randoms(use_true_random=False))
def test_texts_share_the_keys_before_they_differ(common: int, one: int, other: int, pick: random.Random) -> None:
    begin = [pick.randrange(50_000) for _ in range(common)]
    left = keys_of([*begin, 1, *(pick.randrange(50_000) for _ in range(one))])
    right = keys_of([*begin, 2, *(pick.randrange(50_000) for _ in range(other))])
    shared = [border for border in left if border.tokens <= common]
    assert shared == [border for border in right if border.tokens <= common]
    assert not {border.key for border in left[len(shared) :]} & {border.key for border in right[len(shared) :]}


def test_the_distance_of_borders_grows_with_the_text() -> None:
    tokens = list(range(6000))
    assert [b.tokens for b in keys_of(tokens[:300])] == [128, 256, 300]
    assert [b.tokens for b in keys_of(tokens)][-6:] == [4096 - 128, 4096, 4608, 5184, 5832, 6000]
    assert [b.tokens for b in keys_of(tokens[:4096])][-2:] == [4096 - 128, 4096]
    assert [b.ends_segment for b in keys_of(tokens[:300])] == [False, False, True]
    assert [b.tokens for b in keys_of([])] == [0]


def test_the_last_key_of_a_text_that_ends_at_a_border_is_in_longer_texts() -> None:
    tokens = list(range(6000))
    for end in (128, 256, 4096, 4608, 5184):
        assert keys_of(tokens[:end])[-1].key in {border.key for border in keys_of(tokens)}


def test_keys_depend_on_tenant_and_model_but_not_on_the_type_of_the_tokens() -> None:
    tokens = [7, 8, 9] * 100
    assert keys_of(tokens) == keys_of(array("i", tokens)) == keys_of(tuple(tokens))
    assert not {b.key for b in keys_of(tokens)} & {b.key for b in keys_of(tokens, tenant="other")}
    assert not {b.key for b in keys_of(tokens)} & {b.key for b in keys_of(tokens, model="other")}


def test_prefix_keys_of_conversations_grow_with_their_messages() -> None:
    def keys(*messages: dict[str, Any], **options: Any) -> list[int]:
        segments: list[Segment] = [Messages(messages, size=10_000, **options), Slot(None, SamplingParams())]
        call = Session("", "t", 0.0, 60.0).add(CallSpec(model="m", segments=segments))
        return [key.key for key in prefix_keys(call, own=False)]

    system, question = {"role": "system", "content": "Be brief. " * 50}, {"role": "user", "content": ["Why?"]}
    short, longer = keys(system), keys(system, question)
    assert longer[: len(short)] == short
    assert len(short) == len(set(short)) == 4, "one key for each 128 characters"
    assert keys({**system, "name": "x"})[0] != short[0]
    assert keys(system, fields={"tools": []})[0] != short[0]
    empty = {"role": "user", "content": []}
    assert keys(system, empty)[-1] != short[-1], "a message without a content counts"


def test_prefix_hashes_are_equal_as_far_as_prompts_are_equal() -> None:
    graph = session()
    put(graph, "a", "x")
    one, two = graph.add(spec("a")), graph.add(spec("a"))
    other = graph.add(CallSpec(model="m", segments=[Text([1, 2]), Text([3])]))
    assert prefix_hashes(one)[:2] == prefix_hashes(two)[:2]
    assert prefix_hashes(one)[0] == prefix_hashes(other)[0]
    assert prefix_hashes(one)[1] != prefix_hashes(other)[1]
