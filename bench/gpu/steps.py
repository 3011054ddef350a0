"""Whole decode steps of a model with random weights: the duration of a step, and how long the GPU is idle in it.

Steps overlap, as in the engine. The GPU's own time is that of the recorded step, replayed repeatedly; the rest of a
step's duration is the host's.
"""

import time
from dataclasses import dataclass
from statistics import median

import numpy as np
import torch

from bench.gpu import HAS_GPU
from bench.gpu.common import BLOCK, DEVICE, SHAPES, SMALL, Row, arguments, tell
from bench.gpu.layers import requests
from engine.kernels.base import AttentionBatch, Kernels, LayerShape, PendingSample
from engine.kernels.reference import TorchKernels
from engine.kernels.triton.kernels import TritonKernels
from engine.models.decoder import Decoder
from engine.models.rope import Rope
from engine.models.spec import DecoderSpec, LayerSpec

LAYERS = {"8B": (32, 128_256), "Qwen3-0.6B": (28, 151_936)}


@dataclass(frozen=True)
class Load:
    """Decoding sequences. `shared`: number of keys that all have in common, of `length`."""

    rows: int
    length: int
    shared: int = 0


LOADS = [Load(1, 512), Load(8, 512), Load(64, 512), Load(64, 2048), Load(64, 4096, 3072), Load(256, 1024, 896)]


def decoder(shape: LayerShape, layers: int, vocabulary: int, kernels: Kernels, dtype: torch.dtype) -> Decoder:
    """Return a Llama of this shape."""
    rope = Rope(shape.head_size, 500_000.0, "default", {})
    spec = DecoderSpec(
        "LlamaForCausalLM",
        shape,
        tuple(LayerSpec(0, rope) for _ in range(layers)),
        vocabulary,
        8192,
        ties_embeddings=False,
    )
    random = torch.Generator().manual_seed(0)
    device_random = torch.Generator(kernels.device).manual_seed(0) if kernels.device.type == "cuda" else random
    sizes = {
        "q_proj": (shape.heads * shape.head_size, shape.hidden),
        "k_proj": (shape.kv_heads * shape.head_size, shape.hidden),
        "v_proj": (shape.kv_heads * shape.head_size, shape.hidden),
        "o_proj": (shape.hidden, shape.heads * shape.head_size),
        "gate_proj": (shape.intermediate, shape.hidden),
        "up_proj": (shape.intermediate, shape.hidden),
        "down_proj": (shape.hidden, shape.intermediate),
        "embed_tokens": (vocabulary, shape.hidden),
        "lm_head": (vocabulary, shape.hidden),
    }

    def weight(name: str) -> torch.Tensor:
        part = name.split(".")[-2]
        if part not in sizes:
            return torch.ones(shape.hidden)
        made = torch.randn(sizes[part], generator=device_random, device=kernels.device)
        return (made * sizes[part][1] ** -0.5).to(dtype)

    return Decoder(spec, weight, kernels, dtype)


class Steps:
    """Sequences that decode one token per step, as in an engine."""

    def __init__(self, made: Decoder, load: Load) -> None:
        self._decoder, self._load = made, load
        own = -(-(load.length + 128 - load.shared) // BLOCK)
        common = np.arange(1, 1 + load.shared // BLOCK, dtype=np.int32)
        rest = 1 + len(common) + np.arange(load.rows * own, dtype=np.int32).reshape(load.rows, own)
        self.tables = np.concatenate([np.tile(common, (load.rows, 1)), rest], axis=1)
        self.blocks = 1 + len(common) + rest.size
        self._position = load.length
        self._tokens = np.ones(load.rows, dtype=np.int64)
        self._pending: PendingSample | None = None
        self._requests = requests(load.rows, 0.0, 1.0, 0.0, 0, -1, 0.0)

    def logits(self) -> torch.Tensor:
        """Return the logits of the next step."""
        rows, index = self._load.rows, self._position
        slots = self.tables[:, index // BLOCK].astype(np.int64) * BLOCK + index % BLOCK
        batch = AttentionBatch(
            positions=torch.full((rows,), index),
            slots=torch.from_numpy(slots),
            query_starts=torch.arange(rows + 1, dtype=torch.int32),
            lengths=torch.full((rows,), index + 1, dtype=torch.int32),
            block_tables=torch.from_numpy(self.tables),
        )
        self._position += 1
        return self._decoder.forward(torch.from_numpy(self._tokens), batch, torch.arange(rows))

    def __call__(self) -> None:
        """Start a step with the tokens of the previous one, then read those, as the engine does on a GPU."""
        before = self._pending
        self._pending = self._decoder.kernels.sample(self.logits(), self._requests)
        self._tokens = -1 - np.arange(self._load.rows)
        if before is not None:
            before.result()


def run(shape: LayerShape, layers: int, vocabulary: int) -> list[Row]:
    """Measure on the GPU."""
    kernels = TritonKernels(shape, torch.bfloat16, BLOCK, DEVICE, rows=256, sequences=256, width=512)
    made = decoder(shape, layers, vocabulary, kernels, torch.bfloat16)
    pools = [Steps(made, load) for load in LOADS]
    made.allocate_kv(max(steps.blocks for steps in pools))
    found = []
    for load, steps in zip(LOADS, pools, strict=True):
        for _ in range(5):
            steps()
        durations = []
        for _ in range(60):
            began = time.perf_counter()
            steps()
            durations.append(time.perf_counter() - began)
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        for _ in range(20):
            kernels.replay()
        end.record()
        end.synchronize()
        busy, whole = begin.elapsed_time(end) / 20e3, median(durations)
        found.append(
            {
                "rows": load.rows,
                "length": load.length,
                "shared": load.shared,
                "ms a step": whole * 1e3,
                "ms of the GPU": busy * 1e3,
                "idle": 1 - busy / whole,
                "tok/s": load.rows / whole,
            }
        )
    return found


def check() -> list[Row]:
    """Compare a small model on Triton's kernels with the same on torch's."""
    found = []
    for load in (Load(1, 20), Load(3, 40, 32)):
        logits = []
        for kernels in (
            TritonKernels(SMALL, torch.float32, BLOCK, DEVICE, rows=8, sequences=8, width=16),
            TorchKernels(SMALL, torch.float32, BLOCK),
        ):
            made = decoder(SMALL, 2, 300, kernels, torch.float32)
            steps = Steps(made, load)
            made.allocate_kv(steps.blocks)
            logits.append([steps.logits().clone() for _ in range(3)][-1])
        found.append({"rows": load.rows, "length": load.length, "error": float((logits[0] - logits[1]).abs().max())})
    return found


def main() -> None:
    """Run the command line."""
    chosen = arguments(__doc__ or "", ("--shape", {"choices": SHAPES, "default": "8B"}))
    tell(run(SHAPES[chosen.shape], *LAYERS[chosen.shape]) if HAS_GPU else check(), as_json=chosen.json)


if __name__ == "__main__":
    main()
