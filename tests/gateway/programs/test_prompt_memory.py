"""gateway/programs/prompt_memory.py: latest prompts within a bound, and where later prompts stop to repeat them."""

import json
from typing import Any
from unittest import mock

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.programs import prompt_memory
from gateway.programs.prompt_difference import Spoiler, first_difference
from gateway.programs.prompt_memory import (
    MAX_PROMPT_BYTES,
    HeldPrompt,
    PromptMemory,
    compare_prompts,
    held_prompt,
)

RULES = "\n".join(f"Rule {number}: keep the answer {number} words short." for number in range(20))
QUESTION = {"role": "user", "content": "Which files are here?"}


def prompt(system: str | None, *messages: dict[str, Any], tools: Any = ()) -> HeldPrompt:
    first = [] if system is None else [{"role": "system", "content": system}]
    held = held_prompt([*first, *messages], tools)
    assert held is not None
    return held


@pytest.mark.parametrize(
    ("earlier", "later"),
    [
        ("Today is Monday. " + RULES, "Today is Tuesday. " + RULES),
        (RULES + "\nIt is 10:15.", RULES + "\nIt is 10:16."),
        ("x-anthropic-billing-header: a\n" + RULES + "\nIt is 10:15.", "x-anthropic-billing-header: bc\n" + RULES),
    ],
)
def test_instructions_that_change_in_part_spoil_the_cache(earlier: str, later: str) -> None:
    compared = compare_prompts(prompt(earlier, QUESTION), prompt(later, QUESTION))
    assert compared.is_continued
    assert compared.difference is not None
    assert (compared.difference.message, compared.difference.role) == (0, "system")


@pytest.mark.parametrize("later", [None, "Write a title of at most five words for the conversation that follows."])
def test_a_call_with_other_instructions_is_of_another_agent(later: str | None) -> None:
    compared = compare_prompts(prompt(RULES, QUESTION), prompt(later, QUESTION))
    assert (compared.is_continued, compared.difference) == (False, None)


def test_instructions_may_be_in_parts_and_under_either_role() -> None:
    parts = {"role": "developer", "content": [{"type": "text", "text": RULES}, {"type": "image_url"}, {"text": 5}]}
    compared = compare_prompts(prompt(RULES, QUESTION), prompt(None, parts, QUESTION))
    assert compared.is_continued


def test_a_rewritten_message_and_changed_tools_are_named() -> None:
    result = {"role": "tool", "content": "[removed]"}
    compared = compare_prompts(prompt(RULES, QUESTION, {**result, "content": "a"}), prompt(RULES, QUESTION, result))
    assert compared.difference is not None
    assert (compared.difference.message, compared.difference.later) == (2, "[removed]")
    tools = [{"name": "look"}]
    compared = compare_prompts(prompt(RULES, QUESTION, tools=tools), prompt(RULES, QUESTION, tools=[*tools, *tools]))
    assert compared.difference is not None
    assert compared.difference.spoiler is Spoiler.TOOLS


def test_markers_that_no_model_reads_are_no_difference() -> None:
    marked = {**QUESTION, "cache_control": {"type": "ephemeral"}}
    compared = compare_prompts(prompt(RULES, marked), prompt(RULES, QUESTION))
    assert (compared.is_continued, compared.difference) == (True, None)


def test_a_large_prompt_is_not_held() -> None:
    assert held_prompt([{"role": "user", "content": "x" * MAX_PROMPT_BYTES}], ()) is None
    assert held_prompt([{"role": "user", "content": [[]] * (MAX_PROMPT_BYTES // 8)}], ()) is None
    assert (
        held_prompt([{"role": "user", "content": "a"}], [{"name": "b", "parameters": {"c" * MAX_PROMPT_BYTES: 1}}])
        is None
    )
    deep: Any = []
    for _ in range(20_000):
        deep = [deep]
    assert held_prompt([{"role": "user", "content": deep}], ()) is not None


def test_the_prompt_that_was_used_longest_ago_is_forgotten_first() -> None:
    held = prompt(RULES, QUESTION)
    memory: PromptMemory[int] = PromptMemory(3 * held.size + 1, several_tenants=False)
    for key in range(3):
        memory.add("t", key, held)
    assert memory.get("t", 0) is held
    memory.add("t", 3, held)
    assert [memory.get("t", key) is held for key in range(4)] == [True, False, True, True]
    assert memory.get("other", 0) is None


def test_a_tenant_cannot_displace_the_prompts_of_others() -> None:
    held = prompt(RULES, QUESTION)
    memory: PromptMemory[int] = PromptMemory(8 * held.size)
    memory.add("small", 0, held)
    for key in range(50):
        memory.add("large", key, held)
    assert memory.get("small", 0) is held
    assert memory.get("large", 49) is held
    assert memory.bytes <= 7 * held.size


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["add", "get", "remove"]), st.sampled_from("ab"), st.integers(0, 9), st.integers(1, 9)
        ),
        max_size=80,
    )
)
def test_memory_is_bounded_and_counted(steps: list[tuple[str, str, int, int]]) -> None:
    memory: PromptMemory[int] = PromptMemory(1_000)
    sizes: dict[tuple[str, int], int] = {}
    for step, tenant, key, size in steps:
        if step == "add":
            memory.add(tenant, key, HeldPrompt([], [], 100 * size))
            sizes[tenant, key] = 100 * size
        elif step == "remove":
            memory.remove(tenant, key)
            sizes.pop((tenant, key), None)
        held = {place: memory.get(*place) for place in sizes}
        assert memory.bytes == sum(prompt.size for prompt in held.values() if prompt is not None)
        assert len(memory) == sum(prompt is not None for prompt in held.values())
        assert memory.bytes < 1_000
        assert all(prompt is None or prompt.size == sizes[place] for place, prompt in held.items())


