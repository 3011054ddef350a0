"""gateway/accounts/accounts.py: reservations of calls and of relayed requests, and the end of keys."""

import asyncio

import pytest

from engine.sampling_params import SamplingParams
from gateway.accounts.accounts import Accounts
from gateway.accounts.errors import KeyEnded, LimitReached
from gateway.accounts.keys.virtual_key import KeyRecord
from gateway.accounts.ledger.spend import FREE
from gateway.accounts.prices import Price, Prices
from gateway.errors import RequestError
from gateway.graph.call import CallSpec
from gateway.graph.segments import Slot, Text
from gateway.graph.session import Session

SPEC = CallSpec(model="m", segments=[Text([1] * 10), Slot(None, SamplingParams(max_tokens=5))])


def accounts_of(**fields: object) -> Accounts:
    accounts = Accounts(lambda model: 100, Prices({"m": Price(1.0, 1.0, 1.0)}))
    accounts.put(KeyRecord(id="key_1", digest="00", created=0, **fields))  # type: ignore[arg-type]
    return accounts


def session_of(accounts: Accounts, tenant: str = "key_1") -> Session:
    session = Session("", tenant, 0.0, 60.0)
    session.call_gate = accounts
    return session


def state(accounts: Accounts) -> tuple[float, float, int]:
    limits = accounts.limits_of("key_1")
    assert limits is not None
    meter = limits.meters["budget_tokens"]
    return meter.used_at(0.0), meter.reserved, limits.reservations


def test_calls_reserve_when_they_join_a_session() -> None:
    accounts = accounts_of(budget_tokens=40, budget_cost=1.0)
    session = session_of(accounts)
    addition = session.add_all([SPEC, SPEC, SPEC])
    assert state(accounts) == (0, 45, 3)
    with pytest.raises(LimitReached):
        session.add_all([SPEC])
    assert len(session.calls) == 3, "a refused call changes nothing"
    limits = accounts.limits_of("key_1")
    assert limits is not None
    assert limits.meters["budget_cost"].reserved == pytest.approx(45e-6)
    for call in addition.calls:
        accounts.settle("key_1", call.id, FREE._replace(prompt=10, completion=1, cost=0.1))
    assert state(accounts) == (33, 0, 0)
    assert limits.meters["budget_cost"].used_at(0.0) == pytest.approx(0.3)


@pytest.mark.parametrize("limits", [{}, {"budget_tokens": 1_000}])
def test_a_request_that_was_authenticated_before_its_key_ended_starts_no_call(limits: dict[str, int]) -> None:
    accounts = accounts_of(**limits)
    accounts.put(KeyRecord(id="key_1", digest="00", created=0, disabled=True, **limits))  # type: ignore[arg-type]
    with pytest.raises(KeyEnded, match="disabled"):
        session_of(accounts).add_all([SPEC])
    accounts.put(KeyRecord(id="key_1", digest="00", created=0, **limits))  # type: ignore[arg-type]
    session_of(accounts).add_all([SPEC])
    accounts.remove("key_1")
    with pytest.raises(KeyEnded, match="deleted"):
        session_of(accounts).add_all([SPEC])


def test_templates_and_other_tenants_reserve_nothing() -> None:
    accounts = accounts_of(budget_tokens=0)
    session_of(accounts).add_variable("a", template=["text"])
    session_of(accounts, "0123").add_all([SPEC])
    accounts.settle("0123", "call_1", FREE)
    assert state(accounts) == (0, 0, 0)


async def test_a_relayed_request_is_settled_once_or_has_used_nothing() -> None:
    accounts = accounts_of(budget_tokens=100)
    async with accounts.relayed("key_1", "m", 50) as id:
        assert state(accounts) == (0, 50, 1)
        accounts.settle("key_1", id, FREE._replace(prompt=20))
    assert state(accounts) == (20, 0, 0)
    with pytest.raises(RuntimeError, match="broke"):
        async with accounts.relayed("key_1", "m", 50):
            raise RuntimeError("it broke")
    assert state(accounts) == (20, 0, 0)
    async with accounts.relayed("key_1", "m", 80):
        with pytest.raises(LimitReached):
            async with accounts.relayed("key_1", "m", 1):
                pass
    async with accounts.relayed("0123", "m", 50) as id:
        accounts.settle("0123", id, FREE)


@pytest.mark.parametrize("is_deleted", [True, False])
async def test_a_relayed_request_ends_with_its_key(is_deleted: bool) -> None:
    accounts = accounts_of(budget_tokens=100)
    ended = list[tuple[str, bool]]()
    accounts.on_end = lambda id, is_deleted: ended.append((id, is_deleted))
    began = asyncio.Event()

    async def relay(tenant: str) -> None:
        async with accounts.relayed(tenant, "m", 1):
            began.set()
            await asyncio.sleep(60)

    task, other = asyncio.create_task(relay("key_1")), asyncio.create_task(relay("key_2"))
    await began.wait()
    if is_deleted:
        accounts.remove("key_1")
    else:
        accounts.put(KeyRecord(id="key_1", digest="00", created=0, disabled=True))
    with pytest.raises(KeyEnded) as error:
        await task
    assert error.value.code == ("invalid_api_key" if is_deleted else "api_key_disabled")
    assert RequestError.of_graph(error.value).status == 401
    assert ended == [("key_1", is_deleted)]
    assert not other.done()
    other.cancel()
    await asyncio.gather(other, return_exceptions=True)


async def test_a_timeout_of_the_request_itself_stays_one() -> None:
    accounts = accounts_of()
    with pytest.raises(TimeoutError):
        async with accounts.relayed("key_1", "m", 1):
            raise TimeoutError


def test_a_key_without_limits_is_not_counted() -> None:
    accounts = accounts_of()
    assert accounts.limits_of("key_1") is None
    session_of(accounts).add_all([SPEC])
    accounts.put(KeyRecord(id="key_1", digest="00", created=0, budget_tokens=10))
    accounts.settle("key_1", "call_1", FREE._replace(prompt=7))
    assert state(accounts) == (7, 0, 0), "a call that began before the limit counts at its end"


def test_only_virtual_keys_can_be_gone() -> None:
    accounts = accounts_of(expires_at=1)
    assert accounts.is_gone("key_2")
    assert not accounts.is_gone("key_1")
    assert not accounts.is_gone("0123")
    assert not accounts.is_gone("")
    accounts.check_key("0123")
    for id, code in (("key_1", "api_key_expired"), ("key_2", "invalid_api_key")):
        with pytest.raises(RequestError) as error:
            accounts.check_key(id)
        assert error.value.code == code


def test_models_and_tags_are_those_of_the_key() -> None:
    accounts = accounts_of(models=("m*",), tags=("a",))
    may_use = accounts.may_use("key_1")
    assert may_use is not None
    assert may_use("m1")
    assert not may_use("x")
    assert accounts.may_use("0123") is None
    assert (list(accounts.tags_of("key_1")), list(accounts.tags_of("0123"))) == (["a"], [])
