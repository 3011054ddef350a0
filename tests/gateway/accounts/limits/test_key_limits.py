"""gateway/accounts/limits/key_limits.py: requests enter, wait or are refused, and calls reserve."""

import asyncio
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.accounts.errors import KeyStoreError, LimitReached, QuotaReached
from gateway.accounts.keys.virtual_key import KeyRecord
from gateway.accounts.limits.key_limits import KeyLimits, WaitingRule
from gateway.errors import RequestError


def limits_of(seconds: float = 0.0, **fields: object) -> tuple[KeyLimits, list[float]]:
    """Return limits and their clock. `seconds`: longest wait."""
    now = [1_000.0]
    limits = KeyLimits("key_1", WaitingRule(seconds), clock=lambda: now[0])
    limits.apply(KeyRecord(id="key_1", digest="", created=0, **fields), None)  # type: ignore[arg-type]
    return limits, now


async def turns(count: int = 5) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def test_requests_over_the_rate_are_refused_with_the_time_of_a_retry() -> None:
    limits, now = limits_of(rpm=2)
    await limits.enter()
    await limits.enter()
    with pytest.raises(LimitReached, match="2 requests per minute") as refused:
        await limits.enter()
    assert refused.value.retry_after == pytest.approx(30.0)
    answer = RequestError.of_graph(refused.value)
    assert (answer.status, answer.code, answer.headers["Retry-After"]) == (429, "rate_limit_exceeded", "30")
    now[0] += 30.1
    await limits.enter()


async def test_a_parallel_place_is_free_after_the_answer() -> None:
    limits, _ = limits_of(parallel=2)
    first, second = await limits.enter(), await limits.enter()
    with pytest.raises(LimitReached, match="2 parallel requests"):
        await limits.enter()
    limits.leave(first)
    third = await limits.enter()
    for place in (second, third):
        limits.leave(place)
    assert limits.meters["parallel"].reserved == 0


async def test_a_limit_that_is_added_during_a_request_counts_no_place_of_it() -> None:
    limits, _ = limits_of(parallel=3)
    place = await limits.enter()
    record = KeyRecord(id="key_1", digest="", created=0)
    limits.apply(record, None)
    without = await limits.enter()
    limits.apply(KeyRecord(id="key_1", digest="", created=0, parallel=1), record)
    running = await limits.enter()
    limits.leave(place)
    limits.leave(without)
    with pytest.raises(LimitReached):
        await limits.enter()
    limits.leave(running)
    assert limits.meters["parallel"].reserved == 0


async def test_a_call_reserves_until_its_end() -> None:
    limits, _ = limits_of(tpm=100, budget_tokens=1_000, budget_cost=5.0)
    limits.check()
    limits.reserve("call_1", 150, 2.0)
    limits.reserve("call_1", 150, 2.0)
    assert [meter.reserved for meter in limits.meters.values()] == [150, 150, 2.0]
    with pytest.raises(LimitReached, match="100 tokens per minute"):
        limits.check()
    limits.settle("call_1", 10, 0.5)
    limits.check()
    assert [meter.reserved for meter in limits.meters.values()] == [0, 0, 0]
    assert limits.meters["budget_tokens"].used_at(1_000.0) == 10
    assert limits.meters["budget_cost"].used_at(1_000.0) == 0.5


async def test_a_used_up_budget_has_another_code_and_no_retry() -> None:
    limits, _ = limits_of(budget_tokens=100)
    limits.settle("call_1", 100, 0.0)
    with pytest.raises(QuotaReached, match="budget of 100 tokens") as refused:
        await limits.enter()
    answer = RequestError.of_graph(refused.value)
    assert (answer.status, answer.code, answer.headers) == (429, "insufficient_quota", {"x-should-retry": "false"})


async def test_a_budget_of_a_period_says_when_it_begins_again() -> None:
    limits, now = limits_of(budget_cost=1.0, budget_period="1h")
    limits.settle("call_1", 0, 1.5)
    with pytest.raises(QuotaReached, match="used its budget of 1 in cost") as refused:
        limits.check()
    assert refused.value.retry_after == 3_600.0 - 1_000.0
    now[0] = 3_600.0
    limits.check()


async def test_a_reserved_budget_is_not_used_up() -> None:
    limits, _ = limits_of(budget_cost=1.0)
    limits.reserve("call_1", 0, 2.0)
    with pytest.raises(LimitReached, match="in progress have reserved the rest") as refused:
        limits.check()
    assert not isinstance(refused.value, QuotaReached)


async def test_requests_wait_in_order_for_a_place() -> None:
    limits, _ = limits_of(60.0, parallel=1)
    first = await limits.enter()
    entered: list[int] = []

    async def request(number: int) -> None:
        place = await limits.enter()
        entered.append(number)
        await turns()
        limits.leave(place)

    tasks = [asyncio.create_task(request(number)) for number in range(5)]
    await turns()
    assert (entered, limits.waiting_requests) == ([], 5)
    tasks[1].cancel()
    with suppress(asyncio.CancelledError):
        await tasks[1]
    assert limits.waiting_requests == 4
    limits.leave(first)
    late = asyncio.create_task(request(5))
    await asyncio.gather(*tasks, late, return_exceptions=True)
    assert entered == [0, 2, 3, 4, 5]
    assert (limits.waiting_requests, limits.meters["parallel"].reserved) == (0, 0)


async def test_a_request_that_waits_too_long_is_refused() -> None:
    limits = KeyLimits("key_1", WaitingRule(0.05))
    limits.apply(KeyRecord(id="key_1", digest="", created=0, parallel=1), None)
    place = await limits.enter()
    with pytest.raises(LimitReached, match="parallel requests"):
        await limits.enter()
    assert limits.waiting_requests == 0
    limits.leave(place)
    limits.leave(await limits.enter())


