"""gateway/scheduler/: calls on a fake engine that answers immediately, waits or is lost, as the test chooses."""

import asyncio

import pytest

from gateway.engines.protocol import Urgency
from gateway.graph.call import Call, CallState
from gateway.graph.errors import Failure
from gateway.graph.session import Addition, Session
from gateway.graph.variable import VariableState
from gateway.scheduler import CostModel, Order, Overloaded, Priorities, Scheduler, Stopping
from tests.fakes.engine import FakeEngine, FakeEngines
from tests.gateway.graph.test_session import spec
from tests.gateway.scheduler.scheduler_harness import SchedulerHarness, settle

URGENT = Urgency(0.0, interactive=True)


async def test_values_pass_from_call_to_call() -> None:
    harness = SchedulerHarness()
    last = harness.run(output="unread")
    first = harness.run(output="a")
    second = harness.run("a", output="b")
    await second.output.wait_final()
    await harness.scheduler.wait_idle()
    assert {harness.scheduler.rank(call) for call in (first, second, last)} == {0.0}, "ended calls have rank 0"
    assert first.output.value == "2", "two tokens of text"
    assert second.output.value == "3", "two, and the one character of the value"
    assert last.state is second.state is CallState.DONE
    assert harness.engine.load == 0, "every context was freed"
    assert len(harness.ended) == 3
    assert second.usage.prompt == 3
    assert second.finish_reason == "stop"


async def perform_plain_call(
    harness: SchedulerHarness, before: set["asyncio.Task[None]"]
) -> tuple[Call, "asyncio.Task[None]"]:
    """Start a plain call, and check that the returned task is its only task."""
    call = harness.session.add(spec())
    harness.engine.hold()
    task = asyncio.create_task(harness.scheduler.run_inline(call))
    await settle()
    assert asyncio.all_tasks() - before == {task}
    assert harness.scheduler.unfinished_calls == harness.engine.load == 1
    return call, task


@pytest.mark.parametrize("dies", [False, True])
async def test_a_plain_call_runs_in_the_task_of_its_client(dies: bool) -> None:
    harness = SchedulerHarness()
    call, task = await perform_plain_call(harness, asyncio.all_tasks())
    harness.engine.opened[0].lost = dies
    harness.engine.released.set()
    await task
    assert (call.state, call.output.value) == (CallState.DONE, "2")
    async with asyncio.timeout(5):
        await harness.scheduler.wait_idle()
    assert harness.scheduler.unfinished_calls == harness.engine.load == 0
    assert harness.ended == [call]
    assert len(harness.engine.opened) == 1 + dies
    assert harness.scheduler.rank(call) == 0.0, "ended calls have rank 0"


async def test_a_failed_plain_call_has_its_failure_in_its_output() -> None:
    harness = SchedulerHarness()
    call, task = await perform_plain_call(harness, asyncio.all_tasks())
    harness.engine.doomed = {1, 2}
    harness.engine.released.set()
    await task
    assert call.state is CallState.FAILED
    assert call.output.failure is not None
    assert call.output.failure.code == "engine_failed"
    async with asyncio.timeout(5):
        await harness.scheduler.wait_idle()


@pytest.mark.parametrize("cause", ["the client disconnects", "the scheduler closes"])
async def test_a_plain_call_is_cancelled_with_its_task(cause: str) -> None:
    harness = SchedulerHarness()
    call, task = await perform_plain_call(harness, asyncio.all_tasks())
    if cause == "the scheduler closes":
        await harness.scheduler.close()
    else:
        task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert (call.state, call.output.state) == (CallState.CANCELLED, VariableState.CANCELLED)
    async with asyncio.timeout(5):
        await harness.scheduler.wait_idle()
    assert harness.scheduler.unfinished_calls == harness.engine.load == 0
    assert harness.ended == [call]


async def test_calls_with_subscribers_rank_before_calls_without() -> None:
    harness = SchedulerHarness()
    harness.engine.hold()
    early, late = harness.run(output="a"), harness.run(output="b")
    reader = harness.run("b", output="c")
    await settle()
    ranks = [context.urgency.rank for context in harness.engine.opened]
    assert ranks[0] < ranks[1]
    harness.scheduler.subscribe(reader.output)
    await settle()
    ranks = [context.urgency.rank for context in harness.engine.opened]
    assert ranks[1] < ranks[0], "the producers of a subscribed variable go first"
    assert ranks[2] < ranks[0]
    harness.engine.released.set()
    await harness.scheduler.wait_idle()
    assert early.state is late.state is CallState.DONE


async def test_variables_that_a_client_waits_for_together_are_not_interactive() -> None:
    """Only the last of them to end matters: its producers must not pause beside calls that end earlier."""
    harness = SchedulerHarness()
    harness.engine.hold()
    background, one, other = harness.run(), harness.run(), harness.run()
    await settle()
    for call in (one, other):
        harness.scheduler.subscribe(call.output, interactive=False)
    await settle()
    urgencies = [context.urgency for context in harness.engine.opened]
    assert [urgency.interactive for urgency in urgencies] == [False, False, False]
    assert max(urgencies[1].rank, urgencies[2].rank) < urgencies[0].rank, "but they are urgent"
    harness.scheduler.subscribe(other.output)
    await settle()
    assert [context.urgency.interactive for context in harness.engine.opened] == [False, False, True]
    harness.scheduler.unsubscribe(other.output)
    await settle()
    assert [context.urgency.interactive for context in harness.engine.opened] == [False, False, False]
    for call in (one, other):
        harness.scheduler.unsubscribe(call.output, interactive=False)
    harness.engine.released.set()
    await harness.scheduler.wait_idle()
    assert background.state is CallState.DONE


