"""engine/kv/host_offload.py and what carries its copies out: KV that left the pool comes back as it was."""

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from engine import Engine, EngineConfig, SamplingParams
from engine.kernels.base import KVTensors
from engine.kv.host_offload import HostOffload, Swaps
from tests.checkpoints import write_tiny


def test_what_was_used_longest_ago_makes_room() -> None:
    shelf = HostOffload(2)
    for path in (1, 2):
        shelf.keep(path, (path,), 0, block=10 + path)
    shelf.bring(1, 5)
    shelf.take()
    shelf.keep(3, (3,), 0, block=13)
    assert [shelf.has(path, (path,), 0) for path in (1, 2, 3)] == [True, False, True]
    assert not shelf.has(1, (9,), 0), "other tokens of the same digest"
    assert not shelf.has(1, (1,), 7), "and other tokens before them"


def test_a_slot_that_is_to_be_read_is_not_written() -> None:
    shelf = HostOffload(1)
    shelf.keep(1, (1,), 0, block=11)
    shelf.take()
    shelf.bring(1, 5)
    shelf.keep(2, (2,), 0, block=12)
    assert shelf.take() == Swaps([], [(0, 5)]), "what has no room is given up"
    shelf.keep(2, (2,), 0, block=12)
    assert shelf.take() == Swaps([(12, 0)], [])


def test_a_shelf_without_slots_keeps_nothing() -> None:
    shelf = HostOffload(0)
    shelf.keep(1, (1,), 0, block=11)
    assert not len(shelf)
    assert shelf.take() == Swaps([], [])


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("keep"), st.integers(0, 9), st.integers(1, 6)),
            st.tuples(st.just("bring"), st.integers(0, 9), st.integers(1, 6)),
            st.tuples(st.just("take"), st.just(0), st.just(0)),
        ),
        max_size=80,
    ),
    st.integers(0, 4),
)
def test_what_comes_back_is_what_was_there(operations: list[tuple[str, int, int]], slots: int) -> None:
    """Against a pool and slots that are dictionaries: what a block holds is the path that was read into it."""
    shelf = HostOffload(slots)
    meant: dict[int, int] = {}
    pool: dict[int, int] = {}
    host: dict[int, int] = {}

    def carry_out() -> None:
        swaps = shelf.take()
        for block, slot in swaps.outs:
            host[slot] = pool[block]
        for slot, block in swaps.ins:
            pool[block] = host[slot]

    for kind, path, block in operations:
        if kind == "keep" and block not in meant:
            carry_out()  # the block was computed in an earlier step
            pool[block] = path
            shelf.keep(path, (path,), 0, block)
        elif kind == "bring" and shelf.has(path, (path,), 0) and block not in meant:
            meant[block] = path
            shelf.bring(path, block)
        elif kind == "take":
            carry_out()
            for at, wanted in meant.items():
                assert pool[at] == wanted
            meant.clear()
        assert len(shelf) <= slots


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float8_e4m3fn])
def test_blocks_go_out_before_others_come_in(dtype: torch.dtype) -> None:
    kv = KVTensors.zeros(3, (6, 2, 16, 8), dtype)
    for layer in (*kv.keys, *kv.values):
        layer[:] = torch.randn(layer.shape).to(dtype)
    before = [layer.float().clone() for layer in (*kv.keys, *kv.values)]
    slots = kv.slots(4)
    kv.swap(slots, [(1, 3), (2, 0)], [])
    kv.swap(slots, [(5, 1)], [(3, 5), (0, 4)])
    kv.swap(slots, [], [(1, 2)])
    for was, layer in zip(before, (*kv.keys, *kv.values), strict=True):
        for block, now in {0: 0, 1: 1, 3: 3, 5: 1, 4: 2, 2: 5}.items():
            assert torch.equal(layer[block].float(), was[now])


@pytest.mark.parametrize("overlap", ["on", "off"])
def test_a_prompt_that_left_the_pool_is_not_computed_again(tmp_path: Path, overlap: str) -> None:
    write_tiny(tmp_path, window=256)
    told = []
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
            tokens = [20 + (turn % 3) * 40 + at % 37 for at in range(110)]  # three prompts, of which one fits
            engine.fill(turn, tokens)
            engine.generate(turn, SamplingParams(temperature=0.0, max_tokens=8, ignore_eos=True))
            said: list[int] = []
            while engine.has_work:
                for update in engine.step():
                    said += update.tokens
                    if update.filled is not None:
                        found.append(update.cached)
                engine.check_integrity()
            texts.append(said)
            engine.free_context(turn)
        told.append(texts)
        assert found[3:] == ([96, 96, 96] if host else [0, 0, 0])
    assert told[0] == told[1]
    assert told[0][:3] == told[0][3:]
