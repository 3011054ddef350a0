"""gateway/scheduler/priority.py: ranks follow from the subscribers, in whatever order the graph was built."""

import itertools

import hypothesis.strategies as st
import pytest
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from engine.sampling_params import SamplingParams
from gateway.graph.call import Call, CallSpec, CallState, Objective, ProgramMember
from gateway.graph.references import Reference
from gateway.graph.segments import Input, Slot, Text
from gateway.graph.session import Session
from gateway.programs.service import GRANT_SECONDS, MAX_DELAY, SERVICE_FACTOR, progress
from gateway.scheduler.cost_model import CostModel
from gateway.scheduler.objective import sources
from gateway.scheduler.priority import (
    LONG_WORK_EXTENSION,
    PATIENCE_SECONDS,
    PRODUCER_LEAD,
    WORK_FACTOR,
    Priorities,
)

_numbers = itertools.count()


def session(tenant: str = "") -> Session:
    return Session(id=f"s{next(_numbers)}", tenant=tenant, created=0.0, ttl=60.0)


def join(
    to: Session, *reads: str, prompt: int = 100, tokens: int = 20, objective: Objective | None = None, output: str = ""
) -> Call:
    inputs = [Input(Reference(name), "") for name in reads]
    slot = Slot(None, SamplingParams(max_tokens=tokens, ignore_eos=True))
    output = output or f"n{next(_numbers)}"
    segments = [Text([1] * prompt), *inputs, slot]
    return to.add(CallSpec(model="m", segments=segments, output=output, deferred=True, objective=objective))


def finish(call: Call, state: CallState = CallState.DONE) -> None:
    call.set_state(state)
    call.conclude()


class PriorityHarness:
    def __init__(self) -> None:
        self.cost_model = CostModel()
        self.priorities = Priorities(self.cost_model)
        self.now = 1000.0

    def add(self, to: Session, *reads: str, prompt: int = 100, tokens: int = 20, output: str = "") -> Call:
        call = join(to, *reads, prompt=prompt, tokens=tokens, output=output)
        self.priorities.add(call, self.now)
        return call

    def read(self, call: Call, objective: Objective = Objective.LATENCY) -> None:
        self.priorities.subscribe(call.output, objective, self.now)

    def request(self, program: str, prompt: int = 100, *, extends: Call | None = None) -> Call:
        """Add a plain request of a program, for which a client waits."""
        call = join(Session(id="", tenant="", created=0.0, ttl=60.0), prompt=prompt)
        call.program = _Member(program, None if extends is None else extends.program)
        self.priorities.add(call, self.now)
        self.read(call)
        return call

    def finish(self, call: Call) -> None:
        """End a call, and charge its program."""
        finish(call)
        self.priorities.charge_program(call, self.now)

    def order(self, *calls: Call) -> list[int]:
        """Return the indexes of the calls, in the order of their ranks."""
        return sorted(range(len(calls)), key=lambda index: self.priorities.rank(calls[index]))


def test_calls_that_a_subscriber_needs_go_first_and_the_longest_path_leads() -> None:
    harness, app = PriorityHarness(), session()
    unread = harness.add(app)
    short = harness.add(app, output="short")
    first = harness.add(app, output="first")
    second = harness.add(app, "first", output="second")
    last = harness.add(app, "short", "second")
    harness.read(last)
    assert harness.order(first, last, unread) == [0, 1, 2]
    assert harness.order(first, short, last) == [0, 1, 2], "the longer path first"
    assert harness.order(second, last) == [0, 1]


class _Member:
    """Place in a program."""

    id = ""

    def __init__(self, program: str, parent: ProgramMember | None = None) -> None:
        self.program_id = program
        self.parent = parent


def test_programs_that_attained_much_service_go_later_but_not_for_ever() -> None:
    harness = PriorityHarness()
    request = harness.request

    request("a"), request("b")
    harness.priorities.programs.charge("a", GRANT_SECONDS, harness.now)
    within_grant, newcomer = request("a"), request("c")
    assert harness.order(within_grant, newcomer) == [0, 1]
    harness.priorities.programs.charge("a", 10.0, harness.now)
    heavy, newcomer = request("a"), request("d")
    assert harness.order(heavy, newcomer) == [1, 0]
    harness.priorities.programs.charge("a", 1e9, harness.now)
    heaviest = request("a")
    harness.now += MAX_DELAY + 1
    assert harness.order(heaviest, request("e")) == [0, 1]
    declared = join(session())
    declared.program = _Member("a")
    harness.priorities.add(declared, harness.now)
    harness.read(declared)
    assert harness.order(declared, request("f")) == [0, 1], "a declared session has deadlines of its own"


