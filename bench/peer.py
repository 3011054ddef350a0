"""vLLM's CPU build on the default model, to compare with myna."""

import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from bench.servers import started
from engine.config import EngineConfig, default_cache
from engine.models.fetch import checkpoint_folder

_EIGHT_BITS = {
    "quant_method": "compressed-tensors",
    "format": "int-quantized",
    "quantization_status": "compressed",
    "ignore": ["lm_head"],
    "config_groups": {
        "group_0": {
            "targets": ["Linear"],
            "weights": {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "channel", "dynamic": False},
            "input_activations": {
                "num_bits": 8,
                "type": "int",
                "symmetric": True,
                "strategy": "token",
                "dynamic": True,
            },
        }
    },
}
"""As checkpoints say it that vLLM multiplies in whole numbers on a CPU."""


@contextmanager
def vllm(python: str, dtype: str, *, quantize: str = "none") -> Iterator[tuple[str, str]]:
    """Start vLLM from a separate environment. Yield its address and the model's name. `quantize`: none, or int8 for
    linear layers in 8 bits: weights with a scale for each output, inputs with a scale for each token."""
    own = checkpoint_folder(EngineConfig().model, Path(default_cache()), torch.bfloat16)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for file in own.iterdir():
            if quantize == "int8" and file.suffix == ".safetensors":
                save_file(_in_eight_bits(load_file(file)), folder / file.name)
            else:
                (folder / file.name).symlink_to(file)
        config = json.loads((own / "config.json").read_text())
        del config["partial_rotary_factor"]  # 1.0, which transformers takes as part of another scaling
        if quantize == "int8":
            config["quantization_config"] = _EIGHT_BITS
        (folder / "config.json").unlink()
        (folder / "config.json").write_text(json.dumps({**config, "model_type": "llama"}))
        environment = {**os.environ, "VLLM_CPU_KVCACHE_SPACE": "2", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
        command = [python, "-m", "vllm.entrypoints.openai.api_server", "--model", name, "--served-model-name", "peer"]
        command += ["--dtype", dtype, "--max-model-len", "8192", "--host", "127.0.0.1"]
        with started(command, port_option="--port", environment=environment, seconds=600) as address:
            yield f"{address}/v1", "peer"


def _in_eight_bits(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    quantized = {}
    for name, tensor in tensors.items():
        if not name.endswith("_proj.weight"):
            quantized[name] = tensor
            continue
        scale = tensor.float().abs().amax(dim=1, keepdim=True) / 127
        quantized[name] = (tensor.float() / scale).round().clamp(-127, 127).to(torch.int8)
        quantized[f"{name.removesuffix('weight')}weight_scale"] = scale
    return quantized
