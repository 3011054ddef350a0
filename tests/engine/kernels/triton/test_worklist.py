"""Tests of engine/kernels/triton/worklist.py: every key of every row is read once, and sharing never costs more."""

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from engine.kernels.triton.worklist import Shape, WorkList, plan, plan_prompts, sort_rows, tree
from tests.engine.kernels.triton.reference import attend, batch, execute

SHAPES = st.builds(
    Shape,
    kv_heads=st.sampled_from([1, 2, 8]),
    group=st.sampled_from([1, 3, 4, 8]),
    head_size=st.sampled_from([64, 128]),
    block_size=st.just(16),
    tile_rows=st.sampled_from([16, 64]),
    tile_keys=st.sampled_from([32, 64]),
    programs=st.sampled_from([1, 7, 132]),
    item_bytes=st.sampled_from([0, 16_384]),
)


def read(work: WorkList, lengths: np.ndarray, head: int = 0) -> dict[int, list[int]]:
    """Return the keys that each row of the batch gets, for one KV head."""
    found: dict[int, list[int]] = {row: [] for row in range(len(lengths))}
    for first, rows, kv, _, begin, end, _, _ in work.items:
        if kv == head:
            for row in work.order[first : first + rows]:
                found[int(row)] += range(begin, end)
    return found