def test_where_programs_are_ordered_the_older_goes_first_and_sessions_are_not_delayed() -> None:
    harness = PriorityHarness()
    harness.priorities = Priorities(harness.cost_model, orders_programs=True)
    request = harness.request

    for _ in range(400):
        finish(request("agent"))
        harness.now += 2.0
    newcomer = request("newcomer")
    harness.now += 30.0
    declared = harness.add(session())
    harness.read(declared)
    turn = request("agent")
    assert harness.order(turn, newcomer) == [0, 1]
    assert harness.order(declared, newcomer) == [0, 1], (
        "a declared session competes with the agents, not with newcomers"
    )
    assert abs(harness.priorities.rank(declared) - harness.priorities.rank(turn)) < 250.0


@pytest.mark.parametrize("window", [4_000, None])
def test_of_programs_of_one_age_the_one_whose_prompt_nearly_fills_the_window_goes_first(window: int | None) -> None:
    harness = PriorityHarness()
    harness.priorities = Priorities(
        harness.cost_model, orders_programs=True, window_of=lambda model: window if model == "m" else 1
    )
    for program, prompt in (("short", 100), ("long", 3_000)):
        first = harness.request(program, 100)
        finish(first)
        harness.finish(harness.request(program, prompt, extends=first))
    short, long = harness.request("short"), harness.request("long")
    lead = harness.priorities.rank(short) - harness.priorities.rank(long)
    expected = progress(3_000 / (window or 131_072))
    assert lead == pytest.approx(expected, abs=0.1), "their calls have equal work"
    assert (expected > 0) == (window is not None)


def test_a_long_prompt_that_extends_no_call_is_no_progress() -> None:
    harness = PriorityHarness()
    harness.priorities = Priorities(harness.cost_model, orders_programs=True, window_of=lambda model: 4_000)
    for prompt in (100, 3_900):  # an agent asks for a title, and then begins its conversation
        harness.finish(harness.request("agent", prompt))
    elsewhere = harness.request("other")
    harness.finish(
        harness.request("agent", 3_900, extends=elsewhere)
    )  # the conversation of another program, as after a fork
    finish(elsewhere)
    agent, other = harness.request("agent"), harness.request("other")
    assert harness.priorities.rank(agent) == pytest.approx(harness.priorities.rank(other), abs=0.1)


def test_programs_pay_for_what_their_calls_used() -> None:
    harness = PriorityHarness()
    call = join(Session(id="", tenant="", created=0.0, ttl=60.0))
    call.program = _Member("a")
    harness.priorities.add(call, harness.now)
    call.times.started = 1.0
    call.usage.prompt, call.usage.cached, call.usage.completion = 1_000_000, 200_000, 10
    before = harness.priorities.program_rank(call, harness.now)
    harness.priorities.charge_program(call, harness.now)
    row, step = 0.001, 0.01
    used = 800_000 * row + 10 * (row * step) ** 0.5
    assert harness.cost_model.used_seconds(call) == pytest.approx(used)
    rank = before + SERVICE_FACTOR * (used - GRANT_SECONDS)
    assert harness.priorities.program_rank(call, harness.now) == pytest.approx(rank)


def test_equal_prompts_share_one_entry_of_the_prefix_index() -> None:
    harness, app = PriorityHarness(), session()
    for _ in range(20):
        finish(harness.add(app))
    assert len(harness.priorities.prefix_index._entries) == 1, "generated text is not the beginning of another prompt"


def test_of_the_producers_of_one_consumer_the_longest_begins_first() -> None:
    harness, app = PriorityHarness(), session()
    long = harness.add(app, prompt=4000, output="long")
    brief = harness.add(app, prompt=10, output="brief")
    harness.read(harness.add(app, "long", "brief"))
    assert harness.order(brief, long) == [1, 0]
    ends = [
        harness.priorities.rank(call) + PRODUCER_LEAD * harness.cost_model.cost(call).time for call in (long, brief)
    ]
    assert ends[0] == pytest.approx(ends[1]), "they are due together"


