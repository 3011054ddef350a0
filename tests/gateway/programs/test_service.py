"""gateway/programs/service.py: ranks of programs, the starvation bound, decay and bounds."""

import itertools
from unittest import mock

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.programs import service as module
from gateway.programs.service import (
    GRANT_SECONDS,
    HALF_LIFE,
    IDLE_SECONDS,
    MAX_DIFFERENCE,
    MAX_LEAD,
    PROGRESS_FROM,
    PROGRESS_SECONDS,
    SERVICE_FACTOR,
    ProgramService,
    progress,
)


def test_a_program_that_returns_goes_before_newcomers() -> None:
    service = ProgramService()
    service.begin("agent", "key", 0.0)
    service.charge("agent", 5.0, 50.0)
    service.begin("newcomer", "key", 60.0)
    service.begin("agent", "key", 61.0)
    assert service.due("agent", 61.0, 61.0) < service.due("newcomer", 60.0, 61.0)


def test_a_short_program_does_not_wait_for_all_of_a_long_one() -> None:
    service = ProgramService()
    service.begin("long", "key", 0.0)
    service.charge("long", GRANT_SECONDS + 100.0, 100.0)
    service.begin("short", "key", 100.0)
    assert service.due("short", 100.0, 100.0) < service.due("long", 100.0, 100.0)


def test_of_programs_that_arrive_together_the_one_nearer_its_end_goes_first() -> None:
    service = ProgramService()
    for program in ("less full", "nearly full"):
        service.begin(program, "key", 0.0, 0.1)
    service.begin("less full", "key", 0.0, 0.8, extends=True)
    service.begin("nearly full", "key", 0.0, 0.9, extends=True)
    for program in ("less full", "nearly full"):
        service.charge(program, 0.0, 0.0)
        service.begin(program, "key", 0.0, 0.2, extends=True)  # shortened by the client: the longest one counts
    service.begin("first", "key", -1.0, 0.1)
    order = sorted(("first", "less full", "nearly full"), key=lambda program: service.due(program, 0.0, 0.0))
    assert order == ["nearly full", "less full", "first"]


@given(st.floats(0.0, PROGRESS_FROM), st.floats(0.0, PROGRESS_FROM), st.integers(1, 300))
def test_programs_with_room_in_the_window_go_in_order_of_arrival(earlier: float, later: float, calls: int) -> None:
    service = ProgramService()
    service.begin("earlier", "key", 0.0, earlier)
    for _ in range(calls):
        service.begin("later", "key", 1.0, later, extends=True)
        service.charge("later", 0.0, 1.0)
    assert service.due("earlier", 1.0, 1.0) < service.due("later", 1.0, 1.0)


@given(st.lists(st.floats(0.0, 2.0), min_size=1))
def test_a_long_prompt_that_extends_no_call_is_no_progress(filled: list[float]) -> None:
    service = ProgramService()
    service.begin("agent", "key", 0.0, 0.1)
    service.begin("a title, then long prompts", "key", 1.0, 0.01)
    for part in filled:
        service.begin("a title, then long prompts", "key", 1.0, part)
        service.charge("a title, then long prompts", 0.0, 1.0)
    assert service.due("agent", 1.0, 1.0) < service.due("a title, then long prompts", 1.0, 1.0)
    for _ in range(3):  # three answers of one request
        service.begin("a title, then long prompts", "key", 1.0, 0.9, extends=True)
    assert service.due("agent", 1.0, 1.0) < service.due("a title, then long prompts", 1.0, 1.0), "it counts later"
    service.charge("a title, then long prompts", 0.0, 1.0)
    assert service.due("agent", 1.0, 1.0) > service.due("a title, then long prompts", 1.0, 1.0)


def test_progress_is_bounded_and_grows_with_the_prompt() -> None:
    service = ProgramService()
    service.begin("agent", "key", 0.0, 0.3)
    service.begin("agent", "key", 0.0, 17.0, extends=True)
    service.charge("agent", 0.0, 0.0)
    assert service.due("agent", 0.0, 0.0) == -PROGRESS_SECONDS
    assert service.rank("agent", 0.0) == 0.0, "what a program may displace does not depend on its progress"
    steps = [progress(number / 100) for number in range(101)]
    assert steps == sorted(steps)
    assert steps[0] == progress(PROGRESS_FROM) == 0.0 < progress(PROGRESS_FROM + 0.01)


def test_weights_divide_the_service() -> None:
    service = ProgramService({"heavy": 4.0})
    for program in ("heavy", "light"):
        service.begin(program, program, 0.0)
        service.charge(program, 8 * GRANT_SECONDS, 0.0)
    assert service.rank("heavy", 0.0) == SERVICE_FACTOR * GRANT_SECONDS
    assert service.rank("light", 0.0) == SERVICE_FACTOR * 7 * GRANT_SECONDS


