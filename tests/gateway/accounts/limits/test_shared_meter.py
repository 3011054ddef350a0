"""gateway/accounts/limits/shared_meter.py: allotments of several gateways, against a database in memory."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.accounts.limits.shared_meter import SharedMeter, UsageGrant, UsageReport


class SharedLimitModel:
    """The database: what is used, and the allotments of each gateway."""

    def __init__(self, limit: float) -> None:
        self.limit = limit
        self.used = 0.0
        self.allotments: dict[int, float] = {}

    def exchange(self, gateway: int, report: UsageReport) -> UsageGrant:
        self.used += report.used
        others = sum(amount for id, amount in self.allotments.items() if id != gateway)
        granted = min(report.wanted, self.limit - self.used - others - report.held)
        self.allotments[gateway] = report.held + max(0.0, granted)
        return UsageGrant(granted, self.used, others)


def exchange(meter: SharedMeter, model: SharedLimitModel, gateway: int = 0, waiting: int = 0) -> None:
    report = meter.report("key_1", 0.0, waiting)
    assert not meter.has_room(0.0), "no request is admitted during the exchange"
    meter.apply(report, model.exchange(gateway, report), 0.0)


def exchange_without_use(meter: SharedMeter, model: SharedLimitModel, gateway: int = 0) -> None:
    report = meter.report("key_1", 0.0, 0)
    meter.apply(report, model.exchange(gateway, report), 0.0)


@given(
    st.integers(1, 200),
    st.lists(
        st.tuples(
            st.integers(0, 2),
            st.sampled_from(["admit", "end", "exchange", "die"]),
            st.integers(1, 40),
            st.integers(0, 10),
        ),
        max_size=120,
    ),
)
def test_gateways_exceed_a_limit_by_one_request_each_at_most(
    limit: int, steps: list[tuple[int, str, int, int]]
) -> None:
    model = SharedLimitModel(limit)
    meters = [SharedMeter("budget_tokens", limit) for _ in range(3)]
    running: list[list[int]] = [[], [], []]
    used = 0
    for gateway, kind, bound, amount in steps:
        meter = meters[gateway]
        if kind == "admit":
            if not meter.has_room(0.0):
                exchange(meter, model, gateway, 1)
            if meter.has_room(0.0):
                meter.reserved += bound
                running[gateway].append(bound)
        elif kind == "end" and running[gateway]:
            reserved = running[gateway].pop()
            spent = min(reserved, amount)
            meter.settle(reserved, spent, 0.0)
            used += spent
        elif kind == "exchange":
            exchange(meter, model, gateway)
        elif kind == "die":
            exchange(meter, model, gateway)  # it dies after it has reported
            model.allotments.pop(gateway, None)
            running[gateway] = []
            meters[gateway] = SharedMeter("budget_tokens", limit)
        assert used <= limit + 3 * 10, "a request uses 10 at most, whatever it reserves"
        assert used + sum(map(sum, running)) <= limit + 3 * 40
    for gateway, reservations in enumerate(running):
        for reserved in reservations:
            meters[gateway].settle(reserved, 0, 0.0)
        exchange_without_use(meters[gateway], model, gateway)
        exchange_without_use(meters[gateway], model, gateway)
    assert sum(model.allotments.values()) == 0, "nothing stays allotted"
    assert model.used == used


def test_a_gateway_asks_for_as_much_as_waits() -> None:
    model, meter = SharedLimitModel(100), SharedMeter("requests", 100, per_minute=True)
    exchange(meter, model, waiting=30)
    for _ in range(30):
        assert meter.has_room(0.0)
        meter.settle(0, 1, 0.0)
    assert not meter.has_room(0.0)


def test_an_idle_gateway_returns_its_allotment() -> None:
    model, meter = SharedLimitModel(100), SharedMeter("parallel", 100)
    assert not meter.has_room(0.0)
    exchange(meter, model)
    assert sum(model.allotments.values()) == 5
    assert meter.needs_exchange
    exchange_without_use(meter, model)  # it was used before, so it keeps some
    assert sum(model.allotments.values()) == 5
    exchange_without_use(meter, model)
    assert sum(model.allotments.values()) == 0
    assert not meter.needs_exchange


def test_a_failed_exchange_loses_no_report() -> None:
    model, meter = SharedLimitModel(100), SharedMeter("budget_tokens", 100)
    exchange(meter, model, waiting=1)
    meter.settle(0, 7, 0.0)
    meter.report("key_1", 0.0, 1)  # the database does not answer
    assert not meter.has_room(0.0)
    meter.settle(0, 2, 0.0)
    exchange(meter, model, waiting=1)
    assert model.used == 9
    assert meter.has_room(0.0)


def test_what_ends_during_an_exchange_is_reported_by_the_next_one() -> None:
    model, meter = SharedLimitModel(100), SharedMeter("budget_tokens", 100)
    exchange(meter, model, waiting=1)
    meter.reserved += 10
    report = meter.report("key_1", 0.0, 1)
    meter.settle(10, 4, 0.0)
    meter.apply(report, model.exchange(0, report), 0.0)
    exchange_without_use(meter, model)
    assert model.used == 4
    assert meter.used_at(0.0) == 4
    assert meter.reserved == 0


def test_others_are_known_after_an_exchange() -> None:
    model, meter = SharedLimitModel(100), SharedMeter("budget_tokens", 100, period="1h")
    model.used, model.allotments = 30.0, {1: 70.0}
    exchange(meter, model, waiting=1)
    assert not meter.has_room(0.0)
    assert not meter.is_used_up(0.0), "the other gateway may return it"
    assert meter.remaining(0.0) == 0
    assert meter.used_at(0.0) == 30
    assert meter.used_at(3_600.0) == 0
    model.used, model.allotments = 100.0, {}
    exchange(meter, model, waiting=1)
    assert meter.is_used_up(0.0)
    assert meter.seconds_to_room(0.0) == pytest.approx(3_600.0)
