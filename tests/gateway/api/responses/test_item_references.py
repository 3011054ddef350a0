"""gateway/api/responses/item_references.py: items that the server has stored take the place of references to them."""

from typing import Any

from tests.fakes.in_process_gateway import ScriptedGateway, gateway_before
from tests.fakes.scripted_server import ScriptedServer, says
from tests.gateway.api.responses.test_routes import CALL, LOOK, ask, asked, calls


def reference(id: str, **more: Any) -> dict[str, Any]:
    return {"type": "item_reference", "id": id, **more}


async def test_a_tool_loop_continues_by_references(scripted_gateway: ScriptedGateway) -> None:
    client, server, _ = scripted_gateway
    server.script = [calls(CALL), says("A cat."), says("Yes.")]
    user = {"role": "user", "content": [{"type": "input_text", "text": "What is there?"}]}
    first = await ask(client, input=[user], tools=[LOOK])
    (call,) = first["output"]
    output = {"type": "function_call_output", "call_id": call["call_id"], "output": "cat"}
    second = await ask(client, input=[user, reference(call["id"]), output], tools=[LOOK])
    by_reference = server.asked[-1]["messages"]
    await ask(client, input=[user, call, output], tools=[LOOK])
    assert by_reference == server.asked[-1]["messages"]
    # items of the input, and references with nothing but an id; what was referred to is stored with the response
    async with client.get(f"/v1/responses/{second['id']}/input_items?order=asc") as answer:
        listed = (await answer.json())["data"]
    assert [item["type"] for item in listed] == ["message", "function_call", "function_call_output"]
    async with client.delete(f"/v1/responses/{first['id']}") as answer:
        assert answer.status == 200
    ids = [listed[0]["id"], second["output"][0]["id"]]
    await ask(client, input=[*({"id": id} for id in ids), {"role": "user", "content": "Sure?"}])
    assert [role for role, _ in asked(server)] == ["user", "assistant", "user"]
    await ask(client, input="More", previous_response_id=second["id"])
    assert [role for role, _ in asked(server)] == ["user", "assistant", "tool", "assistant", "user"]


async def test_unknown_items_are_refused(scripted_gateway: ScriptedGateway) -> None:
    client, server, _ = scripted_gateway
    user = {"role": "user", "content": "x"}
    unstored = await ask(client, store=False)
    deleted = await ask(client)
    async with client.delete(f"/v1/responses/{deleted['id']}"):
        pass
    for id in (unstored["output"][0]["id"], deleted["output"][0]["id"], "msg", "msg_1_2", "rs_😀_1", "fc_" + "x" * 120):
        refused = await ask(client, 404, input=[user, reference(id)])
        assert (refused["error"]["code"], refused["error"]["param"]) == ("item_not_found", "input.1.id")
    kept = await ask(client)
    absent = kept["output"][0]["id"].replace("_o0", "_o7")
    assert (await ask(client, 404, input=[reference(absent)]))["error"]["code"] == "item_not_found"
    many = [reference(f"msg_{number:024}_o0") for number in range(1_001)]
    assert "at most 1000" in (await ask(client, 400, input=many))["error"]["message"]
    large = await ask(client, 400, input=[user] * 10_001)
    assert large["error"]["param"] == "input"
    assert len(server.asked) == 3, "refused requests reach no server"


async def test_items_belong_to_an_api_key_and_a_session() -> None:
    async with ScriptedServer() as server, gateway_before(server, api_key=["one-key", "other-key"]) as (client, _):
        mine = await ask(client, key="one-key")
        items = [reference(mine["output"][0]["id"]), {"role": "user", "content": "x"}]
        assert (await ask(client, 404, "other-key", input=items))["error"]["code"] == "item_not_found"
        await ask(client, key="one-key", input=items)
        inside = await ask(client, key="one-key", headers={"X-Semantic-Session": "s"})
        items = [reference(inside["output"][0]["id"]), {"role": "user", "content": "x"}]
        assert (await ask(client, 400, "one-key", input=items))["error"]["code"] == "session_conflict"
        await ask(client, key="one-key", input=items, headers={"X-Semantic-Session": "s"})


async def test_what_takes_the_place_of_a_reference_is_checked(scripted_gateway: ScriptedGateway) -> None:
    client, *_ = scripted_gateway
    kept = await ask(client, input=[{"role": "user", "content": "x"}, {"type": "reasoning", "summary": []}])
    reasoning = f"rs_{kept['id'].removeprefix('resp_')}_1"
    refused = await ask(client, 400, input=[reference(reasoning)])
    assert refused["error"]["param"] == "input"
    assert "input has no message" in refused["error"]["message"]


async def test_one_large_item_cannot_be_repeated_without_bound(scripted_gateway: ScriptedGateway) -> None:
    client, server, _ = scripted_gateway
    stored = await ask(client, input=[{"role": "user", "content": "x" * 100_000}])
    async with client.get(f"/v1/responses/{stored['id']}/input_items") as answer:
        (item,) = (await answer.json())["data"]
    await ask(client, input=[reference(item["id"])] * 10)
    asked_before = len(server.asked)
    refused = await ask(client, 413, input=[reference(item["id"])] * 200)
    assert (refused["error"]["code"], refused["error"]["param"]) == ("too_large", "input")
    assert len(server.asked) == asked_before