@settings(max_examples=150)
@given(seed=st.integers(0, 2**32), shape=SHAPES, share=st.booleans())
def test_every_row_reads_its_keys_once(seed: int, shape: Shape, share: bool) -> None:
    tables, lengths = batch(seed)
    work = plan(tables, lengths, shape, share=share)
    for row, keys in read(work, lengths, shape.kv_heads - 1).items():
        assert sorted(keys) == list(range(lengths[row]))
    for first, rows, kv, sequence, begin, end, part, _ in work.items:
        assert 1 <= rows <= shape.rows
        assert 0 <= kv < shape.kv_heads
        assert begin < end
        own = work.order[first : first + rows]
        assert sequence in (*own, *work.order[first - shape.rows * 8 : first])
        for row in own:  # the item's block table has these keys for all of them
            blocks = slice(begin // 16, -(-end // 16))
            assert (tables[row, blocks] == tables[sequence, blocks]).all()
        assert (part < np.diff(work.starts[first : first + rows + 1])).all()
    long = [end - begin for _, _, _, _, begin, end, _, _ in work.items]
    assert long == sorted(long, reverse=True), "the longest items come first"


def cost(work: WorkList, shape: Shape, tables: np.ndarray) -> float:
    """Return the cost in bytes, as `Shape.is_sharing_cheaper` counts it."""
    read, seen = 0.0, set()
    for _, _, kv, sequence, begin, end, _, _ in work.items:
        same = (kv, begin, end, tables[sequence, begin // 16 : -(-end // 16)].tobytes())
        again = same in seen
        seen.add(same)
        read += (end - begin) * 2 * shape.head_size * shape.element_bytes * (shape.repeat_cost if again else 1.0)
        read += shape.item_bytes
    return read + int(work.starts[-1]) * shape.kv_heads * shape.group * (shape.head_size + 2) * 8


@settings(max_examples=100)
@given(seed=st.integers(0, 2**32), shape=SHAPES.filter(lambda shape: shape.programs == 1))
def test_sharing_never_costs_more(seed: int, shape: Shape) -> None:
    """Use one program, so that nothing is split and the two plans differ only in sharing."""
    tables, lengths = batch(seed)
    shared, plain = (plan(tables, lengths, shape, share=share) for share in (True, False))
    assert cost(shared, shape, tables) <= cost(plain, shape, tables) * 1.0001


@settings(max_examples=25)
@given(seed=st.integers(0, 2**32), window=st.sampled_from([0, 1, 16, 40]), share=st.booleans())
def test_parts_merge_to_attention(seed: int, window: int, share: bool) -> None:
    tables, lengths = batch(seed)
    pick = np.random.default_rng(seed)
    shape = Shape(2, 2, 8, 16, tile_rows=16, tile_keys=32, programs=7, item_bytes=0)
    keys, values = pick.standard_normal((2, int(tables.max()) + 1, 16, 2, 8))
    queries = pick.standard_normal((len(lengths), 4, 8))
    work = plan(tables, lengths, shape, window=window, share=share)
    got = execute(work, queries, keys, values, tables, lengths, 0.3, window)
    np.testing.assert_allclose(got, attend(queries, keys, values, tables, lengths, 0.3, window), rtol=1e-9, atol=1e-9)


def test_shared_prefix_is_read_once() -> None:
    shape = Shape(kv_heads=8, group=4, head_size=128, block_size=16, tile_rows=128, tile_keys=64, programs=132)
    prefix = np.arange(512, dtype=np.int32)
    tables = np.concatenate([np.tile(prefix, (32, 1)), 512 + np.arange(32 * 8, dtype=np.int32).reshape(32, 8)], axis=1)
    lengths = np.full(32, 520 * 16, dtype=np.int32)
    shared, plain = plan(tables, lengths, shape), plan(tables, lengths, shape, share=False)

    def keys(work: WorkList) -> int:
        return int((work.items[:, 5] - work.items[:, 4]).sum())

    assert keys(shared) == 8 * (512 * 16 + 32 * 8 * 16)
    assert keys(plain) == 8 * 32 * 520 * 16
    assert len(shared.items) >= shape.programs, "work for every multiprocessor"


def test_short_prefixes_are_not_worth_a_merge() -> None:
    shape = Shape(kv_heads=2, group=4, head_size=128, block_size=16, tile_rows=16, tile_keys=64, programs=1)
    tables = np.array([[1, 2], [1, 3]], dtype=np.int32)
    work = plan(tables, np.array([32, 32], dtype=np.int32), shape)
    assert (work.items[:, 1] == 1).all()
    assert (np.diff(work.starts) == 1).all(), "nothing to merge"


@pytest.mark.parametrize(
    ("tables", "lengths", "common"),
    [
        ([[1, 2], [1, 2], [1, 3]], [20, 32, 32], [0, 20, 16]),
        ([[5, 0], [5, 0]], [3, 16], [0, 3]),
        ([[1, 7], [2, 7]], [32, 32], [0, 0]),
    ],
)
def test_common_keys_end_at_the_shorter_row(tables: list[list[int]], lengths: list[int], common: list[int]) -> None:
    order, found = sort_rows(np.array(tables, dtype=np.int32), np.array(lengths, dtype=np.int32), 16)
    assert sorted(found.tolist()) == sorted(common)
    root = tree(np.array(lengths)[order].tolist(), found.tolist())
    assert (root.first, root.last, root.end) == (0, len(lengths), 0)


@settings(max_examples=150)
@given(
    sequences=st.lists(st.tuples(st.integers(2, 70), st.integers(0, 400)), min_size=1, max_size=6),
    shape=SHAPES,
    window=st.sampled_from([0, 1, 30, 64]),
    max_parts=st.sampled_from([0, 50, 1 << 20]),
)
@example(  # the first row sees no key of the second part
    sequences=[(35, 62)], shape=Shape(1, 1, 64, 16, 64, 32, 7, item_bytes=0), window=0, max_parts=1 << 20
)
def test_prompt_rows_read_their_keys_once(
    sequences: list[tuple[int, int]], shape: Shape, window: int, max_parts: int
) -> None:
    """Check that each key is read once. `sequences`: for each, the number of rows, and of keys before them."""
    counts = np.array([rows for rows, _ in sequences])
    lengths = np.array([rows + before for rows, before in sequences])
    work = plan_prompts(counts, lengths, shape, window=window, max_parts=max_parts)
    whose = np.repeat(np.arange(len(counts)), counts)
    ends = np.cumsum(counts)
    positions = lengths[whose] - ends[whose] + np.arange(counts.sum())
    found: dict[int, list[int]] = {row: [] for row in range(len(whose))}
    written: dict[int, list[int]] = {row: [] for row in range(len(whose))}
    for first, rows, kv, sequence, begin, end, part, clear in work.items.tolist():
        assert 1 <= rows <= shape.rows
        assert begin <= clear <= end
        assert begin < end
        assert (clear - begin) % shape.tile_keys == 0
        for row in range(first, first + rows):
            assert whose[row] == sequence
            assert clear in range(begin, max(begin, positions[row] + 1) + 1), "every row sees unmasked tiles whole"
            if kv == shape.kv_heads - 1:
                seen = max(0, positions[row] + 1 - window) if window else 0
                found[row] += [key for key in range(begin, end) if seen <= key <= positions[row]]
                written[row].append(part)
    for row, keys in found.items():
        seen = max(0, positions[row] + 1 - window) if window else 0
        assert sorted(keys) == list(range(seen, positions[row] + 1))
        assert sorted(written[row]) == list(range(work.starts[row + 1] - work.starts[row]))
    assert work.starts[-1] <= max(max_parts, len(whose))


def test_long_prompt_gives_work_to_every_program() -> None:
    shape = Shape(kv_heads=8, group=4, head_size=128, block_size=16, tile_rows=128, tile_keys=64, programs=264)
    work = plan_prompts(np.array([40]), np.array([32_768]), shape)
    assert len(work.items) >= 0.9 * shape.programs
    alone = plan_prompts(np.array([4096]), np.array([4096]), shape)
    assert (np.diff(alone.starts) == 1).all(), "keys are not split if there are many tiles"
