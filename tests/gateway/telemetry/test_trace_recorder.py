"""gateway/telemetry/trace_recorder.py: what was asked, written down and run again."""

import io
import json
from pathlib import Path

import pytest

from gateway.cli.main import main
from gateway.graph.call import Call, CallSpec, CallState, Input, SamplingParams, Slot, Text, Usage
from gateway.graph.references import Reference
from gateway.graph.session import Session
from gateway.simulator.engine import CPU
from gateway.simulator.simulation import Scenario, simulate
from gateway.simulator.trace import BadTrace, read_applications, read_prompts
from gateway.telemetry.trace_recorder import TraceRecorder


class Stage:
    """Sessions whose calls end when they are told to, on a clock that is set."""

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
        call.move(state)
        call.conclude()
        self.recorder.observe(call)

    def written(self, folder: Path) -> Path:
        path = folder / "trace.jsonl"
        path.write_text(self.file.getvalue())
        return path


def two_sessions(stage: Stage) -> None:
    """A map of two and what reads both, after which the client asks once more; and a question of somebody else."""
    app = stage.session("app")
    maps = [stage.add(app, f"m{at}", [7] * 40, [at] * 20) for at in range(2)]
    reduced = stage.add(app, "r", [9] * 10, "m0", "m1")
    stage.now += 1.0
    other = stage.session("other")
    question = stage.add(other, "a", [7] * 40, [5] * 4)
    stage.now += 1.0
    for call in maps:
        stage.end(call)
    stage.end(question, read=True)
    stage.now += 1.0
    stage.end(reduced, read=True)
    stage.now += 4.0
    last = stage.add(app, "last", [1] * 30, "r")
    stage.now += 1.0
    stage.end(last, tokens=5, read=True)


def test_sessions_come_back_as_they_came(tmp_path: Path) -> None:
    stage = Stage()
    two_sessions(stage)
    (app, other), gaps = read_applications(stage.written(tmp_path))
    assert gaps == [0.0, 1.0]
    first, second = app.steps
    assert [spec.output for spec in first.calls] == ["m0", "m1", "r"]
    assert (first.wanted, first.after, first.seconds) == (["r"], None, 0.0)
    assert (second.wanted, second.after, second.seconds) == (["last"], "r", pytest.approx(4.0))
    (spec,) = second.calls
    text, value, slot = spec.segments
    assert isinstance(text, Text)
    assert len(text.tokens) == 30
    assert isinstance(value, Input)
    assert value.reference.name == "r"
    assert isinstance(slot, Slot)
    assert (slot.sampling.max_tokens, slot.sampling.ignore_eos) == (5, True)
    assert [spec.output for step in other.steps for spec in step.calls] == ["a"]


def test_equal_beginnings_are_seen_to_be_equal_and_no_text_is_there(tmp_path: Path) -> None:
    stage = Stage()
    two_sessions(stage)
    path = stage.written(tmp_path)
    first, second, *_ = prompts = read_prompts(path)
    assert list(map(len, prompts)) == [60, 60, 10 + 16, 44, 30 + 8]
    assert first[:32] == second[:32] == prompts[3][:32]
    assert first[40:] != second[40:]
    assert "app" not in path.read_text().replace("\n", "")


def test_what_did_not_end_well_is_left_out_and_so_is_what_reads_it(tmp_path: Path) -> None:
    stage = Stage()
    app = stage.session("app")
    failed = stage.add(app, "failed", [1] * 10)
    read = stage.add(app, "read", [2] * 10, "failed")
    stage.end(failed, state=CallState.CANCELLED)
    read.move(CallState.QUEUED)
    stage.end(read, read=True)
    ((application,), _) = read_applications(stage.written(tmp_path))
    (spec,) = application.steps[0].calls
    assert spec.output == "read"
    assert [type(segment) for segment in spec.segments] == [Text, Slot]


def test_a_trace_runs_and_takes_the_time_its_steps_take(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stage = Stage()
    two_sessions(stage)
    path = stage.written(tmp_path)
    (outcome,) = simulate(Scenario(costs=CPU, trace=path), ["myna"])
    assert outcome.calls == 5
    assert 4.0 < max(outcome.seconds) < 6.0, "four of them the client's own"
    table = tmp_path / "table.json"
    table.write_text(
        json.dumps({"name": "t", "rows": [[1, 1.0], [9, 1.0]], "attention": 0, "step_rows": 512, "kv_tokens": 4096})
    )
    capsys.readouterr()
    assert main(["simulate", "--trace", str(path), "--table", str(table), "--policies", "fifo", "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert row["calls"] == 5
    assert row["session_mean_s"] > 4 + 2 * 8 + 5, "a second a token"


def test_what_is_no_trace_and_no_table_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bad = tmp_path / "bad"
    for text in ("{", "[]\n", '{"at": 1}\n', '{"at": 1, "session": "s"}\n'):
        bad.write_text(text)
        with pytest.raises(BadTrace):
            read_applications(bad)
    assert main(["simulate", "--trace", str(bad)]) == 2
    assert "is no trace" in capsys.readouterr().err
    assert main(["simulate", "--trace", str(tmp_path / "none")]) == 2
    for text in ("{}", json.dumps({"name": "t", "rows": [[1, 1.0]], "attention": 0, "step_rows": 1, "kv_tokens": 1})):
        bad.write_text(text)
        assert main(["simulate", "--table", str(bad)]) == 2
        assert "is no table" in capsys.readouterr().err


def test_a_disk_that_is_full_ends_the_record_and_nothing_else(caplog: pytest.LogCaptureFixture) -> None:
    stage = Stage()
    with open("/dev/full", "a", buffering=1, encoding="utf-8") as full:
        stage.recorder = TraceRecorder(full)
        for id in ("a", "b"):
            stage.end(stage.add(stage.session(id), "x", [1]))
        full_since = [record.message for record in caplog.records]
        with pytest.raises(OSError):
            full.close()
    assert full_since == ["the record of calls ends here: No space left on device"]
