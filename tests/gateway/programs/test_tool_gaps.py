"""gateway/programs/tool_gaps.py: gaps between answers and the requests that extend them."""

from gateway.programs import ProgramCall, ToolGaps
from gateway.programs.program import Program
from gateway.programs.tool_gaps import MAX_EXPIRED, MAX_GAP_SECONDS, PERSON, word_of


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
    assert list(gaps.times.forecast("tenant", "grep")) == [7.5], "a branch from the same answer teaches nothing"


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
    assert list(gaps.times.forecast("tenant", "grep")) == [MAX_GAP_SECONDS, MAX_GAP_SECONDS]


def test_the_number_of_gaps_is_bounded(monkeypatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setattr("gateway.programs.tool_gaps.MAX_GAPS", 10)
    gaps = ToolGaps()
    for number in range(100):
        gaps.begin(answer(f"a{number}"), 0.0)
    assert len(gaps) == 10
    last = answer("a99")
    gaps.end(extension(last), 5.0)
    assert len(gaps) == 9


def test_a_tenant_with_many_gaps_drops_only_its_own(monkeypatch) -> None:  # type: ignore[no-untyped-def]
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
    assert word_of(["write", "grep", "write"]) == word_of(["grep", "write"]) == "grep+write"
    assert word_of([]) == PERSON
    assert len(word_of(["x" * 60, "y" * 60, "z" * 60])) == 128
