"""gateway/scheduler/inputs.py: the size of a text is checked before it is made of values."""

import asyncio
import json

import pytest

from gateway.graph.call import Input
from gateway.graph.references import Reference
from gateway.graph.session import _VARIABLE_BYTES, CALL_BYTES, SessionLimits
from gateway.graph.variable import Variable, VariableState
from gateway.scheduler import inputs
from tests.gateway.scheduler.test_scheduler import Stage


def stage(**bounds: int) -> Stage:
    stage = Stage()
    stage.session.bounds = SessionLimits(**bounds)
    return stage


def reference(name: str, *path: str) -> Input:
    return Input(Reference(name, path), "template")


async def derived(stage: Stage, name: str, *template: str | Input) -> Variable:
    addition = stage.session.put(name, template=template)
    await stage.scheduler.start(stage.session, addition)
    await stage.session.variable(name).wait_final()
    return stage.session.variable(name)


async def test_templates_that_double_end_at_the_bound_of_a_value() -> None:
    there = stage(value_bytes=1 << 10)
    there.session.settle(there.session.put("t0", "x" * 8))
    for number in range(1, 41):
        last = reference(f"t{number - 1}")
        made = await derived(there, f"t{number}", last, last)
        assert made.state is (VariableState.READY if number <= 7 else VariableState.FAILED)
    assert made.failure is not None
    assert made.failure.code == "upstream_failed"
    assert "too_large: the value of 't8' has 2048 bytes" in made.failure.message
    assert there.session.size < 41 * (CALL_BYTES + _VARIABLE_BYTES) + (32 << 10)


async def test_templates_end_at_the_bound_of_their_session() -> None:
    there = stage(value_bytes=1 << 20, bytes=4 << 20)
    there.session.settle(there.session.put("big", "x" * (1 << 20)))
    states = [(await derived(there, f"t{number}", reference("big"))).state for number in range(6)]
    assert states == [VariableState.READY] * 2 + [VariableState.FAILED] * 4, "and a few bytes for the templates"
    assert there.session.size <= 4 << 20


async def test_a_template_is_refused_before_its_text_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    there = stage(value_bytes=1 << 20)
    there.session.settle(there.session.put("big", "x" * (1 << 20)))
    read: list[int] = []
    resolve = inputs.InputReader.read

    async def counted(self: inputs.InputReader, source: Variable, where: Reference) -> str:
        read.append(1)
        return await resolve(self, source, where)

    monkeypatch.setattr(inputs.InputReader, "read", counted)
    made = await derived(there, "t", *[reference("big")] * 10_000)
    assert made.state is VariableState.FAILED
    assert len(read) == 2


async def test_a_call_parses_a_bounded_number_of_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inputs, "_PARSED_BYTES", 1000)
    there = stage()
    there.session.settle(there.session.put("plan", json.dumps({"a": "x" * 200})))
    made = await derived(there, "few", *[reference("plan", "a")] * 4)
    assert made.value == "x" * 800
    made = await derived(there, "many", *[reference("plan", "a")] * 5)
    assert made.failure is not None
    assert made.failure.code == "too_large"


async def test_large_values_are_parsed_with_turns_for_others_between(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inputs, "_SMALL", 10)
    there = stage()
    there.session.settle(there.session.put("plan", json.dumps(["x"] * 20)))
    turns = 0

    async def others() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    task = asyncio.create_task(others())
    made = await derived(there, "t", *[reference("plan", "1")] * 50)
    task.cancel()
    assert made.value == "x" * 50
    assert turns >= 50
