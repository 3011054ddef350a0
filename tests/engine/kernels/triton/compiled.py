"""Ahead-of-time compilation of Triton kernels, for GPUs that need not be present."""

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
class CompiledKernel:
    """Resources of a compiled kernel. `spilled`: bytes per thread in memory because registers are full. `shared`: bytes
    of shared memory per program."""

    registers: int
    spilled: int
    shared: int
    ptx: str


def compiled(
    kernel: Any, capability: int, types: dict[str, str], constants: dict[str, Any], *, warps: int, stages: int
) -> CompiledKernel:
    """Compile a kernel for a GPU of this compute capability. Pointers are aligned to 16 bytes, as torch's are."""
    signature = {name: types.get(name, "constexpr") for name in kernel.arg_names}
    aligned = {
        (index,): [["tt.divisibility", 16]]
        for index, name in enumerate(kernel.arg_names)
        if signature[name].startswith("*")
    }
    source = ASTSource(kernel, signature, constants, aligned)
    result = triton.compile(
        source, target=GPUTarget("cuda", capability, 32), options={"num_warps": warps, "num_stages": stages}
    )
    with tempfile.NamedTemporaryFile("wb", suffix=".cubin") as file:
        file.write(result.asm["cubin"])
        file.flush()
        usage_text = subprocess.run(
            [_CUOBJDUMP, "-res-usage", file.name], capture_output=True, text=True, check=True
        ).stdout
    usage = {name: int(value) for name, value in re.findall(r"(REG|STACK|LOCAL):(\d+)", usage_text)}
    return CompiledKernel(usage["REG"], usage["STACK"] + usage["LOCAL"], result.metadata.shared, result.asm["ptx"])