def test_attained_service_decays() -> None:
    service = ProgramService()
    service.begin("agent", "key", 0.0)
    service.charge("agent", 8 * GRANT_SECONDS, 0.0)
    assert service.rank("agent", HALF_LIFE) == pytest.approx(SERVICE_FACTOR * 3 * GRANT_SECONDS)
    assert service.rank("agent", 2 * HALF_LIFE) == pytest.approx(SERVICE_FACTOR * GRANT_SECONDS)


def test_an_idle_program_counts_as_new() -> None:
    service = ProgramService()
    service.begin("agent", "key", 0.0)
    service.begin("agent", "key", IDLE_SECONDS, 1.0, extends=True)
    service.charge("agent", 0.0, IDLE_SECONDS)
    assert service.rank("agent", IDLE_SECONDS) == 0.0
    assert service.due("agent", IDLE_SECONDS, IDLE_SECONDS) == -PROGRESS_SECONDS
    service.begin("agent", "key", 3 * IDLE_SECONDS, 1.0, extends=True)
    assert service.rank("agent", 3 * IDLE_SECONDS) == 3 * IDLE_SECONDS
    due = service.due("agent", 3 * IDLE_SECONDS, 3 * IDLE_SECONDS)
    assert due == 3 * IDLE_SECONDS, "its prompts count anew"


@pytest.mark.parametrize("begun", [0.0, 9_000.0])
@given(
    programs=st.integers(1, 40),
    slices=st.lists(st.floats(20.0, 400.0), min_size=1, max_size=10),
    filled=st.sampled_from([0.0, 2.0]),
    weight=st.sampled_from([1.0, 4.0]),
)
def test_no_call_starves(begun: float, programs: int, slices: list[float], filled: float, weight: float) -> None:
    """Serve the call with the earliest deadline, one at a time. Some programs, older or younger than a call that waits,
    always have a call. None of their calls that arrive after a time goes before it, so it gets its turn."""
    service = ProgramService({"key": weight})
    arrivals: dict[str, float] = {}
    deadlines: dict[str, float] = {}

    def request(program: str, now: float) -> None:
        service.begin(program, "key", now)
        service.begin(program, "key", now, 0.0 if program == "waiting" else filled, extends=True)
        service.charge(program, 0.0, now)
        arrivals[program] = now
        deadlines[program] = now - service.lead(program, "key", now)

    names = [f"program {number}" for number in range(programs)]
    if begun < 8_000.0:
        for name in names:
            request(name, begun)
            request(name, begun + 3_000.0)
            request(name, begun + 6_000.0)
    request("waiting", 8_000.0)
    if begun >= 8_000.0:
        for name in names:
            request(name, begun)
    now, turns = max(begun, 8_000.0), itertools.cycle(slices)
    while (first := min(deadlines, key=deadlines.__getitem__)) != "waiting":
        assert arrivals[first] <= 8_000.0 + 2 * MAX_LEAD
        seconds = next(turns)
        now += seconds
        service.charge(first, seconds, now)
        request(first, now)


def test_the_lead_is_bounded_in_both_directions() -> None:
    service = ProgramService()
    for second in range(0, 20_000, 1_000):
        service.begin("old", "key", float(second), 1.0, extends=second > 0)
        service.charge("old", 0.0, float(second))
    assert service.lead("old", "key", 20_000.0) == MAX_LEAD, "progress included"
    service.begin("greedy", "key", 20_000.0)
    service.charge("greedy", 1e9, 20_000.0)
    assert service.lead("greedy", "key", 20_000.0) == -MAX_LEAD


def test_a_tenant_whose_calls_belong_to_no_program_counts_as_active() -> None:
    service = ProgramService()
    service.begin("agent", "busy", 0.0)
    service.begin("agent", "busy", 0.0, 1.0, extends=True)
    service.charge("agent", 0.0, 0.0)
    assert service.lead("agent", "busy", 0.0) == PROGRESS_SECONDS
    service.average_lead("other", 1.0)
    service.begin("new", "busy", 1.0)
    assert service.lead("agent", "busy", 1.0) - service.lead("new", "busy", 1.0) <= 2 * MAX_DIFFERENCE


def test_memory_is_bounded() -> None:
    with mock.patch.object(module, "MAX_PROGRAMS", 100):
        service = ProgramService()
    for number in range(1000):
        service.begin(f"program {number}", "key", float(number))
        service.begin("regular", "key", float(number))
    assert len(service) == 100
    assert service.rank("regular", 999.0) == 0.0  # used all the time, so never forgotten
    assert service.rank("program 0", 999.0) == 999.0  # forgotten


