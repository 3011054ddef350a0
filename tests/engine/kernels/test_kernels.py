"""Tests of engine/kernels/: every implementation against float64, over random shapes and block tables."""

import math
import platform
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.config import default_cache
from engine.kernels import AttentionBatch, Kernels, LayerShape, Positions
from engine.kernels.cpu import CpuKernels, KernelsUnavailable
from engine.kernels.cpu.build import cpu_features
from engine.kernels.reference import TorchKernels
from engine.models.rope import Rope, rotary_table
from tests.engine.kernels.shapes import BF16, EPS, F32, SIZE, layer_shape

TARGETS: dict[str, tuple[tuple[str, ...] | None, frozenset[str]]] = {
    "native": (None, frozenset()),
    "emulated AMX": (("-march=native", "-DMYNA_EMULATE_AMX"), frozenset()),
    "AVX512": (("-march=skylake-avx512",), frozenset({"avx512f", "avx512bw", "avx512vl", "avx512dq"})),
    "AVX2": (("-march=haswell",), frozenset({"avx2", "fma"})),
    "plain": (("-march=x86-64",), frozenset({"sse2"})),
}
"""Build targets of the C files: compiler flags, and the CPU features that they need."""


@dataclass(frozen=True)
class Implementation:
    """An implementation, its dtype, and its maximum error relative to the largest value."""

    make: Callable[[LayerShape], Kernels]
    dtype: torch.dtype
    error: float


def implementations() -> list[Any]:
    """Return all implementations that run here, as test parameters."""
    found = [
        pytest.param(Implementation(lambda shape: TorchKernels(shape, F32, SIZE), F32, 1e-5), id="torch float32"),
        pytest.param(Implementation(lambda shape: TorchKernels(shape, BF16, SIZE), BF16, 2e-2), id="torch bfloat16"),
    ]
    for name, (flags, needed) in TARGETS.items():
        if not needed <= cpu_features() or (flags and platform.machine() != "x86_64"):
            continue

        def make(shape: LayerShape, flags: tuple[str, ...] | None = flags) -> Kernels:
            return CpuKernels(Path(default_cache()), shape, BF16, SIZE, target=flags)

        found.append(pytest.param(Implementation(make, BF16, 2e-2), id=f"C, {name}"))
    return found


every_hand = pytest.mark.parametrize("implementation", implementations())
every_c_hand = pytest.mark.parametrize("implementation", implementations()[2:])


def close(got: torch.Tensor, expected: torch.Tensor, error: float) -> bool:
    return bool((got.double() - expected).abs().max() <= error * max(1.0, float(expected.abs().max())))


@every_hand
@pytest.mark.parametrize("rows", [1, 2, 7, 8, 13, 14, 15, 16, 17, 29, 33, 64, 81, 300])
@pytest.mark.parametrize(("inner", "columns"), [(64, 32), (96, 72), (576, 960), (80, 33), (672, 40)])
def test_linear(implementation: Implementation, rows: int, inner: int, columns: int) -> None:
    torch.manual_seed(rows)
    kernels = implementation.make(layer_shape())
    x, weight = (
        torch.randn(rows, inner).to(implementation.dtype),
        (torch.randn(columns, inner) / inner**0.5).to(implementation.dtype),
    )
    bias = torch.randn(columns).to(implementation.dtype)
    expected = x.double() @ weight.double().T
    packed, biased = kernels.pack(weight), kernels.pack(weight, bias)
    assert close(kernels.linear(x, packed), expected, implementation.error)
    assert close(kernels.linear(x, biased), expected + bias.double(), implementation.error)
    logits = kernels.linear_float32(x, packed)
    assert logits.dtype == F32
    assert close(logits, expected, implementation.error)


every_target = pytest.mark.parametrize(
    "target", [name for name, (_, needed) in TARGETS.items() if needed <= cpu_features()]
)


