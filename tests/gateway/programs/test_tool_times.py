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
    assert list(times.forecast("quiet", "bash"))[-1] < 5.0  # forgotten: what all tenants' tools took lately


def test_tenants_with_many_tools_take_none_from_tenants_with_few() -> None:
    times = ToolTimes()
    for _ in range(ENOUGH):
        times.observe("quiet", "bash", 5.0, 0.0)
    for number in range(10 * MAX_TOOLS_OF_TENANT):
        for tenant in range(2 * MAX_TOOLS // MAX_TOOLS_OF_TENANT):
            times.observe(f"loud {tenant}", f"tool {number}", 1.0, 1.0)
    assert len(times) == MAX_TOOLS
    assert list(times.forecast("quiet", "bash")) == [5.0] * ENOUGH


def test_one_tenant_alone_does_not_decide_what_new_tenants_expect() -> None:
    times = ToolTimes()
    for seconds in range(20):
        times.observe("quiet", "bash", 5.0 + seconds, 0.0)
    for _ in range(10 * SAMPLES):
        times.observe("loud", "bash", 3_600.0, 1.0)
    forecast = list(times.forecast("new", "bash"))
    assert forecast == [5.0 + seconds for seconds in range(20)] + [3_600.0] * (SAMPLES - 20)
    times.observe("new", "bash", 1.0, MAX_AGE_SECONDS + 1.0)
    assert list(times.forecast("other", "bash"))[:2] == [1.0, 3_600.0]


def test_a_tenant_that_is_forgotten_leaves_no_durations() -> None:
    times = ToolTimes()
    times.observe("stays", "bash", 7.0, 0.0)
    for number in range(ENOUGH):
        times.observe("goes", f"tool {number}", 1.0, 0.0)
    times.forget_tenant("goes")
    times.forget_tenant("goes")
    assert len(times) == 1
    assert list(times.forecast("goes", "tool 1")) == list(times.forecast("stays", "bash")) == [7.0]
    times.observe("goes", "bash", 9.0, 0.0)
    assert len(times) == 2


@pytest.mark.parametrize("seconds", [-1.0, float("inf"), float("nan")])
def test_impossible_durations_are_refused(seconds: float) -> None:
    with pytest.raises(ValueError, match="cannot take"):
        ToolTimes().observe("a", "bash", seconds, 0.0)
