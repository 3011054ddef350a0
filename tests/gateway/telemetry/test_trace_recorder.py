"""gateway/telemetry/trace_recorder.py: calls are recorded, and the record can be simulated."""

import io
import json
from pathlib import Path

import pytest

from engine.sampling_params import SamplingParams
from gateway.cli.main import main
from gateway.graph.call import Call, CallSpec, CallState, Usage
from gateway.graph.references import Reference
from gateway.graph.segments import Input, Slot, Text
from gateway.graph.session import Session
from gateway.simulator.engine import CPU
from gateway.simulator.simulation import Scenario, simulate
from gateway.simulator.trace import BadTrace, read_applications, read_prompts
from gateway.telemetry.trace_recorder import TraceRecorder


class RecorderHarness:
    """Sessions whose calls end when the test says so, with a clock that the test sets."""

    def __init__(self) -> None:
        self.file = io.StringIO()
        self.recorder = TraceRecorder(self.file)
        self.now = 100.0

    def session(self, id: str) -> Session:
        return Session(id=id, tenant="", created=self.now, ttl=60.0, clock=lambda: self.now)

    def add(self, to: Session, output: str, *parts: list[int] | str) -> Call:
        segments = [Text(part) if isinstance(part, list) else Input(Reference(part), "") for part in parts]
        slot = Slot(None, SamplingParams(max_tokens=8))
        return to.add(CallSpec(model="m", segments=[*segments, slot], output=output, deferred=True))

    def end(self, call: Call, *, tokens: int = 8, read: bool = False, state: CallState = CallState.DONE) -> None:
        call.usage = Usage(10, 0, tokens)
        call.output.latency_subscribers += read
        call.times.finished = self.now
        call.set_state(state)
        call.conclude()
        self.recorder.observe(call)

    def written(self, folder: Path) -> Path:
        path = folder / "trace.jsonl"
        path.write_text(self.file.getvalue())
        return path


def two_sessions(harness: RecorderHarness) -> None:
    """Record two sessions: two map calls, a reduce call and a later call; and a single call of another client."""
    app = harness.session("app")
    maps = [harness.add(app, f"m{index}", [7] * 40, [index] * 20) for index in range(2)]
    reduced = harness.add(app, "r", [9] * 10, "m0", "m1")
    harness.now += 1.0
    other = harness.session("other")
    question = harness.add(other, "a", [7] * 40, [5] * 4)
    harness.now += 1.0
    for call in maps:
        harness.end(call)
    harness.end(question, read=True)
    harness.now += 1.0
    harness.end(reduced, read=True)
    harness.now += 4.0
    last = harness.add(app, "last", [1] * 30, "r")
    harness.now += 1.0
    harness.end(last, tokens=5, read=True)


def test_sessions_are_read_back_with_their_times(tmp_path: Path) -> None:
    harness = RecorderHarness()
    two_sessions(harness)
    (app, other), gaps = read_applications(harness.written(tmp_path))
    assert gaps == [0.0, 1.0]
    first, second = app.steps
    assert [spec.output for spec in first.calls] == ["m0", "m1", "r"]
    assert (first.awaited, first.after, first.seconds) == (["r"], None, 0.0)
    assert (second.awaited, second.after, second.seconds) == (["last"], "r", pytest.approx(4.0))
    (spec,) = second.calls
    text, value, slot = spec.segments
    assert isinstance(text, Text)
    assert len(text.tokens) == 30
    assert isinstance(value, Input)
    assert value.reference.name == "r"
    assert isinstance(slot, Slot)
    assert (slot.sampling.max_tokens, slot.sampling.ignore_eos) == (5, True)
    assert [spec.output for step in other.steps for spec in step.calls] == ["a"]


def test_equal_prompt_beginnings_stay_equal_and_no_text_is_recorded(tmp_path: Path) -> None:
    harness = RecorderHarness()
    two_sessions(harness)
    path = harness.written(tmp_path)
    first, second, *_ = prompts = read_prompts(path)
    assert list(map(len, prompts)) == [60, 60, 10 + 16, 44, 30 + 8]
    assert first[:32] == second[:32] == prompts[3][:32]
    assert first[40:] != second[40:]
    assert "app" not in path.read_text().replace("\n", "")


def test_failed_calls_and_references_to_them_are_left_out(tmp_path: Path) -> None:
    harness = RecorderHarness()
    app = harness.session("app")
    failed = harness.add(app, "failed", [1] * 10)
    read = harness.add(app, "read", [2] * 10, "failed")
    harness.end(failed, state=CallState.CANCELLED)
    read.set_state(CallState.QUEUED)
    harness.end(read, read=True)
    ((application,), _) = read_applications(harness.written(tmp_path))
    (spec,) = application.steps[0].calls
    assert spec.output == "read"
    assert [type(segment) for segment in spec.segments] == [Text, Slot]


def test_a_trace_can_be_simulated(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    harness = RecorderHarness()
    two_sessions(harness)
    path = harness.written(tmp_path)
    (outcome,) = simulate(Scenario(costs=CPU, trace=path), ["myna"])
    assert outcome.calls == 5
    assert 4.0 < max(outcome.seconds) < 6.0, "the client itself waits four seconds"
    table = tmp_path / "table.json"
    table.write_text(
        json.dumps({"name": "t", "rows": [[1, 1.0], [9, 1.0]], "attention": 0, "step_rows": 512, "kv_tokens": 4096})
    )
    capsys.readouterr()
    assert main(["simulate", "--trace", str(path), "--table", str(table), "--policies", "fifo", "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert row["calls"] == 5
    assert row["session_mean_s"] > 4 + 2 * 8 + 5, "each token takes a second"


def test_invalid_traces_and_tables_are_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bad = tmp_path / "bad"
    for text in ("{", "[]\n", '{"at": 1}\n', '{"at": 1, "session": "s"}\n'):
        bad.write_text(text)
        with pytest.raises(BadTrace):
            read_applications(bad)
    assert main(["simulate", "--trace", str(bad)]) == 2
    assert "is not a trace" in capsys.readouterr().err
    assert main(["simulate", "--trace", str(tmp_path / "none")]) == 2
    for text in ("{}", json.dumps({"name": "t", "rows": [[1, 1.0]], "attention": 0, "step_rows": 1, "kv_tokens": 1})):
        bad.write_text(text)
        assert main(["simulate", "--table", str(bad)]) == 2
        assert "is not a table" in capsys.readouterr().err


def test_a_full_disk_ends_only_the_recording(caplog: pytest.LogCaptureFixture) -> None:
    harness = RecorderHarness()
    with open("/dev/full", "a", buffering=1, encoding="utf-8") as full:
        harness.recorder = TraceRecorder(full)
        for id in ("a", "b"):
            harness.end(harness.add(harness.session(id), "x", [1]))
        full_since = [record.message for record in caplog.records]
        with pytest.raises(OSError):
            full.close()
    assert full_since == ["recording of calls stopped: No space left on device"]
