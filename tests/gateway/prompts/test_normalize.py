"""Tests of gateway/prompts/normalize.py: what is removed from prompts, and what must stay."""

import copy
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from multidict import CIMultiDict

from gateway.prompts.normalize import NormalizePrompts, is_from_agent, normalize_messages

LINE = "x-anthropic-billing-header: cc_version=2.1.9.f3a; cc_entrypoint=cli; cch=00c1e;"
IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,"}}
COUNTDOWN = "<system_warning>Token usage: 35000/200000; 165000 remaining</system_warning>"
QUESTION = {"role": "user", "content": f"{LINE}\nWhat is this line?"}


def _content(content: Any, role: str = "system") -> Any:
    messages = [{"role": role, "content": content, "name": "n"}, QUESTION]
    before = copy.deepcopy(messages)
    first, second = normalize_messages(messages)
    assert messages == before, "the request is not changed"
    assert second is QUESTION
    assert {**first, "content": None} == {**before[0], "content": None}
    return first["content"]


@pytest.mark.parametrize("role", ["system", "developer"])
@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (f"{LINE}\nBe brief.", "Be brief."),
        (f"{LINE}\n\nBe brief.\n", "\nBe brief.\n"),
        (LINE, ""),
        ([LINE, "Be brief."], ["Be brief."]),
        ([f"{LINE}\n", "Be brief.", IMAGE], ["Be brief.", IMAGE]),
        ([f"{LINE}\nBe", "brief."], ["Be", "brief."]),
        ([LINE], [""]),
    ],
)
def test_the_attribution_line_is_removed(role: str, content: Any, expected: Any) -> None:
    assert _content(content, role) == expected


@pytest.mark.parametrize(
    "content",
    [
        "Be brief.",
        f"Be brief.\n{LINE}",
        f" {LINE}",
        f"`{LINE}`",
        "x-anthropic-billing-heade: cch=1;",
        ["Be brief.", LINE],
        [IMAGE, LINE],
        [],
        "",
        f"{COUNTDOWN}\nBe brief.",
        "<budget:token_budget>200000</budget:token_budget>",
        "Today's date is 2026-11-29.",
    ],
)
def test_other_texts_of_a_system_prompt_stay(content: Any) -> None:
    assert _content(content) is content


@pytest.mark.parametrize("role", ["user", "assistant", "tool"])
def test_messages_of_other_roles_stay(role: str) -> None:
    assert _content(f"{LINE}\nHello") == "Hello"
    assert _content(f"{LINE}\nHello", role) == f"{LINE}\nHello"
    assert _content([LINE, "Hello"], role) == [LINE, "Hello"]


def test_later_system_messages_stay() -> None:
    messages = [QUESTION, {"role": "system", "content": LINE}]
    assert normalize_messages(messages) is messages
    assert normalize_messages([]) == []
    assert normalize_messages([{"role": "system"}]) == [{"role": "system"}]


@given(st.text(), st.text())
def test_prompts_that_differ_in_the_line_only_become_equal(one: str, rest: str) -> None:
    value = one.replace("\n", " ")
    assert _content(f"x-anthropic-billing-header:{value}\n{rest}") == rest
    if not rest.startswith("x-anthropic-billing-header:"):
        assert _content(rest) == rest


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({"x-claude-code-session-id": "1"}, True),
        ({"Originator": "codex_cli_rs"}, True),
        ({"x-session-id": "1"}, True),
        ({"User-Agent": "claude-cli/2.1.77 (external, cli)"}, True),
        ({"User-Agent": "codex_cli_rs/0.171.0"}, True),
        ({"User-Agent": "opencode/1.18"}, True),
        ({"User-Agent": "OpenAI/Python 3.1"}, False),
        ({"User-Agent": "my claude-cli/1"}, False),
        ({}, False),
    ],
)
def test_agents_are_known_by_their_headers(headers: dict[str, str], expected: bool) -> None:
    found = CIMultiDict(headers)
    assert is_from_agent(found) is expected
    assert NormalizePrompts.AGENTS.applies_to(found) is expected
    assert NormalizePrompts.ON.applies_to(found)
    assert not NormalizePrompts.OFF.applies_to(found)
