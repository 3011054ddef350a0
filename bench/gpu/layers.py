"""The small fused operations and sampling: time, and bandwidth compared with a plain copy."""

from collections.abc import Callable

import numpy as np
import torch

from bench.gpu import HAS_GPU
from bench.gpu.common import BLOCK, DEVICE, SHAPES, SMALL, Row, arguments, copy_rate, seconds, tell
from engine.kernels.base import REQUEST, AttentionBatch, Kernels, LayerShape, Positions, SamplingRequests
from engine.kernels.reference import TorchKernels
from engine.kernels.triton.kernels import TritonKernels

VOCABULARY = 128_256
REQUESTS = {
    "the likeliest": (0.0, 1.0, 0.0, 0, -1, 0.0),
    "drawn from all": (1.0, 1.0, 0.0, 0, -1, 0.5),
    "drawn, top_k 50": (0.8, 1.0, 0.0, 50, -1, 0.5),
    "drawn, top_p 0.9": (0.8, 0.9, 0.0, 0, -1, 0.5),
    "drawn, both": (0.8, 0.9, 0.0, 50, -1, 0.5),
    "the likeliest, 20 alternatives": (0.0, 1.0, 0.0, 0, 20, 0.0),
}


def operations(
    kernels: Kernels, shape: LayerShape, rows: int, dtype: torch.dtype
) -> dict[str, tuple[Callable[[], torch.Tensor], int]]:
    """Return the name of each operation, and the number of elements that it reads and writes."""
    random = torch.Generator().manual_seed(0)

    def normal(*size: int) -> torch.Tensor:
        return torch.randn(*size, generator=random).to(dtype).to(kernels.device)

    width = (shape.heads + 2 * shape.kv_heads) * shape.head_size
    residual, x = (normal(rows, shape.hidden).float() for _ in range(2))
    qkv, gate_up = normal(rows, width), normal(rows, 2 * shape.intermediate)
    weight = torch.rand(shape.hidden, generator=random).to(kernels.device)
    table = torch.rand(64, shape.rotary_size, generator=random).to(kernels.device)
    kv = kernels.new_kv(1, 2 + rows // BLOCK)
    batch = AttentionBatch(
        positions=torch.arange(rows) % 64,
        slots=torch.arange(rows) + BLOCK,
        query_starts=torch.tensor([0, rows], dtype=torch.int32),
        lengths=torch.tensor([rows], dtype=torch.int32),
        block_tables=torch.arange(1, 2 + rows // BLOCK, dtype=torch.int32).unsqueeze(0),
    )
    staged = kernels.stage(torch.zeros(rows, dtype=torch.int64), batch, torch.tensor([rows - 1])).batch
    positions = Positions(table)
    return {
        "add and norm": (lambda: kernels.add_rms_norm(residual, x, weight), 7 * residual.numel()),
        "rope and store": (
            lambda: kernels.rope_and_store(qkv, positions, kv.keys[0], kv.values[0], staged),
            2 * qkv.numel(),
        ),
        "gated": (lambda: kernels.gated(gate_up), gate_up.numel() * 3 // 2),
    }


def requests(rows: int, *fields: float) -> SamplingRequests:
    """Return equal sampling parameters for all rows."""
    none, starts = np.empty(0, dtype=np.float32), np.zeros(rows + 1, dtype=np.int32)
    batch = np.array([fields] * rows, dtype=object)
    whole = np.zeros(rows, dtype=REQUEST)
    for index, name in enumerate(("temperature", "top_p", "min_p", "top_k", "top_logprobs", "uniform")):
        whole[name] = batch[:, index]
    return SamplingRequests(
        whole, starts, starts[:0], none, none, np.empty((0, 0), dtype=np.int32), np.full(rows, -1, dtype=np.int32)
    )


def triton(shape: LayerShape, rows: int, dtype: torch.dtype) -> TritonKernels:
    """Return the kernels for `rows` rows."""
    return TritonKernels(shape, dtype, BLOCK, DEVICE, rows=rows, sequences=max(1, min(rows, 256)), width=1024)


def run(shape: LayerShape) -> list[Row]:
    """Measure on the GPU."""
    copies = copy_rate()
    found: list[Row] = [{"what": "copy", "GB/s": copies / 1e9}]
    for rows in (1, 64, 4096):
        kernels = triton(shape, rows, torch.bfloat16)
        for name, (action, numbers) in operations(kernels, shape, rows, torch.bfloat16).items():
            duration = seconds(action)
            rate = 2 * numbers / duration
            found.append(
                {"what": name, "rows": rows, "us": duration * 1e6, "GB/s": rate / 1e9, "of copy": rate / copies}
            )
    kernels = triton(shape, 64, torch.bfloat16)
    for name, fields in REQUESTS.items():
        logits = 3 * torch.randn(64, VOCABULARY, device=DEVICE)
        batch = requests(64, *fields)
        kernels.sample(logits.clone(), batch).result()
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        durations = []
        for _ in range(20):
            begin.record()
            kernels.sample(logits, batch).result()
            end.record()
            end.synchronize()
            durations.append(begin.elapsed_time(end) / 1e3)
        found.append({"what": name, "rows": 64, "us": 1e6 * float(np.median(durations))})
    return found


def check() -> list[Row]:
    """Compare with the float32 reference."""
    found = []
    dtype = torch.float32
    actual = operations(triton(SMALL, 20, dtype), SMALL, 20, dtype)
    plain = operations(TorchKernels(SMALL, dtype, BLOCK), SMALL, 20, dtype)
    for name in actual:
        found.append({"what": name, "error": float((actual[name][0]() - plain[name][0]()).abs().max())})
    logits = 3 * torch.randn(4, 5000)
    kernels, exact = triton(SMALL, 4, dtype), TorchKernels(SMALL, dtype, BLOCK)
    for name, fields in REQUESTS.items():
        batch = requests(4, *fields)
        got, expected = (hand.sample(logits.clone(), batch).result().tokens for hand in (kernels, exact))
        found.append({"what": name, "other tokens": int((got != expected).sum())})
    return found


def main() -> None:
    """Run the command line."""
    chosen = arguments(__doc__ or "", ("--shape", {"choices": SHAPES, "default": "8B"}))
    tell(run(SHAPES[chosen.shape]) if HAS_GPU else check(), as_json=chosen.json)


if __name__ == "__main__":
    main()
