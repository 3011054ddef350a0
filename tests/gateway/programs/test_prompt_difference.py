"""The first difference between two turns of a program."""

import copy
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.programs.prompt_difference import (
    EXCERPT_CHARACTERS,
    FIELD_CHARACTERS,
    Difference,
    Spoiler,
    first_difference,
)

SYSTEM = {"role": "system", "content": "You are an agent."}
QUESTION = {"role": "user", "content": "Which files are here?"}
CALL = {"id": "1", "type": "function", "function": {"name": "bash", "arguments": '{"command": "ls"}'}}
ANSWER = {"role": "assistant", "content": "", "reasoning_content": "I list them.", "tool_calls": [CALL]}
RESULT = {"role": "tool", "tool_call_id": "1", "content": "README.md"}
TURN = [SYSTEM, QUESTION, ANSWER, RESULT]
TOOLS = [
    {"type": "function", "function": {"name": name, "parameters": {"type": "object", "properties": {}}}}
    for name in ("bash", "edit")
]

_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
_CONTENT = st.text(max_size=200) | st.lists(
    st.fixed_dictionaries({"type": st.just("text"), "text": st.text(max_size=50)}), max_size=3
)
_MESSAGES = st.lists(
    st.fixed_dictionaries(
        {"role": st.sampled_from(["system", "user", "assistant", "tool"]), "content": _CONTENT},
        optional={"reasoning": st.text(max_size=20), "tool_calls": _JSON, "x": _JSON},
    ),
    max_size=6,
)


def _with(messages: list[dict[str, Any]], index: int, **fields: Any) -> list[dict[str, Any]]:
    return [{**message, **(fields if number == index else {})} for number, message in enumerate(messages)]


def _found(earlier: list[dict[str, Any]], later: list[dict[str, Any]]) -> Difference:
    found = first_difference(earlier, later)
    assert found is not None
    return found


def test_no_difference_if_a_turn_extends_another() -> None:
    assert first_difference(TURN, copy.deepcopy([*TURN, ANSWER])) is None
    assert first_difference([], TURN) is None
    assert first_difference(TURN, TURN, earlier_tools=TOOLS, later_tools=copy.deepcopy(TOOLS)) is None


def test_spellings_that_a_model_reads_alike_are_no_difference() -> None:
    parts = _with(TURN, 1, content=[{"type": "text", "text": QUESTION["content"]}], name=None)
    assert first_difference(TURN, parts) is None
    renamed = [{name.removesuffix("_content"): value for name, value in message.items()} for message in TURN]
    assert renamed[2]["reasoning"]
    assert first_difference(TURN, renamed) is None


def test_names_message_role_field_and_both_texts() -> None:
    long = "a" * 1000
    found = _found(_with(TURN, 1, content=f"{long}one{long}"), _with(TURN, 1, content=f"{long}two{long}"))
    assert (found.message, found.role, found.field, found.offset) == (1, "user", "content", 1000)
    assert found.earlier.startswith("a" * 24 + "one")
    assert found.later.startswith("a" * 24 + "two")
    assert len(found.earlier) == len(found.later) == EXCERPT_CHARACTERS
    assert found.spoiler is Spoiler.UNKNOWN


def test_names_a_part_and_an_argument() -> None:
    part = {"type": "text", "text": "x"}
    found = _found(
        _with(TURN, 1, content=[part, {"type": "text", "text": "y"}]),
        _with(TURN, 1, content=[part, {"type": "text", "text": "z"}]),
    )
    assert found.field == "content.1.text"
    call = {**CALL, "function": {**CALL["function"], "arguments": "{}"}}
    found = _found(TURN, _with(TURN, 2, tool_calls=[call]))
    assert found.field == "tool_calls.0.function.arguments"


def test_a_missing_message_is_a_difference() -> None:
    found = _found(TURN, TURN[:2])
    assert (found.message, found.role, found.field, found.later) == (2, "assistant", "", "")
    assert "I list them." in found.earlier


