"""Build of the C kernels for this machine. The library is cached."""

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

_FOLDER = Path(__file__).parent
_FLAGS = ("-O2", "-ftree-vectorize", "-std=gnu11", "-fPIC", "-fopenmp", "-fno-math-errno")
_BUILD_SECONDS = 300


class KernelsUnavailable(Exception):
    """The C kernels cannot run here, with the reason."""


def cpu_features() -> frozenset[str]:
    """Return the CPU's feature names as Linux reports them; empty on other systems."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return frozenset()
    return next(
        (frozenset(line.split(":", 1)[1].split()) for line in lines if line.startswith(("flags", "Features"))),
        frozenset(),
    )


def find_compiler() -> str | None:
    """Return the C compiler to use: $CC, cc, gcc or clang; None if there is none."""
    return os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")


def native_flag() -> str:
    """Return the compiler flag for all instructions of this CPU."""
    return "-mcpu=native" if platform.machine() in ("aarch64", "arm64") else "-march=native"


def load(cache: Path, target: tuple[str, ...] | None = None) -> ctypes.CDLL:
    """Return the library. It is built first if it is not in the cache, which takes a few seconds.

    `target`: compiler flags that select the instructions, for tests; None for the best that this CPU has. Raises
    KernelsUnavailable.
    """
    flags = (*_FLAGS, *((native_flag(),) if target is None else target))
    openmp = _loaded_openmp()
    sources = sorted([*_FOLDER.glob("*.c"), *_FOLDER.glob("*.h")])
    identity = [*(source.read_text() for source in sources), *flags, platform.machine(), str(openmp)]
    identity += sorted(cpu_features())
    library = cache / "kernels" / f"cpu-{hashlib.sha256(chr(0).join(identity).encode()).hexdigest()[:16]}.so"
    if not library.is_file():
        _build(library, flags, openmp)
    try:
        return ctypes.CDLL(str(library))
    except OSError as error:
        raise KernelsUnavailable(f"{library} cannot be loaded: {error}") from error


def _loaded_openmp() -> Path:
    """Return the OpenMP runtime that torch loaded into this process.

    The kernels must use the same one: a second runtime has its own threads, and the two sets would wait for each other
    on the same cores.
    """
    try:
        maps = Path("/proc/self/maps").read_text().splitlines()
    except OSError as error:
        raise KernelsUnavailable(f"they need Linux: {error}") from error
    for line in maps:
        path = line.split(maxsplit=5)[-1]
        if "libgomp" in Path(path).name or "libiomp5" in Path(path).name:
            return Path(path)
    raise KernelsUnavailable("torch runs here without OpenMP")


def _build(library: Path, flags: tuple[str, ...], openmp: Path) -> None:
    compiler = find_compiler()
    if compiler is None:
        raise KernelsUnavailable("there is no C compiler (install gcc)")
    library.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=library.parent, prefix=".build-") as directory:
        scratch = Path(directory)
        sources = sorted(_FOLDER.glob("*.c"))
        objects = [scratch / f"{source.stem}.o" for source in sources]
        with ThreadPoolExecutor() as pool:
            compiles = [
                pool.submit(_run, [compiler, *flags, "-c", str(source), "-o", str(target)])
                for source, target in zip(sources, objects, strict=True)
            ]
        for compile_ in compiles:
            compile_.result()
        linked = scratch / library.name
        # Linked with the runtime by path: -fopenmp would link the compiler's own.
        _run([compiler, "-shared", *map(str, objects), str(openmp), "-lm", "-o", str(linked)])
        linked.rename(library)


def _run(command: list[str]) -> None:
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=_BUILD_SECONDS, stdin=subprocess.DEVNULL, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise KernelsUnavailable(f"{command[0]} did not run: {error}") from error
    if done.returncode:
        first = next((line for line in done.stderr.splitlines() if "error" in line), done.stderr.strip()[:200])
        raise KernelsUnavailable(f"{command[0]} failed: {first}")
