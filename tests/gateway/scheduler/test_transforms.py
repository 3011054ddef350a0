"""gateway/scheduler/transforms.py"""

import pytest

from gateway.graph.transform import Transform
from gateway.scheduler.transforms import TransformFailed, apply

TEXT = "  The answer:\n  Paris = 42  \n"


@pytest.mark.parametrize(
    ("transform", "value"),
    [
        (Transform(), TEXT),
        (Transform(strip=True), "The answer:\n  Paris = 42"),
        (Transform(line=1), "  Paris = 42  "),
        (Transform(line=-1, strip=True), "  Paris = 42"),
        (Transform(regex=r"(\w+) = (\d+)"), "Paris = 42"),
        (Transform(regex=r"(\w+) = (\d+)", group=2), "42"),
        (Transform(regex=r"(?s)answer.*\d"), "answer:\n  Paris = 42"),
    ],
)
async def test_steps_apply_in_their_order(transform: Transform, value: str) -> None:
    assert await apply(transform, TEXT) == value


@pytest.mark.parametrize(
    ("transform", "text", "words"),
    [
        (Transform(line=5), TEXT, "no line 5"),
        (Transform(regex="nothing"), TEXT, "group 0 of 'nothing' matches nothing in the answer"),
        (Transform(regex="(a)|(b)", group=1), "b", "matches nothing"),
        (Transform(json="a.b"), TEXT, "not JSON"),
        (Transform(json="a"), '{"a": "\\ud800"}', "lone surrogate"),
        (Transform(json="0"), "[" * 5000, "nested too deeply"),
    ],
)
async def test_an_answer_without_a_match_fails_with_a_message(transform: Transform, text: str, words: str) -> None:
    with pytest.raises(TransformFailed, match=words):
        await apply(transform, text)
