"""gateway/cli/inspect.py: tables and trees of a server's answers, and errors."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from gateway.cli import inspect
from gateway.cli.inspect import graph_as_text, program_as_text, programs_as_text, sessions_as_text
from gateway.programs import Spoiler


def call(id: str, inputs: list[str], **more: Any) -> dict[str, Any]:
    fields = {"id": id, "inputs": inputs, "state": "done", "waiting_on": [], "created": 10.0, "queued": 10.5}
    fields |= {"first_token": 12.0, "finished": 12.25, "prompt_tokens": 0, "cached_tokens": 0, "missed_tokens": {}}
    return fields | more


def variable(name: str, producer: str | None = None, **more: Any) -> dict[str, Any]:
    return {"name": name, "producer": producer, "state": "ready", "error": None, **more}


def test_a_tree_has_the_inputs_below_each_result() -> None:
    graph = {
        "calls": [call("call_1", ["topic"]), call("call_2", ["topic"]), call("call_3", ["a", "b"])],
        "variables": [
            variable("topic"),
            variable("a", "call_1"),
            variable("b", "call_2"),
            variable("sum", "call_3"),
            variable("unread"),
        ],
    }
    times = "inputs 0.50 s first token 1.50 s rest 0.25 s"
    assert graph_as_text(graph).splitlines() == [
        f"sum  ready  call_3 done  {times}",
        f"├─ a  ready  call_1 done  {times}",
        "│  └─ topic  ready  set by a client",
        f"└─ b  ready  call_2 done  {times}",
        "   └─ topic  ready  set by a client",
        "unread  ready  set by a client",
    ]


def test_programs_are_a_table() -> None:
    usage = {"calls": 3, "prompt_tokens": 50, "cached_tokens": 40, "completion_tokens": 7}
    program = {"id": "prog_1", "state": "idle", "created_at": 0, "last_used_at": 60, "session": None, "usage": usage}
    head, *rows = programs_as_text([program, {**program, "id": "prog_2", "session": "run-7"}]).splitlines()
    assert head.split() == [
        "program",
        "state",
        "since",
        "last",
        "request",
        "session",
        "calls",
        "prompt",
        "cached",
        "completion",
    ]
    assert [row.split()[0] for row in rows] == ["prog_1", "prog_2"]
    assert [row.split()[-5:] for row in rows] == [["-", "3", "50", "40", "7"], ["run-7", "3", "50", "40", "7"]]


def test_a_repeated_result_is_not_unfolded_again() -> None:
    calls = [call("call_1", []), call("call_2", ["a"]), call("call_3", ["a"])]
    variables = [variable("a", "call_1"), variable("b", "call_2"), variable("c", "call_3")]
    lines = graph_as_text({"calls": calls, "variables": variables}).splitlines()
    assert [line.split("  ")[0].lstrip("└─ ") for line in lines] == ["b", "a", "c", "a"]
    assert [line.endswith("(see above)") for line in lines] == [False, False, False, True]


def test_states_of_calls_that_are_not_done() -> None:
    failed = {"code": "engine_failed", "message": "it broke"}
    waits = call(
        "call_2", ["a", "gone"], state="waiting", waiting_on=["a"], queued=None, first_token=None, finished=None
    )
    graph = {
        "calls": [call("call_1", [], state="failed", first_token=None), waits],
        "variables": [
            variable("a", "call_1", state="failed", error=failed),
            variable("b", "call_2", state="pending"),
            variable("declared", state="declared"),
        ],
    }
    assert graph_as_text(graph).splitlines() == [
        "b  pending  call_2 waiting  waits for a",
        "├─ a  failed  engine_failed: it broke  call_1 failed  inputs 0.50 s rest 1.75 s",
        "└─ gone  deleted",
        "declared  declared",
    ]


def test_the_cached_part_of_a_prompt_and_the_main_reason_for_the_rest() -> None:
    missed = {"never_seen": 10, "part_of_a_block": 30}
    cached = call("call_1", [], prompt_tokens=100, cached_tokens=60, missed_tokens=missed)
    text = graph_as_text({"calls": [cached], "variables": [variable("a", "call_1")]})
    assert text.endswith("60 of 100 tokens cached (part of a block)")


def test_a_long_chain_needs_no_recursion() -> None:
    count = 5_000
    calls = [call(f"call_{index}", [f"v{index - 1}"] if index else []) for index in range(count)]
    variables = [variable(f"v{index}", f"call_{index}") for index in range(count)]
    lines = graph_as_text({"calls": calls, "variables": variables}).splitlines()
    assert len(lines) == count
    assert lines[-1].strip().startswith("└─ v0  ready")


def form_graph() -> dict[str, Any]:
    """Return a map over a list with an agent for each element. A branch has two outputs."""
    agents = [f"all.{index}" for index in range(2)]
    calls = [call("c_list", []), call("c_map", ["list", *agents], form="map", state="waiting", waiting_on=["all.1"])]
    for index, name in enumerate(agents):
        inputs = [f"{name}@1", f"{name}@1.0"]
        calls += [
            call(f"c_agent{index}", inputs, parent="c_map", form="agent", output=name, model=""),
            call(f"c_turn{index}", [], parent=f"c_agent{index}", output=f"{name}@1", model="m"),
            call(
                f"c_tool{index}",
                [],
                parent=f"c_agent{index}",
                output=f"{name}@1.0",
                model="",
                form="tool",
                tool="files/read\x1b[2J" if index else "files/read",
                state="failed" if index else "done",
            ),
        ]
    calls.append(call("c_if", ["list"], form="if"))
    makers = {"list": "c_list", "all": "c_map", "yes": "c_if", "no": "c_if"}
    makers |= {each["output"]: each["id"] for each in calls if "output" in each}
    return {"calls": calls, "variables": [variable(name, id) for name, id in makers.items()]}


def test_forms_are_trees_with_their_calls() -> None:
    lines = [line.split("  inputs ")[0] for line in graph_as_text(form_graph()).splitlines()]
    assert lines == [
        "all  ready  map: 2 of 2 done  c_map waiting  waits for all.1",
        "├─ list  ready  c_list done",
        "├─ all.0  ready  agent: 1 answer, 1 tool call, 2 of 2 done  c_agent0 done",
        "│  ├─ all.0@1  ready  c_turn0 done",
        "│  └─ all.0@1.0  ready  tool files/read  c_tool0 done",
        "└─ all.1  ready  agent: 1 answer, 1 tool call, 1 of 2 done, 1 failed  c_agent1 done",
        "   ├─ all.1@1  ready  c_turn1 done",
        '   └─ all.1@1.0  ready  tool "files/read\\u001b[2J"  c_tool1 failed',
        "yes  ready  if: 0 of 0 done  c_if done",
        "└─ list  ready  c_list done",
        "no  ready  if: 0 of 0 done  c_if done",
    ]


def test_folded_forms_are_one_line_each() -> None:
    lines = graph_as_text(form_graph(), fold=True).splitlines()
    assert [line.split("  ")[0] for line in lines] == ["all", "└─ list", "yes", "└─ list", "no"]


def test_a_call_that_waits_for_many_values_is_one_short_line() -> None:
    names = [f"v{index}" for index in range(1_000)]
    waits = call("call_1", [], state="waiting", waiting_on=names)
    text = graph_as_text({"calls": [waits], "variables": [variable("a", "call_1")]})
    assert "v9 and 990 more" in text
    assert len(text) < 300


def test_an_empty_session() -> None:
    assert graph_as_text({"calls": [], "variables": []}) == "the session is empty"


def test_sessions_are_columns() -> None:
    usage = {f"{kind}_tokens": 10 for kind in ("prompt", "cached", "completion")} | {"calls_run": 3, "calls_shared": 0}
    times = {"created_at": 0.0, "expires_at": 60.0}
    rows = [{"id": id, "state": "idle", "usage": usage, **times} for id in ("a", "a-long-name")]
    head, first, second = sessions_as_text(rows).splitlines()
    assert head.split() == ["session", "state", "since", "expires", "calls", "shared", "prompt", "cached", "completion"]
    assert first.split()[0] == "a"
    assert second.split()[0] == "a-long-name"
    assert head.index("state") == first.index("idle") == second.index("idle")
    assert sessions_as_text([]).count("\n") == 0


@pytest.fixture
async def server() -> AsyncIterator[TestServer]:
    """Yield a server that answers with the path and the key of the request, or with an error."""

    async def answer(request: web.Request) -> web.StreamResponse:
        match request.match_info["id"]:
            case "empty":
                body = {
                    "calls": [],
                    "variables": [],
                    "key": request.headers.get("Authorization"),
                    "path": request.raw_path,
                }
                return web.json_response(body)
            case "refused":
                return web.json_response({"error": {"message": "there is no session"}}, status=404)
            case "locked":
                error = {"message": "Missing API key", "code": "invalid_api_key"}
                return web.json_response({"error": error}, status=401)
            case "html":
                return web.Response(text="<html>", status=502)
            case _:
                return web.Response(text="no JSON")

    app = web.Application()
    app.router.add_get("/v1/sessions/{id:.*}/graph", answer)
    async with TestServer(app) as server:
        yield server


async def run(*arguments: str) -> int:
    return await asyncio.to_thread(inspect.graph, arguments)


@pytest.mark.parametrize("path", ["", "/", "/v1", "/v1/"])
async def test_the_url_may_lack_its_version(server: TestServer, path: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert await run("empty", "--url", f"http://127.0.0.1:{server.port}{path}") == 0
    assert capsys.readouterr().out == "the session is empty\n"


async def test_url_and_key_come_from_the_environment(
    server: TestServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MYNA_URL", f"http://127.0.0.1:{server.port}/v1")
    monkeypatch.setenv("MYNA_API_KEY", "first,second")
    assert await run("empty", "--json") == 0
    assert json.loads(capsys.readouterr().out)["key"] == "Bearer first"
    assert await run("empty", "--json", "--api-key", "third") == 0
    assert json.loads(capsys.readouterr().out)["key"] == "Bearer third"


@pytest.mark.parametrize(
    ("session", "message"),
    [
        ("refused", "there is no session"),
        ("locked", "Missing API key; set --api-key or MYNA_API_KEY"),
        ("html", "answered 502 Bad Gateway"),
        ("text", "does not answer"),
        ("../empty", "does not answer"),
    ],
)
async def test_errors_are_one_line(
    server: TestServer, session: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert await run(session, "--url", f"http://127.0.0.1:{server.port}") == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("myna: ")
    assert message in line


def difference(**more: Any) -> dict[str, Any]:
    fields = {"call": "call_1", "message": 0, "role": "system", "field": "content", "offset": 9, "lost_tokens": 40}
    return fields | {"earlier": "It is 10:15", "later": "It is 10:16", "spoiler": "date"} | more


def test_a_program_has_one_line_for_each_way_in_which_its_prompts_differ() -> None:
    calls = [
        call("call_1", []),
        call("call_2", ["a"], prompt_difference=difference()),
        call("call_3", ["b"], prompt_difference=difference(later="It is 10:17", lost_tokens=None)),
        call(
            "call_4",
            ["b"],
            prompt_difference=difference(message=None, role="", field="", spoiler="new", later="\x1b[2J"),
        ),
    ]
    variables = [variable("a", "call_1"), variable("b", "call_2"), variable("c", "call_3"), variable("d", "call_4")]
    text = program_as_text({"calls": calls, "variables": variables})
    tree, _, rest = text.partition("\n\nPrompts that do not extend the earlier turn:\n")
    assert tree == graph_as_text({"calls": calls, "variables": variables})
    dates, tools = rest.splitlines()
    assert dates.startswith(
        '2 x, 40 tokens computed again: message 0 (system), content: "It is 10:15" -> "It is 10:17": a date or time'
    )
    assert tools.startswith('1 x, 40 tokens computed again: tools: "It is 10:15" -> "\\u001b[2J": the client rewrites')


def test_a_program_whose_prompts_extend_each_other_is_a_tree_only() -> None:
    program = {"calls": [call("call_1", [])], "variables": [variable("a", "call_1")]}
    assert program_as_text(program) == graph_as_text(program)


def test_the_number_of_printed_differences_is_limited() -> None:
    calls = [call(f"call_{number}", [], prompt_difference=difference(message=number)) for number in range(60)]
    lines = program_as_text({"calls": calls, "variables": []}).splitlines()
    assert len(lines) == 3 + 50 + 1
    assert lines[-1] == "and 10 more"


def test_each_known_cause_has_its_advice() -> None:
    texts = set()
    for spoiler in Spoiler:
        found = [call("call_1", [], prompt_difference=difference(spoiler=spoiler.value))]
        texts.add(program_as_text({"calls": found, "variables": []}))
    assert len(texts) == len(Spoiler) - 1  # a rolling cache_control is never reported
