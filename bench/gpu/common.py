"""Common parts of the GPU benchmarks."""

import argparse
import json
from collections.abc import Callable
from typing import Any

import torch

from bench.gpu import HAS_GPU
from engine.kernels.base import LayerShape

DEVICE = torch.device("cuda" if HAS_GPU else "cpu")

Row = dict[str, Any]

BLOCK = 16
SHAPES = {
    "8B": LayerShape(32, 8, 128, 128, 4096, 14336, "silu", 128**-0.5, 0.0, 1e-5),
    "Qwen3-0.6B": LayerShape(16, 8, 128, 128, 1024, 3072, "silu", 128**-0.5, 0.0, 1e-6),
}
"""Llama-3-8B's layers, and those of a small model."""
SMALL = LayerShape(4, 2, 64, 64, 64, 64, "silu", 0.125, 0.0, 1e-5)


def seconds(action: Callable[[], object]) -> float:
    """Return the median seconds of a call recorded as a CUDA graph, with the L2 cache flushed before each run."""
    from triton.testing import do_bench

    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        action()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        action()
    return float(do_bench(graph.replay, warmup=50, rep=200, return_mode="median")) / 1000


def copy_rate() -> float:
    """Return the bytes per second, read and written, of a plain copy of 1 GiB."""
    source = torch.empty(1 << 30, dtype=torch.uint8, device=DEVICE)
    target = torch.empty_like(source)
    return 2 * source.numel() / seconds(lambda: target.copy_(source))


def matrix_rate(dtype: torch.dtype) -> float:
    """Return the floating-point operations per second of a product of 8,192 by 8,192."""
    left, right = (torch.randn(8192, 8192, device=DEVICE).to(dtype) for _ in range(2))
    out = torch.empty_like(left)
    return 2 * 8192**3 / seconds(lambda: torch.mm(left, right, out=out))


def arguments(description: str, *more: tuple[str, dict[str, Any]]) -> argparse.Namespace:
    """Parse the common options and this program's own."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object per line")
    for flag, options in more:
        parser.add_argument(flag, **options)
    return parser.parse_args()


def machine() -> str:
    """Return a description of the machine."""
    if not HAS_GPU:
        return "no GPU: small cases on Triton's interpreter; errors against float64, nothing is timed"
    return f"{torch.cuda.get_device_name()}, torch {torch.__version__}"


def tell(rows: list[Row], *, as_json: bool) -> None:
    """Print one line for each row, or an aligned table."""
    if as_json:
        for row in rows:
            print(json.dumps(row))
        return
    print(machine())
    columns = list(dict.fromkeys(name for row in rows for name in row))
    cells = [columns, *([_shown(row.get(name, "")) for name in columns] for row in rows)]
    widths = [max(len(line[index]) for line in cells) for index in range(len(columns))]
    for line in cells:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


def _shown(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
