"""`myna doctor`: report the hardware, the kernels that run on it and why not faster ones, and test results and
speed."""

import os
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median

import msgspec
import torch

from engine.device import choose_device
from engine.errors import EngineError
from engine.kernels import AttentionBatch, Kernels, LayerShape, Limits, Positions, select_kernels
from engine.kernels.base import PackedWeight
from engine.kernels.cpu import CpuKernels, KernelsUnavailable
from engine.kernels.cpu.build import cpu_features, find_compiler
from engine.kernels.reference import TorchKernels
from engine.kv.sizing import free_memory

_SHAPE = LayerShape(9, 3, 64, 64, 576, 1536, "silu", 0.125, 0.0, 1e-5)
_ROWS = (1, 8, 16, 32, 128, 512)
_ATTENTION_ROWS, _ATTENTION_KEYS = (16, 128, 512), 2000
_LAYERS = 24
_TOLERANCE = 0.02
"""Maximum error, relative to the largest value. bfloat16 has 8 significant bits."""

_FEATURES = {
    "amx_bf16": "matrix tiles",
    "avx512_bf16": "bfloat16 dot products",
    "avx512_vnni": "8-bit dot products",
    "avx512f": "registers of 16 floats",
    "avx2": "registers of 8 floats",
    "asimd": "NEON",
}


class Check(msgspec.Struct, frozen=True):
    """Result of one correctness check: the largest error, relative to the largest value."""

    name: str = msgspec.field(name="what")
    error: float
    is_right: bool = msgspec.field(name="right")


class Speed(msgspec.Struct, frozen=True):
    """Result of one speed measurement."""

    name: str = msgspec.field(name="what")
    value: float
    unit: str


class DoctorReport(msgspec.Struct, frozen=True):
    """Everything that `examine` found. `kernels`: the kernels that the engine would use; `reasons`: why it would not
    use faster ones."""

    cores: int
    threads: int
    features: dict[str, bool]
    compiler: str | None
    free_memory_gib: float
    gpu: str | None
    kernels: str
    reasons: list[str] = msgspec.field(name="because")
    checks: list[Check]
    speeds: list[Speed]

    @property
    def is_healthy(self) -> bool:
        """Whether all correctness checks passed."""
        return all(check.is_right for check in self.checks)


def examine(cache: Path) -> DoctorReport:
    """Examine this machine. It takes about five seconds, and five more if the kernels are not built yet."""
    cores = len(os.sched_getaffinity(0))
    torch.set_num_threads(cores)
    features = cpu_features()
    reasons = []
    kernels: Kernels = TorchKernels(_SHAPE, torch.bfloat16, 16)
    gpu = None
    try:
        device = choose_device("cuda")
        gpu = torch.cuda.get_device_name(device)
        limits = Limits(512, 8, 64)
        kernels = select_kernels("triton", _SHAPE, torch.bfloat16, 16, cache, device=device, limits=limits)
    except EngineError as error:
        reasons.append(f"no GPU: {error}")
        try:
            kernels = CpuKernels(cache, _SHAPE, torch.bfloat16, 16)
        except KernelsUnavailable as fault:
            reasons.append(f"no C kernels: {fault}")
    if kernels.device.type == "cpu" and "AMX" not in kernels.name:
        reasons.append(
            "no AMX: Linux does not permit it to this process"
            if "amx_bf16" in features
            else "no AMX: this CPU does not have it"
        )
    return DoctorReport(
        cores=cores,
        threads=torch.get_num_threads(),
        features={name: name in features for name in _FEATURES},
        compiler=find_compiler(),
        free_memory_gib=free_memory() / 2**30,
        gpu=gpu,
        kernels=kernels.name,
        reasons=reasons,
        checks=_run_checks(kernels),
        speeds=_measure_speeds(kernels),
    )


def _error(got: torch.Tensor, expected: torch.Tensor) -> float:
    return float((got.cpu().double() - expected.double()).abs().max() / expected.abs().max())


