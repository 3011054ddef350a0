"""Every launchable configuration is compiled for Ampere and Hopper; one that would not run there fails here."""

from typing import Any

import pytest

from engine.kernels.triton import layers, sampling
from engine.kernels.triton.attention import make_parts, merge_parts
from engine.kernels.triton.paged import Tiles, padded, prompt_tiles, tiles_for
from tests.engine.kernels.triton.compiled import CompiledKernel, compiled

SHARED = {80: 163 * 1024, 90: 227 * 1024}
"""Bytes of shared memory that a program may have."""
ATTENTION = {
    **dict.fromkeys(("sums", "stats"), "*fp32"),
    **dict.fromkeys(("items", "count", "order", "starts", "tables", "table_starts", "positions"), "*i32"),
}
KINDS = [
    *(("bf16", size, False) for size in (64, 96, 128, 256)),
    ("fp16", 128, False),
    ("fp32", 64, False),
    ("bf16", 256, True),
    ("bf16", 128, True),
]
"""Type, head size, and whether layers have a window and a soft cap."""
each_gpu = pytest.mark.parametrize("capability", SHARED)
each_kind = pytest.mark.parametrize(("dtype", "size", "special"), KINDS)
pytestmark = pytest.mark.filterwarnings("ignore:TRITON_DEFAULT_FP_FUSION")


def fits(result: CompiledKernel, capability: int, warps: int) -> None:
    assert result.spilled == 0
    assert result.shared <= SHARED[capability]
    assert result.registers * warps * 32 <= 65_536


def attention(
    capability: int, dtype: str, size: int, tiles: Tiles, *, causal: bool, special: bool, kept: str | None = None
) -> CompiledKernel:
    constants: dict[str, Any] = {
        "KV_HEADS": 8,
        "GROUP": 4,
        "SIZE": size,
        "PADDED": padded(size),
        "BLOCK": 16,
        "ROWS": tiles.rows,
        "KEYS": tiles.keys,
        "CAUSAL": causal,
        "WINDOW": 4096 if special else 0,
        "SCALE": size**-0.5,
        "SOFTCAP": 50.0 if special else 0.0,
        "UPCAST": False,
    }
    types = {**ATTENTION, **dict.fromkeys(("queries", "keys", "values", "out"), f"*{dtype}")}
    if kept is not None:
        types |= dict.fromkeys(("keys", "values"), f"*{kept}")
    result = compiled(make_parts, capability, types, constants, warps=tiles.warps, stages=tiles.stages)
    fits(result, capability, tiles.warps)
    return result


@pytest.mark.slow
@each_gpu
@each_kind
@pytest.mark.parametrize("rows", [1, 32])
def test_decode_fits(capability: int, dtype: str, size: int, special: bool, rows: int) -> None:
    tiles = tiles_for(4, size, rows, 4 if dtype == "fp32" else 2)
    result = attention(capability, dtype, size, tiles, causal=False, special=special)
    assert "cp.async" in result.ptx, "keys are loaded while others are computed"
    if dtype != "fp32":
        assert ("wgmma" if capability == 90 and tiles.rows == 64 else "mma.sync") in result.ptx


@pytest.mark.slow
@each_gpu
@each_kind
def test_prompts_fit(capability: int, dtype: str, size: int, special: bool) -> None:
    result = attention(
        capability, dtype, size, prompt_tiles(size, 4 if dtype == "fp32" else 2), causal=True, special=special
    )
    assert "cp.async" in result.ptx
    if dtype != "fp32":
        assert ("wgmma" if capability == 90 else "mma.sync") in result.ptx


@pytest.mark.slow
@pytest.mark.parametrize("size", [64, 128, 256])
@pytest.mark.parametrize("rows", [1, 32, None])
def test_fp8_keys_fit(size: int, rows: int | None) -> None:
    """Compile for Hopper only: Ampere has no FP8. `rows`: None for prompts."""
    tiles = prompt_tiles(size, narrow=True) if rows is None else tiles_for(4, size, rows, narrow=True)
    attention(90, "bf16", size, tiles, causal=rows is None, special=False, kept="fp8e4nv")


@each_gpu
def test_merging_fits(capability: int) -> None:
    types = {name: kind for name, kind in ATTENTION.items() if name in merge_parts.arg_names} | {"out": "*bf16"}
    fits(
        compiled(merge_parts, capability, types, {"HEADS": 32, "SIZE": 128, "PADDED": 128}, warps=1, stages=2),
        capability,
        1,
    )


