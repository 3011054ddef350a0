"""gateway/simulator/agents/sessions.py: what is read of a recording, and what is refused."""

import gzip
from pathlib import Path
from typing import Any

import pytest

from gateway.simulator.agents.sessions import LONG_PAUSE, clip, read_sessions, scale_tokens, shorten_pause
from gateway.simulator.trace import BadTrace
from tests.gateway.simulator.agents.synthetic import chain, random_lines, write

FIRST = {"t": 0.0, "in": 1000, "out": 50, "of": -1, "keep": 0, "stop": "tool_use", "api": 4.0, "think": 0.0}


def session(*requests: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"id": "s", "tools": 100, "system": 50, "model": "m", "requests": list(requests)} | more


def read(tmp_path: Path, *lines: dict[str, Any], window: int = 1 << 20) -> Any:
    return read_sessions(write(tmp_path / "file", list(lines)), window)


def test_a_request_follows_the_answer_of_its_agent(tmp_path: Path) -> None:
    second = FIRST | {"t": 20.0, "in": 1500, "of": 0, "keep": 15, "think": 16.0}
    helper = FIRST | {"t": 30.0, "in": 700, "agent": "agent_001"}
    third = FIRST | {"t": 40.0, "in": 2000, "of": 1, "keep": 23, "think": 14.0}
    (found,) = read(tmp_path, session(FIRST, second, helper, third)).sessions
    assert [request.after for request in found.requests] == [-1, 0, 1, 1]
    assert [request.pause for request in found.requests] == [0.0, 16.0, 6.0, 14.0]  # the helper: 30 - (20 + 4)
    assert [request.shared for request in found.requests] == [0, 960, 0, 1472]
    assert [request.extends for request in found.requests] == [False, True, False, True]


def test_a_request_that_shares_only_the_beginning_of_another_extends_none(tmp_path: Path) -> None:
    second = FIRST | {"t": 20.0, "in": 1500, "of": 0, "keep": 14}
    third = FIRST | {"t": 40.0, "in": 990, "of": 0, "keep": 15}
    (found,) = read(tmp_path, session(FIRST, second, third)).sessions
    assert [request.shared for request in found.requests] == [0, 896, 960]
    assert [request.extends for request in found.requests] == [False, False, True], "but for a part of a block"


def test_time_of_an_answer_that_was_not_recorded_is_no_pause(tmp_path: Path) -> None:
    second = FIRST | {"t": 20.0, "api": 0.0, "stop": "", "think": 16.0}
    third = FIRST | {"t": 30.0, "think": 26.0}  # counted from the first answer
    (found,) = read(tmp_path, session(FIRST, second, third)).sessions
    assert found.requests[2].pause == 10.0


def test_long_pauses_are_shortened_and_keep_their_order() -> None:
    assert shorten_pause(LONG_PAUSE) == LONG_PAUSE
    recorded = [1.0, 599.0, 600.0, 601.0, 3600.0, 80_000.0]
    replayed = [shorten_pause(seconds) for seconds in recorded]
    assert replayed == sorted(replayed)
    assert replayed[-1] < 3600
    assert all(short <= long for short, long in zip(replayed, recorded, strict=True))


def test_sessions_end_before_a_request_that_exceeds_the_window() -> None:
    found = clip([chain(1000, 2000, 3000), chain(5000), chain(900)], 2500)
    assert [len(session.requests) for session in found.sessions] == [2, 1]
    assert (found.cut, found.left_out, found.requests_left_out) == (1, 1, 2)


def test_scaled_sessions_keep_their_times_and_structure() -> None:
    whole = chain(16_000, 32_000, tools=1600)
    small = scale_tokens(whole, 1 / 16)
    assert [request.prompt for request in small.requests] == [1000, 2000]
    assert [request.pause for request in small.requests] == [request.pause for request in whole.requests]
    assert small.requests[1].shared == 1000
    assert small.tools == 100


def test_compressed_files_are_read_as_well(tmp_path: Path) -> None:
    lines = random_lines(1, 5)
    plain = read_sessions(write(tmp_path / "plain", lines), 1 << 20)
    packed = tmp_path / "packed"
    packed.write_bytes(gzip.compress((tmp_path / "plain").read_bytes()))
    assert read_sessions(packed, 1 << 20) == plain


@pytest.mark.parametrize(
    "bad",
    [
        session(),
        session(FIRST | {"in": 0}),
        session(FIRST | {"out": -1}),
        session(FIRST | {"think": -1.0}),
        session(FIRST | {"of": 0}),
        session(FIRST | {"of": -2}),
        session(FIRST | {"keep": -1}),
        session(FIRST, tools=-1),
        session({"t": 0.0}),
        [],
    ],
)
def test_impossible_sessions_are_refused(bad: Any, tmp_path: Path) -> None:
    with pytest.raises(BadTrace, match="is not a recording of agent sessions"):
        read(tmp_path, bad)


@pytest.mark.parametrize("content", [b"", b"no JSON\n", b"\x1f\x8bbroken", gzip.compress(b"{}", mtime=0)[:-4]])
def test_other_files_are_refused(content: bytes, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(content)
    with pytest.raises(BadTrace, match="is not a recording of agent sessions"):
        read_sessions(file, 1000)
