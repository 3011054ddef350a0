"""gateway/api/program_tracker.py: messages of requests become facts about programs. test_programs.py tests the rest."""

import threading
from typing import Any
from unittest import mock

import pytest

from compat.openai import Message
from gateway.api.program_tracker import (
    ProgramTracker,
    PromptSource,
    RequestFacts,
    chat_messages,
    lost_tokens,
    prompt_source,
    text_messages,
)
from gateway.engines.protocol import SamplingParams
from gateway.graph.call import CallSpec, CallState, Times, Usage
from gateway.graph.segments import Slot
from gateway.graph.session import Session
from gateway.programs import CallRecord, ProgramCall, ProgramFacts, ProgramIndex
from gateway.prompts.tool_calls.parser import ToolCallEvent, ToolCallParser

IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}


def message(**fields: object) -> Message:
    return Message.model_validate(fields)


def test_messages_keep_their_texts_and_differ_in_what_the_model_reads() -> None:
    parts = [{"type": "text", "text": "a"}, IMAGE, {"type": "text", "text": "b"}]
    (mixed,) = chat_messages([message(role="user", content=parts)])
    assert list(mixed.texts) == ["a", "b"]
    (other,) = chat_messages([message(role="user", content=[parts[0], parts[2]])])
    assert mixed.key != other.key
    (again,) = chat_messages([message(role="user", content=parts)])
    assert mixed.key == again.key


def test_ids_of_tool_calls_and_reasoning_do_not_count() -> None:
    def assistant(id: str, arguments: str, **fields: object) -> Message:
        call = {"id": id, "type": "function", "function": {"name": "look", "arguments": arguments}}
        return message(role="assistant", content=None, tool_calls=[call], **fields)

    one, two, three = chat_messages(
        [
            assistant("a", '{"x": 1}'),
            assistant("b", '{"x":1}', reasoning_content="I think."),
            assistant("a", '{"x": 2}'),
        ]
    )
    assert one.key == two.key != three.key
    assert one.answer is not None
    assert one.answer == two.answer


def test_refusals_and_prompts_of_completions_are_texts() -> None:
    (refusal,) = chat_messages([message(role="assistant", refusal="no")])
    assert list(refusal.texts) == ["no"]
    assert list(text_messages("a")[0].texts) == ["a"]
    assert text_messages([1, 2])[0].key == text_messages([1, 2])[0].key != text_messages([2, 1])[0].key


CALL: Any = object()
"""A call of which nothing is read."""
TEXTS = ["question " * 100, "question " * 99 + "again"]


def conversation(*contents: object, tools: Any = (), normalizes: bool = False) -> PromptSource:
    roles = ["system", *["user", "assistant"] * len(contents)]
    messages = [message(role=role, content=content) for role, content in zip(roles, contents, strict=False)]
    return PromptSource(messages, tools, normalizes)


