"""gateway/api/semantic/extension.py: ids of sessions, headers, and transforms of requests."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from compat.openai.semantic import SessionId
from gateway.api.semantic.extension import is_session_id
from gateway.api.services import SERVICES
from tests.fakes.in_process_gateway import GatewayClient, ScriptedGateway, gateway_before
from tests.fakes.scripted_server import ScriptedServer, says

_adapter = TypeAdapter(SessionId)


@given(text=st.one_of(st.text(st.sampled_from("..aZ9_:-/é\n"), max_size=5), st.text(max_size=4)))
def test_an_id_is_one_in_a_body_and_in_a_header(text: str) -> None:
    try:
        _adapter.validate_python(text)
    except ValidationError:
        assert not is_session_id(text)
    else:
        assert is_session_id(text)
        assert text not in (".", "..")


UML = "class Shape <<interface>>\nclass Order <<entity>> { +total() }"
CUDA = "kernel<<<n>>>(x); add<<<blocks>>>(a); std::cout << x >> y;"
SHELL = "cat <<EOF > file\n<<<<<<< HEAD\n=======\n>>>>>>> main\nEOF\n\\<<escaped>>"
CODE = [UML, CUDA, SHELL, "vector<vector<<T>>>", "<<a.b.c>>"]
AGENT = {"x-session-id": "ses_4f1", "x-session-affinity": "ses_4f1"}
"""Headers that OpenCode sends by itself."""
BODIES: dict[str, Any] = {
    "/v1/chat/completions": lambda text: {"model": "fake", "messages": [{"role": "user", "content": text}]},
    "/v1/completions": lambda text: {"model": "fake", "prompt": text},
    "/v1/responses": lambda text: {"model": "fake", "input": text},
}


async def post(
    client: GatewayClient, path: str, body: dict[str, Any], headers: dict[str, str], status: int = 200
) -> Any:
    async with client.post(path, json=body, headers=headers) as answer:
        content = await answer.json()
        assert answer.status == status, content
    return content


def sent_text(server: ScriptedServer) -> Any:
    body = server.asked[-1]
    return body["prompt"] if "prompt" in body else body["messages"][-1]["content"]


@pytest.mark.parametrize("path", BODIES)
@pytest.mark.parametrize("headers", [AGENT, {"X-Session-Id": "no id/ at all " + "x" * 200}, {"X-Session-Id": "."}])
async def test_the_header_of_an_agent_changes_no_text_and_leaves_nothing(
    scripted_gateway: ScriptedGateway, path: str, headers: dict[str, str]
) -> None:
    client, server, unfinished = scripted_gateway
    services = client.app[SERVICES]  # type: ignore[union-attr]
    for text in CODE:
        answer = await post(client, path, BODIES[path](text), headers)
        assert sent_text(server) == text
        assert "semantic" not in answer
        async with client.post(path, json={"stream": True, **BODIES[path](text)}, headers=headers) as r:
            assert r.status == 200
            await r.read()
        assert sent_text(server) == text
    assert (services.sessions.all(), unfinished()) == ([], 0)


async def test_agents_are_not_limited_by_the_limits_of_sessions() -> None:
    settings = {"max_sessions": 1, "max_key_sessions": 1, "max_session_calls": 2, "max_session_bytes": 40_000}
    async with ScriptedServer() as server, gateway_before(server, **settings) as (client, _):
        await post(client, "/v1/chat/completions", {**BODIES["/v1/chat/completions"]("x"), "semantic": {}}, AGENT)
        sessions = client.app[SERVICES].sessions  # type: ignore[union-attr]
        assert [session.id for session in sessions.all()] == ["ses_4f1"]
        for number in range(20):
            for headers in (AGENT, {"X-Session-Id": f"ses_{number}"}):
                body = BODIES["/v1/chat/completions"](f"{UML} {'x' * 3_000}")
                assert "semantic" not in await post(client, "/v1/chat/completions", body, headers)
        assert [len(session.calls) for session in sessions.all()] == [1]


@pytest.mark.parametrize("path", BODIES)
async def test_a_name_that_the_session_knows_is_a_reference(scripted_gateway: ScriptedGateway, path: str) -> None:
    client, server, _ = scripted_gateway
    server.script = [says("a heron")]
    deferred = {**BODIES[path]("A bird?"), "semantic": {"output": "bird", "defer": True}}
    await post(client, path, deferred, AGENT)
    text = r"<<bird>> \<<bird>> <<interface>> \<<interface>>"
    body = json.dumps(BODIES[path](text))
    for raw in (body, body.replace("<", "\\u003c").replace(">", "\\u003E")):
        async with client.post(path, data=raw, headers=AGENT | {"Content-Type": "application/json"}) as answer:
            content = await answer.json()
            assert answer.status == 200, content
        assert content["semantic"]["session"] == "ses_4f1"
        assert sent_text(server) == r"a heron <<bird>> <<interface>> \<<interface>>"
    for headers in ({"X-Session-Id": "other"}, {}):
        assert "semantic" not in await post(client, path, BODIES[path](text), headers)
        assert sent_text(server) == text


@pytest.mark.parametrize("path", BODIES)
@pytest.mark.parametrize(
    ("headers", "semantic"),
    [
        ({"X-Semantic-Session": "s"}, None),
        (AGENT | {"X-Semantic-Session": "s"}, None),
        (AGENT | {"X-Semantic-Defer": "true"}, None),
        (AGENT | {"X-Semantic-Defer": "false"}, None),
        (AGENT, {}),
        (AGENT, {"share": False}),
    ],
)
async def test_a_request_that_uses_variables_may_not_name_an_unknown_one(
    scripted_gateway: ScriptedGateway, path: str, headers: dict[str, str], semantic: Any
) -> None:
    client, server, _ = scripted_gateway
    body = BODIES[path]("<<interface>>") | ({} if semantic is None else {"semantic": semantic})
    refused = await post(client, path, body, headers, 400)
    assert refused["error"]["code"] == "unknown_variable"
    assert server.asked == []


async def test_the_sessions_of_headers_and_bodies_have_an_order(scripted_gateway: ScriptedGateway) -> None:
    client, _, _ = scripted_gateway
    path, body = "/v1/chat/completions", BODIES["/v1/chat/completions"]("x")
    answer = await post(client, path, body, AGENT | {"X-Semantic-Session": "mine"})
    assert answer["semantic"]["session"] == "mine"
    for headers in (AGENT, {"X-Semantic-Session": "other"}):
        refused = await post(client, path, {**body, "semantic": {"session": "mine"}}, headers, 400)
        assert (refused["error"]["code"], refused["error"]["param"]) == ("session_conflict", "semantic.session")
    for headers in ({"X-Semantic-Session": "no id"}, {"X-Session-Id": "no id", "X-Semantic-Defer": "true"}):
        assert (await post(client, path, body, headers, 400))["error"]["code"] == "invalid_value"


async def test_agents_follow_up_a_graph_and_a_response_of_their_session(scripted_gateway: ScriptedGateway) -> None:
    client, server, _ = scripted_gateway
    call = {"model": "fake", "messages": [{"role": "user", "content": "A bird?"}], "semantic": {"output": "bird"}}
    server.script = [says("a heron")]
    graph = await post(client, "/v1/graphs", {"calls": [call]}, AGENT)
    assert (graph["session"], graph["outputs"]) == ("ses_4f1", {"bird": "a heron"})
    first = await post(client, "/v1/responses", {"model": "fake", "input": f"Where does <<bird>> live? {UML}"}, AGENT)
    assert server.asked[-1]["messages"][-1]["content"] == f"Where does a heron live? {UML}"
    second = await post(
        client, "/v1/responses", {"model": "fake", "input": UML, "previous_response_id": first["id"]}, AGENT
    )
    assert second["semantic"]["session"] == "ses_4f1"
    texts = [message["content"] for message in server.asked[-1]["messages"]]
    assert (texts[0], texts[-1]) == (f"Where does a heron live? {UML}", UML)
    refused = await post(
        client, "/v1/responses", {"model": "fake", "input": "x", "previous_response_id": first["id"]}, {}, 400
    )
    assert refused["error"]["code"] == "session_conflict"


async def test_a_long_body_is_searched_for_names_as_well(scripted_gateway: ScriptedGateway) -> None:
    client, server, _ = scripted_gateway
    path = "/v1/chat/completions"
    await post(client, path, {**BODIES[path]("x"), "semantic": {"inputs": {"bird": "a heron"}}}, AGENT)
    await post(client, path, BODIES[path]("<<b>> " * 40_000 + "<<bird>>"), AGENT)
    assert sent_text(server) == "<<b>> " * 40_000 + "a heron"
