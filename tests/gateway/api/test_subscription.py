"""gateway/api/subscription.py: a client that disconnects unsubscribes, and the scheduler cancels what only it needs."""

import asyncio

import pytest

from gateway.api.subscription import subscribed
from gateway.graph.call import CallState, Objective
from gateway.graph.errors import TooManyWaiters
from gateway.graph.limits import SessionLimits
from tests.gateway.scheduler.scheduler_harness import SchedulerHarness, settle


async def test_a_disconnect_cancels_the_call_that_only_this_client_needs() -> None:
    harness = SchedulerHarness()
    harness.engine.hold()
    call = harness.run(output="a", deferred=False)

    async def wait() -> None:
        with subscribed(harness.scheduler, [call.output], session=call.session):
            await call.output.wait_final()

    client = asyncio.create_task(wait())
    await settle()
    assert (call.output.subscribers, call.session.resources.waiters) == (1, 1)
    assert not call.state.is_final
    client.cancel()  # as aiohttp does when the connection is lost
    with pytest.raises(asyncio.CancelledError):
        await client
    assert (call.output.subscribers, call.session.resources.waiters) == (0, 0)
    assert call.state is CallState.CANCELLED


async def test_another_subscriber_keeps_the_call() -> None:
    harness = SchedulerHarness()
    harness.engine.hold()
    call = harness.run(output="a", deferred=False)
    with subscribed(harness.scheduler, [call.output], Objective.THROUGHPUT, interactive=False):
        with pytest.raises(ValueError, match="gone"), subscribed(harness.scheduler, [call.output]):
            assert call.output.latency_subscribers == call.output.interactive_subscribers == 1
            raise ValueError("gone")
        await settle()
        assert (call.output.subscribers, call.output.latency_subscribers) == (1, 0)
        assert not call.state.is_final
        harness.engine.released.set()
        await call.output.wait_final()
    assert call.state is CallState.DONE


async def test_a_subscription_after_the_response_ends_in_the_next_turn_of_the_loop() -> None:
    harness = SchedulerHarness()
    call = harness.run(output="a", deferred=True)
    ended: list[int] = []
    with subscribed(
        harness.scheduler,
        [call.output],
        after_response=True,
        on_end=lambda: ended.append(call.output.subscribers),
    ):
        await call.output.wait_final()
    assert (call.output.subscribers, ended) == (1, []), "the response is sent first"
    await asyncio.sleep(0)
    assert (call.output.subscribers, ended) == (0, [0])


async def test_a_client_beyond_the_limit_of_waiters_is_refused_and_not_subscribed() -> None:
    harness = SchedulerHarness()
    harness.engine.hold()
    call = harness.run(output="a", deferred=True)
    call.session.resources.limits = SessionLimits(waiters=1)
    with subscribed(harness.scheduler, [call.output], session=call.session):
        with pytest.raises(TooManyWaiters), subscribed(harness.scheduler, [call.output], session=call.session):
            raise AssertionError("refused before")
        assert (call.output.subscribers, call.session.resources.waiters) == (1, 1)
    harness.engine.released.set()
    await harness.scheduler.wait_idle()