async def test_a_used_up_budget_is_refused_without_a_wait() -> None:
    limits, _ = limits_of(600.0, budget_tokens=1)
    limits.settle("call_1", 1, 0.0)
    with pytest.raises(QuotaReached):
        await limits.enter()


async def test_the_number_of_waiting_requests_is_bounded() -> None:
    limits, _ = limits_of(60.0, parallel=1)
    place = await limits.enter()
    tasks = [asyncio.create_task(limits.enter()) for _ in range(300)]
    await turns()
    refused = [task for task in tasks if task.done()]
    assert len(refused) == 300 - 256
    assert all(isinstance(task.exception(), LimitReached) for task in refused)
    limits.leave(place)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert limits.waiting_requests == 0


async def test_waiting_calls_start_in_order_once_tokens_are_free() -> None:
    limits, _ = limits_of(60.0, tpm=100)
    limits.reserve("call_0", 100, 0.0)
    started: list[int] = []

    async def call(number: int) -> None:
        await limits.make_room()
        limits.check()
        limits.reserve(f"call_{number}", 100, 0.0)
        started.append(number)

    tasks = [asyncio.create_task(call(number)) for number in (1, 2, 3)]
    for number in range(3):
        await turns()
        assert started == list(range(1, number + 1))
        limits.settle(f"call_{number}", 0, 0.0)
    await asyncio.gather(*tasks)
    assert started == [1, 2, 3]


async def test_a_key_that_ends_refuses_those_that_wait() -> None:
    limits, _ = limits_of(60.0, parallel=1)
    await limits.enter()
    task = asyncio.create_task(limits.enter())
    await turns()
    limits.close(lambda: RequestError(401, "deleted", code="invalid_api_key"))
    with pytest.raises(RequestError, match="deleted"):
        await task
    with pytest.raises(RequestError, match="deleted"):
        await limits.enter()
    with pytest.raises(RequestError, match="deleted"):
        limits.check()
    limits.apply(KeyRecord(id="key_1", digest="", created=0, parallel=2), None)
    await limits.enter()


def test_budgets_whose_use_is_unknown_are_reported() -> None:
    limits, _ = limits_of()
    before = KeyRecord(id="key_1", digest="", created=0)
    with_budget = KeyRecord(id="key_1", digest="", created=0, budget_tokens=10, budget_period="1h")
    assert limits.apply(with_budget, before) == ["budget_tokens"]
    more = KeyRecord(id="key_1", digest="", created=0, budget_tokens=20, budget_period="1h")
    assert limits.apply(more, with_budget) == []
    other_period = KeyRecord(id="key_1", digest="", created=0, budget_tokens=20, budget_cost=1.0, budget_period="1d")
    assert limits.apply(other_period, more) == ["budget_tokens", "budget_cost"]


@given(
    st.lists(
        st.tuples(st.sampled_from(["enter", "leave", "call", "end", "wait"]), st.integers(0, 50), st.integers(0, 50)),
        max_size=80,
    )
)
async def test_limits_admit_what_a_simple_model_admits(steps: list[tuple[str, int, int]]) -> None:
    parallel, tpm, budget = 3, 100, 300
    limits, now = limits_of(parallel=parallel, tpm=tpm, budget_tokens=budget)
    places, calls, number = [], {}, 0
    used_rate = used = 0.0
    for kind, amount, bound in steps:
        reserved = sum(calls.values())
        has_tokens = used_rate + reserved + 1 <= tpm + 1e-6 and used + reserved < budget
        if kind == "wait":
            now[0] += amount
            used_rate = max(0.0, used_rate - amount * tpm / 60)
        elif kind == "enter":
            admitted = True
            try:
                places.append(await limits.enter())
            except LimitReached:
                admitted = False
            assert admitted == (has_tokens and len(places) - admitted < parallel)
        elif kind == "leave" and places:
            limits.leave(places.pop())
        elif kind == "call":
            admitted = True
            try:
                limits.check()
            except LimitReached:
                admitted = False
            assert admitted == has_tokens
            if admitted:
                number += 1
                calls[f"call_{number}"] = bound
                limits.reserve(f"call_{number}", bound, 0.0)
        elif kind == "end" and calls:
            id = next(iter(calls))
            spent = min(amount, calls.pop(id))
            limits.settle(id, spent, 0.0)
            used_rate += spent
            used += spent
    for id in calls:
        limits.settle(id, 0, 0.0)
    for place in places:
        limits.leave(place)
    assert all(meter.reserved == 0 for meter in limits.meters.values()), "nothing stays reserved"
    assert limits.reservations == 0
    assert used < budget + 50


async def test_requests_do_not_queue_for_a_database_that_does_not_answer() -> None:
    now, asked = [1_000.0], 0

    async def exchange(limits: KeyLimits) -> None:
        nonlocal asked
        asked += 1
        await asyncio.sleep(0)
        raise KeyStoreError("timeout")

    limits = KeyLimits("key_1", WaitingRule(), exchange, clock=lambda: now[0])
    limits.apply(KeyRecord(id="key_1", digest="", created=0, rpm=100), None)
    results = await asyncio.gather(*(limits.enter() for _ in range(50)), return_exceptions=True)
    assert [type(result) for result in results] == [KeyStoreError] * 50
    assert asked == 1
    now[0] += 2
    with pytest.raises(KeyStoreError):
        await limits.enter()
    assert (asked, limits.waiting_requests) == (2, 0)
