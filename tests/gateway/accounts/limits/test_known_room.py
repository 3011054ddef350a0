"""gateway/accounts/limits/known_room.py: lower bounds of the room in meters."""

import math

from hypothesis import given
from hypothesis import strategies as st

from gateway.accounts.keys.virtual_key import KeyRecord
from gateway.accounts.limits.key_limits import KeyLimits, WaitingRule
from gateway.accounts.limits.known_room import KnownRoom
from gateway.accounts.limits.meter import LocalMeter


def test_without_a_look_there_is_no_room() -> None:
    room = KnownRoom()
    assert (room.requests, room.tokens, room.cost) == (0, 0, 0)
    room.measure([], 0.0)
    assert (room.requests, room.tokens, room.cost) == (math.inf, math.inf, math.inf)
    room.forget()
    assert (room.requests, room.tokens, room.cost) == (0, 0, 0)


def test_the_smallest_limit_counts() -> None:
    room = KnownRoom()
    parallel = LocalMeter(4)
    parallel.reserved = 3
    tokens, budget, cost = LocalMeter(1_000, per_minute=True), LocalMeter(700), LocalMeter(5.0, unit=0.0)
    budget.settle(0, 100, 0.0)
    meters = [("requests", LocalMeter(10, per_minute=True)), ("parallel", parallel)]
    room.measure([*meters, ("tokens", tokens), ("budget_tokens", budget), ("budget_cost", cost)], 0.0)
    assert (room.requests, room.tokens, room.cost) == (1, 600, 5.0)


@given(
    st.lists(
        st.tuples(st.sampled_from(["enter", "leave", "start", "end", "past"]), st.integers(0, 40), st.integers(0, 60)),
        max_size=60,
    )
)
def test_what_is_admitted_by_known_room_is_admitted_by_the_meters(steps: list[tuple[str, int, int]]) -> None:
    """Compare with a key whose room is forgotten: it looks at each meter."""
    now = [1_000.0]
    fields = {"rpm": 30, "parallel": 5, "tpm": 200, "budget_tokens": 300, "budget_cost": 40.0, "budget_period": "1h"}
    record = KeyRecord(id="key_1", digest="", created=0, **fields)  # type: ignore[arg-type]
    both = [KeyLimits("key_1", WaitingRule(), clock=lambda: now[0]) for _ in range(2)]
    known, model = both
    for limits in both:
        limits.apply(record, None)
    entered, started = 0, 0
    for number, (step, amount, seconds) in enumerate(steps):
        now[0] += seconds
        model._room.forget()
        assert known.can_enter() == model.can_enter()
        model._room.forget()
        assert known.can_start() == model.can_start()
        for limits in both:
            if step == "enter" and model.can_enter():
                limits.take_place()
            elif step == "leave" and entered:
                limits.leave(limits.meters["parallel"])
            elif step == "start":
                limits.reserve(f"call_{number}", amount, amount / 10)
            elif step == "end" and started:
                limits.settle(f"call_{started}", amount, seconds / 10)
            elif step == "past":
                limits.count_past_use("budget_tokens", amount)
        entered += step == "enter"
        entered -= step == "leave" and entered > 0
        started = number if step == "start" else started
