"""gateway/api/openai/models.py: the served models."""

from tests.fakes.in_process_gateway import ScriptedGateway


async def test_models_are_listed_and_found(scripted_gateway: ScriptedGateway) -> None:
    client, _, _ = scripted_gateway
    async with client.get("/v1/models") as answer:
        listed = await answer.json()
    assert listed["object"] == "list"
    (model,) = listed["data"]
    assert (model["id"], model["object"], model["max_model_len"]) == ("fake", "model", 4096)
    assert isinstance(model["created"], int)
    async with client.get("/v1/models/fake") as answer:
        assert await answer.json() == model


async def test_an_unknown_model_may_have_slashes(scripted_gateway: ScriptedGateway) -> None:
    client, _, _ = scripted_gateway
    for name in ("other", "owner/name", "owner%2Fname"):
        async with client.get(f"/v1/models/{name}") as answer:
            assert answer.status == 404
            assert (await answer.json())["error"]["code"] == "model_not_found"