def test_among_equal_applications_the_earlier_one_ends_first() -> None:
    harness, apps = PriorityHarness(), []
    for _ in range(2):
        app = session()
        first = harness.add(app, prompt=1000, tokens=100, output="first")
        last = harness.add(app, "first", tokens=100)
        harness.read(last)
        apps.append((first, last))
        harness.now += 5.0
    (_, ends), (begins, _) = apps
    assert harness.order(begins, ends) == [1, 0], (
        "the end of the first application goes before the beginning of the second"
    )


def test_a_short_call_goes_before_a_large_application_of_another_client() -> None:
    harness, app = PriorityHarness(), session()
    maps = [harness.add(app, prompt=500, output=f"map_{index}") for index in range(500)]
    harness.read(harness.add(app, *(f"map_{index}" for index in range(500))))
    harness.now += 2.0
    question = harness.add(session(), prompt=30)
    harness.read(question)
    assert all(harness.priorities.rank(question) < harness.priorities.rank(call) for call in maps)


def test_no_call_that_arrives_after_its_deadline_overtakes_a_call() -> None:
    harness, app = PriorityHarness(), session()
    waits = harness.add(app, prompt=2000)
    cost = harness.cost_model.cost(waits).time
    harness.now += PATIENCE_SECONDS + LONG_WORK_EXTENSION + (1 + WORK_FACTOR) * cost
    for _ in range(20):
        late = harness.add(session(), prompt=1, tokens=1)
        harness.read(late)
        assert harness.priorities.rank(late) >= harness.priorities.rank(waits)
        harness.now += 1.0


def test_calls_of_objective_throughput_go_behind_calls_of_objective_latency() -> None:
    harness = PriorityHarness()
    background, urgent = harness.add(session()), harness.add(session())
    harness.read(background, Objective.THROUGHPUT)
    harness.read(urgent)
    assert harness.order(background, urgent) == [1, 0]
    throughput_call = join(session(), objective=Objective.THROUGHPUT)
    harness.priorities.add(throughput_call, harness.now)
    harness.read(throughput_call)
    assert harness.order(throughput_call, urgent) == [1, 0]


def test_a_short_call_goes_before_large_work_that_is_late() -> None:
    harness, app = PriorityHarness(), session()
    large = [harness.add(app, prompt=1000, output=f"map_{index}") for index in range(40)]
    harness.read(harness.add(app, *(call.output.name for call in large)))
    harness.now += LONG_WORK_EXTENSION
    question = harness.add(session(), prompt=30)
    harness.read(question)
    assert harness.priorities.rank(question) < harness.priorities.rank(large[0])
    harness.now += LONG_WORK_EXTENSION * 2
    later = harness.add(session(), prompt=30)
    harness.read(later)
    assert harness.priorities.rank(later) > harness.priorities.rank(large[0]), "but not for ever"


def test_calls_of_a_key_above_its_share_go_behind() -> None:
    harness = PriorityHarness()
    greedy = [harness.add(session("greedy"), prompt=500) for _ in range(50)]
    modest = [harness.add(session("modest"), prompt=500) for _ in range(5)]
    for call in (*greedy, *modest):
        harness.read(call)
    ranks = [[harness.priorities.rank(call) for call in calls] for calls in (modest, greedy)]
    assert max(ranks[0]) < min(ranks[1]), "also before the other key's earlier calls"
    for call in (*greedy, *modest):
        finish(call)
        harness.priorities.end(call)
    harness.priorities.check_integrity()


def test_the_estimate_of_nested_templates_takes_constant_time() -> None:
    app = session()
    app.add_variable("t0")
    for index in range(900):
        twice = [Input(Reference(f"t{index}"), ""), "\n", Input(Reference(f"t{index}"), "")]
        app.add_variable(f"t{index + 1}", template=twice)
    harness = PriorityHarness()
    call = harness.add(app, "t900")
    assert 0 < harness.priorities.rank(call) < harness.now + 100


def test_only_the_call_that_a_client_waits_for_is_interactive() -> None:
    harness, app = PriorityHarness(), session()
    producer = harness.add(app, output="feeds")
    consumer = harness.add(app, "feeds")
    list(harness.priorities.changed())
    output = consumer.output
    output.subscribers = output.latency_subscribers = output.interactive_subscribers = 1
    harness.read(consumer)
    known_ranks = {call.id: harness.priorities.urgency(call).interactive for call in harness.priorities.changed()}
    assert known_ranks == {consumer.id: True, producer.id: False}


