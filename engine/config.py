"""Configuration of an engine."""

import os
from pathlib import Path
from typing import Literal

import msgspec

DEFAULT_MODEL = "SmolLM2-135M-Instruct"


def default_cache() -> str:
    """Return the folder for checkpoints and built kernels: $MYNA_CACHE, or `~/.cache/myna`."""
    if named := os.environ.get("MYNA_CACHE"):
        return named
    return str(Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "myna")


class EngineConfig(msgspec.Struct, frozen=True, kw_only=True):
    """Configuration of one engine.

    `model`: `SmolLM2-135M-Instruct`, a GGUF file, a folder with safetensors, or a hub id.
    `cache`: folder for downloaded and converted checkpoints and built kernels.
    `device`: `auto` is the first GPU if there is one, else the CPU; or `cpu`, `cuda`, `cuda:N`.
    `kv_dtype`: dtype of the KV pool. `auto` is the dtype of the weights. `fp8` (e4m3) takes half the bytes and is less
        exact; the cpu kernels do not support it.
    `quantize`: `int8` stores linear weights in 8 bits and multiplies in 8 bits: faster and less exact.
    `kv_tokens`: size of the KV pool, in tokens; 0 derives it from the free memory.
    `host_kv_tokens`: size of the KV offload in host memory, in tokens. With -1, a GPU engine offloads as many tokens as
        its pool has, within a fifth of the free host memory; a CPU engine offloads nothing.
    `step_tokens`: token budget of a step, for decode tokens and prefill chunks together; 0 selects the device's
        default.
    `step_seconds`: target duration of a step while an interactive sequence decodes, in seconds. It limits prefill, not
        decoding.
    `decode_share`: share of its stand-alone speed that decoding keeps, on average, while long prompts prefill.
    `max_batch`: maximum number of sequences in a step.
    `threads`: number of threads; 0 uses every core that the process may use.
    `tile_threads`: number of threads that multiply AMX tiles in linear layers; 0: all. Two hyper-threads of a core
        share its tile unit, so a single one may be faster.
    `peers`: number of engines on the device, including this one. Where `threads` and `kv_tokens` are 0, the engines
        share cores and free memory equally.
    `overlap`: whether the engine prepares the next step while one runs. `auto`: only on a GPU, which does not need the
        host's cores.
    `speculation`: whether a step checks drafts of several tokens, see `speculative.py`. `auto`: only where that changes
        no text. Steps with speculation do not overlap.
    `prefix_sharing`: whether the prefix tree retains full blocks for later fills.
    `retention`: eviction policy of the prefix tree, see `kv/eviction.py`.
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
    tile_threads: int = 0
    peers: int = 1
    overlap: Literal["auto", "on", "off"] = "auto"
    speculation: Literal["auto", "on", "off"] = "auto"
    prefix_sharing: bool = True
    retention: Literal["learned", "lru"] = "learned"
