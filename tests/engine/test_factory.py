"""Tests of engine/factory.py: how the configuration, the device and the memory determine the parts of an engine."""

import os
from pathlib import Path

import pytest
import torch

from engine import factory
from engine.config import EngineConfig
from engine.errors import CheckpointError, EngineError
from engine.factory import EngineParts, build_parts
from engine.step_budget import StepBudget
from tests.fakes.checkpoints import write_tiny


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    write_tiny(folder, window=64)
    return folder


def build(folder: Path, **options: object) -> EngineParts:
    threads = torch.get_num_threads()
    settings = {"model": str(folder), "kernels": "torch", "kv_tokens": 320, **options}
    try:
        return build_parts(EngineConfig(**settings), lambda folder: None)  # type: ignore[arg-type]
    finally:
        torch.set_num_threads(threads)


def test_folder_is_announced_before_the_weights_are_read(tmp_path: Path) -> None:
    write_tiny(tmp_path, window=64)
    (tmp_path / "model.safetensors").unlink()
    announced: list[Path] = []
    with pytest.raises(CheckpointError, match=r"no \.safetensors file"):
        build_parts(EngineConfig(model=str(tmp_path), kernels="torch"), announced.append)
    assert announced == [tmp_path]


def test_drafts_and_overlap_exclude_each_other(folder: Path) -> None:
    with pytest.raises(EngineError, match="exclude each other"):
        build(folder, overlap="on", speculation="on")
    assert build(folder, overlap="on").speculator is None
    assert build(folder, speculation="on").speculator is not None
    assert not build(folder, speculation="on").overlaps


def test_drafts_are_automatic_only_where_they_change_no_text(folder: Path) -> None:
    parts = build(folder, kernels="auto")
    assert (parts.speculator is not None) == parts.decoder.kernels.is_batch_invariant
    assert build(folder, kernels="auto", speculation="off").speculator is None
    assert build(folder, kernels="torch").speculator is None, "the torch kernels depend on the batch"


def test_pool_has_the_requested_size_in_whole_blocks(folder: Path) -> None:
    assert build(folder, kv_tokens=100).cache.capacity == 112
    assert build(folder, kv_tokens=100).info.kv_tokens == 112


def test_pool_shares_free_memory_with_the_peers(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    requests: list[tuple[int, int, int]] = []

    def affordable(*sizes: int) -> int:
        requests.append(sizes)  # type: ignore[arg-type]
        return 160

    monkeypatch.setattr(factory, "affordable_tokens", affordable)
    parts = build(folder, kv_tokens=0, peers=3)
    assert requests == [(parts.decoder.kv_bytes_per_token, 64, 3)]
    assert parts.info.kv_tokens == 160


@pytest.mark.parametrize(("requested", "slots"), [(-1, 0), (0, 0), (40, 2)])
def test_engine_on_a_cpu_offloads_only_on_request(folder: Path, requested: int, slots: int) -> None:
    assert build(folder, host_kv_tokens=requested).cache.host_offload.slots == slots


def test_offload_of_a_gpu_is_bounded_by_the_pool_and_the_host(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decoder, config = build(folder).decoder, EngineConfig(peers=2)
    gpu = torch.device("cuda")
    monkeypatch.setattr(factory, "free_memory", lambda: 1000 * decoder.kv_bytes_per_token)
    assert factory._host_tokens(config, decoder, gpu, 5000) == 100, "a fifth of the free memory, for two engines"
    assert factory._host_tokens(config, decoder, gpu, 60) == 60


def test_cores_are_shared_with_the_peers(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(8)))
    assert build(folder, peers=4).info.threads == 2
    assert build(folder, peers=4, threads=1).info.threads == 1


def test_warm_up_measures_the_cost_of_rows(folder: Path) -> None:
    step_budget = build(folder, speculation="on").step_budget
    initial = StepBudget(decode_share=0.65, max_step_seconds=0.1)
    assert step_budget.decode_seconds != initial.decode_seconds
    assert step_budget.row_seconds != initial.row_seconds
