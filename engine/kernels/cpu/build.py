"""Builds the C file once for this machine and keeps it in the cache folder."""

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path

SOURCE = Path(__file__).with_name("kernels.c")
_FLAGS = ["-O3", "-march=native", "-std=gnu11", "-fPIC", "-fopenmp", "-fno-math-errno"]
_NEEDED = frozenset({"avx512f", "avx512bw", "avx512vl", "avx512dq", "avx512_bf16"})
_BUILD_SECONDS = 120


class Unavailable(Exception):
    """These kernels cannot run here, and why; something else must."""


def cpu_features() -> frozenset[str]:
    """The CPU's feature names as Linux gives them; empty elsewhere."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return frozenset()
    return next((frozenset(line.split(":", 1)[1].split()) for line in lines if line.startswith("flags")), frozenset())


def load(cache: Path) -> ctypes.CDLL:
    """The library, built if it is not in the cache. Takes about a second then. Raises Unavailable."""
    features = cpu_features()
    missing = _NEEDED - features
    if missing:
        raise Unavailable(f"this CPU lacks {', '.join(sorted(missing))}")
    openmp = _loaded_openmp()
    identity = [SOURCE.read_text(), " ".join(_FLAGS), platform.machine(), " ".join(sorted(features)), str(openmp)]
    target = cache / "kernels" / f"cpu-{hashlib.sha256(chr(0).join(identity).encode()).hexdigest()[:16]}.so"
    if not target.is_file():
        _build(target, openmp)
    try:
        return ctypes.CDLL(str(target))
    except OSError as error:
        raise Unavailable(f"{target} cannot be loaded: {error}") from error


def _loaded_openmp() -> Path:
    """The OpenMP runtime that torch brought into this process.

    The kernels must use that one: a second runtime has threads of its own, and the two sets would wait for each
    other on the same cores.
    """
    for line in Path("/proc/self/maps").read_text().splitlines():
        path = line.split(maxsplit=5)[-1]
        if "libgomp" in Path(path).name or "libiomp5" in Path(path).name:
            return Path(path)
    raise Unavailable("torch runs here without OpenMP")


def _build(target: Path, openmp: Path) -> None:
    compiler = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        raise Unavailable("there is no C compiler (install gcc)")
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".build-") as scratch:
        compiled, linked = Path(scratch) / "kernels.o", Path(scratch) / "kernels.so"
        _run([compiler, *_FLAGS, "-c", str(SOURCE), "-o", str(compiled)])
        # linked with the runtime by path, not with -fopenmp, which would pull in the compiler's own
        _run([compiler, "-shared", str(compiled), str(openmp), "-lm", "-o", str(linked)])
        linked.rename(target)


def _run(command: list[str]) -> None:
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=_BUILD_SECONDS, stdin=subprocess.DEVNULL, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Unavailable(f"{command[0]} did not run: {error}") from error
    if done.returncode:
        first = next((line for line in done.stderr.splitlines() if "error" in line), done.stderr.strip()[:200])
        raise Unavailable(f"{command[0]} failed: {first}")
