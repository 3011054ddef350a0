"""gateway/programs/tool_gaps.py: gaps between answers and the requests that extend them."""

import pytest

from gateway.programs import ProgramCall, ToolGaps
from gateway.programs.program import Program
from gateway.programs.tool_gaps import MAX_EXPIRED, MAX_GAP_SECONDS, PERSON, EndedGap, word_of
from gateway.programs.tool_times import MAX_AGE_SECONDS


def answer(id: str, *tools: str, program: Program | None = None) -> ProgramCall:
    program = program or Program("program_1", "tenant", 0.0, 0.0)
    return ProgramCall(id, program, 0.0, tool_names=tools)


def extension(of: ProgramCall) -> ProgramCall:
    return ProgramCall(f"{of.id}+", of.program, 0.0, parent=of)


def test_the_duration_of_a_tool_is_learned_from_the_next_turn() -> None:
    gaps = ToolGaps()
    first = answer("a", "grep")
    assert list(gaps.begin(first, 100.0)) == []
    gaps.end(extension(first), 107.5)
    assert list(gaps.begin(answer("b", "grep"), 200.0)) == [7.5]
    gaps.end(extension(first), 300.0)
    assert list(gaps.times.forecast("tenant", word_of(["grep"]))) == [7.5], (
        "a branch from the same answer teaches nothing"
    )


def test_calls_without_a_known_answer_end_no_gap() -> None:
    gaps = ToolGaps()
    gaps.end(answer("a"), 1.0)
    gaps.end(extension(answer("unknown")), 1.0)
    assert list(gaps.times.forecast("tenant", PERSON)) == []


def test_a_clock_that_goes_back_teaches_no_negative_duration() -> None:
    gaps = ToolGaps()
    first = answer("a")
    gaps.begin(first, 100.0)
    gaps.end(extension(first), 90.0)
    assert list(gaps.times.forecast("tenant", PERSON)) == [0.0]


def test_an_agent_that_never_returns_counts_as_a_long_gap() -> None:
    gaps = ToolGaps()
    for number in range(3):
        gaps.begin(answer(f"a{number}", "grep"), float(number))
    gaps.expire(MAX_GAP_SECONDS + 1.5)
    assert len(gaps) == 1
    assert list(gaps.times.forecast("tenant", word_of(["grep"]))) == [MAX_GAP_SECONDS, MAX_GAP_SECONDS]


def test_the_number_of_gaps_is_bounded(monkeypatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setattr("gateway.programs.tool_gaps.MAX_GAPS", 10)
    gaps = ToolGaps()
    for number in range(100):
        gaps.begin(answer(f"a{number}"), 0.0)
    assert len(gaps) == 10
    last = answer("a99")
    gaps.end(extension(last), 5.0)
    assert len(gaps) == 9


def test_a_tenant_with_many_gaps_drops_only_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.programs.tool_gaps.MAX_GAPS", 10)
    gaps = ToolGaps()
    quiet = answer("quiet", "grep")
    gaps.begin(quiet, 0.0)
    loud = Program("program_2", "loud", 0.0, 0.0)
    for number in range(100):
        gaps.begin(answer(f"a{number}", program=loud), 1.0)
    gaps.end(extension(quiet), 5.0)
    assert list(gaps.times.forecast("tenant", "grep")) == [5.0]


def test_one_request_ends_few_old_gaps() -> None:
    gaps = ToolGaps()
    for number in range(3 * MAX_EXPIRED):
        gaps.begin(answer(f"a{number}"), 0.0)
    for number in range(3):
        assert len(gaps) == (3 - number) * MAX_EXPIRED
        gaps.expire(MAX_GAP_SECONDS + 1.0)
    assert len(gaps) == 0
    assert list(gaps.times.forecast("tenant", PERSON)) == [MAX_GAP_SECONDS] * 3 * MAX_EXPIRED


def test_a_tenant_that_is_forgotten_leaves_no_gaps() -> None:
    gaps = ToolGaps()
    stays = answer("stays", program=Program("program_2", "another", 0.0, 0.0))
    for call in (answer("a", "grep"), stays):
        gaps.begin(call, 0.0)
        gaps.end(extension(call), 3.0)
        gaps.begin(call, 4.0)
    for number in range(300):
        gaps.begin(answer(f"a{number}"), 4.0)
    assert (gaps.forget_some("tenant"), len(gaps)) == (True, 302 - 256)
    while gaps.forget_some("tenant"):
        pass
    assert len(gaps) == 1
    assert list(gaps.times.forecast("tenant", "grep")) == [3.0], "what others' tools took"
    assert gaps.forget_some("another")
    assert (len(gaps), list(gaps.times.forecast("tenant", "grep"))) == (0, [])


def test_tools_that_run_together_have_one_word() -> None:
    assert word_of(["write", "grep", "write"]) == word_of(["grep", "write"])
    assert word_of([]) == PERSON
    words = [
        word_of(names) for names in (["grep"], ["write"], ["grep", "write"], ["grepwrite"], ["\ud800"], ["x" * 999])
    ]
    assert len(set(words)) == len(words)


def test_a_word_hides_the_names() -> None:
    word = word_of(["secret_tool"])
    assert len(word) == 32
    assert set(word) <= set("0123456789abcdef")


def test_what_is_learned_is_reported_once_and_can_be_restored() -> None:
    gaps, ended = ToolGaps(), list[EndedGap]()
    gaps.on_ended = ended.append
    first = answer("a", "grep")
    gaps.begin(first, 100.0)
    gaps.end(extension(first), 107.5)
    gaps.begin(answer("b"), 110.0)
    gaps.expire(110.0 + MAX_GAP_SECONDS + 1)
    assert ended == [
        EndedGap("tenant", word_of(["grep"]), 7.5, 107.5),
        EndedGap("tenant", PERSON, MAX_GAP_SECONDS, 110.0 + MAX_GAP_SECONDS + 1),
    ]
    later = ToolGaps()
    later.on_ended = ended.append
    later.restore(ended[:1], 200.0)
    assert list(later.begin(answer("c", "grep"), 200.0)) == [7.5]
    assert len(ended) == 2, "what is restored is stored already"


def test_a_restored_gap_of_the_future_does_not_stay_longer_than_others() -> None:
    gaps = ToolGaps()
    gaps.restore([EndedGap("tenant", word_of(["grep"]), 5.0, 1e12)], 200.0)
    gaps.times.observe("tenant", word_of(["grep"]), 1.0, 200.0 + MAX_AGE_SECONDS + 1)
    assert list(gaps.times.forecast("tenant", word_of(["grep"]))) == [1.0]
