"""bench/agents.py, bench/agent_sessions.py, bench/virtual_agents.py: recorded sessions of agents become conversations
over HTTP, or requests in virtual time. bench/programs.py: the requests whose cost it measures."""

import gc
import gzip
import json
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.agent_sessions import (
    TOOLS,
    AgentSession,
    BadSessions,
    Conversation,
    Scale,
    choose,
    peak_tokens,
    read_sessions,
    tool_for,
    tools_of,
    without_tool_calls,
)
from bench.agents import Run, main, pool_tokens, summary, table
from bench.programs import SHAPES, Load
from bench.programs import main as program_costs
from bench.virtual_agents import main as virtual
from bench.virtual_agents import play, recorded
from gateway.programs.prompt_difference import first_difference
from gateway.simulator.engine import CPU
from tests.fakes.checkpoints import write_tiny_llama
from tests.fakes.gateway_harness import GatewayHarness

SCALE = Scale(tokens=64, seconds=20, longest=2, turns=9)


def _request(tokens: int, of: int, keep: int, **more: Any) -> dict[str, Any]:
    fields = {"t": 0.0, "in": tokens * 64, "out": 640, "of": of, "keep": keep, "stop": "tool_use", "think": 1.0}
    return {**fields, **more}


def _line(name: str, *requests: dict[str, Any]) -> dict[str, Any]:
    return {"id": name, "tools": 9600, "system": 2560, "model": "m", "requests": list(requests)}


SESSIONS = [
    _line(
        "grows", *(_request(300 + 90 * index, index - 1, 298 + 90 * (index - 1) if index else 0) for index in range(4))
    ),
    _line(
        "is cut",
        _request(600, -1, 0),
        _request(700, 0, 599, stop="end_turn", out=320),
        _request(500, 1, 330),
        _request(560, 2, 498, think=900.0),
        _request(400, 3, 20),
    ),
    _line(
        "has a sub-agent",
        _request(300, -1, 0),
        _request(260, 0, 190, agent="sub"),
        _request(420, 0, 299),
        _request(340, 1, 259, agent="sub"),
    ),
]
"""Three sessions whose conversations grow, are cut and continued, and run beside that of a sub-agent."""


def _file(folder: Path, *lines: Any) -> Path:
    path = folder / "sessions.jsonl.gz"
    path.write_bytes(gzip.compress("".join(json.dumps(line) + "\n" for line in lines).encode()))
    return path


def _sessions(folder: Path, *lines: Any, scale: Scale = SCALE) -> list[AgentSession]:
    return list(read_sessions(_file(folder, *(lines or SESSIONS)), scale))


def _replayed(session: AgentSession, salt: str = "") -> list[list[dict[str, Any]]]:
    """Return the messages of each request. Each answer is as long as a server's answer would be."""
    conversation, found = Conversation(session, salt), []
    for index, turn in enumerate(session.turns):
        found.append(conversation.messages(index))
        call = {"id": f"call {index}", "type": "function", "function": {"name": "read_file", "arguments": "{}"}}
        answer = {"content": None, "tool_calls": [call]} if turn.calls_tool else {"content": f"Answer {index}."}
        conversation.record(index, answer, conversation.estimate(index), turn.answer_tokens)
    return found


def _words(messages: list[dict[str, Any]]) -> list[str]:
    return [word for message in messages for word in (message["role"], *message["content"].split(" "))]


def test_reads_and_scales_a_recording(tmp_path: Path) -> None:
    grows, cut, sub = _sessions(tmp_path)
    assert [turn.prompt for turn in grows.turns] == [300, 390, 480, 570]
    assert (grows.system, grows.tools) == (40, 150)
    assert [turn.extends for turn in cut.turns] == [False, True, False, True, False]
    assert (cut.turns[1].completion, cut.turns[1].calls_tool) == (5, False)
    assert [turn.think for turn in cut.turns] == [0.05, 0.05, 0.05, 2.0, 0.05]
    assert [turn.agent for turn in sub.turns] == ["", "sub", "", "sub"]
    plain = tmp_path / "plain.jsonl"
    plain.write_text(json.dumps(SESSIONS[0]))
    assert list(read_sessions(plain, SCALE)) == [grows]