@torch.inference_mode()
def _run_checks(kernels: Kernels) -> list[Check]:
    """Compare each operation with the float32 reference, on the same numbers."""
    exact, device = TorchKernels(_SHAPE, torch.float32, 16), kernels.device
    random = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=random).bfloat16()

    found = []

    def check(name: str, got: torch.Tensor, expected: torch.Tensor) -> None:
        error = _error(got, expected)
        found.append(Check(name, error, error < _TOLERANCE))

    weight = normal(960, 576) / 24
    for rows in (1, 5, 40):
        x = normal(rows, 576)
        packed, plain = kernels.pack(weight), exact.pack(weight.float())
        check(f"linear layer, {rows} rows", kernels.linear(x.to(device), packed), exact.linear(x.float(), plain))
    x, scale = normal(40, 576), torch.rand(576, generator=random)
    copy = x.to(device, torch.float32, copy=True)
    check("norm", kernels.add_rms_norm(copy, None, scale.to(device)), exact.add_rms_norm(x.float(), None, scale))
    x = normal(40, 3072)
    check("gated activation", kernels.gated(x.to(device)), exact.gated(x.float()))
    for length, rows in ((300, 1), (300, 100)):
        qkv = normal(length, 15 * 64)
        answers = []
        for hand, provided in ((kernels, qkv.to(device, kernels.qkv_dtype)), (exact, qkv.float())):
            kv = hand.new_kv(1, 40)
            queries = hand.rope_and_store(
                provided, Positions(None), kv.keys[0], kv.values[0], _stage_batch(hand, length, length)
            )
            requested = queries[length - rows :].contiguous()
            answers.append(hand.attention(requested, kv.keys[0], kv.values[0], _stage_batch(hand, length, rows)))
        check(f"attention, {rows} rows over {length} keys", *answers)
    return found


def _stage_batch(kernels: Kernels, length: int, rows: int) -> AttentionBatch:
    """Return a batch with one sequence, whose blocks are in order from the second block on."""
    place = torch.arange(length - rows, length)
    batch = AttentionBatch(
        positions=place,
        slots=place + 16,
        query_starts=torch.tensor([0, rows], dtype=torch.int32),
        lengths=torch.tensor([length], dtype=torch.int32),
        block_tables=torch.arange(1, 2 + (length - 1) // 16, dtype=torch.int32).unsqueeze(0),
    )
    return kernels.stage(torch.zeros(rows, dtype=torch.int64), batch, torch.tensor([rows - 1])).batch


@torch.inference_mode()
def _measure_speeds(kernels: Kernels) -> list[Speed]:
    """Measure the linear layers of a small model, whose weights exceed the caches, and attention over a long text."""
    weights = [kernels.pack(torch.randn(3072, 576).bfloat16()) for _ in range(_LAYERS)]
    numbers = _LAYERS * 3072 * 576
    found = []
    for rows in _ROWS:
        x = torch.randn(rows, 576).bfloat16().to(kernels.device)
        seconds = _time(partial(_run_layers, kernels, x, weights))
        if rows == 1:
            found.append(Speed("linear layers, 1 row, weights read", 2e-9 * numbers / seconds, "GB/s"))
        else:
            found.append(Speed(f"linear layers, {rows} rows", 2e-9 * numbers * rows / seconds, "GFLOP/s"))
    kv, keys = kernels.new_kv(1, 300), _ATTENTION_KEYS
    for rows in _ATTENTION_ROWS:
        queries = torch.randn(rows, 9, 64).bfloat16().to(kernels.device)
        batch = _stage_batch(kernels, keys, rows)
        seconds = _time(partial(kernels.attention, queries, kv.keys[0], kv.values[0], batch))
        pairs = rows * (keys - (rows - 1) / 2)  # a row attends to the keys up to its own
        found.append(Speed(f"attention, {rows} rows over {keys:,} keys", 4e-9 * pairs * 9 * 64 / seconds, "GFLOP/s"))
    return found


def _synchronize() -> None:
    """Wait for the operations on a GPU."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _run_layers(kernels: Kernels, x: torch.Tensor, weights: list[PackedWeight]) -> None:
    for weight in weights:
        kernels.linear(x, weight)


def _time(action: Callable[[], object]) -> float:
    """Return the median duration of an action, in seconds."""
    action()
    _synchronize()
    durations = []
    for _ in range(5):
        began = time.perf_counter()
        action()
        _synchronize()
        durations.append(time.perf_counter() - began)
    return median(durations)


def format_report(report: DoctorReport) -> str:
    """Return the report as text for a terminal."""
    features = ", ".join(f"{name} ({_FEATURES[name]})" for name, is_present in report.features.items() if is_present)
    lines = [
        f"cores       {report.cores}, {report.threads} threads",
        f"CPU         {features or 'none that the kernels use'}",
        f"compiler    {report.compiler or 'none'}",
        f"memory      {report.free_memory_gib:.1f} GiB free to this process",
        f"GPU         {report.gpu or 'none'}",
        f"kernels     {report.kernels}",
        *(f"            {reason}" for reason in report.reasons),
        "",
        "results, against the reference in float32",
        *(f"  {'ok   ' if c.is_right else 'WRONG'} {c.name}, error {c.error:.4f}" for c in report.checks),
        "",
        "speed",
        *(f"  {speed.name:<40} {speed.value:8.1f} {speed.unit}" for speed in report.speeds),
    ]
    return "\n".join(lines)
