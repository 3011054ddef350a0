"""Tests of engine/server/core.py: several gateways on one engine, without a network."""

import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from engine import Engine, EngineConfig, SamplingParams
from engine.protocol import Command, Fill, Free, Generate, Report, Rerank, Shutdown, StepReport, Update
from engine.server.core import Connection, EngineServer
from tests.fakes.checkpoints import write_tiny_llama


class FakeGateway:
    """Records the reports to a gateway, in order."""

    def __init__(self, server: EngineServer) -> None:
        self._server = server
        self.connection = Connection(self)
        self.steps: list[StepReport] = []

    def send(self, report: Report) -> None:
        assert isinstance(report, StepReport)
        self.steps.append(report)

    def post(self, *commands: Command | None) -> None:
        for command in commands:
            self._server.post(self.connection, None if command is None else [command])

    def updates(self, context: int) -> list[Update]:
        return [update for step in list(self.steps) for update in step.updates if update.context == context]


@pytest.fixture
def engine(tmp_path: Path) -> Engine:
    return Engine(EngineConfig(model=str(write_tiny_llama(tmp_path)), kv_tokens=1024))


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


def test_commands_of_one_message_are_applied_before_a_step(engine: Engine) -> None:
    server = EngineServer()
    gateway = FakeGateway(server)
    thread = threading.Thread(target=server.serve, args=(engine,), daemon=True)
    thread.start()
    generate = Generate(1, SamplingParams(temperature=0.0, max_tokens=1))
    server.post(gateway.connection, [Fill(1, [30, 31, 32]), Fill(1, [33] * 40), generate])
    until(lambda: any(update.finish for update in gateway.updates(1)))
    (update,) = gateway.updates(1)
    assert (update.filled, len(update.tokens)) == (43, 1), "one step"
    gateway.post(Shutdown())
    thread.join(10)


def test_gateways_have_separate_context_numbers(engine: Engine) -> None:
    server = EngineServer()
    one, two = FakeGateway(server), FakeGateway(server)
    thread = threading.Thread(target=server.serve, args=(engine,), daemon=True)
    thread.start()
    sampling = SamplingParams(temperature=0.0, max_tokens=6, ignore_eos=True)
    one.post(Fill(1, [30, 31, 32]), Generate(1, sampling), Fill(2, [40]))
    two.post(Fill(1, [50, 51]), Generate(1, sampling), Fill(2, [60], parent=1), Rerank([1, 2, 77], 1.0), Free(99))
    until(lambda: any(update.finish for update in one.updates(1)) and any(update.finish for update in two.updates(1)))
    outputs = [[token for update in gateway.updates(1) for token in update.tokens] for gateway in (one, two)]
    assert [len(tokens) for tokens in outputs] == [6, 6]
    assert outputs[0] != outputs[1]
    assert len(engine._sequences) == 4

    one.post(None)
    until(lambda: len(engine._sequences) == 2)
    heard = len(one.steps)
    two.post(Fill(3, [5]), Generate(3, sampling), Free(1))
    until(lambda: any(update.finish for update in two.updates(3)))
    until(lambda: two.steps[-1].running == 0 and two.steps[-1].commands == two.connection.received_count)
    assert two.connection.received_count == 8
    assert len(one.steps) == heard, "a gateway that left gets no more reports"
    two.post(Generate(44, sampling))
    until(lambda: bool(two.updates(44)))
    assert two.updates(44)[0].error is not None
    assert two.updates(44)[0].error[0] == "unknown_context"  # type: ignore[index]
    assert len(engine._sequences) == 2, "a rejected command leaves no state"
    two.post(Shutdown())
    thread.join(30)
    assert not thread.is_alive()
    alone = list(engine.stream([30, 31, 32], sampling))
    assert [token for update in alone for token in update.tokens] == outputs[0]


def test_command_that_raises_fails_only_its_context(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    server, generate = EngineServer(), engine.generate

    def raise_error(context: int, sampling: SamplingParams, **other: float | None) -> None:
        if sampling.max_tokens == 13:
            raise RuntimeError("a fault of ours")
        generate(context, sampling, **other)

    monkeypatch.setattr(engine, "generate", raise_error)
    gateway = FakeGateway(server)
    thread = threading.Thread(target=server.serve, args=(engine,), daemon=True)
    thread.start()
    gateway.post(Fill(1, [30, 31]), Generate(1, SamplingParams(max_tokens=20, ignore_eos=True)))
    gateway.post(Fill(2, [40]), Generate(2, SamplingParams(max_tokens=13)))
    until(lambda: any(update.finish for update in gateway.updates(1)) and bool(gateway.updates(2)))
    (failed,) = (update for update in gateway.updates(2) if update.error)
    assert failed.error == ("internal_error", "internal error: RuntimeError('a fault of ours')")
    assert len(engine._sequences) == 1
    gateway.post(Shutdown())
    thread.join(30)
    assert not thread.is_alive()
