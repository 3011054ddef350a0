"""gateway/scheduler/reasoning_parser.py: the split does not depend on how the text is cut into pieces."""

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
    parser = ReasoningParser(starts_inside=begun)
    parts = [parser.push(text[a:b]) for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    parts.append(parser.push("", last=True))
    return "".join(thought for thought, _ in parts), "".join(answer for _, answer in parts)


@pytest.mark.parametrize(("text", "begun", "thought", "answer"), CASES)
def test_reasoning_stands_at_the_beginning(text: str, begun: bool, thought: str, answer: str) -> None:
    assert split(text, begun, []) == (thought, answer)
    assert split(text, begun, list(range(len(text)))) == (thought, answer), "character by character"


@given(
    st.lists(st.sampled_from(["<think>", "</think>", "<", "/", "think>", "</th", "a", " ", "\n"]), max_size=12).map(
        "".join
    ),
    st.booleans(),
    st.data(),
)
def test_the_split_does_not_depend_on_the_pieces(text: str, begun: bool, data: st.DataObject) -> None:
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=6)))
    assert split(text, begun, cuts) == split(text, begun, [])


def test_text_is_emitted_as_soon_as_its_kind_is_certain() -> None:
    parser = ReasoningParser(starts_inside=False)
    assert parser.push("<think>\nHm") == ("Hm", "")
    assert parser.push(", two") == (", two", "")
    assert not parser.is_in_answer
    assert parser.push("</think>") == ("", "")
    assert parser.is_in_answer
    assert parser.push("\n\nTwo") == ("", "Two")
    assert ReasoningParser(starts_inside=False).push("Two") == ("", "Two")


@pytest.mark.parametrize(
    ("pieces", "starts_inside", "tokens"),
    [
        (["Two"], False, 0),
        (["<", "b>Two"], False, 0),
        (["<think>", "Hm", "</think>", "Two"], False, 3),
        (["<thi", "nk>", "Hm</think>Two", " it is"], False, 3),
        (["\n", "Hm", "</think>", "\n\n", "Two"], True, 3),
        (["Hm"], True, 1),
        (["<think>Hm</think>Two"], False, 1),
        (["<thi"], False, 0),
    ],
)
def test_tokens_up_to_the_closing_tag_are_reasoning(pieces: list[str], starts_inside: bool, tokens: int) -> None:
    parser = ReasoningParser(starts_inside=starts_inside)
    for piece in pieces:
        parser.push(piece, tokens=1)
    parser.push("", last=True)
    assert parser.reasoning_tokens == tokens
