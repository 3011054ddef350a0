"""GcTuner: full collections run while the server is idle, and rarely otherwise."""

import gc
import weakref
from collections.abc import Iterator

import pytest

from gateway.server.gc_tuning import GcTuner


class FakeClock:
    """A clock that advances by `step` seconds at each reading."""

    now = 0.0
    step = 0.05

    def __call__(self) -> float:
        self.now += self.step
        return self.now


class Cycle:
    def __init__(self) -> None:
        self.self = self


@pytest.fixture
def collector() -> Iterator[tuple[GcTuner, FakeClock]]:
    before, clock = gc.get_threshold(), FakeClock()
    collector = GcTuner(clock)
    collector.start()
    yield collector, clock
    gc.set_threshold(*before)


def old_garbage() -> "weakref.ref[Cycle]":
    """Return a reference to an unreachable cycle that has survived a collection of young objects."""
    cycle = Cycle()
    gc.collect(1)
    return weakref.ref(cycle)


@pytest.mark.parametrize(
    ("idle", "seconds", "collects"), [(True, 6, True), (True, 4, False), (False, 51, True), (False, 49, False)]
)
def test_full_collections_take_a_small_share_of_the_time(
    collector: tuple[GcTuner, FakeClock], idle: bool, seconds: float, collects: bool
) -> None:
    # a collection takes 50 ms: a hundredth of 5 seconds, a thousandth of 50
    tuner, clock = collector
    garbage = old_garbage()
    clock.now += seconds
    assert tuner.sweep(idle=idle) == collects
    assert (garbage() is None) == collects


def test_nothing_is_collected_without_new_objects(collector: tuple[GcTuner, FakeClock]) -> None:
    tuner, clock = collector
    clock.now += 1000
    gc.collect()
    assert not tuner.sweep(idle=True)


def test_python_runs_no_full_collection_by_itself(collector: tuple[GcTuner, FakeClock]) -> None:
    full = gc.get_stats()[2]["collections"]
    objects = [[number] for number in range(200_000)]
    assert len(objects) == 200_000
    assert gc.get_stats()[2]["collections"] == full
    assert gc.get_stats()[1]["collections"] > 0


def test_memory_is_returned_while_idle_if_the_process_has_grown(monkeypatch: pytest.MonkeyPatch) -> None:
    before, memory, trims, clock = gc.get_threshold(), [100 << 20], [], FakeClock()
    monkeypatch.setattr("gateway.server.gc_tuning.trim_memory", lambda: trims.append(memory[0]))
    collector = GcTuner(clock, lambda: memory[0])
    collector.start()
    try:
        for idle, megabytes, seconds, trimmed in (
            (True, 110, 1, 0),  # little growth
            (False, 300, 1, 0),  # a client waits
            (True, 300, 1, 1),
            (True, 310, 1, 1),  # too soon: the last time took more than a hundredth of the time since
            (True, 310, 100, 2),  # more memory of requests may be free
            (True, 90, 100, 2),
            (True, 150, 100, 3),
        ):
            memory[0] = megabytes << 20
            clock.now += seconds
            collector.sweep(idle=idle)
            assert len(trims) == trimmed, megabytes
    finally:
        gc.set_threshold(*before)
