"""gateway/api/responses/conversation_routes.py: conversations and their items, and responses that continue them."""

import asyncio
from typing import Any

import pytest
from aiohttp import web
from openai.types.conversations import (
    Conversation,
    ConversationDeletedResource,
    ConversationItem,
    ConversationItemList,
)
from pydantic import TypeAdapter

from tests.fakes.in_process_gateway import GatewayClient, ScriptedGateway, gateway_before
from tests.fakes.scripted_server import ScriptedServer, breaks_off, says
from tests.gateway.api.responses.test_background import ended
from tests.gateway.api.responses.test_routes import CALL, LOOK, ask, asked, calls, events_of

ITEM: TypeAdapter[Any] = TypeAdapter(ConversationItem)
USER = {"type": "message", "role": "user", "content": "Hello"}


async def call(
    client: GatewayClient, method: str, path: str = "", body: Any = None, status: int = 200, key: str | None = None
) -> Any:
    headers = {} if key is None else {"Authorization": f"Bearer {key}"}
    async with client.request(method, f"/v1/conversations{path}", json=body, headers=headers) as answer:
        told = await answer.json()
        assert answer.status == status, told
    return told


async def items_of(client: GatewayClient, id: str) -> list[Any]:
    told = await call(client, "GET", f"/{id}/items?order=asc&limit=100")
    if told["data"]:
        ConversationItemList.model_validate(told)
    return [ITEM.validate_python(item) for item in told["data"]]


async def test_a_conversation_is_created_changed_and_deleted(scripted_gateway: ScriptedGateway) -> None:
    client, *_ = scripted_gateway
    created = await call(client, "POST", body={"metadata": {"a": "b"}, "items": [USER]})
    Conversation.model_validate(created)
    path = f"/{created['id']}"
    assert await call(client, "GET", path) == created
    changed = await call(client, "POST", path, {"metadata": {"c": "d"}})
    assert changed == {**created, "metadata": {"c": "d"}} == await call(client, "GET", path)
    deleted = await call(client, "DELETE", path)
    assert ConversationDeletedResource.model_validate(deleted).to_dict() == deleted
    for method, place, body in (
        ("GET", path, None),
        ("POST", path, {"metadata": {}}),
        ("DELETE", path, None),
        ("GET", f"{path}/items", None),
        ("POST", f"{path}/items", {"items": [USER]}),
        ("GET", f"{path}/items/msg_1", None),
        ("DELETE", f"{path}/items/msg_1", None),
    ):
        refused = await call(client, method, place, body, status=404)
        assert refused["error"]["code"] == "conversation_not_found"
    assert (await call(client, "POST", body={}))["metadata"] == {}


async def test_items_are_added_read_and_deleted(scripted_gateway: ScriptedGateway) -> None:
    client, *_ = scripted_gateway
    sent: list[Any] = [
        {**USER, "id": "mine"},
        {"role": "user", "content": [{"type": "input_image", "image_url": "data:image/png;base64,AAAA"}]},
        {"role": "assistant", "content": "Hi"},
        {"type": "reasoning", "summary": []},
        {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}", "namespace": "n"},
        {"type": "function_call_output", "call_id": "c", "output": "x"},
        {"type": "custom_tool_call", "call_id": "d", "name": "g", "input": "x"},
        {"type": "custom_tool_call_output", "call_id": "d", "output": [{"type": "input_text", "text": "y"}]},
        {"type": "additional_tools", "tools": [LOOK]},
        {"type": "tool_search_call", "call_id": "e", "arguments": {}},
        {"type": "tool_search_output", "call_id": "e", "tools": [LOOK]},
    ]
    path = f"/{(await call(client, 'POST', body={'items': sent[:2]}))['id']}"
    added = await call(client, "POST", f"{path}/items", {"items": sent[2:]})
    ConversationItemList.model_validate(added)
    items = await items_of(client, path[1:])
    assert [item.type for item in items] == [item.get("type", "message") for item in sent]
    ids = [item.id for item in items]
    assert len(set(ids)) == len(sent)
    assert [item["id"] for item in added["data"]] == ids[2:]
    assert [item["id"] for item in (await call(client, "GET", f"{path}/items"))["data"]] == ids[::-1]
    page = await call(client, "GET", f"{path}/items?order=asc&limit=2&after={ids[0]}")
    assert ([item["id"] for item in page["data"]], page["has_more"]) == (ids[1:3], True)
    one = await call(client, "GET", f"{path}/items/{ids[4]}")
    assert (one["name"], one["namespace"]) == ("f", "n")
    assert (await call(client, "DELETE", f"{path}/items/{ids[4]}"))["object"] == "conversation"
    assert (await call(client, "GET", f"{path}/items/{ids[4]}", status=404))["error"]["code"] == "item_not_found"
    assert len(await items_of(client, path[1:])) == len(sent) - 1
    together = [call(client, "POST", f"{path}/items", {"items": [USER]}) for _ in range(20)]
    await asyncio.gather(*together)
    assert len(await items_of(client, path[1:])) == len(sent) + 19, "no item is lost"


