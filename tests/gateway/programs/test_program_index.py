"""gateway/programs/program_index.py: which program a request belongs to, and how much is remembered."""

import json
import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.graph.call import CallState, Times, Usage
from gateway.programs import (
    AnswerFacts,
    CallRecord,
    ClientIds,
    Difference,
    LostPrefix,
    ProgramFacts,
    ProgramIndex,
    ProgramLimits,
    Spoiler,
    client_ids,
    held_prompt,
    prompt_message,
)
from gateway.programs.program import ProgramCall
from tests.gateway.programs.conversations import Agent, run_sessions

PROMPT = "Find every test that waits for a timeout, and say which of them can be made faster."
REPORT = "There are three such tests: one in the journal, one in the cluster, and one in the engine's server."


def facts(*texts: str, session: str | None = None, ids: ClientIds | None = None) -> ProgramFacts:
    messages = [prompt_message("user", [text]) for text in texts]
    return ProgramFacts(messages, session, ids or ClientIds())


def single(
    index: ProgramIndex,
    text: str,
    answer: str | AnswerFacts = "yes",
    now: float = 0.0,
    tenant: str = "t",
    ids: ClientIds | None = None,
) -> ProgramCall:
    call = index.begin(tenant, facts(text, ids=ids), now)
    index.end(call, AnswerFacts(answer) if isinstance(answer, str) else answer, now)
    return call


@settings(max_examples=30)
@given(st.integers(0, 1 << 30), st.integers(1, 8), st.integers(1, 25))
def test_conversations_are_programs_by_their_content_alone(seed: int, sessions: int, turns: int) -> None:
    index = ProgramIndex()
    programs: dict[int, set[str]] = {}
    for number, call, extends in run_sessions(index, seed, sessions, turns):
        programs.setdefault(number, set()).add(call.program_id)
        assert (call.parent is not None) == extends
        assert call.evidence == ("content" if extends else "none")
    assert all(len(ids) == 1 for ids in programs.values())
    assert len(index) == len(programs)


def test_edges_name_the_extended_call_and_tools_in_between() -> None:
    index = ProgramIndex()
    agent = Agent("a", index)
    agent.messages.append(prompt_message("user", ["look"]))
    first = agent.send(0.0, AnswerFacts("", [("read", "{}"), ("list", "{}")]))
    second = agent.ask(9.0, "tool")
    assert [(edge.source, edge.kind) for edge in second.edges] == [(first.id, "extends")]
    assert (first.tool_names, second.follows_tools, first.follows_tools) == (("read", "list"), True, False)
    assert second.begun - (first.ended or 0.0) == 9.0
    assert first.is_extended


def test_a_repeated_turn_is_a_branch_beside_the_first_one() -> None:
    index = ProgramIndex()
    agent = Agent("a", index)
    first, second = agent.ask(0.0), agent.ask(1.0)
    agent.messages.pop()
    again = agent.send(2.0)
    assert again.program is first.program
    assert again.parent is first
    assert [edge.source for edge in again.edges] == [edge.source for edge in second.edges] == [first.id]


def test_a_session_of_the_gateway_is_one_program() -> None:
    index = ProgramIndex()
    calls = [index.begin("t", facts(f"text {n}", session="s", ids=ClientIds("other")), n) for n in range(3)]
    assert {call.program_id for call in calls} == {calls[0].program_id}
    assert (calls[0].program.session, calls[0].evidence) == ("s", "session")
    assert index.begin("t", facts("text", ids=ClientIds("s")), 3.0).program is not calls[0].program


def test_a_session_id_of_the_agent_is_one_program_with_many_conversations() -> None:
    index = ProgramIndex()
    ids = ClientIds("x-session-id:a")
    main, other = Agent("main", index), Agent("other", index)
    calls = [agent.ask(float(turn), facts=ProgramFacts(ids=ids)) for turn in range(2) for agent in (main, other)]
    assert {call.program_id for call in calls} == {calls[0].program_id}
    assert {call.evidence for call in calls} == {"id"}
    assert [call.parent for call in calls] == [None, None, *calls[:2]]


