"""The small fused operations against the float32 reference, on the interpreter."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from engine.kernels import AttentionBatch, LayerShape, Positions
from engine.kernels.reference import TorchKernels
from engine.kernels.triton.kernels import TritonKernels
from engine.models.rope import Rope, rotary_table
from tests.interpreter.device import DEVICE

F32, F16, BF16 = torch.float32, torch.float16, torch.bfloat16
ERRORS = {F32: 1e-6, F16: 2e-3, BF16: 1.6e-2}
"""Maximum error relative to the largest value: one rounding of the result, and one of the normalised value."""
SHAPE = LayerShape(4, 2, 64, 64, 96, 80, "silu", 0.125, 0.0, 1e-5)


def implementations(dtype: torch.dtype, **changes: Any) -> tuple[TritonKernels, TorchKernels]:
    shape = replace(SHAPE, **changes)
    actual = TritonKernels(shape, dtype, 16, DEVICE, rows=64, sequences=8, width=8)
    return actual, TorchKernels(shape, F32, 16)


def close(got: torch.Tensor, wanted: torch.Tensor, error: float) -> None:
    assert float((got.cpu().double() - wanted.double()).abs().max()) <= error * max(1.0, float(wanted.abs().max()))


@pytest.mark.parametrize("dtype", ERRORS)
@pytest.mark.parametrize(("adds", "inner"), [(False, False), (True, False), (True, True)])
@pytest.mark.parametrize("hidden", [64, 96, 1000])
def test_norms(dtype: torch.dtype, adds: bool, inner: bool, hidden: int) -> None:
    actual, plain = implementations(dtype, hidden=hidden)
    residual, x = torch.randn(2, 5, hidden)
    weight, first = torch.rand(2, hidden)
    own, wanted = residual.to(DEVICE, copy=True), residual.clone()
    got = actual.add_rms_norm(
        own, x.to(DEVICE) if adds else None, weight.to(DEVICE), first.to(DEVICE) if inner else None
    )
    expected = plain.add_rms_norm(wanted, x if adds else None, weight, first if inner else None)
    close(got, expected, ERRORS[dtype])
    close(own, wanted, ERRORS[dtype])
    assert adds or torch.equal(own.cpu(), residual)


@pytest.mark.filterwarnings("ignore:overflow")  # from numpy, which the interpreter uses
@pytest.mark.parametrize("dtype", ERRORS)
@pytest.mark.parametrize("activation", ["silu", "gelu"])
@pytest.mark.parametrize("size", [80, 1024, 1500])
def test_gated(dtype: torch.dtype, activation: str, size: int) -> None:
    actual, plain = implementations(dtype, activation=activation)
    x = (3 * torch.randn(3, 2 * size)).to(dtype)
    x[0, 0], x[0, 1] = -200.0, 200.0  # large enough for the exponential to overflow
    close(actual.gated(x.to(DEVICE)), plain.gated(x.float()), ERRORS[dtype])


@pytest.mark.parametrize("dtype", ERRORS)
@pytest.mark.parametrize(("size", "rotated"), [(64, 64), (64, 32), (96, 96), (96, 48), (64, 0)])
@pytest.mark.parametrize("norms", ["", "q", "k", "qk"])
def test_rope_and_store(dtype: torch.dtype, size: int, rotated: int, norms: str) -> None:
    actual, plain = implementations(dtype, head_size=size, rotary_size=rotated)
    rows = 7
    qkv = torch.randn(rows, 8 * size).to(dtype)
    positions = Positions(
        rotary_table(Rope(rotated, 1e4, "default", {}), 64) if rotated else None,
        torch.rand(size) if "q" in norms else None,
        torch.rand(size) if "k" in norms else None,
    )
    batch = AttentionBatch(
        positions=torch.randint(64, (rows,)),
        slots=torch.randperm(80)[:rows],
        query_starts=torch.tensor([0, rows], dtype=torch.int32),
        lengths=torch.tensor([64], dtype=torch.int32),
        block_tables=torch.zeros(1, 4, dtype=torch.int32),
    )
    answers = []
    for hand, given in ((actual, qkv.to(DEVICE)), (plain, qkv.float())):
        kv = hand.new_kv(1, 5)
        staged = hand.stage(torch.zeros(rows, dtype=torch.int64), batch, torch.tensor([rows - 1])).batch
        parts = (positions.rotary, positions.query_norm, positions.key_norm)
        held = Positions(*(None if part is None else part.to(hand.device) for part in parts))
        queries = hand.rope_and_store(given, held, kv.keys[0], kv.values[0], staged)
        answers.append((queries, kv.keys[0], kv.values[0]))
    for got, wanted in zip(*answers, strict=True):
        close(got, wanted, ERRORS[dtype])