@pytest.mark.parametrize(
    ("before", "after", "spoiler"),
    [
        (
            "x-anthropic-billing-header: cc_version=2.1; cch=1;\nBe brief.",
            "x-anthropic-billing-header: cc_version=2.1; cch=2;\nBe brief.",
            Spoiler.BILLING_LINE,
        ),
        ("x-anthropic-billing-header: cch=1;\nBe brief.", "Be brief.", Spoiler.BILLING_LINE),
        ("x-anthropic-billing-header: cch=1;\nBe brief.", "x-anthropic-billing-header: cch=1;\nBe.", Spoiler.UNKNOWN),
        (
            "<system_warning>Token usage: 35000/200000; 165000 remaining</system_warning>",
            "<system_warning>Token usage: 36000/200000; 164000 remaining</system_warning>",
            Spoiler.COUNTDOWN,
        ),
        (
            "<system-reminder>\nToken usage: 1000/2000; 1000 remaining\n</system-reminder>Go on.",
            "<system-reminder>\nToken usage: 1000/2000; 999 remaining\n</system-reminder>Go on.",
            Spoiler.COUNTDOWN,
        ),
        ("USD budget: $1.5/$2; $0.5 remaining", "USD budget: $1.6/$2; $0.4 remaining", Spoiler.COUNTDOWN),
        (
            "<budget:token_budget>200000</budget:token_budget>",
            "<budget:token_budget>190000</budget>",
            Spoiler.COUNTDOWN,
        ),
        ("Today's date is 2026-11-28.", "Today's date is 2026-11-29.", Spoiler.DATE),
        ("It is 12:59:58.", "It is 13:00:01.", Spoiler.DATE),
        ("Today is Nov 29, 2026.", "Today is Dec 1, 2026.", Spoiler.DATE),
        ("now=1764412345", "now=1764412400", Spoiler.DATE),
        ("2026-11-28A", "2026-11-28B", Spoiler.UNKNOWN),
        ("version 3", "version 4", Spoiler.UNKNOWN),
    ],
)
def test_known_spoilers(before: str, after: str, spoiler: Spoiler) -> None:
    found = _found(_with(TURN, 0, content=before), _with(TURN, 0, content=after))
    assert (found.message, found.role, found.spoiler) == (0, "system", spoiler)


def test_a_billing_line_counts_only_at_the_start_of_a_system_prompt() -> None:
    before, after = (f"x-anthropic-billing-header: cch={number};" for number in (1, 2))
    assert _found(_with(TURN, 1, content=before), _with(TURN, 1, content=after)).spoiler is Spoiler.UNKNOWN
    before, after = (f"Be brief.\n{line}" for line in (before, after))
    assert _found(_with(TURN, 0, content=before), _with(TURN, 0, content=after)).spoiler is Spoiler.UNKNOWN


def test_dropped_reasoning_in_each_form() -> None:
    without = [{name: value for name, value in message.items() if name != "reasoning_content"} for message in TURN]
    assert _found(TURN, without).spoiler is Spoiler.REASONING
    text, thought = {"type": "text", "text": "Hi."}, {"type": "thinking", "thinking": "Hm.", "signature": "s"}
    for before, after in (
        ([thought, text], [text]),
        ([thought], []),
        ([thought, text], [{**thought, "thinking": ""}, text]),
        ("<think>Hm.</think>Hi.", "Hi."),
    ):
        found = _found(_with(TURN, 2, content=before), _with(TURN, 2, content=after))
        assert found.spoiler is Spoiler.REASONING, (before, after)


def test_changed_tools_come_before_messages() -> None:
    for changed in (TOOLS[::-1], TOOLS[:1], [*TOOLS, TOOLS[0]], [dict(reversed(TOOLS[0].items())), TOOLS[1]]):
        found = first_difference(TURN, [], earlier_tools=TOOLS, later_tools=changed)
        assert found is not None
        assert (found.message, found.role, found.spoiler) == (None, "", Spoiler.TOOLS)
        assert found.earlier != found.later


