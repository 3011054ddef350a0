"""gateway/scheduler/program_placement.py: programs stay on one engine, and move as a whole."""

import heapq
import itertools
import random
from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.sampling_params import SamplingParams
from gateway.engines.protocol import Engine
from gateway.graph.call import Call, CallSpec
from gateway.graph.segments import Slot
from gateway.graph.session import Session
from gateway.scheduler import program_placement
from gateway.scheduler.program_placement import (
    ACTIVE_SECONDS,
    IDLE_SECONDS,
    MAX_MODELS,
    MOVE_MARGIN,
    MOVE_SECONDS,
    PROGRAM_TOKENS,
    ProgramPlacement,
)
from tests.fakes.engine import FakeEngine
from tests.gateway.scheduler.test_program_kv import Member


class Harness:
    """Placement over engines whose caches are never full.

    A prompt is a conversation: its first tokens are those of its instructions, which other conversations may share.
    """

    def __init__(self, count: int) -> None:
        self.engines: list[Any] = [FakeEngine(name=f"e{number}") for number in range(count)]
        self.placement = ProgramPlacement()
        self.now = 0.0
        self._cached: dict[tuple[str, str], int] = {}
        """Tokens by engine and conversation, or instructions."""
        self._ids = itertools.count()

    @property
    def ready(self) -> list[Any]:
        return [engine for engine in self.engines if engine.is_ready]

    def call(
        self, program: str, tokens: int = 1_000, parent: Member | None = None, *, session: str = "", system: int = 0
    ) -> "Placed":
        call = Session(id=session, tenant="", created=0.0, ttl=60.0).add(
            CallSpec(model="m", segments=[Slot(None, SamplingParams())], deferred=bool(session))
        )
        member = Member(f"{program}/{next(self._ids)}", program, parent)
        call.program = member
        root = member
        while root.parent is not None:
            root = root.parent
        held = {
            engine: most
            for engine in self.engines
            if (most := max(self._cached.get((engine.name, root.id), 0), self._cached.get((engine.name, "system"), 0)))
        }
        held = {
            engine: min(most, tokens if self._cached.get((engine.name, root.id)) else system)
            for engine, most in held.items()
        }
        held = {engine: most for engine, most in held.items() if most}
        engine = self.placement.choose(call, "m", self.ready, held, tokens, self.now)
        self._cached[engine.name, root.id] = tokens
        if system:
            self._cached[engine.name, "system"] = system
        return Placed(member, engine.name, call, engine)


class Placed:
    """A call that runs on an engine."""

    def __init__(self, member: Member, name: str, call: Call, engine: Engine) -> None:
        self.member, self.name, self.call, self.engine = member, name, call, engine


def test_turns_stay_on_one_engine_although_another_is_less_loaded() -> None:
    harness = Harness(2)
    harness.engines[0].load = 1
    turn = harness.call("p")
    assert turn.name == "e1"
    harness.engines[1].load = 20
    for tokens in (1_500, 2_000, 2_500):
        turn = harness.call("p", tokens, turn.member)
        assert turn.name == "e1"


def test_turns_stay_although_the_index_of_prefixes_has_forgotten_them() -> None:
    harness = Harness(2)
    turn = harness.call("p")
    harness._cached.clear()
    harness.engines[0].load = 9
    assert harness.call("p", 1_500, turn.member).name == turn.name == "e0"


def test_a_sub_agent_that_shares_nothing_prefers_the_home() -> None:
    harness = Harness(2)
    turn = harness.call("p")
    assert turn.name == "e0"
    harness.engines[0].load = 7
    sub = harness.call("p", 400)
    assert sub.name == "e0"
    assert harness.call("q", 400).name == "e1", "another program has no reason to go there"


def test_a_wide_program_uses_other_engines_and_its_conversations_stay_there() -> None:
    harness = Harness(4)
    harness.call("p")
    started = []
    for _ in range(40):
        started.append(harness.call("p", 400))
        started[-1].engine.load += 1  # type: ignore[misc]  # the fake's
    counts = Counter(each.name for each in started)
    assert counts["e0"] == max(counts.values())
    assert min(counts.values()) >= counts["e0"] - 9
    for engine in harness.engines:
        engine.load = 5
    for each in started:
        assert harness.call("p", 800, each.member).name == each.name