def test_a_session_ends_before_the_window_is_full(tmp_path: Path) -> None:
    sessions = _sessions(tmp_path, scale=Scale(window=800, turns=3))
    assert [(session.name, len(session.turns)) for session in sessions] == [("grows", 3), ("has a sub-agent", 3)]
    assert _sessions(tmp_path, scale=Scale(window=400)) == []


@pytest.mark.parametrize(
    "line", [7, {}, _line("x", {"in": 1}), _line("x", _request(9, 0, 0)), _line("x", _request(9, -1, 0, think="long"))]
)
def test_a_line_that_is_no_session_is_refused_with_its_number(tmp_path: Path, line: Any) -> None:
    with pytest.raises(BadSessions, match=r"sessions\.jsonl\.gz, line 2: not a session"):
        _sessions(tmp_path, SESSIONS[0], line)
    with pytest.raises(SystemExit, match="line 2"):
        main([str(_file(tmp_path, SESSIONS[0], line))])
    with pytest.raises(SystemExit, match="No such file"):
        main([str(tmp_path / "missing")])


def test_conversations_share_their_beginnings_as_recorded(tmp_path: Path) -> None:
    for session in _sessions(tmp_path):
        tools = len(json.dumps(tools_of(session))) // 4
        replayed = _replayed(session)
        for index, turn in enumerate(session.turns):
            if turn.of < 0:
                continue
            if turn.extends:
                assert first_difference(replayed[turn.of], replayed[index]) is None
                assert len(replayed[index]) == len(replayed[turn.of]) + 2
                continue
            before, after = _words(replayed[turn.of]), _words(replayed[index])
            common = next(
                (place for place, pair in enumerate(zip(before, after, strict=False)) if pair[0] != pair[1]),
                min(len(before), len(after)),
            )
            answers = sum(message["role"] == "assistant" for message in replayed[index])
            shared = tools + common + 4 * len(replayed[index]) + answers * session.turns[0].answer_tokens
            assert max(tools, turn.shared) - 60 <= shared <= max(tools, turn.shared) + 60, (session.name, index)


def test_every_tool_call_in_a_conversation_has_its_result(tmp_path: Path) -> None:
    for session in _sessions(tmp_path):
        for messages in _replayed(session):
            assert messages[-1]["role"] in ("user", "tool")
            for message, following in pairwise(messages):
                called = [call["id"] for call in message.get("tool_calls", ())]
                assert called == ([following["tool_call_id"]] if following["role"] == "tool" else [])


def test_texts_depend_on_salt_and_session_only(tmp_path: Path) -> None:
    first, second, *_ = choose(_sessions(tmp_path, SESSIONS[0]), 2, 4, 1)
    assert first.turns == second.turns
    assert _replayed(first) == _replayed(first)
    assert tools_of(first) == tools_of(second)
    assert _replayed(first)[0][0] == _replayed(second)[0][0], "equal numbers of the system prompt mean equal texts"
    assert _replayed(first)[0][1] != _replayed(second)[0][1]
    assert _replayed(first)[0][0] != _replayed(first, "other")[0][0]


@given(st.integers(1, 400))
def test_a_tool_is_about_as_long_as_the_recorded_answer(tokens: int) -> None:
    distance = {name: abs(length - 4 * tokens) for name, length in TOOLS.items()}
    assert distance[tool_for(tokens)] == min(distance.values())


def test_without_tool_calls_answers_are_texts_of_the_recorded_lengths(tmp_path: Path) -> None:
    for session in read_sessions(_file(tmp_path, *SESSIONS), Scale()):
        assert any(turn.calls_tool for turn in session.turns)
        texts = without_tool_calls(session)
        assert not any(turn.calls_tool for turn in texts.turns)
        assert [(turn.completion, turn.think) for turn in texts.turns] == [
            (turn.completion, turn.think) for turn in session.turns
        ]


def test_the_pool_is_smaller_than_the_sessions_but_fits_each(tmp_path: Path) -> None:
    sessions = choose(_sessions(tmp_path), 9, 4, 1)
    peaks = [peak_tokens(session) for session in sessions]
    assert all(
        peak >= max(turn.prompt for turn in session.turns) for peak, session in zip(peaks, sessions, strict=True)
    )
    assert abs(pool_tokens(sessions, 2.0) - sum(peaks) / 2) <= 16
    assert pool_tokens(sessions, 100.0) > max(peaks)


