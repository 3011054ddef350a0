"""Kernels compiled ahead of time, for GPUs that need not be there."""

import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

_CUOBJDUMP = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"


@dataclass(frozen=True)
class Binary:
    """What a compiled kernel takes. `spilled`: bytes a thread keeps in memory because its registers are full. `shared`:
    bytes a program has."""

    registers: int
    spilled: int
    shared: int
    ptx: str


def compiled(
    kernel: Any, capability: int, types: dict[str, str], constants: dict[str, Any], *, warps: int, stages: int
) -> Binary:
    """The kernel for a GPU of this compute capability. Pointers are aligned to 16 bytes, as torch's are."""
    signature = {name: types.get(name, "constexpr") for name in kernel.arg_names}
    aligned = {
        (at,): [["tt.divisibility", 16]] for at, name in enumerate(kernel.arg_names) if signature[name].startswith("*")
    }
    source = ASTSource(kernel, signature, constants, aligned)
    made = triton.compile(
        source, target=GPUTarget("cuda", capability, 32), options={"num_warps": warps, "num_stages": stages}
    )
    with tempfile.NamedTemporaryFile("wb", suffix=".cubin") as file:
        file.write(made.asm["cubin"])
        file.flush()
        told = subprocess.run([_CUOBJDUMP, "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
    usage = {name: int(value) for name, value in re.findall(r"(REG|STACK|LOCAL):(\d+)", told)}
    return Binary(usage["REG"], usage["STACK"] + usage["LOCAL"], made.metadata.shared, made.asm["ptx"])
