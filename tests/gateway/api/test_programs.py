"""GET /v1/programs: calls of clients that declare nothing are shown as programs."""

import asyncio
from typing import Any

import pytest
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st

from gateway.api.programs import find_programs, phases_of
from gateway.api.services import SERVICES
from gateway.graph.call import Times
from gateway.programs import Edge, Program, ProgramFacts, ProgramIndex, prompt_message
from tests.fakes.in_process_gateway import GatewayClient, ScriptedGateway, gateway_before
from tests.fakes.keyed_gateway import keyed_gateway
from tests.fakes.scripted_server import Behaviour, ScriptedServer, chunk, says, stream

TASK = "Find every test that waits for a timeout, and say which of them can be made faster."
REPORT = "There are three such tests: one in the journal, one in the cluster, and one in the server."
TOOL: dict[str, Any] = {"type": "function", "function": {"name": "task", "parameters": {"type": "object"}}}


def calls_tool(name: str, arguments: str, text: str = "") -> Behaviour:
    """Return an answer that ends in a tool call."""

    async def behave(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        call = {"index": 0, "id": "c", "type": "function", "function": {"name": name, "arguments": arguments}}
        delta = {"id": "x", "model": body["model"], "choices": [{"index": 0, "delta": {"tool_calls": [call]}}]}
        return await stream(request, [chunk(body, text), delta, chunk(body, None, "tool_calls")])

    return behave


async def post(client: GatewayClient, path: str, headers: Any = None, **body: Any) -> Any:
    async with client.post(path, json={"model": "fake", **body}, headers=headers) as answer:
        content = await answer.json()
        assert answer.status == 200, content
        return content


async def chat(client: GatewayClient, *messages: dict[str, Any], headers: Any = None, **body: Any) -> Any:
    answer = await post(client, "/v1/chat/completions", headers, messages=list(messages), **body)
    return answer["choices"][0]["message"]


async def get(client: GatewayClient, path: str = "", headers: Any = None, status: int = 200) -> Any:
    async with client.get(f"/v1/programs{path}", headers=headers) as answer:
        content = await answer.json()
        assert answer.status == status, content
        return content


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


async def test_an_agent_with_a_sub_agent_is_one_program(scripted_gateway: ScriptedGateway) -> None:
    client, server, _ = scripted_gateway
    server.script = [calls_tool("task", f'{{"prompt": "{TASK}"}}'), says(REPORT), says("Done.")]
    first = await chat(client, user("Make the tests fast."), tools=[TOOL])
    child = await chat(client, {"role": "system", "content": "You search."}, user(TASK))
    result = {"role": "tool", "tool_call_id": first["tool_calls"][0]["id"], "content": child["content"]}
    history = [user("Make the tests fast."), {key: first[key] for key in ("role", "content", "tool_calls")}, result]
    await chat(client, *history, tools=[TOOL])
    (program,) = (await get(client))["data"]
    assert (program["state"], program["session"], program["usage"]["calls"]) == ("idle", None, 3)
    graph = await get(client, f"/{program['id']}")
    one, two, three = (call["id"] for call in graph["calls"])
    links = [(link["from"], link["to"], link["kind"]) for link in graph["links"]]
    assert links == [(one, two, "spawns"), (one, three, "extends"), (two, three, "answer")]
    assert all(link["gap_ms"] >= 0 and link["program"] == program["id"] for link in graph["links"])
    assert graph["links"][2]["characters"] == len(REPORT)
    assert [call["state"] for call in graph["calls"]] == ["done"] * 3
    assert all(call["finished"] >= call["first_token"] >= call["started"] for call in graph["calls"])
    outputs = {call["id"]: call["output"] for call in graph["calls"]}
    assert graph["calls"][2]["inputs"] == [outputs[one], outputs[two]]
    assert {variable["name"]: variable["consumers"] for variable in graph["variables"]} == {
        outputs[one]: [two, three],
        outputs[two]: [three],
        outputs[three]: [],
    }
    async with client.get(f"/v1/programs/{program['id']}?format=mermaid") as answer:
        assert f"{one} -->|spawns| {two}" in await answer.text()
    async with client.get(f"/v1/programs/{program['id']}?format=dot") as answer:
        assert f'{two} -> {three} [label="answer"];' in await answer.text()


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/messages", "/v1/responses"])
async def test_turns_of_each_endpoint_are_one_program(scripted_gateway: ScriptedGateway, path: str) -> None:
    client, server, _ = scripted_gateway
    server.script = [says("Hello to you."), says("I am well.")]
    field = "input" if path == "/v1/responses" else "messages"
    options = {"max_tokens": 50} if path == "/v1/messages" else {}
    await post(client, path, **{field: [user("hello")]}, **options)
    turns = [user("hello"), {"role": "assistant", "content": "Hello to you."}, user("How are you?")]
    await post(client, path, **{field: turns}, **options)
    await post(client, path, **{field: [user("Something else")]}, **options)
    sizes = [program["usage"]["calls"] for program in (await get(client))["data"]]
    assert sizes == [1, 2]


async def test_answers_with_text_and_tool_calls_are_continued(scripted_gateway: ScriptedGateway) -> None:
    client, server, _ = scripted_gateway
    looks = calls_tool("look", '{"path": "a.py"}', "I look at it.")
    server.script = [looks, says("Done."), looks, says("Done.")]
    tool: dict[str, Any] = {"name": "look", "parameters": {"type": "object"}, "type": "function"}
    first = await post(client, "/v1/responses", input="Make it fast.", tools=[tool])
    result = {"type": "function_call_output", "call_id": first["output"][-1]["call_id"], "output": "text"}
    await post(client, "/v1/responses", input=[user("Make it fast."), *first["output"], result], tools=[tool])
    options: dict[str, Any] = {"max_tokens": 50, "tools": [{"name": "look", "input_schema": {"type": "object"}}]}
    answer = await post(client, "/v1/messages", messages=[user("Make it small.")], **options)
    result = {"type": "tool_result", "tool_use_id": answer["content"][-1]["id"], "content": "text"}
    turns = [user("Make it small."), {"role": "assistant", "content": answer["content"]}]
    await post(client, "/v1/messages", messages=[*turns, {"role": "user", "content": [result]}], **options)
    for program in (await get(client))["data"]:
        graph = await get(client, f"/{program['id']}")
        assert [link["kind"] for link in graph["links"]] == ["extends"]
    assert client.app is not None
    tracker = client.app[SERVICES].programs
    assert tracker is not None
    programs = list(tracker.index.of_tenant(""))
    assert len(programs) == 2
    for found in programs:
        first_call, second_call = sorted(found.calls.values(), key=lambda call: call.begun)
        assert (first_call.tool_names, second_call.follows_tools) == (("look",), True)


async def test_a_response_that_continues_another_is_in_its_program(scripted_gateway: ScriptedGateway) -> None:
    client, server, _ = scripted_gateway
    server.script = [says("Hello to you."), says("I am well."), says("Yes.")]
    first = await post(client, "/v1/responses", input="hello")
    await post(client, "/v1/responses", input="How are you?", previous_response_id=first["id"])
    await post(client, "/v1/responses", input="Sure?", previous_response_id=first["id"], background=True)
    (program,) = (await get(client))["data"]
    assert program["usage"]["calls"] == 3


async def test_completions_are_linked_by_their_texts(scripted_gateway: ScriptedGateway) -> None:
    client, server, _ = scripted_gateway

    async def completes(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        events = [{"id": "x", "model": "fake", "choices": [{"index": 0, "text": REPORT, "finish_reason": "stop"}]}]
        return await stream(request, events)

    server.always = completes
    await post(client, "/v1/completions", prompt=["Report.", "Something else."], n=2)
    sizes = [program["usage"]["calls"] for program in (await get(client))["data"]]
    assert sizes == [2, 2]  # the choices for one prompt are in one program
    for prompt in ("Report on the tests.", f"Summarise this: {REPORT}"):
        await post(client, "/v1/completions", prompt=prompt)
    sizes = [program["usage"]["calls"] for program in (await get(client))["data"]]
    assert sizes == [1, 1, 2, 2]  # several calls gave this answer, so it connects nothing
    newest = (await get(client))["data"][0]
    (call,) = (await get(client, f"/{newest['id']}"))["calls"]
    links = (await get(client, f"/{newest['id']}"))["links"]
    assert {link["kind"] for link in links} == {"answer"}
    assert {link["to"] for link in links} == {call["id"]}


async def test_headers_of_agents_name_programs(scripted_gateway: ScriptedGateway) -> None:
    client, _, _ = scripted_gateway
    await chat(client, user("one"), headers={"X-Session-Id": "a"})
    await chat(client, user("two"), headers={"X-Session-Id": "b", "X-Parent-Session-Id": "a"})
    await chat(client, user("three"), headers={"X-Claude-Code-Session-Id": "a"})
    await post(
        client,
        "/v1/messages",
        max_tokens=5,
        messages=[user("four")],
        metadata={"user_id": "user_0_account__session_0f8b8a0e-1111"},
    )
    assert [program["usage"]["calls"] for program in (await get(client))["data"]] == [1, 1, 2]


async def test_a_named_session_is_one_program(scripted_gateway: ScriptedGateway) -> None:
    client, _, _ = scripted_gateway
    for text in ("one", "two"):
        await chat(client, user(text), headers={"X-Semantic-Session": "run-7"})
    (program,) = (await get(client))["data"]
    assert (program["session"], program["usage"]["calls"]) == ("run-7", 2)
    assert (await get(client, "?q=RUN"))["data"] == [program]
    assert (await get(client, "?q=other"))["data"] == []


async def test_a_running_call_is_shown_with_its_state(scripted_gateway: ScriptedGateway) -> None:
    client, server, unfinished = scripted_gateway
    reached, goes_on = asyncio.Event(), asyncio.Event()

    async def waits(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        reached.set()
        await goes_on.wait()
        return await says("Yes.")(request, body)

    server.script = [waits]
    asking = asyncio.create_task(chat(client, user("Is it running?")))
    await reached.wait()
    (program,) = (await get(client))["data"]
    assert program["state"] == "running"
    (call,) = (await get(client, f"/{program['id']}"))["calls"]
    assert call["state"] in ("queued", "prefill")
    assert (call["finished"], call["waits_for"]) == (None, {"queued": "queue", "prefill": "prompt"}[call["state"]])
    goes_on.set()
    await asking
    graph = await get(client, f"/{program['id']}")
    assert (graph["state"], graph["calls"][0]["state"]) == ("idle", "done")
    assert unfinished() == 0


async def test_a_failed_call_is_shown_with_its_error(scripted_gateway: ScriptedGateway) -> None:
    client, server, _ = scripted_gateway

    async def fails(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        return web.json_response({"error": {"message": "no", "code": "invalid_value"}}, status=400)

    server.script = [fails]
    async with client.post("/v1/chat/completions", json={"model": "fake", "messages": [user("x")]}) as answer:
        assert answer.status >= 400
    (program,) = (await get(client))["data"]
    (call,) = (await get(client, f"/{program['id']}"))["calls"]
    assert call["state"] == "failed"
    assert call["error"]["code"]


async def test_pages_go_from_the_newest_to_the_oldest(scripted_gateway: ScriptedGateway) -> None:
    client, _, _ = scripted_gateway
    for number in range(5):
        await chat(client, user(f"question {number}"))
    every = (await get(client))["data"]
    page = await get(client, "?limit=2")
    assert (page["data"], page["has_more"]) == (every[:2], True)
    page = await get(client, f"?limit=3&after={every[1]['id']}")
    assert (page["data"], page["has_more"]) == (every[2:], False)
    for query in ("?limit=0", "?limit=1001", "?after=prog_unknown", f"?q={'x' * 201}"):
        assert (await get(client, query, status=400))["error"]["code"] == "invalid_value"
    assert (await get(client, "/prog_unknown", status=404))["error"]["code"] == "program_not_found"
    assert (await get(client, f"/{every[0]['id']}?format=png", status=400))["error"]["param"] == "format"


async def test_a_long_search_gives_other_requests_turns() -> None:
    index = ProgramIndex()
    for number in range(5_500):
        index.begin("t", ProgramFacts([prompt_message("user", [f"question {number}"])]), float(number))
    turns = 0

    async def other() -> None:
        nonlocal turns
        while True:
            turns += 1
            if turns == 7:
                while index.forget_some("t"):
                    pass
            await asyncio.sleep(0)

    task = asyncio.create_task(other())
    assert await find_programs(index, "t", "nothing", None, 10) == []
    assert turns == 5
    found = await find_programs(index, "t", "prog_", None, 10_000)
    assert len(found) == 2_000, "the third thousand is forgotten by then"
    task.cancel()


async def test_a_large_graph_gives_other_requests_turns(scripted_gateway: ScriptedGateway) -> None:
    client, _, _ = scripted_gateway
    await chat(client, user("hello"))
    assert client.app is not None
    services = client.app[SERVICES]
    assert services.programs is not None
    index = services.programs.index
    (program,) = index.of_tenant("")
    (first,) = program.calls.values()
    edges = [Edge(first.id, program.id, "answer", 40)] * 128
    for number in range(300):
        index.begin_beside(first, 1e12, call_id=f"call_{number}").edges = edges
    text = ""

    async def draw(form: str) -> None:
        nonlocal text
        async with client.get(f"/v1/programs/{program.id}?format={form}") as answer:
            text = await answer.text()

    for form in ("mermaid", "dot"):
        turns = 0
        drawing = asyncio.create_task(draw(form))
        while not drawing.done():
            turns += 1
            await asyncio.sleep(0)
        assert turns > 1_000
        assert text.count("->") == 300, "equal edges are drawn once"
    graph = await get(client, f"/{program.id}")
    assert (len(graph["calls"]), len(graph["links"])) == (301, 300 * 128)
    assert [call["inputs"] for call in graph["calls"]] == [[], *[[f"answer_{first.id[5:]}"]] * 300]
    readers = [variable["consumers"] for variable in graph["variables"]]
    assert readers == [[f"call_{number}" for number in range(300)], *[[]] * 300]


@given(st.integers(0, 30), st.integers(1, 7), st.integers(0, 40))
def test_pages_of_a_search_are_the_programs_that_match(count: int, size: int, wanted: int) -> None:
    index = ProgramIndex()
    for number in range(count):
        index.begin("t", ProgramFacts([prompt_message("user", ["question"])], session=f"Run-{number}"), float(number))
    expected = [program for program in index.of_tenant("t") if f"n-{wanted % 10}" in str(program.session)]
    found: list[Program] = []
    while page := asyncio.run(find_programs(index, "t", f"n-{wanted % 10}", found[-1] if found else None, size)):
        found += page
    assert found == expected


async def test_programs_can_be_turned_off() -> None:
    async with ScriptedServer() as server, gateway_before(server, programs=False) as (client, _):
        await chat(client, user("one"))
        assert (await get(client))["data"] == []
        await get(client, "/prog_unknown", status=404)


async def test_keys_see_only_their_own_programs() -> None:
    async with keyed_gateway() as gateway:
        ids, keys = zip(*[await gateway.make_key() for _ in range(2)], strict=True)
        for key in keys:
            status, _, _ = await gateway.chat(key)
            assert status == 200
        headers = [{"Authorization": f"Bearer {key}"} for key in keys]
        lists = [(await get(gateway.client, headers=header))["data"] for header in headers]
        assert [len(found) for found in lists] == [1, 1]
        await get(gateway.client, f"/{lists[0][0]['id']}", headers=headers[1], status=404)
        await get(gateway.client, f"/{lists[0][0]['id']}", headers=headers[0])
        tracker = gateway.services.programs
        assert tracker is not None
        service = gateway.services.scheduler._priorities.programs
        assert (len(tracker.index), len(tracker.gaps), len(service)) == (2, 2, 2)
        assert (await gateway.admin("DELETE", f"/{ids[0]}"))[0] == 200
        await tracker.settle()
        assert (len(tracker.index), len(tracker.gaps), len(service)) == (1, 1, 1)


def test_phases_add_up_to_the_life_of_a_call() -> None:
    times = Times(created=0.0, queued=1.0, started=2.0, first_token=5.0, finished=9.0, held=0.5, starved=1.0)
    phases = phases_of(times, 20.0)
    assert phases == {"inputs": 0.0, "tool": 0.0, "queue": 2.5, "memory": 1.0, "prompt": 1.5, "answer": 4.0}
    assert sum(phases.values()) == 9.0
    assert phases_of(Times(created=0.0), 3.0)["queue"] == 3.0
    assert phases_of(Times(created=0.0, started=1.0), 3.0)["prompt"] == 2.0


RULES = "\n".join(f"Rule {number}: write short answers, and keep to the style of the file." for number in range(20))
TOKENS = {"prompt_tokens": 2_000, "completion_tokens": 5, "total_tokens": 2_005}


def rules(text: str) -> dict[str, Any]:
    return {"role": "system", "content": f"{text}\n{RULES}"}


async def differences(client: GatewayClient) -> list[Any]:
    """Return the differences of all calls of the newest program, once all prompts are compared."""
    assert client.app is not None
    tracker = client.app[SERVICES].programs
    assert tracker is not None
    await asyncio.sleep(0)  # calls end after the tasks that wait for them
    await tracker.settle()
    program = (await get(client))["data"][0]
    calls = (await get(client, f"/{program['id']}"))["calls"]
    return [call.get("prompt_difference") for call in calls]


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/messages", "/v1/responses"])
async def test_a_text_that_changes_each_turn_is_named(scripted_gateway: ScriptedGateway, path: str) -> None:
    client, server, _ = scripted_gateway
    server.script = [says(REPORT, usage=TOKENS), says("Done.", usage=TOKENS)]
    turns = [user(TASK)]
    for day in (1, 2):
        text = f"Today is 2026-11-{day:02d}.\n{RULES}"
        if path == "/v1/responses":
            await post(client, path, input=turns, instructions=text)
        elif path == "/v1/messages":
            await post(client, path, messages=turns, system=text, max_tokens=50)
        else:
            await post(client, path, messages=[{"role": "system", "content": text}, *turns])
        turns += [{"role": "assistant", "content": REPORT}, user("How long does each take?")]
    first, second = await differences(client)
    assert first is None
    assert second is not None
    assert (second["message"], second["role"], second["spoiler"]) == (0, "system", "date")
    assert second["earlier"].startswith("Today is 2026-11-01.\nRule 0")
    assert second["later"].startswith("Today is 2026-11-02.\nRule 0")
    assert second["lost_tokens"] is None  # the server says nothing of its cache


async def test_lost_tokens_are_known_if_the_server_reports_its_cache(scripted_gateway: ScriptedGateway) -> None:
    client, server, _ = scripted_gateway
    for cached, expected in ((1_000, 1_000), (1_900, None)):
        usage = {**TOKENS, "prompt_tokens": 2_300, "prompt_tokens_details": {"cached_tokens": cached}}
        server.script = [says(REPORT, usage=TOKENS), says("Done.", usage=usage)]
        await chat(client, rules("It is 10:15."), user(f"{TASK} {cached}"))
        history = [user(f"{TASK} {cached}"), {"role": "assistant", "content": REPORT}, user("And?")]
        await chat(client, rules("It is 10:16."), *history)
        found = (await differences(client))[-1]
        assert (None if found is None else found["lost_tokens"]) == expected
        assert (found is None) == (expected is None)  # what was cached shows that little was lost


async def test_a_rewritten_result_is_named_and_a_branch_is_not(scripted_gateway: ScriptedGateway) -> None:
    client, server, _ = scripted_gateway
    texts = [f"This is answer {number}, which is long enough to be found again later." for number in range(5)]
    server.script = [says(text) for text in texts]
    history = [rules(""), user(TASK)]
    for number in range(3):
        answer = await chat(client, *history)
        history += [{"role": "assistant", "content": answer["content"]}, user(f"Question {number}")]
    await chat(client, *history[:-3], user("Another question, in place of the last two"))
    assert await differences(client) == [None] * 4
    history[3] = user("[old question removed]")
    await chat(client, *history)
    *others, last = await differences(client)
    assert others == [None] * 4
    assert (last["message"], last["field"], last["offset"]) == (3, "content", 0)
    assert (last["earlier"], last["later"]) == ("Question 0", "[old question removed]")


async def test_changed_tools_are_named(scripted_gateway: ScriptedGateway) -> None:
    client, server, _ = scripted_gateway
    server.script = [calls_tool("task", f'{{"prompt": "{TASK}"}}'), says("Done.")]
    first = await chat(client, user("Make the tests fast."), tools=[TOOL])
    result = {"role": "tool", "tool_call_id": "another", "content": REPORT}
    call = {**first["tool_calls"][0], "id": "another"}  # the id of a call is no difference
    history = [user("Make the tests fast."), {"role": "assistant", "tool_calls": [call]}, result]
    other = {**TOOL, "function": {**TOOL["function"], "name": "other"}}
    await chat(client, *history, tools=[other, TOOL])
    found = (await differences(client))[-1]
    assert (found["message"], found["role"], found["field"], found["spoiler"]) == (None, "", "0.name", "tools")


async def test_a_line_that_is_removed_from_prompts_is_no_difference() -> None:
    for normalize, expected in (("on", None), ("off", "billing_line")):
        async with ScriptedServer() as server, gateway_before(server, normalize_prompts=normalize) as (client, _):
            server.script = [says(REPORT), says("Done.")]
            turns = [user(TASK)]
            for number in (1, 2):
                await chat(client, rules(f"x-anthropic-billing-header: cch={number}"), *turns)
                turns += [{"role": "assistant", "content": REPORT}, user("And?")]
            found = (await differences(client))[-1]
            assert (None if found is None else found["spoiler"]) == expected


async def test_long_prompts_are_compared_in_a_thread(scripted_gateway: ScriptedGateway) -> None:
    client, server, _ = scripted_gateway
    server.script = [says(REPORT), says("Done.")]
    parts = [{"type": "text", "text": "x" * 20_000}, {"type": "text", "text": "y" * 20_000}]
    await chat(client, rules(""), {"role": "user", "content": parts})
    parts[1]["text"] = "y" * 19_999 + "z"
    history = [{"role": "user", "content": parts}, {"role": "assistant", "content": REPORT}, user("And?")]
    await chat(client, rules(""), *history)
    found = (await differences(client))[-1]
    assert (found["message"], found["field"], found["offset"]) == (1, "content.1.text", 19_999)
    assert len(found["earlier"]) <= 80
