"""Tests of engine/kv/sizing.py: the KV pool is sized from the memory of this process, not of the machine."""

from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from engine.kv.sizing import affordable_tokens, free_memory

GIB = 1 << 30


@pytest.fixture(autouse=True)
def host_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=20 * GIB))


def control_group(folder: Path, limit: str, used: int, cached: int, *, version: int = 2) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    names = ("memory.max", "memory.current") if version == 2 else ("memory.limit_in_bytes", "memory.usage_in_bytes")
    (folder / names[0]).write_text(f"{limit}\n")
    (folder / names[1]).write_text(f"{used}\n")
    prefix = "" if version == 2 else "total_"
    (folder / "memory.stat").write_text(f"anon {used - cached}\n{prefix}inactive_file {cached}\n")


def test_without_control_group_the_machines_memory_counts(tmp_path: Path) -> None:
    assert free_memory(tmp_path, tmp_path / "nothing") == 20 * GIB


def test_control_group_version_2(tmp_path: Path) -> None:
    control_group(tmp_path, str(4 * GIB), 3 * GIB, GIB)
    process = tmp_path / "cgroup"
    process.write_text("0::/\n")
    assert free_memory(tmp_path, process) == 2 * GIB, "page cache that can be dropped counts as free"


def test_smallest_limit_of_nested_groups_counts(tmp_path: Path) -> None:
    control_group(tmp_path / "slice", str(2 * GIB), GIB, 0)
    control_group(tmp_path / "slice" / "unit", "max", GIB, 0)
    process = tmp_path / "cgroup"
    process.write_text("0::/slice/unit\n")
    assert free_memory(tmp_path, process) == GIB


def test_control_group_inside_a_container(tmp_path: Path) -> None:
    control_group(tmp_path, str(3 * GIB), GIB, 0)
    process = tmp_path / "cgroup"
    process.write_text("0::/docker/0123abcd\n")
    assert free_memory(tmp_path, process) == 2 * GIB


def test_control_group_version_1(tmp_path: Path) -> None:
    control_group(tmp_path / "memory" / "box", str(8 * GIB), 2 * GIB, GIB, version=1)
    process = tmp_path / "cgroup"
    process.write_text("5:cpu,cpuacct:/box\n4:memory:/box\n")
    assert free_memory(tmp_path, process) == 7 * GIB


def test_unlimited_group_is_ignored(tmp_path: Path) -> None:
    control_group(tmp_path, "max", GIB, 0)
    process = tmp_path / "cgroup"
    process.write_text("0::/\n")
    assert free_memory(tmp_path, process) == 20 * GIB


def test_pool_is_a_share_of_memory_up_to_a_maximum() -> None:
    assert affordable_tokens(20_000, 10**9) == pytest.approx(free_memory() * 0.3 / 20_000, rel=0.01)
    assert affordable_tokens(1, 100) == 3200
    assert affordable_tokens(1 << 60, 100) == 1
