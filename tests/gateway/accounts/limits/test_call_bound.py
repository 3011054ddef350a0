"""gateway/accounts/limits/call_bound.py: upper bounds of calls."""

import pytest

from engine.sampling_params import SamplingParams
from gateway.accounts.limits.call_bound import CallBounds
from gateway.accounts.prices import Price, Prices
from gateway.graph.call import CallSpec, Rendering
from gateway.graph.references import Reference
from gateway.graph.segments import Characters, Input, Segment, Slot, Text

BOUNDS = CallBounds({"small": 100, "large": 1_000}.get, Prices({"large": Price(1.0, 0.5, 2.0)}))


def slot(tokens: int | None, name: str | None = None) -> Slot:
    return Slot(name, SamplingParams(max_tokens=tokens))


TEXT = Text([1] * 20)
VALUE = Input(Reference("a"), "messages")


@pytest.mark.parametrize(
    ("model", "segments", "tokens"),
    [
        ("small", [TEXT, slot(10)], 30),
        ("small", [TEXT, slot(None)], 100),
        ("small", [TEXT, slot(5_000)], 100),
        ("small", [Text([1] * 500), slot(10)], 100),
        ("small", [TEXT, VALUE, slot(10)], 100),
        ("small", [TEXT, slot(10, "a"), TEXT, slot(20)], 70),
        ("unknown", [Characters("x" * 30), slot(10)], 40),
        ("unknown", [TEXT, slot(None)], 20 + 4_096),
        ("unknown", [TEXT, VALUE, slot(10)], 30 + 4_096),
        ("", [], 0),
    ],
)
def test_a_call_reserves_its_prompt_and_its_longest_answer(model: str, segments: list[Segment], tokens: int) -> None:
    assert BOUNDS.of_call(CallSpec(model=model, segments=segments)) == (tokens, 0.0)


@pytest.mark.parametrize(
    ("model", "default", "tokens"),
    [("unknown", "x", 60 + 2 * 4_096), ("unknown", "x" * 10_000, 60 + 2 * 10_000), ("small", "x" * 10_000, 100)],
)
def test_each_reference_to_a_default_counts_its_text(model: str, default: str, tokens: int) -> None:
    segments = [TEXT, VALUE, TEXT, VALUE, slot(20)]
    assert BOUNDS.of_call(CallSpec(model=model, segments=segments, defaults={"a": default})) == (tokens, 0.0)


def test_the_most_expensive_fallback_counts() -> None:
    spec = CallSpec(model="small", segments=[TEXT, slot(10)], fallbacks=[Rendering("large", [TEXT, slot(60)])])
    tokens, cost = BOUNDS.of_call(spec)
    assert tokens == 80
    assert cost == pytest.approx((20 * 1.0 + 60 * 2.0) / 1e6)


def test_a_request_without_an_answer_costs_its_prompt() -> None:
    assert BOUNDS.of_prompt("large", 500) == (500, pytest.approx(500 / 1e6))