def called(arguments: str) -> dict[str, Any]:
    return {"role": "assistant", "content": "", "tool_calls": [{"name": "look", "arguments": arguments}]}


@pytest.mark.parametrize(
    ("earlier", "later", "field"),
    [
        ('{"x": 1, "y": [2]}', '{"x":1,"y":[2]}', None),
        ("", "{}", None),
        ('{"x": 1}', '{"x": 2}', "tool_calls.0.arguments.x"),
        ('{"x": 1}', '{"x": true}', "tool_calls.0.arguments.x"),
        ("[1]", "[2]", "tool_calls.0.arguments"),
        ('{"x": ', '{"x": 1', "tool_calls.0.arguments"),
        ("[" * 100_000, "[" * 100_001, "tool_calls.0.arguments"),
    ],
)
def test_arguments_are_compared_as_objects(earlier: str, later: str, field: str | None) -> None:
    compared = compare_prompts(prompt(RULES, QUESTION, called(earlier)), prompt(RULES, QUESTION, called(later)))
    found = compared.difference
    assert (None if found is None else (found.message, found.field)) == (None if field is None else (2, field))


LISTS = '{"x": [' + ", ".join(["[[]]"] * 10_000) + "]}"


@pytest.mark.parametrize(
    ("count", "earlier", "later", "field"),
    [
        (1, LISTS, LISTS.replace(" ", ""), None),
        (1, LISTS, LISTS.replace("]]}", "], 1]}"), "tool_calls.0.arguments"),  # as texts: too long for objects
        (1, '{"y": 1, ' + LISTS[1:], LISTS[:-1] + ',"y":1}', None),
        (30, LISTS, LISTS.replace(" ", ""), None),
        (30, LISTS, LISTS.replace("[[]]", "[]"), "tool_calls.0.arguments"),
        (1, "{" * 100_000, "{" * 99_999, None),  # too long to be parsed: perhaps the model reads no difference
        (1, '{"x": "' + "a" * 90_000 + '"}', '{"x": "' + "b" * 90_000 + '"}', None),
    ],
)
def test_long_arguments_are_compared_with_bounded_work(count: int, earlier: str, later: str, field: str | None) -> None:
    parsed, walked = [], 0
    original = prompt_memory._parsed_text

    def parse(text: str) -> Any:
        parsed.append(len(text))
        return original(text)

    def walk(*arguments: Any) -> Any:
        nonlocal walked
        walked += len(json.dumps(arguments))
        return first_difference(*arguments)

    with (
        mock.patch.object(prompt_memory, "_parsed_text", parse),
        mock.patch.object(prompt_memory, "first_difference", walk),
    ):
        compared = compare_prompts(
            prompt(RULES, QUESTION, *[called(earlier)] * count), prompt(RULES, QUESTION, *[called(later)] * count)
        )
    assert compared.is_continued
    assert (None if compared.difference is None else compared.difference.field) == field
    assert sum(parsed) <= 131_072
    assert walked < 250_000


def test_a_difference_before_arguments_that_are_too_long_is_found() -> None:
    earlier, later = (called('{"x": "' + letter * 90_000 + '"}') for letter in "ab")
    later["content"] = "other"
    compared = compare_prompts(prompt(RULES, QUESTION, earlier), prompt(RULES, QUESTION, later))
    assert compared.difference is not None
    assert compared.difference.field == "content"


def test_many_small_arguments_are_compared_with_bounded_work() -> None:
    before = {"role": "assistant", "content": "", "tool_calls": [{"name": "f", "arguments": '{"x": null}'}] * 5_000}
    after = {**before, "tool_calls": [{"name": "f", "arguments": "{}"}] * 5_000}
    arguments = prompt_memory._Arguments()
    one, _ = arguments.parsed(before, after)
    objects = sum(isinstance(call["arguments"], dict) for call in one["tool_calls"])
    assert 0 < objects * len('{"x": null}{}') <= 32_768


def test_a_shortened_history_and_deep_values_are_compared() -> None:
    compared = compare_prompts(prompt(RULES, QUESTION, QUESTION), prompt(RULES, QUESTION))
    assert compared.difference is not None
    assert (compared.difference.message, compared.difference.field) == (2, "")

    def deep(end: str) -> list[dict[str, Any]]:
        value: Any = end
        for _ in range(5_000):
            value = {"items": value}
        return [{"name": "look", "parameters": value}]

    earlier, same, other = (prompt(RULES, QUESTION, tools=deep(end)) for end in ("a", "a", "b"))
    assert compare_prompts(earlier, same).difference is None
    changed = compare_prompts(earlier, other).difference
    assert changed is not None
    assert (changed.spoiler, changed.earlier, changed.later) == (Spoiler.TOOLS, "a", "b")


_CONTENT = st.text("ab", max_size=3) | st.lists(st.fixed_dictionaries({"text": st.text("ab", max_size=3)}), max_size=2)
_MESSAGES = st.lists(
    st.fixed_dictionaries({"role": st.sampled_from(["user", "assistant"]), "content": _CONTENT}), max_size=5
)


@given(_MESSAGES, _MESSAGES, st.permutations(["name", "parameters"]))
def test_the_result_is_the_first_difference(
    earlier: list[dict[str, Any]], later: list[dict[str, Any]], names: list[str]
) -> None:
    tools = [{"name": "look", "parameters": "x"}], [{name: {"name": "look", "parameters": "x"}[name] for name in names}]
    compared = compare_prompts(prompt(None, *earlier, tools=tools[0]), prompt(None, *later, tools=tools[1]))
    assert compared.is_continued
    assert compared.difference == first_difference(earlier, later, earlier_tools=tools[0], later_tools=tools[1])
