"""Tests of engine/server/core.py: several gateways on one engine, without a network."""

import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from engine import Engine, EngineConfig, SamplingParams
from engine.kv.cache import LastBlock
from engine.protocol import Command, Fill, Free, Generate, Report, Rerank, Retain, Shutdown, StepReport, Update
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


def test_only_freed_contexts_of_the_same_gateway_are_retained(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engine.server.core.MAX_FREED", 2)
    server = EngineServer()
    one, two = FakeGateway(server), FakeGateway(server)
    retained: list[tuple[int, list[float]]] = []
    released: dict[int, int] = {}

    def retain(last_block: LastBlock, returns: list[float]) -> None:
        retained.append((released[last_block.block], returns))

    monkeypatch.setattr(engine, "retain", retain)
    thread = threading.Thread(target=server.serve, args=(engine,), daemon=True)
    thread.start()
    for number in (1, 2, 3):
        one.post(Fill(number, [30 + number] * 32))
    two.post(Fill(1, [40] * 32))
    until(lambda: all(one.updates(number) for number in (1, 2, 3)) and bool(two.updates(1)))
    for sequence in engine._sequences.values():
        released[sequence.blocks[1]] = sequence.tokens[0]
    one.post(Retain(1, [1.0]), Retain(99, [1.0]), Free(1), Free(77))
    two.post(Retain(1, [2.0]), Retain(2, [2.0]))
    one.post(Retain(1, [3.0]), Retain(1, []), Free(2), Free(3), Free(2))
    one.post(Retain(1, [4.0]), Retain(2, [5.0]), Retain(3, [6.0]))
    until(lambda: one.connection.received_count == 15 and two.connection.received_count == 3)
    until(lambda: one.steps[-1].commands == 15)
    assert retained == [(31, [3.0]), (31, []), (32, [5.0]), (33, [6.0])]
    assert len(one.connection.last_blocks) == 2
    one.post(Fill(3, [50]), Retain(3, [7.0]))
    until(lambda: one.connection.received_count == 17)
    one.post(None)
    until(lambda: not one.connection.last_blocks)
    assert len(retained) == 4, "a context that exists again is not freed"
    two.post(Shutdown())
    thread.join(30)
    assert not thread.is_alive()


@pytest.mark.parametrize("returns", [[float("nan")], [-1.0], [float("inf"), 1e308, 1e308], [1.0] * 5000])
def test_bad_durations_do_not_stop_the_engine(engine: Engine, returns: list[float]) -> None:
    server = EngineServer()
    gateway = FakeGateway(server)
    thread = threading.Thread(target=server.serve, args=(engine,), daemon=True)
    thread.start()
    gateway.post(Fill(1, [31] * 64))
    until(lambda: bool(gateway.updates(1)))
    gateway.post(Free(1), Retain(1, returns))
    for context in range(2, 22):  # more than the pool holds
        gateway.post(Fill(context, [30 + context] * 64), Free(context - 1), Retain(context - 1, returns))
        until(lambda context=context: bool(gateway.updates(context)))  # type: ignore[misc]
    assert all(gateway.updates(context)[0].error is None for context in range(1, 22))
    gateway.post(Shutdown())
    thread.join(30)
    assert not thread.is_alive()
    engine.check_integrity()


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
