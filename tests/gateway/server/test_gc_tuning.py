"""gateway/server/gc_tuning.py: everything is looked at while nobody waits, and else seldom."""

import gc
import weakref
from collections.abc import Iterator

import pytest

from gateway.server.gc_tuning import GcTuner


class Clock:
    """Every look at it takes `step` seconds."""

    now = 0.0
    step = 0.05

    def __call__(self) -> float:
        self.now += self.step
        return self.now


class Knot:
    def __init__(self) -> None:
        self.self = self


@pytest.fixture
def collector() -> Iterator[tuple[GcTuner, Clock]]:
    before, clock = gc.get_threshold(), Clock()
    collector = GcTuner(clock)
    collector.begin()
    yield collector, clock
    gc.unfreeze()
    gc.set_threshold(*before)


def old_garbage() -> "weakref.ref[Knot]":
    """A cycle that has stayed when the young were looked at, and then was let go of."""
    knot = Knot()
    gc.collect(1)
    return weakref.ref(knot)


@pytest.mark.parametrize(
    ("idle", "after", "looks"), [(True, 6, True), (True, 4, False), (False, 51, True), (False, 49, False)]
)
def test_it_takes_a_small_part_of_the_time(
    collector: tuple[GcTuner, Clock], idle: bool, after: float, looks: bool
) -> None:
    """A look took 50 ms: a hundredth of 5 seconds, a thousandth of 50."""
    it, clock = collector
    garbage = old_garbage()
    clock.now += after
    assert it.sweep(idle=idle) == looks
    assert (garbage() is None) == looks


def test_it_does_not_look_where_nothing_is_new(collector: tuple[GcTuner, Clock]) -> None:
    it, clock = collector
    clock.now += 1000
    gc.collect()
    assert not it.sweep(idle=True)


def test_a_full_look_comes_by_itself_never(collector: tuple[GcTuner, Clock]) -> None:
    full = gc.get_stats()[2]["collections"]
    kept = [[number] for number in range(200_000)]
    assert len(kept) == 200_000
    assert gc.get_stats()[2]["collections"] == full
    assert gc.get_stats()[1]["collections"] > 0


def test_memory_is_returned_while_idle_where_the_process_has_grown(monkeypatch: pytest.MonkeyPatch) -> None:
    before, held, trims, clock = gc.get_threshold(), [100 << 20], [], Clock()
    monkeypatch.setattr("gateway.server.gc_tuning.trim_memory", lambda: trims.append(held[0]))
    collector = GcTuner(clock, lambda: held[0])
    collector.begin()
    try:
        for idle, memory, seconds, trimmed in (
            (True, 110, 1, 0),  # grown a little
            (False, 300, 1, 0),  # a client waits
            (True, 300, 1, 1),
            (True, 310, 1, 1),  # too soon: returning took a hundredth of the time since
            (True, 310, 100, 2),  # what requests held may be free by now
            (True, 90, 100, 2),
            (True, 150, 100, 3),
        ):
            held[0] = memory << 20
            clock.now += seconds
            collector.sweep(idle=idle)
            assert len(trims) == trimmed, memory
    finally:
        gc.unfreeze()
        gc.set_threshold(*before)
