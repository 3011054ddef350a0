"""Every configuration that can be launched, compiled for Ampere and Hopper: one that would not run there fails here."""

from typing import Any

import pytest

from engine.kernels.triton.decode import make_parts, merge_parts
from engine.kernels.triton.tree import tiles_for, triton_size
from tests.engine.kernels.triton.compiled import compiled

SHARED = {80: 163 * 1024, 90: 227 * 1024}
"""Bytes of shared memory that a program may have."""
FLOATS = {"queries", "keys", "values", "out"}
TYPES = {
    **dict.fromkeys(("sums", "stats"), "*fp32"),
    **dict.fromkeys(("items", "count", "order", "starts", "tables", "lengths"), "*i32"),
    **dict.fromkeys(("width", "window"), "i32"),
    **dict.fromkeys(("scale", "softcap"), "fp32"),
}
DECODE = [
    (capability, dtype, size, group, widest, special)
    for capability in SHARED
    for dtype, size, special in (
        *(("bf16", size, False) for size in (64, 96, 128, 256)),
        ("fp16", 128, False),
        ("bf16", 256, True),
        ("bf16", 128, True),
    )
    for group, widest in ((4, 1), (4, 32))
]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:TRITON_DEFAULT_FP_FUSION")
@pytest.mark.parametrize(("capability", "dtype", "size", "group", "widest", "special"), DECODE)
def test_decode_fits(capability: int, dtype: str, size: int, group: int, widest: int, special: bool) -> None:
    tiles = tiles_for(group, size, widest)
    constants: dict[str, Any] = {
        "KV_HEADS": 8,
        "GROUP": group,
        "SIZE": size,
        "PADDED": triton_size(size),
        "BLOCK": 16,
        "ROWS": tiles.rows,
        "KEYS": tiles.keys,
        "CAPPED": special,
        "WINDOWED": special,
        "UPCAST": False,
    }
    types = {**TYPES, **dict.fromkeys(FLOATS, f"*{dtype}")}
    made = compiled(make_parts, capability, types, constants, warps=tiles.warps, stages=tiles.stages)
    assert made.spilled == 0
    assert made.shared <= SHARED[capability]
    assert made.registers * tiles.warps * 32 <= 65_536
    assert "cp.async" in made.ptx, "keys are fetched while others are computed"
    assert ("wgmma" if capability == 90 and tiles.rows == 64 else "mma.sync") in made.ptx


@pytest.mark.filterwarnings("ignore:TRITON_DEFAULT_FP_FUSION")
@pytest.mark.parametrize("capability", SHARED)
def test_merging_fits(capability: int) -> None:
    types = {name: kind for name, kind in TYPES.items() if name in merge_parts.arg_names} | {"out": "*bf16"}
    constants = {"HEADS": 32, "SIZE": 128, "PADDED": 128}
    made = compiled(merge_parts, capability, types, constants, warps=1, stages=2)
    assert made.spilled == 0