def test_the_summary_has_medians_and_ratios_of_rounds() -> None:
    def run(seconds: float, cached: int | None) -> Run:
        return Run([seconds, 3 * seconds], [seconds], 1.0, 9.0, 100, cached, 10, 90)

    found = {"one": [run(1.0, 80), run(2.0, 60), run(1.5, 70)], "two": [run(2.0, None), run(3.0, None), run(6.0, None)]}
    first, second = (summary(runs, found["one"]) for runs in found.values())
    assert (first["session_seconds"], first["session_p99_seconds"], first["ratio"]) == (3.0, 4.5, 1.0)
    assert (first["hit_rate"], first["uncached_tokens"]) == (0.7, 30)
    assert (second["ratio"], second["lowest_ratio"], second["hit_rate"]) == (2.0, 1.5, None)
    assert table(found).splitlines()[-1] == "| two | 6.00 s | 9.00 s | 3.00 s |  |  | 2.00 | 1.50 |"


def test_sessions_in_virtual_time_have_the_sizes_of_the_replay(tmp_path: Path) -> None:
    for session in _sessions(tmp_path):
        virtual = recorded(session)
        for index, (request, turn) in enumerate(zip(virtual.requests, session.turns, strict=True)):
            assert turn.prompt <= request.prompt <= peak_tokens(session) - request.output
            assert (request.output, request.source, request.agent) == (turn.answer_tokens, turn.of, turn.agent)
            assert request.extends == turn.extends
            before = [other for other in range(index) if session.turns[other].agent == turn.agent]
            assert request.pause == (turn.think if before else 0.0)
            if turn.of >= 0:
                base = virtual.requests[turn.of].prompt
                assert request.shared == (min(request.prompt, base) if turn.extends else turn.shared)
    assert [request.after for request in recorded(_sessions(tmp_path)[2]).requests] == [-1, 0, 0, 1]


