"""Tests of engine/doctor.py and `myna doctor`."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from engine import doctor
from engine.config import default_cache
from engine.kernels.cpu import CpuKernels
from engine.kernels.reference import TorchKernels


def test_report_names_the_kernels_and_passes() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "gateway", "doctor", "--json"], capture_output=True, text=True, check=True
    )
    report = json.loads(done.stdout)
    assert report["cores"] >= 1
    assert report["kernels"].startswith("C with")
    assert all(check["right"] for check in report["checks"])
    assert len(report["checks"]) >= 7
    assert all(speed["value"] > 0 for speed in report["speeds"])


def test_report_explains_missing_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CC", str(tmp_path / "no-compiler"))
    report = doctor.examine(tmp_path)
    assert report.kernels.startswith("torch")
    assert any("no-compiler" in reason for reason in report.reasons)
    assert report.is_healthy
    assert "no-compiler" in doctor.format_report(report)


def test_wrong_results_are_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    def return_wrong_result(self: TorchKernels, x: torch.Tensor, weight: object) -> torch.Tensor:
        return right(self, x, weight) * 1.05

    right = CpuKernels.linear
    monkeypatch.setattr(CpuKernels, "linear", return_wrong_result)
    report = doctor.examine(Path(default_cache()))
    assert not report.is_healthy
    assert "WRONG linear layer" in doctor.format_report(report)
