"""gateway/programs/conversation_index.py: prompts that extend a known one are found, and others are not."""

from gateway.programs import AnswerFacts, ClientIds, ProgramFacts, PromptMessage, prompt_message
from gateway.programs.conversation_index import Conversation, ConversationIndex
from gateway.programs.facts import answer_keys
from gateway.programs.program import Program, ProgramCall

SYSTEM, HELLO = prompt_message("system", ["rules"]), prompt_message("user", ["hello"])
LONG = "an answer that is so long that no other call gives it by chance"


def user(text: str) -> PromptMessage:
    return prompt_message("user", [text])


def assistant(text: str, *tool_calls: tuple[str, str]) -> PromptMessage:
    return prompt_message("assistant", [text], tool_calls)


def call_of(
    index: ConversationIndex,
    messages: list[PromptMessage],
    answer: AnswerFacts | None,
    weak: str | None = None,
    program: Program | None = None,
) -> ProgramCall:
    conversation = Conversation(messages)
    call = ProgramCall(
        "call",
        program or Program("prog", "t", 0.0, 0.0),
        0.0,
        chain=conversation.key,
        depth=len(messages),
        system=conversation.system,
        has_answers=conversation.has_answers,
        weak=weak,
    )
    index.add(call)
    if answer is not None:
        call.ended, call.is_done = 1.0, answer.state == "done"
        if answer.text or answer.tool_calls:
            call.answer = answer_keys(answer.text, answer.tool_calls)
        index.add_answer(call)
    return call


def found(index: ConversationIndex, messages: list[PromptMessage], weak: str | None = None) -> ProgramCall | None:
    return index.find(Conversation(messages), ProgramFacts(messages, ids=ClientIds(weak=weak)))[0]


def test_an_extension_is_found_at_its_longest_beginning() -> None:
    index = ConversationIndex()
    first = call_of(index, [SYSTEM, HELLO], AnswerFacts("hi"))
    prompt = [SYSTEM, HELLO, assistant("hi"), user("more")]
    assert index.find(Conversation(prompt), ProgramFacts(prompt)) == (first, 2)
    second = call_of(index, prompt, AnswerFacts("yes"))
    prompt = [*prompt, assistant("yes"), user("still more")]
    assert index.find(Conversation(prompt), ProgramFacts(prompt)) == (second, 4)
    fork = [SYSTEM, HELLO, assistant("hi"), user("other")]
    assert found(index, fork) is first


def test_common_instructions_and_examples_are_no_conversation() -> None:
    index = ConversationIndex()
    examples = [SYSTEM, user("2+2"), assistant("4"), user("3+3"), assistant("6")]
    call_of(index, [SYSTEM, HELLO], AnswerFacts("hi"))
    call_of(index, [*examples, user("4+4")], AnswerFacts("8"))
    assert found(index, [SYSTEM, user("something else")]) is None
    assert found(index, [*examples, user("5+5")]) is None
    assert found(index, [SYSTEM, HELLO, user("two messages of the user")]) is None


def test_an_equal_opening_is_another_conversation_unless_the_first_failed() -> None:
    index = ConversationIndex()
    call_of(index, [SYSTEM, HELLO], AnswerFacts("hi"))
    assert found(index, [SYSTEM, HELLO]) is None
    failed = call_of(index, [SYSTEM, user("try")], AnswerFacts(state="failed"))
    assert found(index, [SYSTEM, user("try")]) is failed
    deep = call_of(index, [SYSTEM, HELLO, assistant("hi"), user("more")], AnswerFacts("yes"))
    assert found(index, [SYSTEM, HELLO, assistant("hi"), user("more")]) is deep


def test_the_answer_decides_between_equal_openings() -> None:
    index = ConversationIndex()
    calls = [call_of(index, [SYSTEM, HELLO], AnswerFacts(f"{n} is my number")) for n in range(20)]
    assert found(index, [SYSTEM, HELLO, assistant("15 is my number"), user("more")]) is calls[15]
    assert found(index, [SYSTEM, HELLO, assistant("3 is my number"), user("more")]) is None  # forgotten
    assert found(index, [SYSTEM, HELLO, assistant("another text"), user("more")]) is None


def test_the_weak_id_decides_between_equal_conversations_only() -> None:
    index = ConversationIndex()
    mine = call_of(index, [SYSTEM, HELLO], AnswerFacts("hi"), weak="mine")
    yours = call_of(index, [SYSTEM, HELLO], AnswerFacts("hi"), weak="yours")
    more = [SYSTEM, HELLO, assistant("hi"), user("more")]
    assert found(index, more, "mine") is mine
    assert found(index, more, "yours") is yours
    assert found(index, more, "other") is yours  # the newest
    assert found(index, [SYSTEM, user("unrelated")], "mine") is None


def test_rewritten_answers_and_instructions_are_tolerated() -> None:
    index = ConversationIndex()
    call = call_of(index, [SYSTEM, HELLO], AnswerFacts("  I look.", [("read", '{"path": "a"}')]))
    result = prompt_message("tool", ["text of a"])
    for answer in (
        assistant("I look.", ("read", '{"path":"a"}')),
        assistant("", ("read", '{"path": "b"}')),
        assistant("I look.\n", ("read", '{ "path": "a" }')),
    ):
        assert found(index, [SYSTEM, HELLO, answer, result]) is call
    assert found(index, [SYSTEM, HELLO, assistant("", ("write", "{}")), result]) is None
    dated = prompt_message("system", ["rules, and today is Monday"])
    assert found(index, [dated, HELLO, assistant("I look.", ("read", '{"path":"a"}')), result]) is call
    assert found(index, [dated, HELLO, assistant("other"), result]) is None
    late = prompt_message("system", ["1,000 tokens are left"])
    assert found(index, [SYSTEM, HELLO, late, assistant("I look.", ("read", '{"path":"a"}')), late, result]) is call


def test_a_cut_off_answer_is_continued_by_the_same_application() -> None:
    index = ConversationIndex()
    call = call_of(index, [SYSTEM, HELLO], AnswerFacts(state="cancelled"))
    assert found(index, [SYSTEM, HELLO, assistant("I was goi"), user("go on")]) is call
    assert found(index, [HELLO, assistant("I was goi"), user("go on")]) is None


def test_a_long_answer_finds_a_conversation_whose_beginning_was_rewritten() -> None:
    index = ConversationIndex()
    call = call_of(index, [SYSTEM, HELLO], AnswerFacts(LONG))
    call_of(index, [SYSTEM, user("short")], AnswerFacts("yes"))
    assert found(index, [SYSTEM, user("hello, and a reminder"), assistant(LONG), user("more")]) is call
    assert found(index, [SYSTEM, user("rewritten"), assistant("yes"), user("more")]) is None
    call_of(index, [SYSTEM, user("x")], AnswerFacts(LONG), program=Program("other", "t", 0.0, 0.0))
    assert found(index, [SYSTEM, user("hello, and a reminder"), assistant(LONG), user("more")]) is None


def test_removed_calls_are_not_found() -> None:
    index = ConversationIndex()
    calls = [call_of(index, [SYSTEM, HELLO], AnswerFacts(f"{LONG} {n % 2}")) for n in range(3)]
    for call in calls:
        index.remove(call)
        index.remove(call)
    assert len(index) == 0
    assert found(index, [SYSTEM, HELLO, assistant(f"{LONG} 0"), user("more")]) is None
