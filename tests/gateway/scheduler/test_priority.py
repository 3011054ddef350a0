"""gateway/scheduler/priority.py: ranks as they follow from who waits for what, however the graph came to be."""

import itertools

import hypothesis.strategies as st
import pytest
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from gateway.graph.call import Call, CallSpec, CallState, Input, Objective, SamplingParams, Slot, Text
from gateway.graph.references import Reference
from gateway.graph.session import Session
from gateway.scheduler.cost_model import CostModel
from gateway.scheduler.objective import sources
from gateway.scheduler.priority import LATER, OUTSTANDING, PATIENCE_SECONDS, WITHIN, Priorities

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
    call.move(state)
    call.conclude()


class Stage:
    def __init__(self) -> None:
        self.estimates = CostModel()
        self.priorities = Priorities(self.estimates)
        self.now = 1000.0

    def add(self, to: Session, *reads: str, prompt: int = 100, tokens: int = 20, output: str = "") -> Call:
        call = join(to, *reads, prompt=prompt, tokens=tokens, output=output)
        self.priorities.add(call, self.now)
        return call

    def read(self, call: Call, objective: Objective = Objective.LATENCY) -> None:
        self.priorities.wanted(call.output, objective, self.now)

    def order(self, *calls: Call) -> list[int]:
        """Indexes of the calls, in the order in which they go."""
        return sorted(range(len(calls)), key=lambda at: self.priorities.rank(calls[at]))


def test_what_a_reader_needs_goes_first_and_the_longest_way_before_the_others() -> None:
    stage, app = Stage(), session()
    unread = stage.add(app)
    short = stage.add(app, output="short")
    first = stage.add(app, output="first")
    second = stage.add(app, "first", output="second")
    last = stage.add(app, "short", "second")
    stage.read(last)
    assert stage.order(first, last, unread) == [0, 1, 2]
    assert stage.order(first, short, last) == [0, 1, 2], "the longer way first"
    assert stage.order(second, last) == [0, 1]


def test_of_prompts_that_are_equal_one_is_remembered() -> None:
    stage, app = Stage(), session()
    for _ in range(20):
        finish(stage.add(app))
    assert len(stage.priorities.prefix_index._seen) == 1, "what a call generates is nobody else's beginning"


def test_of_siblings_that_feed_one_consumer_the_longest_begins_first() -> None:
    stage, app = Stage(), session()
    long = stage.add(app, prompt=4000, output="long")
    brief = stage.add(app, prompt=10, output="brief")
    stage.read(stage.add(app, "long", "brief"))
    assert stage.order(brief, long) == [1, 0]
    ends = [stage.priorities.rank(one) + WITHIN * stage.estimates.cost(one).time for one in (long, brief)]
    assert ends[0] == pytest.approx(ends[1]), "they are due together"


def test_what_came_first_is_ended_first_among_equals() -> None:
    stage, apps = Stage(), []
    for _ in range(2):
        app = session()
        first = stage.add(app, prompt=1000, tokens=100, output="first")
        last = stage.add(app, "first", tokens=100)
        stage.read(last)
        apps.append((first, last))
        stage.now += 5.0
    (_, ends), (begins, _) = apps
    assert stage.order(begins, ends) == [1, 0], "the end of the one before the beginning of the other"


def test_a_short_question_of_somebody_else_is_not_stuck_behind_five_hundred_maps() -> None:
    stage, app = Stage(), session()
    maps = [stage.add(app, prompt=500, output=f"map_{at}") for at in range(500)]
    stage.read(stage.add(app, *(f"map_{at}" for at in range(500))))
    stage.now += 2.0
    question = stage.add(session(), prompt=30)
    stage.read(question)
    assert all(stage.priorities.rank(question) < stage.priorities.rank(one) for one in maps)


def test_nothing_that_comes_after_its_bound_overtakes_a_call() -> None:
    stage, app = Stage(), session()
    waits = stage.add(app, prompt=2000)
    cost = stage.estimates.cost(waits).time
    stage.now += PATIENCE_SECONDS + LATER + (1 + OUTSTANDING) * cost
    for _ in range(20):
        late = stage.add(session(), prompt=1, tokens=1)
        stage.read(late)
        assert stage.priorities.rank(late) >= stage.priorities.rank(waits)
        stage.now += 1.0


def test_who_says_there_is_time_goes_behind_who_does_not() -> None:
    stage = Stage()
    patient, latency_subscribers = stage.add(session()), stage.add(session())
    stage.read(patient, Objective.THROUGHPUT)
    stage.read(latency_subscribers)
    assert stage.order(patient, latency_subscribers) == [1, 0]
    said = join(session(), objective=Objective.THROUGHPUT)
    stage.priorities.add(said, stage.now)
    stage.read(said)
    assert stage.order(said, latency_subscribers) == [1, 0]