@each_gpu
@pytest.mark.parametrize("hidden", [576, 8192])
def test_norms_fit(capability: int, hidden: int) -> None:
    types = {
        "out": "*bf16",
        **dict.fromkeys(("residual", "x", "weight", "inner"), "*fp32"),
        "hidden": "i32",
        "eps": "fp32",
    }
    for adds, inner in ((True, False), (True, True)):
        constants = {"ADDS": adds, "INNER": inner, "PADDED": padded(hidden)}
        warps = layers.warps(hidden)
        fits(compiled(layers.add_rms_norm, capability, types, constants, warps=warps, stages=2), capability, warps)


@each_gpu
@pytest.mark.parametrize(
    ("heads", "kv_heads", "size", "rotated"),
    [(9, 3, 64, 64), (32, 8, 128, 128), (64, 8, 128, 128), (8, 4, 256, 256), (32, 32, 96, 48)],
)
@pytest.mark.parametrize("norms", [False, True])
def test_rope_fits(capability: int, heads: int, kv_heads: int, size: int, rotated: int, norms: bool) -> None:
    rope(capability, heads, kv_heads, size, rotated, norms, "bf16")


def test_rope_rounds_and_clamps_to_fp8() -> None:
    assert "cvt.rn.satfinite.e4m3x2" in rope(90, 32, 8, 128, 128, True, "fp8e4nv").ptx


def rope(capability: int, heads: int, kv_heads: int, size: int, rotated: int, norms: bool, kept: str) -> CompiledKernel:
    types = {
        **dict.fromkeys(("qkv", "queries"), "*bf16"),
        **dict.fromkeys(("keys", "values"), f"*{kept}"),
        **dict.fromkeys(("positions", "slots"), "*i32"),
        **dict.fromkeys(("rotary", "query_norm", "key_norm"), "*fp32"),
        "eps": "fp32",
    }
    together = padded(heads + 2 * kv_heads)
    constants = {
        "HEADS": heads,
        "KV_HEADS": kv_heads,
        "SIZE": size,
        "PADDED_HEADS": together,
        "PADDED": padded(size),
        "BLOCK": 16,
        "ROTATED": rotated,
        "QUERY_NORM": norms,
        "KEY_NORM": norms,
        "FP8": kept != "bf16",
    }
    warps = layers.warps(together * padded(size))
    result = compiled(layers.rope_and_store, capability, types, constants, warps=warps, stages=2)
    fits(result, capability, warps)
    return result


@each_gpu
@pytest.mark.parametrize("gelu", [False, True])
def test_gated_fits(capability: int, gelu: bool) -> None:
    types = {"gate_up": "*bf16", "out": "*bf16", "intermediate": "i32"}
    constants = {"GELU": gelu, "BLOCK": layers.GATED_BLOCK}
    fits(compiled(layers.gated, capability, types, constants, warps=4, stages=2), capability, 4)


SAMPLERS: dict[str, tuple[Any, dict[str, Any]]] = {
    "apply_masks": (sampling.apply_masks, {"MASKS": False, "BLOCK": sampling.BLOCK}),
    "apply_masks, with masks": (sampling.apply_masks, {"MASKS": True, "BLOCK": sampling.BLOCK}),
    "top_tokens": (sampling.top_tokens, {"BLOCK": sampling.BLOCK}),
    "adjust": (sampling.adjust, {"BLOCK": sampling.CHANGES}),
    "pick": (sampling.pick, {"BLOCK": sampling.BLOCK}),
    "log_probabilities": (sampling.log_probabilities, {"CHANGED": True, "BLOCK": sampling.CHANGES}),
}


@pytest.mark.slow
@each_gpu
@pytest.mark.parametrize("name", SAMPLERS)
def test_sampling_fits(capability: int, name: str) -> None:
    kernel, constants = SAMPLERS[name]
    types = {
        **dict.fromkeys(("logits", "stats", "values", "factors", "biases", "before", "logprobs"), "*fp32"),
        **dict.fromkeys(("allowed", "masked", "ids", "starts", "tokens"), "*i32"),
        **dict.fromkeys(("vocabulary", "words", "width"), "i32"),
        "requests": "*fp64",
    }
    own = {name: kind for name, kind in types.items() if name in kernel.arg_names}
    fits(compiled(kernel, capability, own, constants, warps=sampling.WARPS, stages=1), capability, sampling.WARPS)
