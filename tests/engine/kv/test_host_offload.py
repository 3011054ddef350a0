"""Tests of engine/kv/host_offload.py and of the copies: KV that left the pool returns unchanged."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine import Engine, EngineConfig, SamplingParams
from engine.kv.host_offload import HostOffload, Swaps
from tests.fakes.checkpoints import write_tiny


def test_least_recently_used_slot_is_reused() -> None:
    host_offload = HostOffload(2)
    for path in (1, 2):
        host_offload.store(path, (path,), 0, block=10 + path)
    host_offload.load(1, 5)
    host_offload.take_swaps()
    host_offload.store(3, (3,), 0, block=13)
    assert [host_offload.contains(path, (path,), 0) for path in (1, 2, 3)] == [True, False, True]
    assert not host_offload.contains(1, (9,), 0), "other tokens with the same digest"
    assert not host_offload.contains(1, (1,), 7), "other tokens before them"


def test_slot_with_a_pending_load_is_not_overwritten() -> None:
    host_offload = HostOffload(1)
    host_offload.store(1, (1,), 0, block=11)
    host_offload.take_swaps()
    host_offload.load(1, 5)
    host_offload.store(2, (2,), 0, block=12)
    assert host_offload.take_swaps() == Swaps([], [(0, 5)]), "a block without room is dropped"
    host_offload.store(2, (2,), 0, block=12)
    assert host_offload.take_swaps() == Swaps([(12, 0)], [])


def test_offload_without_slots_stores_nothing() -> None:
    host_offload = HostOffload(0)
    host_offload.store(1, (1,), 0, block=11)
    assert not len(host_offload)
    assert host_offload.take_swaps() == Swaps([], [])


@settings(max_examples=200)
@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("store"), st.integers(0, 9), st.integers(1, 6)),
            st.tuples(st.just("load"), st.integers(0, 9), st.integers(1, 6)),
            st.tuples(st.just("take"), st.just(0), st.just(0)),
        ),
        max_size=80,
    ),
    st.integers(0, 4),
)
def test_loaded_blocks_equal_the_stored_ones(operations: list[tuple[str, int, int]], slots: int) -> None:
    """Compare with a pool and slots that are dictionaries: a block holds the path that was computed into it."""
    host_offload = HostOffload(slots)
    meant: dict[int, int] = {}
    pool: dict[int, int] = {}
    host: dict[int, int] = {}

    def make_copies() -> None:
        swaps = host_offload.take_swaps()
        for block, slot in swaps.outs:
            host[slot] = pool[block]
        for slot, block in swaps.ins:
            pool[block] = host[slot]

    for kind, path, block in operations:
        if kind == "store" and block not in meant:
            make_copies()  # the block was computed in an earlier step
            pool[block] = path
            host_offload.store(path, (path,), 0, block)
        elif kind == "load" and host_offload.contains(path, (path,), 0) and block not in meant:
            meant[block] = path
            host_offload.load(path, block)
        elif kind == "take":
            make_copies()
            for index, expected in meant.items():
                assert pool[index] == expected
            meant.clear()
        assert len(host_offload) <= slots


@pytest.mark.parametrize("overlap", ["on", "off"])
def test_offloaded_prompt_is_not_recomputed(tmp_path: Path, overlap: str) -> None:
    write_tiny(tmp_path, window=256)
    answers = []
    for host in (0, 512):
        engine = Engine(
            EngineConfig(
                model=str(tmp_path),
                dtype="float32",
                kv_tokens=160,
                step_tokens=64,
                host_kv_tokens=host,
                overlap=overlap,  # type: ignore[arg-type]
            )
        )
        found, texts = [], []
        for turn in range(6):
            tokens = [20 + (turn % 3) * 40 + index % 37 for index in range(110)]  # three prompts; one fits
            engine.fill(turn, tokens)
            engine.generate(turn, SamplingParams(temperature=0.0, max_tokens=8, ignore_eos=True))
            outputs: list[int] = []
            while engine.has_work:
                for update in engine.step():
                    outputs += update.tokens
                    if update.filled is not None:
                        found.append(update.cached)
                engine.check_integrity()
            texts.append(outputs)
            engine.free_context(turn)
        answers.append(texts)
        assert found[3:] == ([96, 96, 96] if host else [0, 0, 0])
    assert answers[0] == answers[1]
    assert answers[0][:3] == answers[0][3:]