def test_a_program_moves_as_a_whole_when_its_engine_is_gone_and_does_not_return() -> None:
    harness = Harness(2)
    main, sub = harness.call("p", 5_000), harness.call("p", 300)
    assert (main.name, sub.name) == ("e0", "e0")
    harness.engines[0].is_ready = False
    main = harness.call("p", 5_500, main.member)
    assert main.name == "e1"
    harness.engines[0].is_ready = True
    sub = harness.call("p", 600, sub.member)
    main = harness.call("p", 6_000, main.member)
    assert (main.name, sub.name, harness.call("p", 300).name) == ("e1", "e1", "e1")


def test_a_program_moves_when_the_difference_of_loads_exceeds_the_cost_and_all_later_calls_follow() -> None:
    harness = Harness(2)
    main, sub = harness.call("p", 5_000, system=2_000), harness.call("p", 300)
    contexts = (5_500 + MOVE_MARGIN - PROGRAM_TOKENS) // program_placement.RUNNING_TOKENS
    harness.engines[0].load = contexts
    main = harness.call("p", 5_500, main.member)
    assert main.name == "e0"
    harness.engines[0].load = contexts + 1
    main = harness.call("p", 5_500, main.member)
    assert main.name == "e1"
    harness.engines[0].load = 0
    assert harness.call("p", 2_100, system=2_000).name == "e1", "what the earlier home holds does not count"
    for _ in range(3):
        main, sub = harness.call("p", 5_500, main.member), harness.call("p", 400, sub.member)
        assert (main.name, sub.name, harness.call("p", 200).name) == ("e1", "e1", "e1")


def test_a_program_moves_for_load_at_most_once_in_a_minute_but_from_a_dead_engine_at_once() -> None:
    harness = Harness(2)
    turn = harness.call("p")
    names = [turn.name]
    for _ in range(4):
        for engine in harness.engines:
            engine.load = 1_000 if engine.name == turn.name else 0
        turn = harness.call("p", 1_000, turn.member)
        names.append(turn.name)
        harness.now += MOVE_SECONDS / 2
    assert names == ["e0", "e1", "e1", "e0", "e0"]
    harness.engines[0].is_ready = False
    assert harness.call("p", 1_000, turn.member).name == "e1"


def test_a_program_leaves_an_engine_that_lost_its_call_unless_it_lives_elsewhere() -> None:
    harness = Harness(3)
    turn = harness.call("p", parent=harness.call("p").member)
    assert turn.name == "e0"
    harness.placement.leave(turn.call, "m", "e1", "e2")
    assert harness.placement.home("p", "m") == "e0"
    harness.placement.leave(turn.call, "m", "e0", "e2")
    assert harness.call("p", 1_000, turn.member).name == "e2"
    assert [harness.placement.active_programs(name) for name in ("e0", "e2")] == [0, 1]
    harness.placement.leave(turn.call, "other model", "e2", "e0")
    harness.placement.forget("p")
    harness.placement.leave(turn.call, "m", "e2", "e0")
    assert len(harness.placement) == 0


actions = st.lists(st.tuples(st.integers(0, 11), st.booleans(), st.integers(0, 9_000)), max_size=80)


@given(actions, st.lists(st.integers(0, 3), max_size=80), st.randoms(use_true_random=False))
def test_no_call_gets_an_engine_that_is_not_ready(
    calls: list[tuple[int, bool, int]], changes: list[int], rng: random.Random
) -> None:
    harness = Harness(4)
    members: dict[int, Member] = {}
    for number, (program, extends, tokens) in enumerate(calls):
        if number < len(changes):
            engine = harness.engines[changes[number]]
            engine.is_ready = not engine.is_ready or len(harness.ready) == 1
            engine.load = rng.randrange(200)
        placed = harness.call(str(program), tokens, members.get(program) if extends else None)
        assert placed.engine.is_ready
        home = harness.placement.home(str(program), "m")
        assert home in {engine.name for engine in harness.ready}, "the program has left an engine that is gone"
        members[program] = placed.member
        harness.now += rng.choice([0.0, 1.0, 40.0, 400.0])
    counted = Counter(harness.placement.home(program, "m") for program in harness.placement._active)
    assert counted == {
        engine.name: count for engine in harness.engines if (count := harness.placement.active_programs(engine.name))
    }


