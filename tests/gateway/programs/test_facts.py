"""gateway/programs/facts.py: keys ignore what clients rewrite, and ids of any form are accepted."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.programs.facts import (
    NO_IDS,
    AnswerFacts,
    answer_keys,
    client_ids,
    prompt_message,
    text_hash,
    text_message,
    token_hash,
    token_message,
)

CLAUDE_SESSION = "0f8b8a0e-1111-4222-8333-944455556666"


def test_answers_are_equal_without_white_space_and_reasoning() -> None:
    sent = answer_keys("\n\nI look at it. ", [("read", '{"path": "a.py", "lines": [1, 2]}')])
    assert answer_keys("I look at it.", [("read", '{"path":"a.py","lines":[1,2]}')]) == sent
    other = answer_keys("I look at it.", [("read", '{"path":"b.py","lines":[1,2]}')])
    assert other.whole != sent.whole
    assert (other.head, other.tools) == (sent.head, sent.tools)
    assert answer_keys("I look at it.").tools != sent.tools


ARGUMENTS = st.text(st.sampled_from('{}"a: \n\t\x1d\u00a0\u2028é\ud800'), max_size=12)


@given(ARGUMENTS, ARGUMENTS, st.sampled_from([1, 40_000]))
def test_white_space_in_arguments_does_not_count_and_all_else_does(one: str, other: str, times: int) -> None:
    keys = [answer_keys("", [("read", arguments * times)]).whole for arguments in (one, other)]
    assert (keys[0] == keys[1]) == ("".join(one.split()) == "".join(other.split()))


def test_white_space_that_is_not_ascii_does_not_count_in_long_arguments() -> None:
    one, other = "a" * 140_000, "a" * 70_000 + "\u00a0" + "a" * 70_000
    assert answer_keys("", [("read", one)]).whole == answer_keys("", [("read", other)]).whole


def test_messages_differ_in_role_texts_and_media() -> None:
    keys = {
        prompt_message("user", ["a"]).key,
        prompt_message("tool", ["a"]).key,
        prompt_message("user", ["a", "b"]).key,
        prompt_message("user", ["b", "a"]).key,
        prompt_message("user", ["a"], media=[{"type": "image_url"}]).key,
        prompt_message("user", []).key,
    }
    assert len(keys) == 6
    assert prompt_message("user", ["a", "b"]).key == prompt_message("user", ["a", "b"]).key


@given(st.sampled_from(["user", "assistant", "system", "tool"]), st.text() | st.text().map(lambda text: text * 1_000))
def test_a_message_of_one_text_is_the_same_however_it_is_made(role: str, text: str) -> None:
    one, other = text_message(role, text), prompt_message(role, [text])
    assert (one.key, list(one.texts), one.answer) == (other.key, list(other.texts), other.answer)
    assert one.answer == (answer_keys(text) if role == "assistant" else None)


def test_keys_of_tool_calls_are_computed_once() -> None:
    """Read the keys twice: they take long for megabytes of arguments, and the index reads them on the event loop."""
    message = prompt_message("assistant", ["x"], [("read", '{"path": "a.py"}')])
    assert message.answer is message.answer is not None
    assert message.answer == answer_keys("x", [("read", '{"path":"a.py"}')])


def test_long_texts_differ_at_their_ends_and_in_length() -> None:
    text = "x" * 1_000_000
    assert text_hash(text) == text_hash("x" * 1_000_000)
    assert len({text_hash(other) for other in (text, text + "x", "y" + text[1:], text[:-1] + "y")}) == 4
    for length, character in ((131_072, "x"), (16_384, "é")):  # up to these lengths, each character counts
        text = character * length
        assert text_hash(text) != text_hash(text[: length // 3] + "y" + text[length // 3 + 1 :])


@pytest.mark.parametrize(
    ("headers", "session", "parent"),
    [
        ({"x-session-id": "a"}, "x-session-id:a", None),
        ({"x-session-id": "a", "x-parent-session-id": "b"}, "x-session-id:a", "x-session-id:b"),
        ({"x-claude-code-session-id": "a"}, "x-claude-code-session-id:a", None),
        (
            {"x-dynamo-session-id": "a", "x-dynamo-parent-session-id": "b"},
            "x-dynamo-session-id:a",
            "x-dynamo-session-id:b",
        ),
        ({"session-id": "a", "thread-id": "b"}, "session-id:a", None),
        ({"thread-id": "b"}, "thread-id:b", None),
        ({"x-session-id": ""}, None, None),
        ({"x-parent-session-id": "b"}, None, None),
    ],
)
def test_headers_name_sessions(headers: dict[str, str], session: str | None, parent: str | None) -> None:
    ids = client_ids(headers)
    assert (ids.session, ids.parent, ids.weak) == (session, parent, None)


@pytest.mark.parametrize(
    "user_id",
    [
        f"user_{'0' * 64}_account__session_{CLAUDE_SESSION}",
        json.dumps({"device_id": "d", "account_uuid": "", "session_id": CLAUDE_SESSION}),
    ],
)
def test_the_session_in_a_user_id_of_claude_code_names_a_session(user_id: str) -> None:
    assert client_ids({}, user_id=user_id).session == f"x-claude-code-session-id:{CLAUDE_SESSION}"


def test_other_fields_are_weak_ids() -> None:
    assert client_ids({}) is NO_IDS
    assert client_ids({}, "cache", "user-1").weak == "cache"
    assert client_ids({}, None, "user-1").weak == "user-1"
    assert client_ids({}, None, "user-1").session is None


@given(st.text(min_size=1), st.text())
def test_ids_of_any_length_and_characters_are_short_and_differ(id: str, other: str) -> None:
    for value in (id, id * 1_000):
        ids = client_ids({"x-session-id": value, "x-parent-session-id": other}, value, value)
        assert ids.session is not None
        assert len(ids.session) <= 80
    same = client_ids({"x-session-id": id}) == client_ids({"x-session-id": other})
    assert same == (id == other)


def test_texts_in_arguments_of_tools_are_searched() -> None:
    prompt = "Find every place where\nthe cache is cleared, and say why."
    calls = [
        ("task", json.dumps({"prompt": prompt, "kind": "search", "depth": 3})),
        ("bad", "{" + "x" * 50),
        ("list", json.dumps(["x" * 50])),
        ("short", "{}"),
    ]
    assert AnswerFacts("", calls).argument_texts == [prompt, "{" + "x" * 50]
    many = [("task", json.dumps({str(n): "x" * 50 for n in range(100)}))] * 100
    assert len(AnswerFacts("", many).argument_texts) == 32


@given(st.lists(st.integers(0, 5), max_size=40), st.lists(st.integers(0, 5), max_size=40))
def test_prompts_of_tokens_are_equal_if_their_tokens_are(one: list[int], other: list[int]) -> None:
    assert (token_message(one).key == token_message(other).key) == (one == other)


def test_a_long_prompt_of_tokens_is_hashed_in_part() -> None:
    class Counted(list[int]):
        read = 0

        def __getitem__(self, place: Any) -> Any:
            found = super().__getitem__(place)
            Counted.read += len(found) if isinstance(place, slice) else 1
            return found

        def __iter__(self) -> Any:
            raise AssertionError("all tokens are read")

    tokens = Counted(range(1_000_000))
    key = token_hash(tokens)
    assert Counted.read <= 4 * 8_192
    tokens[-1] = 7
    assert token_hash(tokens) != key
