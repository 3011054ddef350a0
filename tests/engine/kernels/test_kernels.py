"""engine/kernels/: every implementation against float64, over random shapes and block tables."""

from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engine.config import default_cache
from engine.errors import EngineError
from engine.kernels import AttentionBatch, Kernels, select_kernels
from engine.kernels.cpu import CpuKernels, Unavailable
from engine.kernels.cpu import build as build_module
from engine.kernels.cpu import kernels as cpu_module
from engine.kernels.reference import TorchKernels
from engine.models.checkpoint import DecoderSpec
from engine.models.decoder import rotary_table

SIZE = 16
BF16, F32 = torch.bfloat16, torch.float32


def cpu(heads: int = 4, kv_heads: int = 2, head_size: int = 64) -> Kernels:
    """The C kernels, or a skip that says why this machine cannot run them."""
    try:
        return CpuKernels(
            Path(default_cache()), heads=heads, kv_heads=kv_heads, head_size=head_size, block_size=SIZE, hidden=64
        )
    except Unavailable as reason:
        pytest.skip(str(reason))


def hands(heads: int = 4, kv_heads: int = 2, head_size: int = 64) -> list[tuple[Kernels, torch.dtype, float]]:
    """Each implementation with its dtype and the error it may make, relative to the largest value."""
    found: list[tuple[Kernels, torch.dtype, float]] = [
        (TorchKernels(F32, kv_heads, head_size, SIZE), F32, 1e-5),
        (TorchKernels(BF16, kv_heads, head_size, SIZE), BF16, 2e-2),
    ]
    if "avx512_bf16" in build_module.cpu_features():
        found.append((cpu(heads, kv_heads, head_size), BF16, 2e-2))
        # as on a CPU with AMX; oneDNN does without it too
        with patch.object(cpu_module, "cpu_features", lambda: frozenset({"amx_bf16"})):
            found.append((cpu(heads, kv_heads, head_size), BF16, 2e-2))
    return found


def close(got: torch.Tensor, wanted: torch.Tensor, error: float) -> bool:
    return bool((got.double() - wanted).abs().max() <= error * max(1.0, float(wanted.abs().max())))


@pytest.mark.parametrize("rows", [1, 2, 7, 8, 13, 14, 15, 29, 64])
@pytest.mark.parametrize(("inner", "columns"), [(64, 32), (96, 72), (576, 960), (130, 1)])
def test_linear(rows: int, inner: int, columns: int) -> None:
    torch.manual_seed(rows)
    for kernels, dtype, error in hands():
        x, weight = torch.randn(rows, inner).to(dtype), (torch.randn(columns, inner) / inner**0.5).to(dtype)
        wanted = x.double() @ weight.double().T
        packed = kernels.pack(weight)
        assert close(kernels.linear(x, packed), wanted, error), kernels.name
        logits = kernels.logits(x, packed)
        assert logits.dtype == F32
        assert close(logits, wanted, error), kernels.name