def test_a_tenant_with_many_programs_pushes_out_no_others() -> None:
    with mock.patch.object(module, "MAX_PROGRAMS", 100):
        service = ProgramService()
    service.begin("quiet", "quiet key", 0.0)
    service.charge("quiet", 2 * GRANT_SECONDS, 0.0)
    for number in range(1000):
        service.begin(f"program {number}", "loud key", 1.0)
    assert service.rank("quiet", 0.0) == SERVICE_FACTOR * GRANT_SECONDS
    assert len(service) == 100
    assert service.forget_some("loud key")
    assert not service.forget_some("loud key")
    assert len(service) == 1
    assert service.forget_some("quiet key")
    assert (len(service), service.delay("quiet", 0.0)) == (0, 0.0)


@pytest.mark.parametrize("seconds", [-1.0, float("inf"), float("nan")])
def test_impossible_service_is_refused(seconds: float) -> None:
    with pytest.raises(ValueError, match="cannot attain"):
        ProgramService().charge("agent", seconds, 0.0)


def test_programs_of_a_tenant_that_is_alone_have_the_time_since_they_were_due_as_lead() -> None:
    service = ProgramService()
    for program, arrival in (("old", 100.0), ("young", 1900.0)):
        service.begin(program, "key", arrival)
    for now in (2000.0, 2500.0):
        for _ in range(100):
            service.begin("old", "key", now)
            assert service.lead("old", "key", now) == now - 100.0
        assert service.lead("young", "key", now) == now - 1900.0
        assert service.lead("unknown", "key", now) == 0.0


def test_old_programs_of_one_tenant_do_not_go_before_another_tenant() -> None:
    service = ProgramService()
    for second in range(0, 6000, 2):
        service.begin("agent", "busy", float(second))
        service.lead("agent", "busy", float(second))
    now = 6000.0
    service.begin("new", "other", now)
    other, agent = service.lead("new", "other", now), service.lead("agent", "busy", now)
    assert abs(other - agent) < 150.0
    service.begin("new agent", "busy", now)
    assert other - 450.0 <= service.lead("new agent", "busy", now) < agent, "nor far behind it"


@given(st.lists(st.tuples(st.sampled_from("abcd"), st.floats(0, 100)), min_size=2, max_size=40))
def test_tenants_that_are_active_differ_by_a_bounded_lead(calls: list[tuple[str, float]]) -> None:
    service, now, seen = ProgramService(), 10.0, set()
    for program, pause in calls:
        now += pause
        tenant = program.translate(str.maketrans("bd", "ac"))
        service.begin(program, tenant, now)
        seen.add(tenant)
        lead = service.lead(program, tenant, now)
        average = service.average_lead(tenant, now)
        assert abs(lead - average) <= MAX_DIFFERENCE + 1e-6 or len(seen) == 1


def test_the_average_lead_fades_without_calls() -> None:
    service = ProgramService()
    assert service.average_lead("key", 0.0) == 0.0
    service.begin("agent", "key", 0.0)
    service.lead("agent", "key", 1000.0)
    assert service.average_lead("key", 1000.0) == pytest.approx(1000.0)
    assert service.average_lead("key", 1060.0) == pytest.approx(1000.0), "not in the first minute"
    assert service.average_lead("key", 1660.0) == pytest.approx(500.0)


def test_averages_of_tenants_are_bounded() -> None:
    service = ProgramService()
    with mock.patch.object(module, "_MAX_TENANTS", 3):
        for number in range(10):
            service.lead("program", f"key {number}", 0.0)
    assert len(service._averages) == 3


@given(idle=st.floats(0.0, IDLE_SECONDS), age=st.floats(0.0, 20_000.0), calls=st.integers(1, 5))
def test_calls_without_a_program_do_not_wait_for_an_old_program_that_returns(
    idle: float, age: float, calls: int
) -> None:
    """Let one key have an old program, and the other one only calls of named sessions. Whatever the old program did
    before, of calls that arrive together, none of the latter is due more than 600 s later."""
    service = ProgramService()
    now = 1.0
    while now <= age + 1.0:
        service.begin("old", "a", now)
        service.lead("old", "a", now)
        service.average_lead("b", now)
        now += 300.0
    now += idle
    for _ in range(calls):
        service.begin("old", "a", now)
        without = service.average_lead("b", now)
        assert service.lead("old", "a", now) - without <= 600.0
        now += 1.0
