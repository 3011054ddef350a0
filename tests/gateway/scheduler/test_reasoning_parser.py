"""gateway/scheduler/reasoning_parser.py: however a text is cut, the same part of it is thought."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.scheduler.reasoning_parser import ReasoningParser

CASES = [
    ("<think>\nHm.\n</think>\n\nTwo.", False, "Hm.", "Two."),
    ("\n<think>Hm. </think>Two.\n", False, "Hm.", "Two.\n"),
    ("<think>\n\n</think>\n\nTwo.", False, "", "Two."),
    ("Hm.\n</think>\n\nTwo.", True, "Hm.", "Two."),
    ("<think>\nHm.</think>Two.", True, "Hm.", "Two."),
    ("</think>\n\nTwo.", True, "", "Two."),
    (" Two.", False, "", " Two."),
    ("Two <think>or</think> three.", False, "", "Two <think>or</think> three."),
    ("<think>Is it </thi> or </think>Two </think>.", False, "Is it </thi> or", "Two </think>."),
    ("<thin air>", False, "", "<thin air>"),
    ("<thi", False, "", "<thi"),
    ("", False, "", ""),
    ("<think>It was cut </th", False, "It was cut </th", ""),
    ("It was cut", True, "It was cut", ""),
    ("  ", False, "", "  "),
    ("<think>a\n\nb</think>", False, "a\n\nb", ""),
]


def split(text: str, begun: bool, cuts: list[int]) -> tuple[str, str]:
    thoughts = ReasoningParser(begun=begun)
    told = [thoughts.push(text[a:b]) for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    told.append(thoughts.push("", last=True))
    return "".join(thought for thought, _ in told), "".join(answer for _, answer in told)


@pytest.mark.parametrize(("text", "begun", "thought", "answer"), CASES)
def test_thoughts_stand_at_the_beginning(text: str, begun: bool, thought: str, answer: str) -> None:
    assert split(text, begun, []) == (thought, answer)
    assert split(text, begun, list(range(len(text)))) == (thought, answer), "character by character"


@given(
    st.lists(st.sampled_from(["<think>", "</think>", "<", "/", "think>", "</th", "a", " ", "\n"]), max_size=12).map(
        "".join
    ),
    st.booleans(),
    st.data(),
)
def test_where_it_is_cut_changes_nothing(text: str, begun: bool, data: st.DataObject) -> None:
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=6)))
    assert split(text, begun, cuts) == split(text, begun, [])


def test_what_is_certain_is_told_at_once() -> None:
    thoughts = ReasoningParser(begun=False)
    assert thoughts.push("<think>\nHm") == ("Hm", "")
    assert thoughts.push(", two") == (", two", "")
    assert not thoughts.answering
    assert thoughts.push("</think>") == ("", "")
    assert thoughts.answering
    assert thoughts.push("\n\nTwo") == ("", "Two")
    assert ReasoningParser(begun=False).push("Two") == ("", "Two")
