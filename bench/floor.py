"""What bounds a step: the linear layers alone, with the engine's kernels and with torch's packed ones.

`python -m bench.floor` prints JSON: milliseconds by number of rows.
"""

import json
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch

from engine.config import default_cache
from engine.kernels import Kernels, select_kernels
from engine.kernels.reference import TorchKernels
from engine.models.checkpoint import DecoderSpec

SPEC = DecoderSpec("LlamaForCausalLM", 30, 576, 9, 3, 64, 1536, 49_152, 8192, 1e-5, 1e5, None, True)
"""SmolLM2-135M."""
ROWS = (1, 8, 32, 512)


def _time(action: Callable[[], object], runs: int = 5) -> float:
    action()
    taken = []
    for _ in range(runs):
        began = time.perf_counter()
        action()
        taken.append(time.perf_counter() - began)
    return 1e3 * median(taken)


@torch.inference_mode()
def _linear_layers(kernels: Kernels) -> dict[int, float]:
    kv = SPEC.kv_heads * SPEC.head_size
    shapes = [
        (SPEC.hidden, SPEC.hidden + 2 * kv),
        (SPEC.hidden, SPEC.hidden),
        (SPEC.hidden, 2 * SPEC.intermediate),
        (SPEC.intermediate, SPEC.hidden),
    ]
    weights = [
        [(inner, kernels.pack(torch.randn(out, inner).bfloat16())) for inner, out in shapes] for _ in range(SPEC.layers)
    ]
    head = kernels.pack(torch.randn(SPEC.vocabulary, SPEC.hidden).bfloat16())
    taken = {}
    for rows in ROWS:
        inputs = {inner: torch.randn(rows, inner).bfloat16() for inner, _ in shapes}
        last = inputs[SPEC.hidden][: min(rows, 32)].contiguous()

        def step(inputs: dict[int, torch.Tensor] = inputs, last: torch.Tensor = last) -> None:
            for layer in weights:
                for inner, weight in layer:
                    kernels.linear(inputs[inner], weight)
            kernels.logits(last, head)

        taken[rows] = _time(step)
    return taken


def main() -> None:
    """Prints the figures."""
    best = select_kernels("auto", SPEC, torch.bfloat16, 16, Path(default_cache()))
    torch_packed = TorchKernels(torch.bfloat16, SPEC.kv_heads, SPEC.head_size, 16)
    print(json.dumps({"kernels": best.name, "ours": _linear_layers(best), "torch": _linear_layers(torch_packed)}))


if __name__ == "__main__":
    main()
