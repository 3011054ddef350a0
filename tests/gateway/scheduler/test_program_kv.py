"""gateway/scheduler/program_kv.py: the estimate of the KV that programs hold."""

from dataclasses import dataclass

import hypothesis.strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from engine.kv.pausing import PendingCall
from gateway.scheduler.program_kv import ProgramKv

CAPACITY = 1_000


@dataclass(eq=False)
class Member:
    id: str
    program_id: str = "p"
    parent: "Member | None" = None


def pending(needed: int, *, cached: int = 0) -> PendingCall:
    return PendingCall("new", needed, cached, needed, waited=0.0, rank=9.0)


def kv_with(*contexts: tuple[str, int, list[float]]) -> ProgramKv:
    """Return an estimate with contexts that were released at 0: id, tokens and expected returns."""
    kv = ProgramKv(CAPACITY)
    kv.row_seconds = 0.01
    for id, tokens, returns in contexts:
        kv.enter(Member(id, f"program of {id}"), tokens, 0.0, 0.0)
        kv.leave(id, tokens, 0.0)
        kv.expect(id, returns)
    return kv


def test_a_turn_extends_the_context_of_the_turn_before() -> None:
    kv = kv_with(("a", 300, []))
    first = Member("a")
    second = Member("b", parent=first)
    assert kv.cached(first) == (None, 0)
    assert kv.cached(second) == ("a", 300)
    kv.enter(second, 500, 0.0, 1.0)
    assert len(kv) == 1, "the context of the first turn is the beginning of the second"
    assert kv.cached(Member("c", parent=first)) == ("a", 300)
    kv.leave("b", 450, 2.0)
    assert kv.cached(Member("c", parent=Member("lost", parent=second))) == ("b", 450)


def test_branches_of_one_turn_share_its_context() -> None:
    kv = kv_with(("a", 300, []))
    for id in ("b", "c"):
        kv.enter(Member(id, parent=Member("a")), 400, 0.0, 1.0)
    assert not kv.must_pause(pending(500), 1.0)
    assert kv.must_pause(pending(501), 1.0), "300 + 2 * 100 tokens are in use"


def test_full_pools_give_up_what_is_expected_last() -> None:
    kv = kv_with(("soon", 300, [5.0] * 8), ("late", 300, [500.0] * 8), ("never", 300, []))
    kv.enter(Member("new"), 350, 0.0, 1.0)
    assert kv.cached(Member("x", parent=Member("never"))) == (None, 0)
    assert kv.cached(Member("x", parent=Member("late"))) == ("late", 300)
    kv.enter(Member("other"), 300, 0.0, 1.0)
    assert kv.cached(Member("x", parent=Member("late"))) == (None, 0)
    assert kv.cached(Member("x", parent=Member("soon"))) == ("soon", 300)


def test_calls_pause_beside_kv_that_is_read_soon() -> None:
    kv = kv_with(("soon", 600, [5.0] * 8))
    assert not kv.must_pause(pending(400), 1.0)
    assert kv.must_pause(pending(401), 1.0)
    assert not kv.must_pause(pending(401, cached=300), 1.0)
    assert not kv.must_pause(pending(401), 1_000.0), "the reader is far over its time"


def test_small_contexts_are_not_counted() -> None:
    kv = kv_with(*((f"a{number}", 3, [5.0]) for number in range(1_000)))
    assert len(kv) == 0
    assert not kv.must_pause(pending(CAPACITY), 0.0)


def test_a_second_attempt_of_a_call_counts_once() -> None:
    kv = kv_with(("a", 300, []))
    kv.enter(Member("a"), 300, 0.0, 1.0)
    kv.check_integrity()
    kv.leave("a", 400, 2.0)
    kv.check_integrity()
    assert not kv.must_pause(pending(600), 2.0)
    assert kv.cached(Member("b", parent=Member("a"))) == ("a", 400)


def test_the_number_of_contexts_is_bounded() -> None:
    kv = ProgramKv(CAPACITY)
    kv.observe_common("p", 990)
    for number in range(500):
        kv.enter(Member(f"c{number}"), 991, 0.0, 0.0)
        kv.leave(f"c{number}", 991, 0.0)
    assert len(kv) == 256
    kv.check_integrity()


class _Machine(RuleBasedStateMachine):
    """Calls of a few programs enter and leave in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.kv = ProgramKv(CAPACITY)
        self.kv.row_seconds = 0.01
        self.now = 0.0
        self.members: list[Member] = []
        self.running: list[Member] = []

    @rule(tokens=st.integers(0, 1_500), parent=st.integers(-3, 30), seconds=st.floats(0, 20))
    def enter(self, tokens: int, parent: int, seconds: float) -> None:
        self.now += seconds
        of = self.members[parent % len(self.members)] if parent >= 0 and self.members else None
        member = Member(f"c{len(self.members)}", f"p{len(self.members) % 4}", of)
        self.members.append(member)
        self.running.append(member)
        self.kv.enter(member, tokens, self.now, self.now)

    @precondition(lambda self: self.members)
    @rule(index=st.integers(0, 30))
    def enter_again(self, index: int) -> None:
        member = self.members[index % len(self.members)]
        if member not in self.running:
            self.running.append(member)
        self.kv.enter(member, 10, self.now, self.now)

    @precondition(lambda self: self.running)
    @rule(index=st.integers(0, 30), tokens=st.integers(0, 1_500), returns=st.lists(st.floats(0, 50), max_size=4))
    def leave(self, index: int, tokens: int, returns: list[float]) -> None:
        member = self.running.pop(index % len(self.running))
        self.kv.leave(member.id, tokens, self.now)
        self.kv.leave(member.id, tokens, self.now)
        self.kv.expect(member.id, sorted(returns))

    @rule(needed=st.integers(0, 2_000))
    def ask(self, needed: int) -> None:
        self.kv.must_pause(pending(needed), self.now)

    @invariant()
    def integrity(self) -> None:
        self.kv.check_integrity()

    def teardown(self) -> None:
        for member in self.running:
            self.kv.leave(member.id, 0, self.now)
        self.kv.check_integrity()
        assert self.kv.is_idle


TestProgramKv = _Machine.TestCase