def test_a_held_prompt_has_what_templates_read() -> None:
    call = {"id": "a", "type": "function", "function": {"name": "look", "arguments": '{"x": 1}'}}
    messages = [
        message(role="developer", content=[{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]),
        message(role="user", content=[IMAGE], name="me"),
        message(role="assistant", reasoning="I think.", tool_calls=[call]),
        message(role="tool", tool_call_id="a", content="b"),
    ]
    held = PromptSource(messages).held()
    assert held is not None
    assert list(held.messages) == [
        {"role": "system", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
        {"role": "user", "content": [IMAGE], "name": "me"},
        {
            "role": "assistant",
            "content": "",
            "reasoning_content": "I think.",
            "tool_calls": [{"name": "look", "arguments": '{"x": 1}'}],
        },
        {"role": "tool", "content": "b"},
    ]


def test_a_normalized_prompt_is_held_as_the_model_reads_it() -> None:
    line = "x-anthropic-billing-header: cch=1\n"
    for content in (f"{line}Rules", [{"type": "text", "text": line}, {"type": "text", "text": "Rules"}]):
        held = conversation(content, "q", normalizes=True).held()
        assert held is not None
        assert held.messages[0]["content"] in ("Rules", [{"type": "text", "text": "Rules"}])


def test_only_short_single_messages_are_not_compared() -> None:
    short, long = message(role="user", content="a"), message(role="user", content=TEXTS[0])
    assert prompt_source([short], (), normalizes=False) is None
    for messages in ([long], [short] * 2):
        assert prompt_source(messages, (), normalizes=True) == PromptSource(messages, (), True)


@pytest.mark.parametrize(
    ("cached", "missed", "expected"),
    [
        (0, {}, None),  # the engine reports nothing
        (600, {}, 400),
        (1_500, {}, 0),
        (0, {"evicted": 1_200}, 0),
        (600, {"never_seen": 100, "other_key": 50, "diverged": 20, "evicted": 430}, 170),
        (600, {"never_seen": 600}, 400),  # the rest is new
    ],
)
def test_lost_tokens(cached: int, missed: dict[str, int], expected: int | None) -> None:
    earlier = record(Usage(1_000))
    assert lost_tokens(earlier, record(Usage(1_600, cached, missed=missed))) == expected
    assert lost_tokens(None, record(Usage(1_600, cached, missed=missed))) is None
    assert lost_tokens(earlier, record(Usage(1_600, cached, missed=missed), "another")) is None


def record(usage: Usage, engine: str = "e") -> CallRecord:
    return CallRecord("m", CallState.DONE, engine, "stop", None, Times(0.0), usage, None)


async def test_all_that_was_learned_from_a_tenant_is_forgotten_with_it() -> None:
    left = [True, True, False]
    tracker = ProgramTracker(ProgramIndex(), forget_service=lambda tenant: left.pop(0))
    for tenant in ("goes", "stays"):
        for number in range(300):
            member = tracker.index.begin(tenant, ProgramFacts(text_messages(f"question {number}")), 0.0)
            tracker._end(CALL, member, "answer", record(Usage()))
    reported: list[str] = []
    tracker.on_forgotten = reported.append
    tracker.forget_tenant("goes")
    assert reported == ["goes"], "immediately: the server may stop before the rest is done"
    assert len(tracker.index) == 600, "it is not done in one piece"
    await tracker.settle()
    assert (len(tracker.index), len(tracker.gaps), left) == (300, 300, [])


async def test_a_wall_clock_that_jumps_makes_no_program_old(monkeypatch: pytest.MonkeyPatch) -> None:
    tracker = ProgramTracker(ProgramIndex())
    for text, wall in (("one", 1e10), ("two", 2e10)):
        monkeypatch.setattr("time.time", lambda wall=wall: wall)
        spec = CallSpec(model="m", segments=[Slot(None, SamplingParams())])
        (call,) = Session("", "t", 0.0, 60.0, clock=lambda wall=wall: wall).add_all([spec]).calls
        tracker.begin([call], RequestFacts([text_messages(text)]), {}, is_named=False)
        assert isinstance(call.program, ProgramCall)
        tracker._end(call, call.program, "", record(Usage()))
    assert [program.created_at for program in tracker.index.of_tenant("t")] == [2e10, 1e10]


async def test_long_answers_are_parsed_in_one_thread() -> None:
    """Answers beyond a length are not parsed on the event loop, and never two at a time."""
    running, most, threads = 0, 0, set()

    class Parser(ToolCallParser):
        def push(self, text: str) -> list[ToolCallEvent]:
            nonlocal running, most
            running += 1
            most = max(most, running)
            threads.add(threading.get_ident())
            found = super().push(text)
            running -= 1
            return found

    tracker = ProgramTracker(ProgramIndex())
    members = []
    for number, length in enumerate([10, 30_000, 20_000, 70_000]):
        member = tracker.index.begin("t", ProgramFacts(text_messages(f"question {number}")), 0.0)
        member.parser_factory = lambda: Parser(["look"], forced=False)
        call = '<tool_call>{"name": "look", "arguments": {"x": 1}}</tool_call>'
        tracker._end(CALL, member, "a" * length + call, record(Usage()))
        members.append(member)
    assert [member.is_done for member in members] == [True, False, False, True]
    assert threads == {threading.get_ident()}
    await tracker.settle()
    assert [member.tool_names for member in members] == [("look",), ("look",), ("look",), ()]
    assert (most, len(tracker.gaps), len(threads) > 1) == (1, 4, True)


async def test_a_turn_that_arrives_while_an_answer_is_parsed_leaves_no_gap() -> None:
    tracker, question = ProgramTracker(ProgramIndex()), message(role="user", content="question")
    answer = "a" * 20_000
    first = tracker.index.begin("t", ProgramFacts(chat_messages([question])), 0.0)
    first.parser_factory = lambda: ToolCallParser(["look"], forced=False)
    tracker._end(CALL, first, answer, record(Usage()))
    turn = [question, message(role="assistant", content=answer), message(role="user", content="And?")]
    second = tracker.index.begin("t", ProgramFacts(chat_messages(turn)), 0.0)
    tracker.gaps.end(second, 0.0)
    await tracker.settle()
    assert (second.parent, first.is_done, len(tracker.gaps)) == (first, True, 0)


async def test_a_long_answer_that_cannot_be_parsed_ends_its_call() -> None:
    tracker = ProgramTracker(ProgramIndex())
    member = tracker.index.begin("t", ProgramFacts(text_messages("question")), 0.0)
    member.parser_factory = lambda: 7
    tracker._end(mock.Mock(id="call"), member, "a" * 20_000, record(Usage()))
    await tracker.close()
    assert (member.is_done, member.program.running) == (True, 0)


async def test_prompts_wait_in_a_bounded_queue() -> None:
    index = ProgramIndex()
    tracker = ProgramTracker(index)
    for number in range(300):
        member = index.begin("t", ProgramFacts(text_messages(f"question {number}")), 0.0)
        member.source = conversation(TEXTS[0])
        tracker._end(CALL, member, "answer", record(Usage()))
    assert len(tracker._waiting) == 256
    await tracker.settle()
    assert len(index._prompts) == 256
    assert tracker._waiting_characters == 0
    for _ in range(3):
        member = index.begin("t", ProgramFacts(text_messages("x")), 0.0)
        member.source = conversation("x" * (15 << 20))
        tracker._end(CALL, member, "answer", record(Usage()))
    assert len(tracker._waiting) == 2  # the third one exceeds the limit of characters
    await tracker.close()
    assert len(index._prompts) == 256


async def test_a_call_without_an_answer_leaves_the_prompt_that_it_continues() -> None:
    index = ProgramIndex()
    tracker = ProgramTracker(index)

    def turn(*texts: str) -> ProgramCall:
        source = conversation("rules", *texts)
        member = index.begin("t", ProgramFacts(chat_messages(source.messages)), 0.0)
        member.source = source
        return member

    answer = "This is an answer that is long enough to be found again."
    first = turn(TEXTS[0])
    tracker._end(CALL, first, answer, record(Usage()))
    await tracker.settle()
    failed = turn(TEXTS[1], answer, "next")
    failed_record = CallRecord("m", CallState.FAILED, "e", None, None, Times(0.0), Usage(), None)
    tracker._end(CALL, failed, "", failed_record)
    await tracker.settle()
    assert index.prompt_of(first) is not None
    again = turn(TEXTS[1], answer, "next")
    tracker._end(CALL, again, answer, record(Usage()))
    await tracker.settle()
    assert index.prompt_of(first) is None
    assert again.lost_prefix is not None
    assert (again.lost_prefix.earlier, again.lost_prefix.difference.message) == (first.id, 1)


async def test_a_call_of_another_agent_leaves_the_prompt_of_the_conversation() -> None:
    index = ProgramIndex()
    tracker = ProgramTracker(index)
    answer = "This is an answer that is long enough to be found again."
    members = []
    for rules in ("You are an agent that writes code.", "Name this conversation."):
        source = conversation(rules, *([TEXTS[0]] if not members else [TEXTS[0], answer, "a title"]))
        members.append(index.begin("t", ProgramFacts(chat_messages(source.messages)), 0.0))
        members[-1].source = source
        tracker._end(CALL, members[-1], answer, record(Usage()))
        await tracker.settle()
    assert members[1].parent is members[0]
    assert members[1].lost_prefix is None
    assert index.prompt_of(members[0]) is not None
