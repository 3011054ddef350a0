"""Lower bound of a step's duration: the linear layers alone, with the engine's kernels and with torch's packed ones.

`python -m bench.floor` prints milliseconds by number of rows, as JSON.
"""

import json
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch

from engine.config import default_cache
from engine.kernels import Kernels, LayerShape, select_kernels
from engine.kernels.reference import TorchKernels

SHAPE = LayerShape(9, 3, 64, 64, 576, 1536, "silu", 0.125, 0.0, 1e-5)
LAYERS, VOCABULARY = 30, 49_152
"""SmolLM2-135M."""
ROWS = (1, 8, 32, 512)


def _time(action: Callable[[], object], runs: int = 5) -> float:
    action()
    durations = []
    for _ in range(runs):
        began = time.perf_counter()
        action()
        durations.append(time.perf_counter() - began)
    return 1e3 * median(durations)


@torch.inference_mode()
def _linear_layers(kernels: Kernels) -> dict[int, float]:
    kv = SHAPE.kv_heads * SHAPE.head_size
    shapes = [
        (SHAPE.hidden, SHAPE.hidden + 2 * kv),
        (SHAPE.hidden, SHAPE.hidden),
        (SHAPE.hidden, 2 * SHAPE.intermediate),
        (SHAPE.intermediate, SHAPE.hidden),
    ]
    weights = [
        [(inner, kernels.pack(torch.randn(out, inner).bfloat16())) for inner, out in shapes] for _ in range(LAYERS)
    ]
    head = kernels.pack(torch.randn(VOCABULARY, SHAPE.hidden).bfloat16())
    durations = {}
    for rows in ROWS:
        inputs = {inner: torch.randn(rows, inner).bfloat16() for inner, _ in shapes}
        last = inputs[SHAPE.hidden][: min(rows, 32)].contiguous()

        def step(inputs: dict[int, torch.Tensor] = inputs, last: torch.Tensor = last) -> None:
            for layer in weights:
                for inner, weight in layer:
                    kernels.linear(inputs[inner], weight)
            kernels.linear_float32(last, head)

        durations[rows] = _time(step)
    return durations


def main() -> None:
    """Print the figures."""
    best = select_kernels("auto", SHAPE, torch.bfloat16, 16, Path(default_cache()))
    torch_packed = TorchKernels(SHAPE, torch.bfloat16, 16)
    print(json.dumps({"kernels": best.name, "ours": _linear_layers(best), "torch": _linear_layers(torch_packed)}))


if __name__ == "__main__":
    main()