def test_cache_control_is_reported_only_if_nothing_else_differs() -> None:
    def turn(marked: int, text: str) -> list[dict[str, Any]]:
        parts: list[dict[str, Any]] = [{"type": "text", "text": "a"}, {"type": "text", "text": text}]
        parts[marked]["cache_control"] = {"type": "ephemeral"}
        return [{"role": "user", "content": parts}]

    found = _found(turn(0, "b"), turn(1, "b"))
    assert (found.field, found.spoiler) == ("content.0.cache_control", Spoiler.CACHE_CONTROL)
    assert _found(turn(0, "b"), turn(1, "c")).field == "content.1.text"


def test_a_cache_control_in_arguments_is_an_ordinary_field() -> None:
    use = {"type": "tool_use", "id": "1", "name": "set", "input": {"cache_control": "no-store"}}
    found = _found(
        _with(TURN, 2, content=[use]), _with(TURN, 2, content=[{**use, "input": {"cache_control": "private"}}])
    )
    assert found.spoiler is Spoiler.UNKNOWN


def test_deep_values_need_no_recursion_and_bound_the_output() -> None:
    def deep(leaf: str) -> Any:
        value: Any = leaf
        for _ in range(20_000):
            value = {"n" * 10: [value]}
        return value

    found = _found(_with(TURN, 2, x=deep("a")), _with(TURN, 2, x=deep("b")))
    assert (found.earlier, found.later) == ("a", "b")
    assert len(found.field) == FIELD_CHARACTERS
    found = _found(_with(TURN, 2, x=deep("a")), _with(TURN, 2, x=7))
    assert (len(found.earlier), found.later) == (EXCERPT_CHARACTERS, "7")


@given(_MESSAGES, _MESSAGES)
def test_extensions_never_differ(earlier: list[dict[str, Any]], added: list[dict[str, Any]]) -> None:
    assert first_difference(earlier, copy.deepcopy([*earlier, *added])) is None


@given(_MESSAGES, _MESSAGES)
def test_a_difference_is_bounded_and_true(earlier: list[dict[str, Any]], later: list[dict[str, Any]]) -> None:
    found = first_difference(earlier, later)
    if found is None:
        return
    assert found.message is not None
    assert first_difference(earlier[: found.message], later) is None  # so it is the first
    assert max(len(found.earlier), len(found.later)) <= EXCERPT_CHARACTERS
    assert len(found.field) <= FIELD_CHARACTERS
    if found.field == "content":
        before, after = (turn[found.message]["content"] for turn in (earlier, later))
        assert before[: found.offset] == after[: found.offset]
        assert before[found.offset : found.offset + 1] != after[found.offset : found.offset + 1]


@given(st.lists(st.text(max_size=100), min_size=1, max_size=5), st.data())
def test_finds_any_changed_character(texts: list[str], data: st.DataObject) -> None:
    turn = [{"role": "user", "content": f"{text}."} for text in texts]
    index = data.draw(st.integers(0, len(turn) - 1))
    text = turn[index]["content"]
    offset = data.draw(st.integers(0, len(text) - 1))
    other = data.draw(st.characters().filter(lambda character: character != text[offset]))
    found = _found(turn, _with(turn, index, content=text[:offset] + other + text[offset + 1 :]))
    assert (found.message, found.field, found.offset) == (index, "content", offset)


@given(_JSON, _JSON)
def test_values_of_any_kind(before: Any, after: Any) -> None:
    earlier, later = ([{"role": "assistant", "content": "", "tool_calls": value}] for value in (before, after))
    found = first_difference(earlier, later)
    if json.dumps(before) == json.dumps(after):
        assert found is None
    if found is not None:
        assert found.field.startswith("tool_calls")
