"""gateway/simulator/trace.py: recorded calls become applications and prompts."""

import json
from pathlib import Path
from typing import Any

import pytest

from gateway.simulator.trace import BadTrace, read, read_applications, read_prompts


def call(output: str, at: float, ended: float, prompt: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
    return {
        "session": "s",
        "output": output,
        "at": at,
        "ended": ended,
        "prompt": prompt,
        "parts": [],
        "read": False,
        **more,
    }


def text(token: int, count: int) -> dict[str, Any]:
    return {"text": [[token, count]]}


SLOT = {"slot": None, "tokens": 3}


def written(folder: Path, *calls: dict[str, Any]) -> Path:
    path = folder / "trace"
    path.write_text("".join(json.dumps(one) + "\n" for one in calls))
    return path


def test_calls_are_grouped_by_session_in_order_of_arrival(tmp_path: Path) -> None:
    calls = [call("b", 2.0, 3.0, []), call("x", 1.5, 2.0, [], session="other"), call("a", 1.0, 2.0, [])]
    found = read(written(tmp_path, *calls))
    assert {session: [one["output"] for one in ones] for session, ones in found.items()} == {
        "s": ["a", "b"],
        "other": ["x"],
    }


def test_simultaneous_calls_are_one_step_and_later_ones_follow_the_last_end(tmp_path: Path) -> None:
    path = written(
        tmp_path,
        call("a", 10.0, 12.0, [text(1, 5), SLOT]),
        call("b", 10.02, 11.0, [text(1, 5), SLOT], read=True),
        call("c", 12.5, 14.0, [{"value": "a"}, {"value": "unknown"}, SLOT], read=True),
        call("z", 11.0, 12.0, [text(9, 1), SLOT], session="other"),
    )
    (app, other), gaps = read_applications(path)
    assert (app.kind, other.kind, gaps) == ("session", "request", [0.0, pytest.approx(1.0)])
    first, second = app.steps
    assert ([one.output for one in first.calls], first.awaited, first.after, first.seconds) == (
        ["a", "b"],
        ["b"],
        None,
        0.0,
    )
    assert ([one.output for one in second.calls], second.awaited, second.after) == (["c"], ["c"], "a")
    assert second.seconds == pytest.approx(0.5)
    (reads_a,) = second.calls
    assert [reference.reference.name for reference in reads_a.references] == ["a"], "unknown producers are left out"


def test_prompts_are_equal_where_the_recorded_ones_were(tmp_path: Path) -> None:
    path = written(
        tmp_path,
        call("a", 1.0, 2.0, [text(7, 4), SLOT]),
        call("b", 2.0, 3.0, [text(7, 4), {"value": "a"}, text(8, 1), SLOT, text(9, 9)]),
        call("c", 3.0, 4.0, [text(7, 4), {"value": "a"}, SLOT]),
    )
    first, second, third = read_prompts(path)
    assert first == [7] * 4
    assert second[:4] == first
    assert len(second) == 4 + 3 + 1, "the value has as many tokens as were generated; what follows the slot is left out"
    assert third == second[:7]


@pytest.mark.parametrize(
    "line", ["", "{", "[]", "3", '{"at": 1}', '{"at": "x", "session": "s"}', '{"at": 1, "session": "s"}']
)
def test_other_files_are_no_trace(tmp_path: Path, line: str) -> None:
    path = tmp_path / "trace"
    path.write_text(line + "\n")
    with pytest.raises(BadTrace, match="is not a trace"):
        read_applications(path)