@pytest.mark.parametrize("value", ["nan", "inf", "-1", "soon"])
def test_a_wrong_time_between_arrivals_is_refused(
    value: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for run in (main, virtual):
        with pytest.raises(SystemExit):
            run([str(_file(tmp_path, *SESSIONS)), "--apart", value])
        assert "--apart" in capsys.readouterr().err


def test_servers_with_the_same_name_are_refused(tmp_path: Path) -> None:
    urls = ["--url", "one=http://127.0.0.1:9", "--url", "one=http://127.0.0.1:10"]
    with pytest.raises(SystemExit, match="two servers have the same name: one, one"):
        main([str(_file(tmp_path, *SESSIONS)), "--no-own", "--model", "m", *urls])


def test_a_server_that_is_gone_ends_the_run_with_a_message(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"bench\.agents: Cannot connect to host"):
        main([str(_file(tmp_path, *SESSIONS)), "--no-own", "--model", "m", "--url", "gone=http://127.0.0.1:9"])


def test_virtual_time_compares_the_servers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = str(_file(tmp_path, *SESSIONS))
    virtual([file, "--agents", "8", "--turns", "5", "--rounds", "3", "--table", "cpu"])
    rows = [line.split("|")[1].strip() for line in capsys.readouterr().out.splitlines()[2:]]
    assert rows == ["myna", "`--no-pause-programs`", "arrival order, LRU"]
    with pytest.raises(SystemExit, match="--kv 16 is too small"):
        virtual([file, "--table", "cpu", "--kv", "16"])
    with pytest.raises(SystemExit, match=r"bench\.virtual_agents: .*missing"):
        virtual([file, "--table", str(tmp_path / "missing")])
    sessions = choose(_sessions(tmp_path), 8, 5, 1)
    first, second = (play(sessions, 0.3, CPU, pool_tokens(sessions, 2.0)) for _ in range(2))
    assert first == second
    assert first["myna"].hit_rate > first["arrival order, LRU"].hit_rate


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Yield the address of a server with a random model whose tokens are bytes."""
    folder = write_tiny_llama(tmp_path_factory.mktemp("models") / "tiny", window=16384)
    with GatewayHarness("--model", str(folder), "--kv-tokens", "65536") as server:
        yield server.address


@pytest.mark.slow
def test_replays_sessions_directly_and_through_a_gateway(
    tiny: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    file = str(_file(tmp_path, *SESSIONS))
    options = ["--agents", "3", "--turns", "4", "--rounds", "1", "--seconds", "200", "--url", f"tiny={tiny}/v1"]
    main([file, *options, "--through", "vllm", "--json"])
    found = json.loads(capfd.readouterr().out)
    assert (found["agents"], found["requests"]) == (3, 12)
    assert list(found["servers"]) == ["gateway before tiny", "tiny"]
    for server in found["servers"].values():
        (run,) = server["runs"]
        assert (len(run["sessions"]), len(run["requests"])) == (3, 12)
        assert 0 < run["cached"] < run["prompt"]
        assert server["hit_rate"] > 0.5, "every request but the first of a session extends an earlier one"
    main([file, *options, "--no-own", "--no-tool-calls"])
    assert "| tiny |" in capfd.readouterr().out
    with pytest.raises(SystemExit, match=r"bench\.agents: tiny: 404: .*missing"):
        main([file, *options, "--no-own", "--model", "missing"])


@pytest.mark.slow
def test_rounds_replay_other_sessions_and_a_refused_one_does_not_lose_the_others(
    tiny: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    too_long = _line("too long", _request(6_000, -1, 0), _request(6_100, 0, 5_999))  # about 24,000 tokens of this model
    file = _file(tmp_path, *SESSIONS[:2], too_long)
    sessions = list(read_sessions(file, Scale(turns=2)))
    wanted = ["0: grows", "0: is cut", "0: too long"]
    seed = next(seed for seed in range(1_000) if wanted == [choose(sessions, 1, 2, seed + n)[0].name for n in range(3)])
    options = ["--agents", "1", "--turns", "2", "--rounds", "3", "--seconds", "200", "--seed", str(seed), "--json"]
    with pytest.raises(SystemExit, match=r"bench\.agents: tiny: 400: "):
        main([str(file), *options, "--no-own", "--url", f"tiny={tiny}/v1"])
    found = json.loads(capfd.readouterr().out)
    assert found["requests"] == 4
    assert [run["wanted"] for run in found["servers"]["tiny"]["runs"]] == [300 + 390, 600 + 700]


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.name)
def test_turns_extend_a_known_call_and_other_requests_begin_programs(shape: Any) -> None:
    load = Load(5, seed=3)
    assert load.measure(shape, 4) > 0.0
    programs = list(load.index.of_tenant("key"))
    assert len(programs) == 9
    assert {program.call_count for program in programs[:4]} == ({1} if shape.new_messages is None else {2})


def test_the_cost_of_programs_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    few = ["--programs", "20", "--requests", "2", "--rounds", "1"]
    program_costs([*few, "--json"])
    found = json.loads(capsys.readouterr().out)
    assert found["programs"] == 20
    assert [request["name"] for request in found["requests"]] == [shape.name for shape in SHAPES]
    program_costs(few)
    assert [line.count("|") for line in capsys.readouterr().out.splitlines()] == [3] * (2 + len(SHAPES))
    for wrong in (["--requests", "0"], ["--programs", "1000000"], ["--agents", "missing"]):
        with pytest.raises(SystemExit):
            program_costs([*few, *wrong])


def test_the_cost_of_programs_is_measured_with_recorded_sessions(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, thresholds = str(_file(tmp_path, *SESSIONS)), gc.get_threshold()
    program_costs(["--programs", "20", "--requests", "1", "--rounds", "1", "--agents", file, "--json"])
    found = json.loads(capsys.readouterr().out)["requests"]
    assert [request["name"] for request in found[len(SHAPES) :]] == ["recorded agents: median", "recorded agents: mean"]
    assert all(request["us"] > 0 for request in found)
    assert gc.get_threshold() == thresholds
    session = next(iter(read_sessions(Path(file), Scale(tokens=1.0, turns=99, window=1 << 30))))
    load = Load(5, seed=3)
    times = load.replay(session)
    assert len(times) == len(session.turns)
    chains = [turn for turn in session.turns if turn.extends]
    extending = [call for program in load.index.of_tenant("key") for call in program.calls.values() if call.parent]
    assert len(extending) == len(chains) > 0