@pytest.mark.parametrize("rows", [1, 5, 40])
def test_norms_and_activation(rows: int) -> None:
    torch.manual_seed(rows)
    for kernels, dtype, error in hands():
        x, residual, weight = torch.randn(rows, 64).to(dtype), torch.randn(rows, 64).to(dtype), torch.rand(64).to(dtype)

        def norm(value: torch.Tensor, scale: torch.Tensor = weight) -> torch.Tensor:
            value = value.double()
            return value / (value.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt() * scale.double()

        assert close(kernels.rms_norm(x, weight, 1e-5), norm(x), error), kernels.name
        total = (residual + x).clone()
        assert close(kernels.add_rms_norm(residual, x, weight, 1e-5), norm(total), error), kernels.name
        assert torch.equal(residual, total), "the sum stays in the residual"
        gate, up = (x * 4).double().chunk(2, dim=-1)
        wanted = gate * torch.sigmoid(gate) * up
        assert close(kernels.silu_mul((x * 4).contiguous()), wanted, error), kernels.name


def make_batch(sequences: list[tuple[int, int]], seed: int = 0) -> tuple[AttentionBatch, int]:
    """(keys, query rows) for each sequence, its blocks scattered over a pool. Returns also the pool's blocks."""
    random = np.random.default_rng(seed)
    needed = [-(-length // SIZE) for length, _ in sequences]
    order = 1 + random.permutation(sum(needed))
    tables = np.zeros((len(sequences), max(needed)), dtype=np.int32)
    at = 0
    for row, count in enumerate(needed):
        tables[row, :count] = order[at : at + count]
        at += count
    positions = [np.arange(length - rows, length) for length, rows in sequences]
    slots = [tables[row, place // SIZE] * SIZE + place % SIZE for row, place in enumerate(positions)]
    starts = np.cumsum([0, *(rows for _, rows in sequences)])
    batch = AttentionBatch(
        positions=torch.from_numpy(np.concatenate(positions)),
        slots=torch.from_numpy(np.concatenate(slots).astype(np.int64)),
        query_starts=torch.from_numpy(starts.astype(np.int32)),
        lengths=torch.tensor([length for length, _ in sequences], dtype=torch.int32),
        block_tables=torch.from_numpy(tables),
    )
    return batch, sum(needed) + 1


def attend_exactly(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, rows: int) -> torch.Tensor:
    """q (rows, heads, d), k and v (length, kv_heads, d), float64."""
    group = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
    scores = torch.einsum("qhd,khd->hqk", q, k) / q.shape[-1] ** 0.5
    seen = torch.ones(rows, len(k), dtype=torch.bool).tril(len(k) - rows)
    weights = scores.masked_fill(~seen, -torch.inf).softmax(-1)
    return torch.einsum("hqk,khd->qhd", weights, v)


def check_attention(
    kernels: Kernels, dtype: torch.dtype, error: float, sequences: list[tuple[int, int]], shape: tuple[int, int, int]
) -> None:
    """Writes every key through rope_and_store, as prefill does, then asks for the query rows."""
    heads, kv_heads, d = shape
    torch.manual_seed(len(sequences))
    _, blocks = make_batch(sequences)
    kv = kernels.new_kv(1, blocks)
    keys, values = kv.keys[0], kv.values[0]
    rotary = rotary_table(512, d, 10000.0, None)
    whole, _ = make_batch([(length, length) for length, _ in sequences])
    qkv = torch.randn(sum(length for length, _ in sequences), (heads + 2 * kv_heads) * d).to(dtype)
    queries = kernels.rope_and_store(qkv, rotary, keys, values, whole)

    parts = qkv.double().view(-1, heads + 2 * kv_heads, d)
    cosine, sine = rotary.double()[whole.positions].unsqueeze(1).chunk(2, -1)
    first, second = parts[:, : heads + kv_heads].chunk(2, -1)
    rotated = torch.cat((first * cosine - second * sine, second * cosine + first * sine), -1)
    assert close(queries, rotated[:, :heads], error), kernels.name

    batch, _ = make_batch(sequences)
    ends = np.cumsum([length for length, _ in sequences])
    asked = torch.cat([torch.arange(end - rows, end) for end, (_, rows) in zip(ends, sequences, strict=True)])
    got = kernels.attention(queries[asked].contiguous(), keys, values, batch).view(-1, heads, d)
    at = 0
    for end, (length, rows) in zip(ends, sequences, strict=True):
        k = rotated[end - length : end, heads:].to(dtype).double()
        v = parts[end - length : end, heads + kv_heads :]
        wanted = attend_exactly(queries[end - rows : end].double(), k, v, rows)
        assert close(got[at : at + rows], wanted, error), (kernels.name, sequences)
        at += rows


@pytest.mark.parametrize("shape", [(4, 4, 64), (9, 3, 64), (8, 1, 32), (6, 2, 96), (4, 2, 128), (2, 1, 256)])
@pytest.mark.parametrize(
    "sequences",
    [
        [(1, 1)],
        [(16, 16)],
        [(17, 1), (16, 1), (15, 1)],
        [(128, 1), (129, 1), (300, 1)],
        [(130, 33), (5, 1), (40, 40), (257, 16)],
    ],
)
def test_attention(shape: tuple[int, int, int], sequences: list[tuple[int, int]]) -> None:
    for kernels, dtype, error in hands(*shape):
        check_attention(kernels, dtype, error, sequences, shape)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    sequences=st.lists(
        st.integers(1, 200).flatmap(lambda length: st.tuples(st.just(length), st.integers(1, length))),
        min_size=1,
        max_size=5,
    ),
    kv_heads=st.integers(1, 3),
    group=st.integers(1, 5),
    head_size=st.sampled_from([32, 64, 96]),
)
def test_attention_over_any_batch(sequences: list[tuple[int, int]], kv_heads: int, group: int, head_size: int) -> None:
    shape = (kv_heads * group, kv_heads, head_size)
    for kernels, dtype, error in hands(*shape):
        check_attention(kernels, dtype, error, sequences, shape)


def test_rows_do_not_depend_on_their_neighbours() -> None:
    """Bit for bit, where the kernels say so."""
    for kernels, _, _ in hands():
        if not kernels.batch_invariant:
            continue
        torch.manual_seed(1)
        packed = kernels.pack(torch.randn(96, 64).to(BF16))
        x = torch.randn(70, 64).to(BF16)
        whole = kernels.linear(x, packed)
        for rows in range(1, 70):
            assert torch.equal(kernels.linear(x[:rows].contiguous(), packed), whole[:rows]), (kernels.name, rows)


def test_attention_does_not_depend_on_the_batch() -> None:
    kernels = cpu(9, 3, 64)
    torch.manual_seed(2)
    sequences = [(300, 40), (77, 1), (128, 5)]
    batch, blocks = make_batch(sequences)
    kv = kernels.new_kv(1, blocks)
    for tensor in (kv.keys[0], kv.values[0]):
        tensor.copy_(torch.randn(tensor.shape).to(BF16))
    queries = torch.randn(46, 9, 64).to(BF16)
    whole = kernels.attention(queries, kv.keys[0], kv.values[0], batch)
    starts = batch.query_starts.tolist()
    for index, (length, rows) in enumerate(sequences):
        for row in range(rows):  # every row by itself, as decode does
            alone = AttentionBatch(
                positions=torch.tensor([length - rows + row]),
                slots=torch.tensor([0]),
                query_starts=torch.tensor([0, 1], dtype=torch.int32),
                lengths=torch.tensor([length - rows + row + 1], dtype=torch.int32),
                block_tables=batch.block_tables[index : index + 1].contiguous(),
            )
            at = starts[index] + row
            got = kernels.attention(queries[at : at + 1].contiguous(), kv.keys[0], kv.values[0], alone)
            assert torch.equal(got[0], whole[at])


def test_blocks_are_copied_whole() -> None:
    for kernels, _, _ in hands():
        kv = kernels.new_kv(2, 4)
        kv.keys[1][2] = 3.0
        kv.values[0][2] = 4.0
        kv.copy_blocks([(2, 3)])
        assert bool((kv.keys[1][3] == 3.0).all())
        assert bool((kv.values[0][3] == 4.0).all())
        assert not kv.keys[0][3].any()


SPEC = DecoderSpec("X", 1, 64, 4, 2, 32, 64, 100, 64, 1e-5, 1e4, None, False)


def test_without_a_compiler_the_torch_kernels_run_and_say_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("CC", str(tmp_path / "no-such-compiler"))
    monkeypatch.setattr(build_module, "cpu_features", lambda: build_module._NEEDED)
    kernels = select_kernels("auto", SPEC, BF16, SIZE, tmp_path)
    assert isinstance(kernels, TorchKernels)
    assert "no-such-compiler did not run" in caplog.text
    with pytest.raises(EngineError, match="cannot run here"):
        select_kernels("cpu", SPEC, BF16, SIZE, tmp_path)


def test_on_another_cpu_the_torch_kernels_run_and_say_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(build_module, "cpu_features", lambda: frozenset({"sse2"}))
    assert isinstance(select_kernels("auto", SPEC, BF16, SIZE, tmp_path), TorchKernels)
    assert "this CPU lacks avx512_bf16" in caplog.text


def test_float32_is_the_torch_kernels_business(tmp_path: Path) -> None:
    assert isinstance(select_kernels("auto", SPEC, F32, SIZE, tmp_path), TorchKernels)
