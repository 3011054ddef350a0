"""Tests of engine/server/worker.py, over a socket as a gateway uses it."""

import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from engine.config import EngineConfig
from engine.protocol import (
    Command,
    FatalReport,
    Fill,
    FolderReport,
    FrameBuffer,
    Free,
    Generate,
    ReadyReport,
    Report,
    Rerank,
    Shutdown,
    StepReport,
    Update,
    encode_frame,
    report_decoder,
)
from engine.sampling_params import SamplingParams
from tests.fakes.checkpoints import write_tiny_llama

_SECONDS = 60.0


class Worker:
    """A worker process and the gateway's end of its socket."""

    def __init__(self, config: EngineConfig) -> None:
        self.socket, reference = socket.socketpair()
        self.socket.settimeout(_SECONDS)
        with reference:
            arguments = ["--fd", str(reference.fileno()), "--config", msgspec.json.encode(config).decode()]
            self.process = subprocess.Popen(
                [sys.executable, "-m", "engine.server.worker", *arguments],
                pass_fds=[reference.fileno()],
                stderr=subprocess.PIPE,
            )
        self._frames = FrameBuffer()
        self._reports: list[Report] = []

    def send(self, *commands: Command) -> None:
        self.socket.sendall(b"".join(encode_frame(command) for command in commands))

    def receive(self) -> Report:
        while not self._reports:
            data = self.socket.recv(1 << 16)
            assert data, "the worker closed the connection"
            self._reports += [report_decoder.decode(body) for body in self._frames.feed(data)]
        return self._reports.pop(0)

    def updates(self, context: int) -> Iterator[Update]:
        """Return the updates of a context until it finishes or fails."""
        while True:
            report = self.receive()
            assert isinstance(report, StepReport)
            for update in report.updates:
                if update.context == context:
                    yield update
                    if update.finish is not None or update.error is not None:
                        return

    def close(self) -> str:
        """Close the connection. Return what the process wrote to stderr."""
        self.socket.close()
        _, written = self.process.communicate(timeout=_SECONDS)
        return written.decode()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_llama(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def worker(folder: Path) -> Iterator[Worker]:
    worker = Worker(EngineConfig(model=str(folder), kv_tokens=1024))
    resolved, ready = worker.receive(), worker.receive()
    assert isinstance(resolved, FolderReport)
    assert isinstance(ready, ReadyReport)
    assert resolved.folder == ready.info.folder == str(folder)
    yield worker
    worker.close()


def test_one_report_per_step_covers_all_contexts(worker: Worker) -> None:
    one = SamplingParams(max_tokens=6, ignore_eos=True)
    worker.send(*(command for n in (1, 2, 3) for command in (Fill(n, [n, 7]), Generate(n, one))))
    seen: dict[int, int] = {1: 0, 2: 0, 3: 0}
    steps = 0
    while any(count < 6 for count in seen.values()):
        report = worker.receive()
        assert isinstance(report, StepReport)
        steps += 1
        for update in report.updates:
            seen[update.context] += len(update.tokens)
    assert steps <= 9, "six tokens of three contexts arrived in one report each step"
    worker.send(Free(1), Free(2), Free(3))


def test_rejected_command_does_not_affect_others(worker: Worker) -> None:
    worker.send(Fill(10, [1, 2]), Generate(10, SamplingParams(max_tokens=4, ignore_eos=True)))
    worker.send(Fill(11, [99_999]), Generate(12, SamplingParams()), Rerank([14], 0.0), Free(15))
    assert [update.finish for update in worker.updates(10)][-1] == "length"
    worker.send(Fill(16, [5]), Generate(16, SamplingParams(logit_bias={-3: 1.0})))
    (refused,) = (update for update in worker.updates(16) if update.error)
    assert refused.error is not None
    assert refused.error[0] == "bad_token"
    worker.send(Free(10))


def test_rejected_fill_and_its_generate_are_reported_once_each(worker: Worker) -> None:
    worker.send(Fill(20, [1] * 300))
    (update,) = worker.updates(20)
    assert update.error is not None
    assert update.error[0] == "context_length_exceeded"


@pytest.mark.parametrize("how", ["shutdown", "hang up", "nonsense"])
def test_worker_exits_with_its_gateway(folder: Path, how: str) -> None:
    worker = Worker(EngineConfig(model=str(folder), kv_tokens=1024))
    while not isinstance(worker.receive(), ReadyReport):
        pass
    worker.send(Fill(1, [1, 2, 3]), Generate(1, SamplingParams(max_tokens=250, ignore_eos=True)))
    if how == "shutdown":
        worker.send(Shutdown())
    elif how == "nonsense":
        worker.socket.sendall(b"\xff" * 64)
    else:
        worker.socket.close()
    written = worker.close()
    assert worker.process.returncode == 0
    assert "Traceback" not in written


def test_missing_model_is_reported(tmp_path: Path) -> None:
    worker = Worker(EngineConfig(model=str(tmp_path)))
    report = worker.receive()
    assert isinstance(report, FatalReport)
    assert "no config.json" in report.message
    assert worker.process.wait(_SECONDS) == 1  # it exits by itself: closing the connection would end it too
    worker.close()


def test_unavailable_kernels_are_reported(folder: Path) -> None:
    worker = Worker(EngineConfig(model=str(folder), kernels="cpu", dtype="float32"))
    assert isinstance(worker.receive(), FolderReport)
    report = worker.receive()
    assert isinstance(report, FatalReport)
    assert "the cpu kernels cannot run here: they support bfloat16" in report.message
    assert worker.process.wait(_SECONDS) == 1
    assert "Traceback" not in worker.close()
