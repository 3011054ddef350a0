"""Tests of engine/sequence.py: which blocks a sequence holds, shares, copies and gives back."""

import pytest

from engine.generation import Generation
from engine.kv.cache import KVCache
from engine.sampling_params import SamplingParams
from engine.sequence import TokenSequence
from engine.tokenizer import Tokenizer

SIZE = 4


@pytest.fixture
def cache() -> KVCache:
    return KVCache(1 + 8, SIZE)


def sequence_of(cache: KVCache, tokens: list[int], number: int = 1) -> TokenSequence:
    sequence = TokenSequence(number, cache, "", 0.0, number)
    sequence.tokens.extend(tokens)
    return sequence


def compute(sequence: TokenSequence) -> list[tuple[int, int]]:
    """Compute the KV of all tokens. Return the block copies that this needs."""
    assert sequence.adopt_cached()
    end = len(sequence.tokens)
    copies = sequence.reserve(end)
    assert copies is not None
    sequence.announce(end)
    sequence.commit(end)
    return copies


def test_writing_behind_a_fork_copies_the_last_block_once(cache: KVCache) -> None:
    parent, child = sequence_of(cache, [1, 2, 3, 4, 5, 6]), sequence_of(cache, [], 2)
    compute(parent)
    child.fork_from(parent)
    assert (child.blocks, child.computed_tokens) == (parent.blocks, 6)
    child.tokens.append(7)
    shared, private = child.blocks[:1], child.blocks[1]
    (copy,) = compute(child)
    assert copy[0] == private
    assert child.blocks == [*shared, copy[1]]
    parent.tokens.append(8)
    assert compute(parent) == [], "the other sequence is the only owner now"
    cache.check_integrity([parent.blocks, child.blocks])


def test_fork_leaves_out_tokens_that_are_not_known(cache: KVCache, tokenizer: Tokenizer) -> None:
    parent, child = sequence_of(cache, [1, 2, 3]), sequence_of(cache, [], 2)
    compute(parent)
    parent.generation = Generation(SamplingParams(), tokenizer, [1, 2, 3], 10)
    parent.generation.pending = 1
    parent.tokens.append(-1)
    child.fork_from(parent)
    assert (child.tokens, child.computed_tokens) == ([1, 2, 3], 3)


def test_truncation_gives_blocks_back_and_leaves_the_path(cache: KVCache) -> None:
    sequence = sequence_of(cache, list(range(10)))
    compute(sequence)
    version = sequence.table_version
    sequence.truncate(5)
    assert (sequence.tokens, sequence.computed_tokens, len(sequence.blocks)) == ([0, 1, 2, 3, 4], 5, 2)
    assert sequence.table_version != version
    cache.check_integrity([sequence.blocks])
    sequence.tokens += [50, 51, 52, 53]
    assert len(compute(sequence)) == 1, "the tree retains the full block, so it is copied before the write"
    cache.check_integrity([sequence.blocks])


def test_reservation_is_all_or_nothing(cache: KVCache) -> None:
    sequence = sequence_of(cache, list(range(40)))
    assert sequence.reserve(33) is None
    assert (sequence.blocks, cache.available) == ([], 8)
    assert sequence.reserve(32) == []
    assert (len(sequence.blocks), cache.available) == (8, 0)


def test_blocks_of_rejected_drafts_are_given_back(cache: KVCache) -> None:
    sequence = sequence_of(cache, [1, 2, 3])
    compute(sequence)
    assert sequence.reserve(12) == []
    sequence.tokens += [4, 5, 6]
    sequence.accept(5)
    assert (sequence.computed_tokens, len(sequence.blocks)) == (5, 2)
    assert cache.child(cache.root(""), (1, 2, 3, 4)) is not None, "the block that accepted drafts fill is in the tree"
    cache.check_integrity([sequence.blocks])


def test_failed_step_leaves_no_announcement(cache: KVCache) -> None:
    first, second = sequence_of(cache, list(range(8))), sequence_of(cache, list(range(8)), 2)
    assert first.reserve(8) == []
    first.announce(8)
    assert not second.adopt_cached(), "it waits for the block that the other one computes"
    first.abort()
    first.drop_blocks()
    assert second.adopt_cached()
    assert cache.child(cache.root(""), (0, 1, 2, 3)) is None
    cache.check_integrity([first.blocks, second.blocks])


def test_fills_end_at_full_blocks_until_a_generation_waits(cache: KVCache, tokenizer: Tokenizer) -> None:
    sequence = sequence_of(cache, list(range(6)))
    sequence.pending_fills.append(6)
    assert sequence.target_length == 4
    assert sequence.finish_fills() is None
    sequence.commit(4)
    assert sequence.finish_fills() == 6, "the rest of the block comes with the next command"
    sequence.generation = Generation(SamplingParams(), tokenizer, sequence.tokens, 10)
    assert sequence.target_length == 6


def test_fast_path_needs_a_private_block_with_room(cache: KVCache) -> None:
    sequence = sequence_of(cache, [1, 2, 3, 4, 5])
    compute(sequence)
    assert sequence.fits_last_block
    child = sequence_of(cache, [], 2)
    child.fork_from(sequence)
    assert not sequence.fits_last_block, "shared"
    child.free()
    sequence.tokens += [6, 7]
    compute(sequence)
    assert not sequence.fits_last_block, "the next token fills the block"


def test_blocks_count_as_cached_only_once(cache: KVCache) -> None:
    tokens = list(range(3 * SIZE))
    other, sequence = sequence_of(cache, tokens), sequence_of(cache, tokens[: 2 * SIZE], 2)
    sequence.pending_fills.append(3 * SIZE)
    compute(sequence)
    sequence.tokens = [*tokens]
    compute(other)
    for _ in range(3):  # a preempted sequence finds its own blocks again
        sequence.drop_blocks()
        assert sequence.adopt_cached()
        assert (sequence.computed_tokens, sequence.cached_tokens) == (3 * SIZE, SIZE)
    sequence.truncate(SIZE)
    sequence.tokens += tokens[SIZE:]
    assert sequence.adopt_cached()
    assert sequence.cached_tokens == 3 * SIZE, "tokens after a truncation are new ones"
    sequence.free()
    other.free()
    cache.check_integrity([])