@every_target
@pytest.mark.parametrize("rows", [1, 2, 5, 6, 7, 12, 13, 16, 17, 33, 40, 70])
@pytest.mark.parametrize(("inner", "columns"), [(64, 32), (576, 960), (128, 33), (96, 40)])
def test_linear_with_8_bit_weights(target: str, rows: int, inner: int, columns: int) -> None:
    """Bound the error by that of the rounding: half a step of 1/127 for weights and for inputs, over independent
    terms."""
    torch.manual_seed(rows)
    kernels = CpuKernels(Path(default_cache()), layer_shape(), BF16, SIZE, quantize="int8", target=TARGETS[target][0])
    x, weight = torch.randn(rows, inner).to(BF16), (torch.randn(columns, inner) / inner**0.5).to(BF16)
    x[:, :3] *= 20  # outliers, as in real activations, must affect only their own group
    expected = x.double() @ weight.double().T
    packed = kernels.pack(weight)
    assert (packed.weight.scales is not None) == (inner % 64 == 0), "a weight of unsuitable size stays in bfloat16"
    got = kernels.linear_float32(x, packed)
    assert float((got.double() - expected).abs().max()) < 0.05 * float(expected.std()) * math.sqrt(
        math.log(got.numel())
    )
    for row in range(rows):
        assert torch.equal(kernels.linear_float32(x[row : row + 1].clone(), packed)[0], got[row])


@every_target
def test_zeros_and_extremes_with_8_bit_weights(target: str) -> None:
    """Check that sums of products do not overflow if all bytes are the largest."""
    kernels = CpuKernels(Path(default_cache()), layer_shape(), BF16, SIZE, quantize="int8", target=TARGETS[target][0])
    weight = torch.zeros(32, 64, dtype=BF16)
    weight[1], weight[2], weight[3] = 3e4, -1e-30, -5.0
    x = torch.zeros(3, 64, dtype=BF16)
    x[1], x[2] = 2.0, -2.0
    got = kernels.linear_float32(x, kernels.pack(weight))
    assert not got[0].any()
    for row, value in ((1, 2), (2, -2)):
        assert got[row, 1] == pytest.approx(value * 3e4 * 64, rel=0.01)
        assert got[row, 3] == pytest.approx(value * -5 * 64, rel=0.01)
    assert bool(got.isfinite().all())