def large_addition(harness: SchedulerHarness, count: int) -> Addition:
    """Return one addition of a call, `count` calls without consumers, and a call that reads the first one."""
    first, second = spec(output="first", deferred=False), spec("first", output="second", deferred=False)
    return harness.session.add_all([first, *(spec(deferred=True) for _ in range(count)), second])


async def test_other_tasks_get_turns_while_many_calls_are_started() -> None:
    harness, turns = SchedulerHarness(), 0

    async def other() -> None:
        nonlocal turns
        while True:
            await asyncio.sleep(0)
            turns += 1

    harness.engine.hold()
    addition = large_addition(harness, 400)
    counting = asyncio.create_task(other())
    await harness.scheduler.start(harness.session, addition)
    counting.cancel()
    assert turns >= 20
    assert harness.scheduler.unfinished_calls == len(addition.calls), "all calls are submitted when it returns"
    harness.engine.released.set()
    await harness.scheduler.wait_idle()
    assert {call.state for call in addition.calls if call.spec.deferred} == {CallState.DONE}


@pytest.mark.parametrize("leaves", [True, False])
async def test_calls_that_are_cancelled_during_a_large_start_do_not_begin(leaves: bool) -> None:
    harness = SchedulerHarness()
    harness.engine.hold()
    addition = large_addition(harness, 400)
    first, *others, second = addition.calls
    harness.scheduler.subscribe(second.output)
    starting = asyncio.create_task(harness.scheduler.start(harness.session, addition))
    for _ in range(3):
        await asyncio.sleep(0)
    assert 0 < harness.scheduler.unfinished_calls < len(addition.calls)
    if leaves:
        starting.cancel()
        harness.scheduler.unsubscribe(second.output)
    else:
        harness.scheduler.cancel(second, Failure("cancelled", "not needed"))
    await asyncio.wait([starting])
    harness.engine.released.set()
    await harness.scheduler.wait_idle()
    assert first.state is second.state is CallState.CANCELLED, "only the second call needed the first one"
    assert {call.state for call in others} == {CallState.DONE}, "submission is atomic"
    assert harness.engine.load == 0
    harness.scheduler.submit(first)
    assert harness.scheduler.unfinished_calls == 0, "an ended call does not start"


async def test_a_stopping_server_waits_for_a_start_in_progress() -> None:
    for turns in range(10):
        harness = SchedulerHarness()
        harness.run()  # it ends at some time during the start
        for _ in range(turns):
            await asyncio.sleep(0)
        addition = large_addition(harness, 100)
        starting = asyncio.create_task(harness.scheduler.start(harness.session, addition))
        await asyncio.sleep(0)
        await harness.scheduler.wait_idle()
        assert all(call.state.is_final for call in addition.calls)
        await starting


async def test_admission_is_limited_but_running_graphs_continue() -> None:
    harness = SchedulerHarness(max_calls=1)
    harness.engine.hold()
    harness.scheduler.admit("", continues=False)
    harness.run()
    with pytest.raises(Overloaded):
        harness.scheduler.admit("", continues=False)
    harness.scheduler.admit("", continues=True)
    harness.scheduler.stop_admitting()
    with pytest.raises(Stopping):
        harness.scheduler.admit("", continues=True)
    await harness.scheduler.close()
    assert harness.scheduler.unfinished_calls == 0


async def test_in_order_of_arrival_no_call_overtakes() -> None:
    harness = SchedulerHarness()
    harness.scheduler = Scheduler(FakeEngines(harness.engine), 10, priorities=Priorities(CostModel(), Order.ARRIVAL))
    harness.engine.hold()
    harness.run(output="a")
    subscribed = harness.run(output="b")
    harness.scheduler.subscribe(subscribed.output)
    await settle()
    urgencies = [context.urgency for context in harness.engine.opened]
    assert urgencies[0].rank < urgencies[1].rank
    assert all(urgency.interactive for urgency in urgencies)
    harness.engine.released.set()
    await harness.scheduler.wait_idle()


async def test_engines_are_informed_which_calls_are_interactive() -> None:
    harness = SchedulerHarness()
    harness.engine.hold()
    harness.run(output="a")
    last = harness.run("a", output="b")
    await settle()
    assert [context.urgency.interactive for context in harness.engine.opened] == [False, False]
    harness.scheduler.subscribe(last.output)
    await settle()
    assert [context.urgency.interactive for context in harness.engine.opened] == [False, True]
    harness.scheduler.unsubscribe(last.output)
    await settle()
    assert [context.urgency.interactive for context in harness.engine.opened] == [False, False]
    harness.engine.released.set()
    await harness.scheduler.wait_idle()


async def test_one_tenant_cannot_fill_the_queue_alone() -> None:
    engine = FakeEngine()
    scheduler = Scheduler(FakeEngines(engine), 8, several_tenants=True)
    sessions = {tenant: Session(id=tenant, tenant=tenant, created=0.0, ttl=60.0) for tenant in ("a", "b")}

    def wait(tenant: str, count: int) -> None:
        session = sessions[tenant]
        if "never" not in session.variables:
            session.add_variable("never")
        for _ in range(count):
            scheduler.submit(session.add(spec("never", deferred=True)))

    wait("a", 6)
    with pytest.raises(Overloaded, match="6 calls of this key are unfinished"):
        scheduler.admit("a", continues=False)
    scheduler.admit("b", continues=False)
    wait("a", 9)
    scheduler.admit("b", continues=False)
    scheduler.admit("a", continues=True)
    wait("a", 1)
    with pytest.raises(Overloaded):
        scheduler.admit("a", continues=True)
    wait("b", 4)
    with pytest.raises(Overloaded):
        scheduler.admit("b", continues=False)
    await scheduler.close()
    scheduler.admit("a", continues=False)
