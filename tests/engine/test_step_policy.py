"""Tests of engine/step_policy.py: which sequences decode, and how many rows each prompt gets."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.step_budget import StepAllowance, StepBudget
from engine.step_policy import EQUAL_URGENCY_SECONDS, PrefillRows, background_decoders

ROWS = st.integers(0, 60)
ALLOWANCES = st.builds(StepAllowance, ROWS, ROWS, ROWS, ROWS)
PROMPTS = st.lists(
    st.tuples(
        st.integers(1, 80),  # tokens
        st.floats(-1.0, 1.0),  # rank
        st.booleans(),  # interactive
        st.booleans(),  # prefetched
    ),
    max_size=12,
)


@given(st.integers(0, 50), st.integers(0, 500), st.booleans())
def test_background_sequences_pause_only_beside_interactive_work(
    interactive: int, background: int, has_prompts: bool
) -> None:
    budget = StepBudget(decode_share=0.65, max_step_seconds=0.1)
    count = background_decoders(interactive, background, has_interactive_prompts=has_prompts, step_budget=budget)
    if not interactive and not has_prompts:
        assert count == background
    else:
        assert count == min(background, budget.background_rows(interactive))
        assert count >= min(background, 1), "background calls are never stopped"


@given(ALLOWANCES, st.integers(0, 80), st.integers(0, 3), st.sampled_from([-math.inf, 0.0, math.inf]), PROMPTS)
def test_prompts_never_get_more_rows_than_their_kind_may_have(
    allowance: StepAllowance,
    step_rows: int,
    interactive: int,
    first_rank: float,
    prompts: list[tuple[int, float, bool, bool]],
) -> None:
    rows = PrefillRows(allowance, step_rows=step_rows, interactive=interactive, first_rank=first_rank)
    given_rows = {"total": 0, "long": 0, "less urgent": 0, "prefetch": 0}
    for tokens, rank, is_interactive, is_prefetch in prompts:
        kind = rows.kind_of(rank=rank, is_interactive=is_interactive, is_prefetch=is_prefetch, prompt_tokens=tokens)
        count = min(tokens, int(rows.allowed(kind)), rows.step_rows)
        if count <= 0:
            continue
        assert rows.has_room(rank)
        assert rows.has_room_for(is_interactive=is_interactive, is_prefetch=is_prefetch) or tokens <= allowance.total
        rows.take(kind, count, count)
        is_long = interactive > 0 and (tokens > allowance.total or not is_interactive)
        given_rows["total"] += count
        given_rows["long"] += count * is_long
        given_rows["less urgent"] += count * (rank > first_rank + EQUAL_URGENCY_SECONDS)
        given_rows["prefetch"] += count * is_prefetch
    assert given_rows["total"] <= min(step_rows, allowance.total)
    assert given_rows["long"] <= allowance.long
    assert given_rows["less urgent"] <= allowance.less_urgent
    assert given_rows["prefetch"] <= allowance.prefetch
    assert rows.step_rows == step_rows - given_rows["total"]
    assert rows.long_taken == given_rows["long"]


@given(ALLOWANCES, st.integers(0, 80), st.integers(0, 2), st.booleans(), st.booleans(), st.floats(-1.0, 1.0))
def test_prompts_without_room_get_no_rows(
    allowance: StepAllowance, step_rows: int, interactive: int, is_interactive: bool, is_prefetch: bool, rank: float
) -> None:
    rows = PrefillRows(allowance, step_rows=step_rows, interactive=interactive, first_rank=0.0)
    long_prompt = rows.kind_of(
        rank=rank, is_interactive=is_interactive, is_prefetch=is_prefetch, prompt_tokens=allowance.total + 1
    )
    if not rows.has_room(rank):
        assert min(rows.allowed(long_prompt), rows.step_rows) <= 0
    if not rows.has_room_for(is_interactive=is_interactive, is_prefetch=is_prefetch):
        assert not is_interactive or is_prefetch, "a client's own prompt may be short"
        assert rows.allowed(long_prompt) <= 0


@pytest.mark.parametrize(
    ("interactive", "is_interactive", "tokens", "is_long"),
    [
        (0, False, 1000, False),  # no stream can stall
        (1, True, 10, False),
        (1, True, 11, True),
        (1, False, 1, True),
    ],
)
def test_prompts_are_deferrable_only_beside_interactive_sequences(
    interactive: int, is_interactive: bool, tokens: int, is_long: bool
) -> None:
    rows = PrefillRows(StepAllowance(10, 0, 10, 10), step_rows=100, interactive=interactive, first_rank=0.0)
    kind = rows.kind_of(rank=0.0, is_interactive=is_interactive, is_prefetch=False, prompt_tokens=tokens)
    assert kind.is_long is is_long
    assert rows.allowed(kind) == (0 if is_long else 10)


def test_ranks_that_hardly_differ_are_equally_urgent() -> None:
    rows = PrefillRows(StepAllowance(10, 10, 3, 10), step_rows=100, interactive=0, first_rank=5.0)
    for rank, allowed in ((4.0, 10), (5.0, 10), (5.0 + EQUAL_URGENCY_SECONDS, 10), (5.01, 3)):
        kind = rows.kind_of(rank=rank, is_interactive=False, is_prefetch=False, prompt_tokens=5)
        assert rows.allowed(kind) == allowed
    rows.take(kind, 3, 3.0)
    assert rows.has_room(5.0)
    assert not rows.has_room(5.01), "nor can prompts of still higher ranks get rows"


def test_rows_count_by_their_cost() -> None:
    """Let a row over many keys cost five times as much: a step carries a fifth of the rows."""
    rows = PrefillRows(StepAllowance(50, 50, 50, 50), step_rows=100, interactive=0, first_rank=0.0)
    kind = rows.kind_of(rank=0.0, is_interactive=True, is_prefetch=False, prompt_tokens=5)
    rows.take(kind, 8, 40.0)
    assert rows.allowed(kind) == 10.0
    assert rows.step_rows == 92
    rows.take(kind, 2, 10.0)
    assert not rows.has_room(0.0)