def test_a_child_session_joins_its_parent() -> None:
    index = ProgramIndex()
    parent = index.begin("t", facts("main", ids=ClientIds("a")), 0.0)
    child = index.begin("t", facts("child", ids=ClientIds("b", parent="a")), 1.0)
    later = index.begin("t", facts("child again", ids=ClientIds("b")), 2.0)
    assert child.program is parent.program is later.program
    assert [(edge.source, edge.kind) for edge in child.edges] == [(parent.id, "spawns")]
    early = index.begin("t", facts("early", ids=ClientIds("d", parent="c")), 3.0)
    assert index.begin("t", facts("late", ids=ClientIds("c")), 4.0).program is early.program
    assert index.begin("t", facts("own", ids=ClientIds("e", parent="e")), 5.0).evidence == "id"


def test_a_sub_agent_whose_prompt_two_tool_calls_of_its_parent_have_joins_it() -> None:
    index = ProgramIndex()
    calls = [("task", json.dumps({"prompt": f"{PROMPT} {end}"})) for end in ("Be brief.", "Give examples.")]
    first = single(index, "make the tests fast", AnswerFacts("I start two agents.", calls))
    child = index.begin("t", facts("<reminder>", PROMPT), 1.0)
    assert child.program is first.program


@pytest.mark.parametrize("ids", [ClientIds(), ClientIds("child")])
def test_a_sub_agent_joins_the_call_whose_tool_has_its_prompt(ids: ClientIds) -> None:
    index = ProgramIndex()
    main = Agent("main", index)
    main.messages.append(prompt_message("user", ["make the tests fast"]))
    first = main.send(0.0, AnswerFacts("I start an agent.", [("task", f'{{"prompt": "{PROMPT}"}}')]))
    child = index.begin("t", facts("<reminder>", PROMPT, ids=ids), 1.0)
    index.end(child, AnswerFacts(REPORT), 2.0)
    assert child.program is first.program
    assert [(edge.source, edge.kind) for edge in child.edges] == [(first.id, "spawns")]
    back = main.ask(3.0, "tool", REPORT)
    assert [(edge.source, edge.kind) for edge in back.edges] == [(first.id, "extends"), (child.id, "answer")]
    assert back.edges[1].length == len(REPORT)


def test_the_last_call_of_a_map_reduce_makes_its_calls_one_program() -> None:
    index = ProgramIndex()
    parts = [
        single(index, f"Summarise part {n}", f"Part {n}: {random.Random(n).random()} and other things")
        for n in range(9)
    ]
    unrelated = single(index, "Another question", "Another answer, which is long enough to be found in a prompt.")
    former = {call.program_id for call in parts}
    assert len(former) == 9
    answers = "\n".join(f"Part {n}: {random.Random(n).random()} and other things" for n in range(9))
    last = index.begin("t", facts(f"Join these summaries:\n{answers}"), 5.0)
    assert {call.program for call in parts} == {last.program}
    assert {edge.source for edge in last.edges} == {call.id for call in parts}
    assert {edge.kind for edge in last.edges} == {"answer"}
    assert unrelated.program is not last.program
    assert all(index.find("t", id) is last.program for id in former)
    assert last.program.call_count == 10
    assert last.program.running == 1
    assert len(index) == 2


def test_programs_that_an_id_names_stay_apart() -> None:
    index = ProgramIndex()
    named = index.begin("t", facts("x", ids=ClientIds("a")), 0.0)
    index.end(named, AnswerFacts(REPORT), 0.0)
    other = single(index, "y", PROMPT)
    quoting = index.begin("t", facts(f"{REPORT} {PROMPT}"), 1.0)
    assert quoting.program is named.program is other.program  # the unnamed one became part of it
    second = index.begin("t", facts("z", ids=ClientIds("b")), 2.0)
    index.end(second, AnswerFacts("The second program has an answer of its own, as long as a line."), 2.0)
    joined = index.begin("t", facts("The second program has an answer of its own, as long as a line.", REPORT), 3.0)
    assert second.program is not named.program
    assert joined.program in (named.program, second.program)


def test_an_answer_that_many_calls_give_connects_nothing() -> None:
    index = ProgramIndex()
    refusal = "I am sorry, but I cannot help with this request, because it is unclear."
    for number in range(2):
        single(index, f"question {number}", refusal)
    quoting = index.begin("t", facts(f"Why does it say this? {refusal}"), 1.0)
    assert quoting.evidence == "none"
    assert len(quoting.edges) == 2


def test_a_template_that_answers_repeat_connects_nothing() -> None:
    index = ProgramIndex()
    template = "Answer with one line of the form: the sentiment of this text is positive."
    for number in range(20):
        call = single(index, f"{template} Text {number}", "the sentiment of this text is positive.")
        assert (call.evidence, call.edges) == ("none", ())
    assert len(index) == 20