def test_a_short_question_goes_before_large_work_that_has_been_late_for_long() -> None:
    stage, app = Stage(), session()
    large = [stage.add(app, prompt=1000, output=f"map_{at}") for at in range(40)]
    stage.read(stage.add(app, *(call.output.name for call in large)))
    stage.now += LATER
    question = stage.add(session(), prompt=30)
    stage.read(question)
    assert stage.priorities.rank(question) < stage.priorities.rank(large[0])
    stage.now += LATER * 2
    later = stage.add(session(), prompt=30)
    stage.read(later)
    assert stage.priorities.rank(later) > stage.priorities.rank(large[0]), "but not for ever"


def test_keys_that_ask_for_more_than_their_share_go_behind() -> None:
    stage = Stage()
    greedy = [stage.add(session("greedy"), prompt=500) for _ in range(50)]
    modest = [stage.add(session("modest"), prompt=500) for _ in range(5)]
    for call in (*greedy, *modest):
        stage.read(call)
    ranks = [[stage.priorities.rank(call) for call in calls] for calls in (modest, greedy)]
    assert max(ranks[0]) < min(ranks[1]), "what came first of the other's too"
    for call in (*greedy, *modest):
        finish(call)
        stage.priorities.end(call)
    stage.priorities.check_integrity()


def test_templates_of_templates_cost_no_more_to_estimate() -> None:
    app = session()
    app.put("t0")
    for at in range(900):
        twice = [Input(Reference(f"t{at}"), ""), "\n", Input(Reference(f"t{at}"), "")]
        app.put(f"t{at + 1}", template=twice)
    stage = Stage()
    call = stage.add(app, "t900")
    assert 0 < stage.priorities.rank(call) < stage.now + 100


def test_watched_is_what_a_client_waits_for_itself() -> None:
    stage, app = Stage(), session()
    feeds = stage.add(app, output="feeds")
    read = stage.add(app, "feeds")
    list(stage.priorities.changed())
    output = read.output
    output.subscribers = output.latency_subscribers = output.interactive_subscribers = 1
    stage.read(read)
    told = {call.id: stage.priorities.urgency(call).interactive for call in stage.priorities.changed()}
    assert told == {read.id: True, feeds.id: False}


def test_a_change_computes_each_rank_at_most_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    """Layers that read all of the layer before: the number of paths grows exponentially with the layers."""
    stage, app = Stage(), session()
    counted: list[Call] = []
    computed = Priorities.computed

    def count(priorities: Priorities, call: Call) -> float:
        counted.append(call)
        return computed(priorities, call)

    monkeypatch.setattr(Priorities, "computed", count)
    names: list[str] = []
    calls: list[Call] = []
    for layer in range(20):
        new = [f"c{layer}_{index}" for index in range(20)]
        calls += [stage.add(app, *names, prompt=10 * index, output=name) for index, name in enumerate(new)]
        names = new
    assert stage.priorities.rank(calls[0]) < stage.priorities.rank(calls[-1])
    assert len(counted) <= 2 * len(calls)
    counted.clear()
    stage.read(calls[-1])
    assert stage.priorities.rank(calls[0]) < stage.priorities.rank(calls[-1])
    assert len(counted) <= 2 * len(calls)


class Growth(RuleBasedStateMachine):
    """Graphs that grow, are read, and end in any order; ranks against those computed anew."""

    def __init__(self) -> None:
        super().__init__()
        self.priorities = Priorities(CostModel())
        self.sessions = [session(tenant) for tenant in ("a", "a", "b")]
        self.calls: list[Call] = []
        self.now = 0.0
        self.told: dict[str, float] = {}
        """What an engine would know, from `changed` alone."""

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
        for _ in range(data.draw(st.integers(1, 4))):  # alike, so that much is read by several
            call = join(to, *reads, prompt=prompt, tokens=tokens, objective=objective)
            self.calls.append(call)
            self.priorities.add(call, self.now)

    @precondition(lambda self: self.calls)
    @rule(data=st.data(), objective=st.sampled_from(Objective))
    def read(self, data: st.DataObject, objective: Objective) -> None:
        self.priorities.wanted(data.draw(st.sampled_from(self.calls)).output, objective, self.now)

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
        for _ in range(many):  # at once: nothing is asked in between
            ready = [call for call in self.unfinished() if state is not CallState.DONE or not call.waiting_on]
            if not ready:
                return
            call = data.draw(st.sampled_from(ready))
            finish(call, state)
            self.priorities.end(call)
            self.told.pop(call.id, None)

    def unfinished(self) -> list[Call]:
        return [call for call in self.calls if not call.state.final]

    @invariant()
    def ranks_are_those_computed_anew(self) -> None:
        self.priorities.check_integrity()

    @invariant()
    def nothing_goes_behind_what_it_feeds(self) -> None:
        for call in self.unfinished():
            for source in sources(call):
                if not source.state.final:
                    assert self.priorities.rank(source) <= self.priorities.rank(call)

    @invariant()
    def engines_are_told(self) -> None:
        self.told |= {call.id: self.priorities.rank(call) for call in self.priorities.changed()}
        assert self.told == {call.id: self.priorities.rank(call) for call in self.unfinished()}


TestGrowth = Growth.TestCase
TestGrowth.settings = settings(max_examples=100, stateful_step_count=50, deadline=None)