@every_hand
@pytest.mark.parametrize("rows", [1, 5, 40])
def test_norms(implementation: Implementation, rows: int) -> None:
    torch.manual_seed(rows)
    kernels = implementation.make(layer_shape())
    x, residual = torch.randn(2, rows, 64)
    weight, inner = torch.rand(64), torch.rand(64)

    def norm(value: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        value = value.double()
        return value / (value.pow(2).mean(-1, keepdim=True) + EPS).sqrt() * scale.double()

    untouched = residual.clone()
    assert close(kernels.add_rms_norm(residual, None, weight), norm(residual, weight), implementation.error)
    assert torch.equal(residual, untouched)
    total = (residual + x).clone()
    assert close(kernels.add_rms_norm(residual, x.clone(), weight), norm(total, weight), implementation.error)
    assert torch.equal(residual, total), "the sum stays in the residual"
    expected = residual.double() + norm(x, inner)
    got = kernels.add_rms_norm(residual, x.clone(), weight, inner)
    assert close(residual, expected, implementation.error)
    assert close(got, norm(residual, weight), implementation.error)


@every_hand
@pytest.mark.parametrize("rows", [1, 40])
@pytest.mark.parametrize("activation", ["silu", "gelu"])
def test_gated(implementation: Implementation, rows: int, activation: Any) -> None:
    torch.manual_seed(rows)
    kernels = implementation.make(layer_shape(activation=activation))
    x = (torch.randn(rows, 128) * 4).to(implementation.dtype)
    x[0, :4] = torch.tensor([0.0, 300.0, -300.0, 1e4])
    gate, up = x.double().chunk(2, dim=-1)
    active = (
        gate * torch.sigmoid(gate)
        if activation == "silu"
        else 0.5 * gate * (1 + torch.tanh(math.sqrt(2 / math.pi) * (gate + 0.044715 * gate**3)))
    )
    got = kernels.gated(x)
    assert bool(got.isfinite().all())
    assert close(got, active * up, implementation.error)


def make_batch(
    sequences: list[tuple[int, int]], seed: int = 0, shared: int = 0, width: int = 0, size: int = SIZE
) -> tuple[AttentionBatch, int]:
    """Return a batch with (keys, query rows) for each sequence, and the number of blocks in the pool.

    Blocks are scattered over the pool; the first `shared` blocks of all sequences are the same. Tables are at least
    `width` wide.
    """
    random = np.random.default_rng(seed)
    needed = [-(-length // size) for length, _ in sequences]
    total = shared + sum(max(0, count - shared) for count in needed)
    order = 1 + random.permutation(total)
    tables = np.zeros((len(sequences), max(*needed, width)), dtype=np.int32)
    position = shared
    for row, count in enumerate(needed):
        common = min(count, shared)
        tables[row, :common] = order[:common]
        tables[row, common:count] = order[position : position + count - common]
        position += count - common
    positions = [np.arange(length - rows, length) for length, rows in sequences]
    slots = [tables[row, place // size] * size + place % size for row, place in enumerate(positions)]
    starts = np.cumsum([0, *(rows for _, rows in sequences)])
    batch = AttentionBatch(
        positions=torch.from_numpy(np.concatenate(positions)),
        slots=torch.from_numpy(np.concatenate(slots).astype(np.int64)),
        query_starts=torch.from_numpy(starts.astype(np.int32)),
        lengths=torch.tensor([length for length, _ in sequences], dtype=torch.int32),
        block_tables=torch.from_numpy(tables),
    )
    return batch, total + 1


def rotate_exactly(x: torch.Tensor, angles: torch.Tensor) -> torch.Tensor:
    """Rotate x (rows, heads, d) by angles (rows, rotated), in float64."""
    cosine, sine = angles.unsqueeze(1).chunk(2, -1)
    rotated = angles.shape[-1]
    first, second = x[..., :rotated].chunk(2, -1)
    return torch.cat((first * cosine - second * sine, second * cosine + first * sine, x[..., rotated:]), -1)


def attend_exactly(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, shape: LayerShape, window: int = 0
) -> torch.Tensor:
    """Return attention for q (rows, heads, d), k and v (length, kv_heads, d), in float64."""
    rows, group = len(q), q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
    scores = torch.einsum("qhd,khd->hqk", q, k) * shape.scale
    if shape.softcap:
        scores = shape.softcap * torch.tanh(scores / shape.softcap)
    seen = torch.ones(rows, len(k), dtype=torch.bool).tril(len(k) - rows)
    if window:
        seen &= torch.ones(rows, len(k), dtype=torch.bool).triu(len(k) - rows - window + 1)
    weights = scores.masked_fill(~seen, -torch.inf).softmax(-1)
    return torch.einsum("hqk,khd->qhd", weights, v)


def check_attention(
    implementation: Implementation,
    shape: LayerShape,
    sequences: list[tuple[int, int]],
    *,
    window: int = 0,
    head_norms: bool = False,
    size: int = SIZE,
) -> None:
    """Write every key through rope_and_store, as prefill does, then compare attention of the query rows."""
    kernels, heads, kv_heads, d = implementation.make(shape), shape.heads, shape.kv_heads, shape.head_size
    torch.manual_seed(len(sequences))
    _, blocks = make_batch(sequences, size=size)
    kv = kernels.new_kv(1, blocks)
    keys, values = kv.keys[0], kv.values[0]
    norms = (torch.rand(d) + 0.5, torch.rand(d) + 0.5) if head_norms else (None, None)
    rotary = rotary_table(Rope(shape.rotary_size, 10000.0, "default", {}), 512) if shape.rotary_size else None
    positions = Positions(rotary, *norms)
    whole, _ = make_batch([(length, length) for length, _ in sequences], size=size)
    qkv = torch.randn(sum(length for length, _ in sequences), (heads + 2 * kv_heads) * d).to(implementation.dtype)
    queries = kernels.rope_and_store(qkv.to(kernels.qkv_dtype), positions, keys, values, whole)

    q, k, v = qkv.double().view(len(qkv), -1, d).split((heads, kv_heads, kv_heads), dim=1)
    if head_norms:
        q, k = (
            x / (x.pow(2).mean(-1, keepdim=True) + EPS).sqrt() * norm.double()
            for x, norm in ((q, norms[0]), (k, norms[1]))
            if norm is not None
        )
    if rotary is not None:
        angles = rotary.double()[whole.positions]
        q, k = rotate_exactly(q, angles), rotate_exactly(k, angles)
    assert close(queries, q, implementation.error)

    batch, _ = make_batch(sequences, size=size)
    ends = np.cumsum([length for length, _ in sequences])
    requested = torch.cat([torch.arange(end - rows, end) for end, (_, rows) in zip(ends, sequences, strict=True)])
    got = kernels.attention(queries[requested].contiguous(), keys, values, batch, window).view(-1, heads, d)
    position = 0
    for end, (length, rows) in zip(ends, sequences, strict=True):
        if rows == 0:
            continue
        own = slice(end - length, end)
        expected = attend_exactly(
            queries[end - rows : end].double(), k[own].to(implementation.dtype).double(), v[own], shape, window
        )
        assert close(got[position : position + rows], expected, implementation.error), sequences
        position += rows


LENGTHS = [
    [(1, 1)],
    [(16, 16)],
    [(17, 1), (16, 1), (15, 1)],
    [(20, 0), (17, 1), (40, 0), (33, 3), (7, 0)],
    [(128, 1), (129, 1), (300, 1)],
    [(130, 33), (5, 1), (40, 40), (257, 16)],
]


@every_hand
@pytest.mark.parametrize("heads", [(4, 4, 64), (9, 3, 64), (8, 1, 32), (6, 2, 96), (4, 2, 128), (2, 1, 256)], ids=str)
@pytest.mark.parametrize("sequences", LENGTHS)
def test_attention(
    implementation: Implementation, heads: tuple[int, int, int], sequences: list[tuple[int, int]]
) -> None:
    check_attention(implementation, layer_shape(*heads), sequences)


@every_hand
@pytest.mark.parametrize("sequences", LENGTHS)
@pytest.mark.parametrize(
    ("shape", "window", "head_norms"),
    [
        (layer_shape(), 1, False),
        (layer_shape(), 20, True),
        (layer_shape(), 130, False),
        (layer_shape(softcap=5.0, scale=0.3), 0, False),
        (layer_shape(softcap=50.0), 33, True),
        (layer_shape(rotary_size=32), 0, True),
        (layer_shape(rotary_size=0), 0, False),
    ],
    ids=["itself alone", "window", "window of a segment", "soft cap", "all", "half rotated", "no positions"],
)
def test_attention_of_every_family(
    implementation: Implementation, sequences: list[tuple[int, int]], shape: LayerShape, window: int, head_norms: bool
) -> None:
    check_attention(implementation, shape, sequences, window=window, head_norms=head_norms)


@every_hand
@settings(max_examples=20)
@given(
    sequences=st.lists(
        st.integers(1, 200).flatmap(lambda length: st.tuples(st.just(length), st.integers(1, length))),
        min_size=1,
        max_size=5,
    ),
    kv_heads=st.integers(1, 3),
    group=st.integers(1, 5),
    head_size=st.sampled_from([32, 64, 96]),
    window=st.sampled_from([0, 0, 5, 64]),
)
def test_attention_over_random_batches(
    implementation: Implementation,
    sequences: list[tuple[int, int]],
    kv_heads: int,
    group: int,
    head_size: int,
    window: int,
) -> None:
    check_attention(implementation, layer_shape(kv_heads * group, kv_heads, head_size), sequences, window=window)


@every_c_hand
def test_rows_do_not_depend_on_their_neighbours(implementation: Implementation) -> None:
    """Compare bit for bit, as the C kernels guarantee."""
    kernels = implementation.make(layer_shape())
    assert kernels.is_batch_invariant
    torch.manual_seed(1)
    # with AMX: one chunk of inner elements, and several; and denormal numbers, which tiles treat as zero
    for inner, scale in ((64, 1.0), (672, 1.0), (64, 1e-38)):
        packed = kernels.pack(torch.randn(96, inner).to(BF16))
        x = (torch.randn(330, inner) * scale).to(BF16)
        whole = kernels.linear(x, packed)
        for rows in (*range(1, 70), 256, 257, 288, 300):
            assert torch.equal(kernels.linear(x[:rows].contiguous(), packed), whole[:rows]), (inner, rows)


def single_row(batch: AttentionBatch, index: int, row: int) -> AttentionBatch:
    """Return one row of a sequence computed alone, as decode does."""
    length, starts = int(batch.lengths[index]), batch.query_starts
    rows = int(starts[index + 1] - starts[index])
    return AttentionBatch(
        positions=torch.tensor([length - rows + row]),
        slots=torch.tensor([0]),
        query_starts=torch.tensor([0, 1], dtype=torch.int32),
        lengths=torch.tensor([length - rows + row + 1], dtype=torch.int32),
        block_tables=batch.block_tables[index : index + 1].contiguous(),
    )


@every_c_hand
@settings(max_examples=25)
@given(
    lengths=st.lists(st.tuples(st.integers(1, 500), st.integers(1, 28)), min_size=1, max_size=24),
    shared=st.integers(0, 24),
    window=st.sampled_from([0, 0, 100]),
    width=st.sampled_from([0, 40]),
)
def test_shared_prefix_changes_no_bit(
    implementation: Implementation, lengths: list[tuple[int, int]], shared: int, window: int, width: int
) -> None:
    """Sequences that begin with the same blocks attend together, and each gets the same result as alone."""
    kernels = implementation.make(layer_shape(6, 3, 64))
    sequences = [(length, min(length, max(1, rows - 8))) for length, rows in lengths]  # many have one row
    batch, blocks = make_batch(sequences, shared=shared, width=width)
    kv = kernels.new_kv(1, blocks)
    torch.manual_seed(3)
    for tensor in (kv.keys[0], kv.values[0]):
        tensor.copy_(torch.randn(tensor.shape).to(BF16))
    queries = torch.randn(sum(rows for _, rows in sequences), 6, 64).to(BF16)
    whole = kernels.attention(queries, kv.keys[0], kv.values[0], batch, window)
    starts = batch.query_starts.tolist()
    for index, (_, rows) in enumerate(sequences):
        for row in range(rows):
            position = starts[index] + row
            query = queries[position : position + 1].contiguous()
            got = kernels.attention(query, kv.keys[0], kv.values[0], single_row(batch, index, row), window)
            assert torch.equal(got[0], whole[position])


@every_c_hand
def test_attention_over_a_prefix_tree(implementation: Implementation) -> None:
    """Compare with float64: eight blocks of all rows, three more of half of them, the rest their own."""
    shape = layer_shape(6, 3, 64)
    kernels = implementation.make(shape)
    torch.manual_seed(4)
    tables = np.zeros((16, 24), dtype=np.int32)
    tables[:, :8] = np.arange(1, 9)
    tables[::2, 8:11] = np.arange(9, 12)
    tables[1::2, 8:11] = np.arange(12, 15)
    tables[:, 11:] = 15 + np.arange(16 * 13).reshape(16, 13)
    lengths = [11 * SIZE + 1 + 12 * row for row in range(16)]
    keys, values = torch.randn(2, 15 + 16 * 13, SIZE, 3, 64).to(BF16)
    kv = kernels.new_kv(1, len(keys))
    every = AttentionBatch(
        positions=torch.zeros(len(keys) * SIZE, dtype=torch.int64),
        slots=torch.arange(len(keys) * SIZE),
        query_starts=torch.tensor([0, len(keys) * SIZE], dtype=torch.int32),
        lengths=torch.tensor([len(keys) * SIZE], dtype=torch.int32),
        block_tables=torch.zeros(1, len(keys), dtype=torch.int32),
    )
    qkv = torch.cat((torch.zeros(len(keys) * SIZE, 6, 64, dtype=BF16), keys.flatten(0, 1), values.flatten(0, 1)), 1)
    kernels.rope_and_store(
        qkv.flatten(1).contiguous().to(kernels.qkv_dtype), Positions(None), kv.keys[0], kv.values[0], every
    )
    queries = torch.randn(16, 6, 64).to(BF16)
    batch = AttentionBatch(
        positions=torch.tensor(lengths) - 1,
        slots=torch.zeros(16, dtype=torch.int64),
        query_starts=torch.arange(17, dtype=torch.int32),
        lengths=torch.tensor(lengths, dtype=torch.int32),
        block_tables=torch.from_numpy(tables),
    )
    got = kernels.attention(queries, kv.keys[0], kv.values[0], batch).view(16, 6, 64)
    for row, length in enumerate(lengths):
        k, v = (t[torch.from_numpy(tables[row]).long()].flatten(0, 1)[:length].double() for t in (keys, values))
        assert close(
            got[row : row + 1], attend_exactly(queries[row : row + 1].double(), k, v, shape), implementation.error
        )


@every_hand
def test_copy_blocks_copies_whole_blocks(implementation: Implementation) -> None:
    kv = implementation.make(layer_shape()).new_kv(2, 4)
    kv.keys[1][2] = 3.0
    kv.values[0][2] = 4.0
    kv.copy_blocks([(2, 3)])
    assert bool((kv.keys[1][3] == 3.0).all())
    assert bool((kv.values[0][3] == 4.0).all())
    assert not kv.keys[0][3].any()


@pytest.mark.slow
def test_wrong_amx_is_not_used(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """Simulate an emulator with wrong AMX. The library stops using AMX, also in a later load in this process."""
    monkeypatch.setattr(CpuKernels, "_amx_works", lambda self: False)
    flags = (*(TARGETS["emulated AMX"][0] or ()), "-DMYNA_TEST_OF_WRONG_TILES")  # a separate library for this test
    kernels = CpuKernels(Path(default_cache()), layer_shape(), BF16, SIZE, target=flags)
    assert "AMX gives wrong results" in caplog.text
    assert not kernels._library.myna_has_amx()
    x, weight = torch.randn(5, 64).to(BF16), torch.randn(32, 64).to(BF16)
    without = ("-march=native", "-mno-amx-bf16")
    plain = CpuKernels(Path(default_cache()), layer_shape(), BF16, SIZE, target=without)
    assert torch.equal(kernels.linear(x, kernels.pack(weight)), plain.linear(x, plain.pack(weight))), (
        "now both run the same code"
    )


@pytest.mark.parametrize("quantize", ["none", "int8"])
def test_one_thread_for_all_tiles(quantize: str) -> None:
    """Compare the results bit for bit: threads beyond the limit have no panels."""
    target = (*(TARGETS["emulated AMX"][0] or ()), "-DMYNA_TEST_OF_TILE_THREADS")  # the limit holds for a whole library
    torch.manual_seed(2)
    x, weight = torch.randn(70, 192).to(BF16), torch.randn(200, 192).to(BF16)
    results = []
    for tile_threads in (0, 1, 2, 100):
        kernels = CpuKernels(
            Path(default_cache()),
            layer_shape(),
            BF16,
            SIZE,
            quantize=quantize,
            tile_threads=tile_threads,
            target=target,
        )
        results.append(kernels.linear(x, kernels.pack(weight)))
    assert all(torch.equal(result, results[0]) for result in results)
    expected = x.double() @ weight.double().T
    assert close(results[0], expected, 2e-2)


@pytest.mark.parametrize("size", [1, 4, 32])
@pytest.mark.parametrize("sequences", LENGTHS)
def test_other_block_sizes(size: int, sequences: list[tuple[int, int]]) -> None:
    """Check the kernels that support them; the C kernels reject them."""
    implementation = Implementation(lambda shape: TorchKernels(shape, F32, size), F32, 1e-5)
    check_attention(implementation, layer_shape(), sequences, size=size)
    with pytest.raises(KernelsUnavailable, match="blocks of 16"):
        CpuKernels(Path(default_cache()), layer_shape(), BF16, size)


@every_hand
def test_strided_inputs(implementation: Implementation) -> None:
    """Compare with contiguous inputs; torch's results are equal up to rounding."""
    kernels = implementation.make(layer_shape())

    def same(left: torch.Tensor, right: torch.Tensor) -> bool:
        return (
            torch.equal(left, right)
            if kernels.is_batch_invariant
            else close(left, right.double(), implementation.error)
        )

    torch.manual_seed(5)
    x = torch.randn(9, 256).to(implementation.dtype)[:, ::2]
    packed = kernels.pack(torch.randn(32, 128).to(implementation.dtype))
    assert same(kernels.linear(x, packed), kernels.linear(x.contiguous(), packed))
    assert same(kernels.gated(x), kernels.gated(x.contiguous()))
    batch, blocks = make_batch([(9, 9)])
    rotary = rotary_table(Rope(64, 10000.0, "default", {}), 16)
    answers = []
    qkv = torch.randn(9, 2 * 8 * 64).to(kernels.qkv_dtype)[:, ::2]
    for rows in (qkv, qkv.contiguous()):
        kv = kernels.new_kv(1, blocks)
        queries = kernels.rope_and_store(rows, Positions(rotary), kv.keys[0], kv.values[0], batch)
        spread = torch.stack((queries, queries), dim=-1)[..., 0]
        answers.append(kernels.attention(spread, kv.keys[0], kv.values[0], batch))
        assert same(answers[-1], kernels.attention(queries, kv.keys[0], kv.values[0], batch))
    assert same(*answers)


def test_fp8_kv_is_rounded_and_clamped() -> None:
    """Attention is exact over the rounded numbers."""
    torch.manual_seed(3)
    shape = layer_shape()
    kernels, plain = TorchKernels(shape, F32, SIZE, torch.float8_e4m3fn), TorchKernels(shape, F32, SIZE)
    qkv = torch.randn(20, 8 * 64)
    qkv[5, 4 * 64] = 1000.0  # larger than FP8 holds
    batch = AttentionBatch(
        positions=torch.arange(20),
        slots=torch.arange(20) + SIZE,
        query_starts=torch.tensor([0, 20], dtype=torch.int32),
        lengths=torch.tensor([20], dtype=torch.int32),
        block_tables=torch.tensor([[1, 2]], dtype=torch.int32),
    )
    kept, own = kernels.new_kv(1, 3), plain.new_kv(1, 3)
    queries = kernels.rope_and_store(qkv, Positions(None), kept.keys[0], kept.values[0], batch)
    plain.rope_and_store(qkv, Positions(None), own.keys[0], own.values[0], batch)
    assert kept.keys[0].dtype == torch.float8_e4m3fn
    for rounded, exact in ((kept.keys[0].float(), own.keys[0]), (kept.values[0].float(), own.values[0])):
        assert float((rounded - exact.clamp(-448, 448)).abs().max()) <= 0.0625 * 448
        assert float(((rounded - exact).abs() > 0.0626 * exact.abs() + 2**-10).float().sum()) <= 1
    own.keys[0][:], own.values[0][:] = kept.keys[0].float(), kept.values[0].float()
    got = kernels.attention(queries, kept.keys[0], kept.values[0], batch)
    assert torch.equal(got, plain.attention(queries, own.keys[0], own.values[0], batch))