def test_weak_ids_do_not_make_conversations_one_program() -> None:
    index = ProgramIndex()
    for number in range(5):
        index.begin("t", facts(f"question {number}", ids=ClientIds(weak="one for all")), 0.0)
    assert len(index) == 5


def test_tenants_share_nothing() -> None:
    index = ProgramIndex()
    mine, yours = Agent("same", index, "t"), Agent("same", index, "u")
    calls = [agent.ask(0.0, text="equal", answer=AnswerFacts(REPORT)) for agent in (mine, yours)]
    assert calls[0].program is not calls[1].program
    assert index.begin("u", facts("x", ids=ClientIds("a")), 1.0).program is not (
        index.begin("t", facts("x", ids=ClientIds("a")), 1.0).program
    )
    assert index.find("u", calls[0].program_id) is None
    while index.forget_some("t"):
        pass
    assert index.find("t", calls[0].program_id) is None
    assert index.find("u", calls[1].program_id) is calls[1].program


def test_the_end_of_a_call_adds_up_once() -> None:
    index = ProgramIndex()
    call = index.begin("t", facts("x"), 0.0)
    record = CallRecord("m", CallState.DONE, "e", "stop", None, Times(0.0), Usage(10, 4, 3), 0.5)
    for _ in range(2):
        index.end(call, AnswerFacts("yes"), 1.0, record)
    program = call.program
    assert (program.prompt_tokens, program.cached_tokens, program.completion_tokens, program.cost) == (10, 4, 3, 0.5)
    assert (program.running, program.call_count, call.record) == (0, 1, record)


# bounds


def test_a_conversation_that_forks_a_thousand_times_is_one_bounded_program() -> None:
    index = ProgramIndex(ProgramLimits(program_calls=64))
    agent = Agent("a", index)
    root = agent.ask(0.0)
    for number in range(1_000):
        branch = Agent(f"branch {number}", index, messages=list(agent.messages))
        call = branch.ask(float(number))
        assert call.parent is root
        assert len(call.program.calls) <= 64
    assert (len(index), root.program.call_count) == (1, 1_001)
    assert index.bytes < 64 * 3_000 + 2_000


def test_many_programs_of_one_request_are_bounded_and_do_not_displace_those_of_others() -> None:
    limits = ProgramLimits(programs=1_000, bytes=1 << 22, text_bytes=1 << 18)
    index = ProgramIndex(limits)
    kept = single(index, "mine", "an answer that is mine, and long enough to be found", tenant="small")
    for number in range(20_000):
        single(index, f"question {number}", f"answer {number} of a model that answers at length", float(number) / 1e4)
        assert len(index) <= limits.programs
    assert index.bytes <= limits.bytes
    assert index.text_bytes <= limits.text_bytes
    assert index.find("small", kept.program_id) is kept.program
    assert next(index.of_tenant("t")).last_used == pytest.approx(1.9999)


def test_many_tenants_share_the_memory() -> None:
    index = ProgramIndex(ProgramLimits(programs=100))
    for number in range(1_000):
        single(index, "question", "answer", float(number), tenant=f"tenant {number}")
    assert len(index) <= 100


def test_idle_programs_are_forgotten_but_running_ones_are_not() -> None:
    index = ProgramIndex(ProgramLimits(idle_seconds=10.0))
    running = index.begin("t", facts("running"), 0.0)
    done = single(index, "done", "yes")
    index.expire(11.0)
    assert index.find("t", done.program_id) is None
    assert index.find("t", running.program_id) is running.program
    index.end(running, AnswerFacts("yes"), 12.0)
    index.expire(23.0)
    assert len(index) == index.bytes == index.text_bytes == 0


def test_each_program_that_is_forgotten_or_merged_is_reported_once() -> None:
    index, reported = ProgramIndex(), list[str]()
    index.on_forgotten = reported.append
    maps = [
        single(index, f"Summarise chapter {number}.", REPORT.replace("three", f"{number * 7919} {number}"))
        for number in range(3)
    ]
    former = {call.program_id for call in maps}
    answers = [REPORT.replace("three", f"{number * 7919} {number}") for number in range(3)]
    last = single(index, "Join these: " + "\n".join(answers), "Done.", 1.0)
    assert sorted(reported) == sorted(former - {last.program_id})
    assert len(reported) == 2
    other = single(index, "Another thing.", "Done.", 2.0)
    index.expire(10_000.0)
    assert sorted(reported) == sorted({*former, other.program_id})
    assert len(index) == 0


