"""gateway/scheduler/input_reader.py: the size of a text is checked before it is built from values."""

import asyncio
import json

import pytest

from gateway.graph.call_size import CALL_BYTES, VARIABLE_BYTES
from gateway.graph.limits import SessionLimits
from gateway.graph.references import Reference
from gateway.graph.segments import Input
from gateway.graph.variable import Variable, VariableState
from gateway.scheduler import input_reader
from tests.gateway.scheduler.scheduler_harness import SchedulerHarness, settle


def stage(**limits: int) -> SchedulerHarness:
    stage = SchedulerHarness()
    stage.session.resources.limits = SessionLimits(**limits)
    return stage


def reference(name: str, *path: str) -> Input:
    return Input(Reference(name, path), "template")


async def render(stage: SchedulerHarness, name: str, *template: str | Input) -> Variable:
    addition = stage.session.add_variable(name, template=template)
    await stage.scheduler.start(stage.session, addition)
    await stage.session.variable(name).wait_final()
    return stage.session.variable(name)


async def test_templates_that_double_end_at_the_limit_of_a_value() -> None:
    harness = stage(value_bytes=1 << 10)
    harness.session.set_values(harness.session.add_variable("t0", "x" * 8))
    for number in range(1, 41):
        last = reference(f"t{number - 1}")
        variable = await render(harness, f"t{number}", last, last)
        assert variable.state is (VariableState.READY if number <= 7 else VariableState.FAILED)
    assert variable.failure is not None
    assert variable.failure.code == "upstream_failed"
    assert "too_large): the value of 't8' has 2048 bytes" in variable.failure.message
    assert harness.session.resources.bytes < 41 * (CALL_BYTES + VARIABLE_BYTES) + (32 << 10)


async def test_templates_end_at_the_limit_of_their_session() -> None:
    harness = stage(value_bytes=1 << 20, bytes=4 << 20)
    harness.session.set_values(harness.session.add_variable("big", "x" * (1 << 20)))
    states = [(await render(harness, f"t{number}", reference("big"))).state for number in range(6)]
    assert states == [VariableState.READY] * 2 + [VariableState.FAILED] * 4, (
        "two values fit, and a few bytes for the templates"
    )
    assert harness.session.resources.bytes <= 4 << 20


async def test_a_template_is_rejected_before_its_text_is_built(monkeypatch: pytest.MonkeyPatch) -> None:
    harness = stage(value_bytes=1 << 20)
    harness.session.set_values(harness.session.add_variable("big", "x" * (1 << 20)))
    reads: list[int] = []
    resolve = input_reader.InputReader.read

    async def counted(self: input_reader.InputReader, source: Variable, where: Reference) -> str:
        reads.append(1)
        return await resolve(self, source, where)

    monkeypatch.setattr(input_reader.InputReader, "read", counted)
    variable = await render(harness, "t", *[reference("big")] * 10_000)
    assert variable.state is VariableState.FAILED
    assert len(reads) == 2


async def test_the_json_that_a_call_parses_is_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(input_reader, "_PARSED_BYTES", 1000)
    harness = stage()
    harness.session.set_values(harness.session.add_variable("plan", json.dumps({"a": "x" * 200})))
    variable = await render(harness, "few", *[reference("plan", "a")] * 4)
    assert variable.value == "x" * 800
    variable = await render(harness, "many", *[reference("plan", "a")] * 5)
    assert variable.failure is not None
    assert variable.failure.code == "too_large"


async def test_other_tasks_get_turns_while_large_values_are_parsed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(input_reader, "_SMALL", 10)
    harness = stage()
    harness.session.set_values(harness.session.add_variable("plan", json.dumps(["x"] * 20)))
    turns = 0

    async def others() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    task = asyncio.create_task(others())
    variable = await render(harness, "t", *[reference("plan", "1")] * 50)
    task.cancel()
    assert variable.value == "x" * 50
    assert turns >= 50


async def test_a_template_is_rendered_once_its_inputs_exist() -> None:
    harness = SchedulerHarness()
    harness.session.add_variable("joke")
    parts = ["Joke:\n", Input(Reference("joke"), "template"), "!"]
    addition = harness.session.add_variable("shown", template=parts)
    await harness.scheduler.start(harness.session, addition)
    reader = harness.run("shown")
    await settle()
    assert harness.session.variable("shown").state is VariableState.PENDING
    producer = harness.run(output="joke")
    await harness.scheduler.wait_idle()
    assert producer.output.value == "2"
    assert harness.session.variable("shown").value == "Joke:\n2!"
    assert reader.output.value == "10"