INVALID: list[tuple[str, Any, str | None]] = [
    ("", {"items": [{"role": "user"}]}, "items.0.content"),
    ("", {"items": [{"type": "spell"}]}, "items.0.type"),
    ("", {"items": [{"type": "item_reference", "id": "msg_1"}]}, "items.0"),
    ("", {"items": [USER] * 1_001}, "items"),
    ("", {"metadata": {"a": 3}}, "metadata.a"),
    ("", {"metadata": {f"k{number}": "v" for number in range(17)}}, "metadata"),
    ("", {"name": "x"}, "name"),
    ("", [], None),
    ("/{id}", {}, "metadata"),
    ("/{id}/items", {}, "items"),
    ("/{id}/items", {"items": []}, "items"),
    ("/{id}/items", {"items": [[]]}, "items.0"),
]


@pytest.mark.parametrize(("path", "body", "param"), INVALID)
async def test_invalid_requests_change_nothing(
    scripted_gateway: ScriptedGateway, path: str, body: Any, param: str | None
) -> None:
    client, *_ = scripted_gateway
    created = await call(client, "POST", body={"items": [USER]})
    refused = await call(client, "POST", path.format(id=created["id"]), body, status=400)
    assert refused["error"]["param"] == param
    assert await call(client, "GET", f"/{created['id']}") == created
    assert len(await items_of(client, created["id"])) == 1


async def test_a_response_continues_a_conversation(scripted_gateway: ScriptedGateway) -> None:
    client, server, _ = scripted_gateway
    server.script = [calls(CALL), says("A cat."), says("Meow."), says("Yes.")]
    created = await call(client, "POST", body={"items": [{"role": "developer", "content": "Be short."}]})
    id = created["id"]
    first = await ask(client, input="What is there?", conversation=id, tools=[LOOK])
    assert first["conversation"] == {"id": id}
    output = {"type": "function_call_output", "call_id": first["output"][0]["call_id"], "output": "cat"}
    await ask(client, input=[output], conversation={"id": id}, tools=[LOOK], store=False)
    assert [role for role, _ in asked(server)] == ["system", "user", "assistant", "tool"]
    events = await events_of(client, input="Its voice?", conversation=id)
    assert events[0].response.conversation.id == events[-1].response.conversation.id == id
    await ask(client, input=None, conversation=id)
    assert [text for _, text in asked(server)][-3:] == ["A cat.", "Its voice?", "Meow."]
    items = await items_of(client, id)
    kinds = ["message", "message", "function_call", "function_call_output", "message", "message", "message", "message"]
    assert [item.type for item in items] == kinds
    assert [item.role for item in items if item.type == "message"] == [
        *("developer", "user", "assistant", "user", "assistant", "assistant")
    ]
    refused = await ask(client, 400, input="x", previous_response_id=first["id"])
    assert refused["error"]["param"] == "previous_response_id", "the conversation has more than its turns"
    for status, fields in (
        (400, {"conversation": id, "headers": {"X-Semantic-Session": "s"}}),
        (404, {"conversation": "conv_none"}),
        (404, {"conversation": first["id"]}),
        (400, {"previous_response_id": id}),
    ):
        assert (await ask(client, status, **fields))["error"]["param"] in ("conversation", "previous_response_id")
    async with client.get(f"/v1/responses/{id}") as answer:
        assert answer.status == 404, "it is no response"