@pytest.mark.parametrize("size", [1, 40, 512])
def test_a_method_forgets_few_calls_however_many_are_old(size: int) -> None:
    index = ProgramIndex(ProgramLimits(idle_seconds=10.0))
    for number in range(1_024):
        single(index, f"question {number}", ids=ClientIds(f"program {number // size}"))
    left, rounds = 1_024, 0
    while left:
        index.expire(11.0)
        remaining = sum(len(program.calls) for program in index.of_tenant("t"))
        assert 0 < left - remaining <= 64
        left, rounds = remaining, rounds + 1
    assert rounds == 1_024 // 64
    assert len(index) == index.bytes == 0


def test_forgetting_long_answers_counts_their_windows() -> None:
    index = ProgramIndex(ProgramLimits(idle_seconds=10.0))
    for number in range(64):
        single(index, f"question {number}", " ".join(f"{number}.{word}" for word in range(8_000)))
    index.expire(11.0)
    assert 48 <= len(index) < 64


def test_a_tenant_is_forgotten_in_parts() -> None:
    index = ProgramIndex()
    kept = single(index, "mine", REPORT, tenant="stays")
    running = index.begin("goes", facts("running"), 0.0)
    for number in range(199):
        single(index, f"question {number}", f"{REPORT} {number}", tenant="goes")
    parts = 1
    while index.forget_some("goes"):
        parts += 1
    assert parts == -(-200 // 64)
    assert not index.forget_some("goes")
    index.end(running, AnswerFacts(f"{REPORT} late"), 1.0)
    assert [link.source.call for link in index._links.find("stays", [REPORT])] == [kept]
    assert (len(index), index._links.find("goes", [REPORT])) == (1, [])
    assert index.find("stays", kept.program_id) is kept.program


def test_the_order_of_programs_is_that_of_their_use() -> None:
    index = ProgramIndex(ProgramLimits(idle_seconds=10.0))
    index.begin("t", facts("running"), 0.0)
    for number in range(30):
        single(index, f"question {number}", now=float(number) / 10, ids=ClientIds(f"session {number * 7 % 11}"))
    index.expire(10.05)
    found = list(index.of_tenant("t"))
    assert len(found) == 12
    assert sorted(index.all_of("t"), key=lambda program: -program.order) == found
    assert index.all_of("another") == []


def test_times_that_are_shown_do_not_count_for_ages() -> None:
    index = ProgramIndex(ProgramLimits(idle_seconds=10.0))
    first = index.begin("t", facts("one"), 0.0, unix_time=1e9)
    record = CallRecord("m", CallState.DONE, "e", "stop", None, Times(1e9, finished=1e9 + 1), Usage(), None)
    index.end(first, AnswerFacts("yes"), 1.0, record)
    assert (first.program.created_at, first.program.last_used_at) == (1e9, 1e9 + 1)
    index.begin("t", facts("two"), 2.0, unix_time=2e9)  # the wall clock was set
    assert index.find("t", first.program_id) is first.program
    index.begin("t", facts("three"), 12.0, unix_time=1e9)
    assert index.find("t", first.program_id) is None


def test_a_call_that_outlives_its_program_ends_quietly() -> None:
    index = ProgramIndex(ProgramLimits(programs=2), several_tenants=False)
    first = index.begin("t", facts("first"), 0.0)
    for number in range(5):
        index.begin("t", facts(f"other {number}"), 1.0)
    assert first.is_forgotten
    index.end(first, AnswerFacts(REPORT), 2.0)
    assert index.text_bytes == 0
    assert first.program.running == 0


@pytest.mark.parametrize("size", [0, 1, 100_000])
def test_ids_of_any_length_take_bounded_memory(size: int) -> None:
    index = ProgramIndex()
    ids = client_ids({"x-session-id": "\udcff" * size, "x-parent-session-id": "é" * size}, "k" * size)
    calls = [index.begin("t", facts("x", ids=ids), 0.0) for _ in range(2)]
    assert (calls[0].program is calls[1].program) == (size > 0)
    assert index.bytes < 10_000


def test_the_names_of_one_program_are_bounded() -> None:
    index = ProgramIndex()
    root = index.begin("t", facts("x", ids=ClientIds("root")), 0.0)
    for number in range(1_000):
        child = index.begin("t", facts(f"child {number}", ids=ClientIds(f"child {number}", "root")), 1.0)
        assert child.program is root.program
    assert len(root.program.names) <= 64


def test_long_prompts_take_bounded_memory() -> None:
    index = ProgramIndex()
    large = facts("x" * (1 << 20))
    call = index.begin("t", large, 0.0)
    assert sum(map(len, call.prompt)) <= 65_536
    index.end(call, AnswerFacts("y" * (1 << 20), [("write", '{"text": "' + "z" * (1 << 20) + '"}')] * 100), 0.0)
    assert call.prompt == ()
    assert index.text_bytes < 2 << 20
    messages = [prompt_message("assistant" if n % 2 else "user", [f"message {n}"]) for n in range(1_999)]
    first = index.begin("t", ProgramFacts(messages), 1.0)
    index.end(first, AnswerFacts("yes"), 1.0)
    more = [*messages, prompt_message("assistant", ["yes"]), prompt_message("user", ["more"])]
    assert index.begin("t", ProgramFacts(more), 2.0).parent is first
    assert index.bytes < 20_000


@settings(max_examples=60)
@given(
    st.lists(
        st.tuples(
            st.sampled_from("tu"),
            st.sampled_from([None, "a", "b"]),
            st.sampled_from([None, "a", "c"]),
            st.integers(0, 5),
            st.sampled_from(["done", "failed", "running"]),
            st.floats(0.0, 4.0),
        ),
        max_size=60,
    )
)
def test_counts_and_bytes_are_those_of_what_is_remembered(
    steps: list[tuple[str, str | None, str | None, int, str, float]],
) -> None:
    index = ProgramIndex(
        ProgramLimits(programs=12, program_calls=6, bytes=60_000, text_bytes=20_000, idle_seconds=10.0)
    )
    agents = {(tenant, number): Agent(f"{number}", index, tenant) for tenant in "tu" for number in range(6)}
    running: list[ProgramCall] = []
    now = 0.0
    for tenant, session, parent, number, state, pause in steps:
        now += pause
        agent = agents[tenant, number]
        agent.messages.append(prompt_message("user", [f"{REPORT} {number}" if number < 2 else f"turn {now}"]))
        call = index.begin(tenant, ProgramFacts(list(agent.messages), ids=ClientIds(session, parent)), now)
        assert call.program.tenant == tenant
        if state == "running":
            running.append(call)
        else:
            index.end(call, AnswerFacts(f"{REPORT} {number}", [("tool", "{}")] * number, state), now)
            agent.messages.append(prompt_message("assistant", [f"{REPORT} {number}"]))
        programs = [program for owner in "tu" for program in index.of_tenant(owner)]
        assert len(index) == len(programs) <= 12
        assert all(found.program is program for program in programs for found in program.calls.values())
        counted = Counter(id(found.program) for found in running if not found.is_forgotten)
        assert all(program.running >= counted[id(program)] for program in programs)
    for call in running:
        index.end(call, AnswerFacts("late"), now)
    assert all(program.running == 0 for owner in "tu" for program in index.of_tenant(owner))
    index.expire(now + 100.0)
    assert len(index) == index.bytes == index.text_bytes == 0


def long_answer(number: int) -> AnswerFacts:
    return AnswerFacts(f"This is answer {number}, of which no other call has given any part, so far.")


def grown(index: ProgramIndex, turns: int, **options: object) -> tuple[Agent, list[ProgramCall]]:
    """Return an agent after some turns with long answers, and its calls."""
    agent = Agent("a", index)
    calls = []
    for number in range(turns):
        agent.messages.append(prompt_message("user", [f"question {number}"]))
        calls.append(agent.send(float(number), long_answer(number), **options))  # type: ignore[arg-type]
    return agent, calls


def begun(agent: Agent, program_facts: ProgramFacts | None = None) -> ProgramCall:
    """Return the call of the agent's next turn, which runs."""
    program_facts = program_facts or ProgramFacts()
    agent.messages.append(prompt_message("user", ["the next question"]))
    messages = ProgramFacts(agent.messages, program_facts.session, program_facts.ids)
    return agent.index.begin("t", messages, 50.0)


@settings(max_examples=30)
@given(st.integers(0, 1 << 30), st.integers(1, 12))
def test_each_turn_continues_the_call_that_it_extends(seed: int, turns: int) -> None:
    index, pick = ProgramIndex(), random.Random(seed)
    agent = Agent("a", index)
    for number in range(turns):
        if len(agent.messages) > 3 and pick.random() < 0.3:
            agent = agent.fork(pick.randrange(1, (len(agent.messages) - 1) // 2))
        agent.messages.append(prompt_message("user", [f"question {number}"]))
        call = index.begin("t", ProgramFacts(list(agent.messages)), float(number))
        assert call.continued is call.parent
        answer = pick.choice([AnswerFacts("OK"), long_answer(number)])
        index.end(call, answer, float(number))
        assert call.continued is None
        agent.messages.append(prompt_message("assistant", [answer.text]))


@pytest.mark.parametrize("rewritten", [1, 3, 5])
def test_a_call_with_a_rewritten_history_continues_the_one_whose_answer_it_has(rewritten: int) -> None:
    agent, calls = grown(ProgramIndex(), 4)
    agent.messages[rewritten] = prompt_message("user", ["it was rewritten"])
    call = begun(agent)
    assert call.program is calls[0].program
    assert call.continued is calls[-1]


@pytest.mark.parametrize("turns", [1, 2])
def test_a_branch_continues_the_call_at_which_it_begins(turns: int) -> None:
    agent, calls = grown(ProgramIndex(), 4)
    branch = agent.fork(turns)
    call = begun(branch)
    assert call.continued is call.parent is calls[-1 - turns]
    agent.index.end(call, long_answer(9), 51.0)
    branch.messages.append(prompt_message("assistant", [long_answer(9).text]))
    assert begun(branch).continued is call


def test_a_repeated_call_continues_the_one_before() -> None:
    agent, calls = grown(ProgramIndex(), 2)
    failed = begun(agent)
    agent.index.end(failed, AnswerFacts(state="failed"), 51.0)
    again = agent.index.begin("t", ProgramFacts(agent.messages), 52.0)
    assert again.continued is failed.parent is calls[-1]


def test_an_id_connects_short_answers_at_the_same_place() -> None:
    index, ids = ProgramIndex(), ProgramFacts(ids=ClientIds("s"))
    agent = Agent("a", index)
    first = agent.ask(0.0, answer=AnswerFacts("OK"), facts=ids)
    agent.messages[1] = prompt_message("user", ["It is another day."])
    call = begun(agent, ids)
    assert (call.parent, call.continued) == (None, first)
    index.end(call, AnswerFacts("OK"), 51.0)
    unrelated = Agent("b", index, messages=[prompt_message("user", ["x"])] * 3)
    unrelated.messages.append(prompt_message("assistant", ["OK"]))
    assert begun(unrelated, ids).continued is None


def test_programs_that_are_forgotten_lose_their_prompts_and_differences() -> None:
    index = ProgramIndex(ProgramLimits(program_calls=3))
    _, calls = grown(index, 2)
    held = held_prompt([{"role": "user", "content": "question"}], ())
    assert held is not None
    lost = LostPrefix(calls[0].id, Difference(0, "user", "content", 3, "a", "b", Spoiler.UNKNOWN), 500)
    for call in calls:
        index.remember_prompt(call, held)
    index.remember_prompt(calls[1], held, calls[0])
    assert (index.prompt_of(calls[0]), index.prompt_of(calls[1]), index.prompt_bytes) == (None, held, held.size)
    before = index.bytes
    index.report(calls[1], lost)
    size = index.bytes - before
    assert size > 0
    index.report(calls[1], lost)
    assert (calls[1].lost_prefix, index.bytes) == (lost, before + size)
    while index.forget_some("t"):
        pass
    index.remember_prompt(calls[1], held)
    index.report(calls[0], lost)
    assert (index.prompt_bytes, index.bytes, calls[0].lost_prefix) == (0, 0, None)


def test_a_forgotten_call_is_not_held_by_a_running_one() -> None:
    index = ProgramIndex(ProgramLimits(program_calls=2))
    agent, _ = grown(index, 1)
    running = begun(agent)
    for number in range(3):
        grown_call = index.begin("t", ProgramFacts(agent.messages), 60.0 + number)
        index.end(grown_call, AnswerFacts(state="failed"), 60.0 + number)
    assert running.is_forgotten
    assert running.continued is None
