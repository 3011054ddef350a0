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


@given(
    st.lists(
        st.tuples(st.sampled_from("ab"), st.sampled_from("xyz"), st.integers(0, 99), st.integers(0, 2)), max_size=400
    ),
    st.integers(0, 400),
)
def test_restored_durations_are_as_if_they_had_been_observed_first(
    observed: list[tuple[str, str, int, int]], count: int
) -> None:
    """Compare a process that observes all durations with one that observes the later ones, then restores the others."""
    expected, times = ToolTimes(), ToolTimes()
    earlier: dict[tuple[str, str], list[tuple[float, float]]] = {}
    now = -MAX_AGE_SECONDS
    for number, (tenant, tool, seconds, step) in enumerate(observed):
        now += 1.0 + step * MAX_AGE_SECONDS / 300
        expected.observe(tenant, tool, float(seconds), now)
        if number < count:
            earlier.setdefault((tenant, tool), []).append((now, float(seconds)))
        else:
            times.observe(tenant, tool, float(seconds), now)
    for (tenant, tool), durations in sorted(earlier.items(), key=lambda item: max(item[1]), reverse=True):
        times.restore(tenant, tool, durations[::-1])
    assert len(times) == len(expected)
    assert {name: list(known.tools) for name, known in times._tenants.items()} == {
        name: list(known.tools) for name, known in expected._tenants.items()
    }
    for name, known in expected._tenants.items():
        restored = times._tenants[name]
        for tool, durations in known.tools.items():
            assert restored.tools[tool].ordered == durations.ordered
        assert restored.durations.ordered == known.durations.ordered


def test_restored_durations_of_all_tenants_have_equal_shares() -> None:
    times = ToolTimes()
    times.observe("loud", "now", 9.0, 1_000.0)
    times.restore("loud", "bash", [(number, 9.0) for number in range(200)])
    times.restore("loud", "read", [(number + 0.5, 8.0) for number in range(200)])
    times.restore("quiet", "bash", [(number, 5.0) for number in range(20)])
    assert list(times.forecast("new", "bash")) == [5.0] * 20 + [8.0] * 54 + [9.0] * 54
    times.restore("third", "bash", [(-MAX_AGE_SECONDS, 1.0), (3.0, 2.0)])
    assert list(times.forecast("new", "bash"))[:2] == [2.0, 5.0]
    times.restore("fourth", "bash", [(999.0 - MAX_AGE_SECONDS, 1.0)])
    assert list(times.forecast("new", "bash"))[:2] == [2.0, 5.0], "too old beside those of others"
    for number in range(MAX_TOOLS):
        times.restore(f"tenant {number}", "bash", [(0.0, 1.0)])
    assert len(times) == MAX_TOOLS
    assert len(times.forecast("new", "bash")) == SAMPLES


def test_restored_tools_are_the_first_to_be_forgotten() -> None:
    times = ToolTimes()
    for number in range(ENOUGH):
        times.observe("a", "bash", 5.0, float(number))
    for number in range(2 * MAX_TOOLS_OF_TENANT):
        times.restore("a", f"tool {number}", [(-1.0 - number, 1.0)] * ENOUGH)
    assert len(times) == MAX_TOOLS_OF_TENANT
    assert list(times.forecast("a", "bash")) == [5.0] * ENOUGH
    assert list(times.forecast("a", f"tool {MAX_TOOLS_OF_TENANT - 2}")) == [1.0] * ENOUGH
    assert list(times.forecast("a", f"tool {MAX_TOOLS_OF_TENANT - 1}")) != [1.0] * ENOUGH
    times.restore("a", "bash", [])
    times.restore("b", "bash", [])
    assert len(times) == MAX_TOOLS_OF_TENANT


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