async def test_a_failed_response_is_not_added(scripted_gateway: ScriptedGateway) -> None:
    client, server, _ = scripted_gateway
    id = (await call(client, "POST", body={}))["id"]
    server.script = [breaks_off("one ")]
    assert (await events_of(client, conversation=id))[-1].type == "response.failed"
    assert await items_of(client, id) == []


async def test_a_response_in_the_background_is_added_once(scripted_gateway: ScriptedGateway) -> None:
    client, *_ = scripted_gateway
    id = (await call(client, "POST", body={}))["id"]
    told = await ended(client, (await ask(client, background=True, conversation=id))["id"])
    assert (told["status"], told["conversation"]) == ("completed", {"id": id})
    assert [item.role for item in await items_of(client, id)] == ["user", "assistant"]


async def test_a_conversation_that_is_deleted_meanwhile_is_left_out(scripted_gateway: ScriptedGateway) -> None:
    client, server, _ = scripted_gateway
    id = (await call(client, "POST", body={}))["id"]

    async def deletes(request: Any, body: Any) -> Any:
        await call(client, "DELETE", f"/{id}")
        return await says("one")(request, body)

    server.script = [deletes]
    assert (await ask(client, conversation=id))["conversation"] is None


async def test_conversations_belong_to_an_api_key() -> None:
    async with ScriptedServer() as server, gateway_before(server, api_key=["one-key", "other-key"]) as (client, _):
        mine = await call(client, "POST", body={"items": [USER]}, key="one-key")
        for method, place in (("GET", ""), ("DELETE", ""), ("GET", "/items")):
            await call(client, method, f"/{mine['id']}{place}", status=404, key="other-key")
        await ask(client, 404, "other-key", conversation=mine["id"])
        await ask(client, key="one-key", conversation=mine["id"])


async def test_a_server_that_stores_nothing_has_no_conversations() -> None:
    async with ScriptedServer() as server, gateway_before(server, max_kept_bytes=0) as (client, _):
        assert "does not store" in (await call(client, "POST", body={}, status=400))["error"]["message"]


async def test_a_conversation_that_is_too_large_is_refused(
    scripted_gateway: ScriptedGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    client, *_ = scripted_gateway
    monkeypatch.setattr("gateway.api.responses.conversation_store.CONVERSATION_BYTES", 1_000)
    id = (await call(client, "POST", body={}))["id"]
    long = {"role": "user", "content": "x" * 600}
    await call(client, "POST", f"/{id}/items", {"items": [long]})
    refused = await call(client, "POST", f"/{id}/items", {"items": [long]}, status=413)
    assert (refused["error"]["code"], refused["error"]["param"]) == ("too_large", "items")
    assert len(await items_of(client, id)) == 1
    await ask(client, conversation=id, input="x" * 600)
    assert len(await items_of(client, id)) == 3, "an answer is never lost"
    refused = await ask(client, 413, conversation=id)
    assert (refused["error"]["code"], refused["error"]["param"]) == ("too_large", "conversation")


async def test_parallel_responses_cannot_make_a_conversation_too_large(
    scripted_gateway: ScriptedGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    client, server, _ = scripted_gateway
    monkeypatch.setattr("gateway.api.responses.conversation_store.CONVERSATION_BYTES", 100_000)
    go_on = asyncio.Event()

    async def wait(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        await go_on.wait()
        return await says("x")(request, body)

    server.always = wait
    async with client.post("/v1/conversations", json={}) as answer:
        id = (await answer.json())["id"]
    body = {"model": "fake", "input": "x" * 9_000, "conversation": id}
    running = [asyncio.ensure_future(client.post("/v1/responses", json=body)) for _ in range(40)]
    async with asyncio.timeout(60):
        while len(server.asked) < 40:
            await asyncio.sleep(0.01)
        go_on.set()
        for answer in await asyncio.gather(*running):
            assert answer.status == 200
            await answer.read()
    async with client.get(f"/v1/conversations/{id}/items?limit=100") as answer:
        assert answer.status == 200
        assert 100_000 < len(await answer.read()) < 210_000
    async with client.post("/v1/responses", json={**body, "input": "x"}) as answer:
        assert answer.status == 413