@given(
    st.lists(st.integers(0, 120), min_size=2, max_size=5),
    st.lists(st.integers(0, 8_000), min_size=1, max_size=12),
    st.randoms(use_true_random=False),
)
def test_with_unchanged_loads_programs_stop_moving(loads: list[int], sizes: list[int], rng: random.Random) -> None:
    harness = Harness(len(loads))
    turns = {number: harness.call(str(number), size) for number, size in enumerate(sizes)}
    for engine, load in zip(harness.engines, loads, strict=True):
        engine.load = load
    visited = {number: [turn.name] for number, turn in turns.items()}
    for _ in range(12):
        for number in rng.sample(sorted(turns), len(turns)):
            turns[number] = harness.call(str(number), sizes[number], turns[number].member)
            if turns[number].name != visited[number][-1]:
                visited[number].append(turns[number].name)
        harness.now += MOVE_SECONDS
    for number in turns:
        before = visited[number][:]
        turns[number] = harness.call(str(number), sizes[number], turns[number].member)
        assert turns[number].name == before[-1]
        assert all(name != later for name, later in itertools.pairwise(before))
        assert len(before) <= len(sizes) + 1


@given(st.integers(2, 5), st.integers(1, 40), st.integers(0, 1_500))
def test_equal_engines_get_balanced_programs(engines: int, programs: int, system: int) -> None:
    harness = Harness(engines)
    turns: list[Placed] = []
    for number in range(programs):
        turns.append(harness.call(str(number), system + 500, system=system))
        turns[-1] = harness.call(str(number), system + 900, turns[-1].member, system=system)
    counts = [harness.placement.active_programs(engine.name) for engine in harness.engines]
    assert sum(counts) == programs
    assert max(counts) - min(counts) <= 1 + -(-system // PROGRAM_TOKENS)


@given(st.integers(2, 4), st.integers(30, 60), st.integers(0, 6_000))
def test_programs_that_begin_together_are_balanced_once_they_return(engines: int, programs: int, system: int) -> None:
    harness = Harness(engines)
    turns = [harness.call(str(number), system + 500, system=system) for number in range(programs)]
    for _ in range(4):
        harness.now += MOVE_SECONDS
        turns = [
            harness.call(str(number), system + 900, turn.member, system=system) for number, turn in enumerate(turns)
        ]
    counts = [harness.placement.active_programs(engine.name) for engine in harness.engines]
    assert max(counts) - min(counts) <= 3 + -(-900 // PROGRAM_TOKENS) + (system // PROGRAM_TOKENS if 0 in counts else 0)


def completion(engines: int, agents: int, system: int, seed: int, *, as_programs: bool) -> float:
    """Return the mean time in seconds in which agents end that begin together, on engines that run one call after
    another: 0.1 ms for each prompt token that is not cached, and 1 ms for each token of the answer.

    `system`: tokens of the instructions that all agents share. `as_programs`: otherwise each call is placed by itself.
    """
    harness, rng = Harness(engines), random.Random(seed)
    free = dict.fromkeys([engine.name for engine in harness.engines], 0.0)
    computed: dict[tuple[str, int], int] = {}
    sizes, turns = [system] * agents, [rng.randint(10, 30) for _ in range(agents)]
    ended = []
    order = itertools.count()
    events: list[tuple[float, int, int, Member | None, Any]] = [
        (0.0, next(order), n, None, None) for n in range(agents)
    ]
    while events:
        now, _, agent, member, ending = heapq.heappop(events)
        if ending is not None:
            ending.load -= 1
            turns[agent] -= 1
            if turns[agent]:
                heapq.heappush(events, (now + rng.lognormvariate(0.7, 1.0), next(order), agent, member, None))
            else:
                ended.append(now)
            continue
        sizes[agent] += rng.randint(200, 2_500)
        harness.now = now
        program = str(agent) if as_programs else f"{agent} {turns[agent]}"
        root = None if member is None else Member(member.id, program, member.parent)
        if as_programs:
            placed = harness.call(program, sizes[agent], root, system=system)
        else:
            placed = harness.call("", sizes[agent], root, system=system, session="named")
        cached = max(computed.get((placed.name, agent), 0), computed.get((placed.name, -1), 0))
        answer = rng.randint(50, 400)
        free[placed.name] = max(free[placed.name], now) + 1e-4 * (sizes[agent] - cached) + 1e-3 * answer
        sizes[agent] += answer
        computed[placed.name, agent], computed[placed.name, -1] = sizes[agent], system
        placed.engine.load += 1  # type: ignore[misc]  # the fake's
        heapq.heappush(events, (free[placed.name], next(order), agent, placed.member, placed.engine))
    return sum(ended) / len(ended)


@pytest.mark.parametrize(("engines", "agents", "system"), [(2, 16, 20_000), (2, 40, 5_000), (4, 64, 20_000)])
def test_agents_with_common_instructions_end_sooner_than_if_each_call_is_placed_by_itself(
    engines: int, agents: int, system: int
) -> None:
    for seed in range(2):
        alone = completion(engines, agents, system, seed, as_programs=False)
        assert completion(engines, agents, system, seed, as_programs=True) < 0.9 * alone


def test_sessions_and_calls_without_a_program_are_placed_as_before() -> None:
    harness = Harness(2)
    assert harness.call("p").name == "e0"
    harness.engines[0].load = 1
    assert harness.call("p", session="named").name == "e1"
    call = Session(id="", tenant="", created=0.0, ttl=60.0).add(
        CallSpec(model="m", segments=[Slot(None, SamplingParams())])
    )
    assert harness.placement.choose(call, "m", harness.engines, {}, 5, 0.0).name == "e1"
    assert len(harness.placement) == 1


def test_each_model_of_a_program_has_its_own_home_and_their_number_is_bounded() -> None:
    harness = Harness(2)
    first = harness.call("p")
    for number in range(2 * MAX_MODELS):
        harness.engines[0].load = 1
        assert harness.placement.choose(first.call, f"m{number}", harness.engines, {}, 5, 0.0).name == "e1"
    harness.call("p", 1_000, first.member)
    assert harness.placement.active_programs("e0") + harness.placement.active_programs("e1") == MAX_MODELS
    harness.placement.forget("p")
    assert (harness.placement.active_programs("e0"), harness.placement.active_programs("e1")) == (0, 0)


def test_homes_are_bounded_and_single_calls_do_not_displace_agents(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(program_placement, "MAX_PROGRAMS", 20)
    monkeypatch.setattr(program_placement, "MAX_AWAY", 5)
    harness = Harness(2)
    for number in range(10):
        harness.call(f"agent {number}", parent=harness.call(f"agent {number}").member)
    for number in range(100):
        harness.call(f"single {number}")
    assert len(harness.placement) == 20
    assert all(harness.placement.home(f"agent {number}", "m") for number in range(10))
    assert harness.placement.home("single 0", "m") is None
    for _ in range(100):
        harness.call("wide").engine.load += 1  # type: ignore[misc]  # the fake's
    assert len(harness.placement._away) == 5


def test_idle_programs_do_not_count_as_load_and_are_forgotten_later() -> None:
    harness = Harness(2)
    harness.call("p", parent=harness.call("p").member)
    assert harness.placement.active_programs("e0") == 1
    harness.now += ACTIVE_SECONDS + 1
    harness.call("q")
    assert harness.placement.active_programs("e0") == 0
    assert harness.placement.home("p", "m") == "e0"
    harness.now += IDLE_SECONDS
    harness.call("r")
    assert harness.placement.home("p", "m") is None
    harness.placement.forget("p")
    harness.placement.forget("r")
    assert len(harness.placement) == 1