def test_a_change_computes_each_rank_at_most_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    """Build layers that read all of the layer before: the number of paths grows exponentially with the layers."""
    harness, app = PriorityHarness(), session()
    counted: list[Call] = []
    computed = Priorities.compute_rank

    def count(priorities: Priorities, call: Call) -> float:
        counted.append(call)
        return computed(priorities, call)

    monkeypatch.setattr(Priorities, "compute_rank", count)
    names: list[str] = []
    calls: list[Call] = []
    for layer in range(20):
        new = [f"c{layer}_{index}" for index in range(20)]
        calls += [harness.add(app, *names, prompt=10 * index, output=name) for index, name in enumerate(new)]
        names = new
    assert harness.priorities.rank(calls[0]) < harness.priorities.rank(calls[-1])
    assert len(counted) <= 2 * len(calls)
    counted.clear()
    harness.read(calls[-1])
    assert harness.priorities.rank(calls[0]) < harness.priorities.rank(calls[-1])
    assert len(counted) <= 2 * len(calls)


class Growth(RuleBasedStateMachine):
    """Graphs that grow, are read, and end in any order. Their ranks are compared with those computed from scratch."""

    def __init__(self) -> None:
        super().__init__()
        self.priorities = Priorities(CostModel())
        self.sessions = [session(tenant) for tenant in ("a", "a", "b")]
        self.calls: list[Call] = []
        self.now = 0.0
        self.known_ranks: dict[str, float] = {}
        """Ranks that an engine would know from `changed` alone."""

    @rule(
        at=st.integers(0, 2),
        prompt=st.integers(1, 3000),
        tokens=st.integers(1, 300),
        objective=st.none() | st.sampled_from(Objective),
        data=st.data(),
    )
    def grow(self, at: int, prompt: int, tokens: int, objective: Objective | None, data: st.DataObject) -> None:
        to = self.sessions[at]
        known = [name for name, variable in to.variables.items() if variable.failure is None]
        reads = data.draw(st.lists(st.sampled_from(known), max_size=3, unique=True)) if known else []
        for _ in range(data.draw(st.integers(1, 4))):  # equal calls, so that variables have several consumers
            call = join(to, *reads, prompt=prompt, tokens=tokens, objective=objective)
            self.calls.append(call)
            self.priorities.add(call, self.now)

    @precondition(lambda self: self.calls)
    @rule(data=st.data(), objective=st.sampled_from(Objective))
    def read(self, data: st.DataObject, objective: Objective) -> None:
        self.priorities.subscribe(data.draw(st.sampled_from(self.calls)).output, objective, self.now)

    @rule(seconds=st.floats(0, 100))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @precondition(lambda self: self.unfinished())
    @rule(data=st.data())
    def serve(self, data: st.DataObject) -> None:
        alone = [call for call in self.unfinished() if not call.inputs and call.leader is None]
        if len(alone) > 1:
            leader, call = data.draw(st.permutations(alone))[:2]
            if not call.followers and leader.session is call.session:
                call.leader = leader
                leader.followers.append(call)
                self.priorities.follow(call, leader)

    @precondition(lambda self: self.unfinished())
    @rule(data=st.data(), state=st.sampled_from([CallState.DONE, CallState.CANCELLED]), many=st.integers(1, 5))
    def end(self, data: st.DataObject, state: CallState, many: int) -> None:
        for _ in range(many):  # in one step: no rank is queried in between
            ready = [call for call in self.unfinished() if state is not CallState.DONE or not call.waiting_on]
            if not ready:
                return
            call = data.draw(st.sampled_from(ready))
            finish(call, state)
            self.priorities.end(call)
            self.known_ranks.pop(call.id, None)

    def unfinished(self) -> list[Call]:
        return [call for call in self.calls if not call.state.is_final]

    @invariant()
    def ranks_equal_those_computed_from_scratch(self) -> None:
        self.priorities.check_integrity()

    @invariant()
    def no_call_ranks_behind_its_consumers(self) -> None:
        for call in self.unfinished():
            for source in sources(call):
                if not source.state.is_final:
                    assert self.priorities.rank(source) <= self.priorities.rank(call)

    @invariant()
    def changed_reports_all_new_ranks(self) -> None:
        self.known_ranks |= {call.id: self.priorities.rank(call) for call in self.priorities.changed()}
        assert self.known_ranks == {call.id: self.priorities.rank(call) for call in self.unfinished()}


TestGrowth = Growth.TestCase
TestGrowth.settings = settings(max_examples=100, stateful_step_count=50)
