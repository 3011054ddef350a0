"""gateway/programs/tool_times.py: what is learned of each tool, fallbacks, decay and bounds."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.programs.tool_times import ENOUGH, MAX_AGE_SECONDS, MAX_TOOLS, MAX_TOOLS_OF_TENANT, SAMPLES, ToolTimes


def test_a_forecast_falls_back_to_the_tenant_and_then_to_all() -> None:
    times = ToolTimes()
    assert list(times.forecast("a", "bash")) == []
    times.observe("b", "bash", 50.0, 0.0)
    assert list(times.forecast("a", "bash")) == [50.0]
    for seconds in range(ENOUGH):
        times.observe("a", "read", float(seconds), 0.0)
    assert list(times.forecast("a", "bash")) == [float(seconds) for seconds in range(ENOUGH)]
    for _ in range(ENOUGH):
        times.observe("a", "bash", 9.0, 0.0)
    assert list(times.forecast("a", "bash")) == [9.0] * ENOUGH
    assert list(times.forecast("a", "read")) == [float(seconds) for seconds in range(ENOUGH)]


@given(st.lists(st.floats(0, 1e5), min_size=ENOUGH, max_size=3 * SAMPLES))
def test_a_forecast_is_the_latest_durations_in_order(durations: list[float]) -> None:
    times = ToolTimes()
    for number, seconds in enumerate(durations):
        times.observe("a", "bash", seconds, float(number))
    assert list(times.forecast("a", "bash")) == sorted(durations[-SAMPLES:])


def test_old_durations_are_forgotten_once_there_are_newer_ones() -> None:
    times = ToolTimes()
    for _ in range(ENOUGH):
        times.observe("a", "bash", 1.0, 0.0)
    for _ in range(ENOUGH):
        times.observe("a", "bash", 2.0, MAX_AGE_SECONDS + 1)
    assert list(times.forecast("a", "bash")) == [2.0] * ENOUGH


def test_memory_is_bounded_and_a_tenant_forgets_its_own_tools_first() -> None:
    times = ToolTimes()
    for _ in range(ENOUGH):
        times.observe("quiet", "bash", 5.0, 0.0)
    for number in range(10 * MAX_TOOLS_OF_TENANT):
        times.observe("loud", f"tool {number}", 1.0, 1.0)
    assert len(times) == MAX_TOOLS_OF_TENANT + 1
    assert list(times.forecast("quiet", "bash")) == [5.0] * ENOUGH
    for number in range(2 * MAX_TOOLS):
        times.observe(f"tenant {number}", "bash", 1.0, 2.0)
    assert len(times) == MAX_TOOLS
    assert list(times.forecast("quiet", "bash")) == [1.0] * SAMPLES  # forgotten: what all tenants' tools took lately


@pytest.mark.parametrize("seconds", [-1.0, float("inf"), float("nan")])
def test_impossible_durations_are_refused(seconds: float) -> None:
    with pytest.raises(ValueError, match="cannot take"):
        ToolTimes().observe("a", "bash", seconds, 0.0)
