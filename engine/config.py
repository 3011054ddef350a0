"""What an engine is started with."""

import os
from pathlib import Path
from typing import Literal

import msgspec

DEFAULT_MODEL = "SmolLM2-135M-Instruct"


def default_cache() -> str:
    """The folder for downloaded and converted checkpoints and built kernels: MYNA_CACHE or `~/.cache/myna`."""
    if named := os.environ.get("MYNA_CACHE"):
        return named
    return str(Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "myna")


class EngineConfig(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that shapes one engine.

    `device`: `auto` takes the first GPU if there is one; else `cpu`, `cuda` or `cuda:N`.
    `model`: `SmolLM2-135M-Instruct`, a GGUF file, a folder with safetensors, or a hub id.
    `quantize`: int8 keeps linear weights in 8 bits and multiplies in 8 bits, faster and less exact.
    `kv_dtype`: of the KV pool: `auto` as the weights, `fp8` in 8 bits (e4m3), half the bytes and less exact; not with
    the cpu kernels.
    `kv_tokens`: size of the KV pool in tokens; 0 sizes it from free memory.
    `host_kv_tokens`: tokens of KV that stay in the host's memory when they leave the pool, and come back from there; -1
    takes as many as a GPU's pool has, within a fifth of the free memory, and none for a CPU's.
    `step_tokens`: token budget of a step, decode tokens and prefill chunks together; 0 takes what suits the device.
    `step_seconds`: what a step may take while somebody decodes, as far as prefill can be cut; `decode_share`: part of
    its speed that decoding keeps on average while long prompts are read beside it.
    `max_batch`: most contexts in one step.
    `threads`: 0 takes every core this process may use.
    `peers`: engines that share the device, this one counted: cores and free memory are divided by it where
    `threads` and `kv_tokens` are 0.
    `overlap`: whether the next step is prepared while one runs; auto: on a GPU, which has no use for the host's cores.
    `speculation`: whether tokens that are likely to come next are checked together, see `speculation.py`; auto: where
    that changes no text. Such steps do not overlap.
    `prefix_sharing`: whether full blocks are kept in the prefix tree for later fills.
    `retention`: which of them go first when the pool is full; see `retention.py`.
    """

    model: str = DEFAULT_MODEL
    cache: str = msgspec.field(default_factory=default_cache)
    device: str = "auto"
    dtype: Literal["bfloat16", "float16", "float32"] = "bfloat16"
    kv_dtype: Literal["auto", "fp8"] = "auto"
    kernels: Literal["auto", "cpu", "torch", "triton"] = "auto"
    quantize: Literal["none", "int8"] = "none"
    kv_tokens: int = 0
    host_kv_tokens: int = -1
    block_size: int = 16
    step_tokens: int = 0
    step_seconds: float = 0.1
    decode_share: float = 0.65
    max_batch: int = 256
    threads: int = 0
    peers: int = 1
    overlap: Literal["auto", "on", "off"] = "auto"
    speculation: Literal["auto", "on", "off"] = "auto"
    prefix_sharing: bool = True
    retention: Literal["learned", "lru"] = "learned"
