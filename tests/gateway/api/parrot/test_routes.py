"""gateway/api/parrot/routes.py: limits of one client's programs."""

from collections.abc import Iterator
from typing import Any

import pytest

from compat.parrot import Parameter, SemanticCall, pieces
from tests.fakes.in_process_gateway import GatewayClient, gateway_before
from tests.fakes.keyed_gateway import keyed_gateway
from tests.fakes.scripted_server import ScriptedServer


async def send(client: GatewayClient, method: str, path: str, body: Any) -> tuple[int, Any]:
    async with client.request(method, path, json=body) as answer:
        return answer.status, await answer.json()


async def program(client: GatewayClient) -> dict[str, Any]:
    status, told = await send(client, "POST", "/v1/session", {})
    assert status == 200
    return dict(told)


def call(program: dict[str, Any], template: str, *names: str, **more: Any) -> dict[str, Any]:
    parameters = [{"name": name, "is_output": True, "sampling_config": {"max_gen_length": 1}} for name in names]
    return {"session_id": program["session_id"], "template": template, "parameters": parameters, **more}


async def test_calls_that_are_asked_for_pass_the_bound_on_unfinished_calls() -> None:
    async with (
        ScriptedServer() as server,
        gateway_before(server, parrot_api=True, max_calls=1) as (client, unfinished),
    ):
        _, waits = await send(client, "POST", "/v1/sessions", {"id": "busy"})
        assert waits["id"] == "busy"
        await send(client, "PUT", "/v1/sessions/busy/variables/x", {"value": None})
        known = await program(client)
        status, told = await send(client, "POST", "/v1/semantic_call", call(known, "{{a}}", "a"))
        assert status == 200, "a call that no client asks for is not unfinished"
        body = {
            "model": "fake",
            "messages": [{"role": "user", "content": "<<x>>"}],
            "semantic": {"session": "busy", "defer": True, "output": "o"},
        }
        assert (await send(client, "POST", "/v1/chat/completions", body))[0] in (200, 202)
        assert unfinished() == 1
        path = f"/v1/semantic_var/{told['param_info'][0]['var_id']}"
        status, error = await send(client, "GET", path, known)
        assert status == 429
        assert "unfinished" in error["error"]
        await send(client, "DELETE", "/v1/sessions/busy", None)


async def test_a_session_of_the_same_name_is_not_the_program() -> None:
    async with ScriptedServer() as server, gateway_before(server, parrot_api=True) as (client, _):
        known = await program(client)
        name = str(known["session_id"])
        async with client.delete(f"/v1/sessions/{name}") as answer:
            assert answer.status == 200
        status, _ = await send(client, "POST", "/v1/sessions", {"id": name})
        assert status == 201
        for method, path in (("POST", "/v1/semantic_var"), ("GET", "/v1/semantic_var/x"), ("GET", "/v1/semantic_var")):
            body = {**known, "var_name": "x"} if method == "POST" else known
            assert (await send(client, method, path, body))[0] == 404


async def test_the_template_is_split_twice_for_many_outputs_and_errors_are_short(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    split: list[SemanticCall] = []

    def split_template(call: SemanticCall) -> Iterator[str | Parameter]:
        split.append(call)
        return pieces(call)

    monkeypatch.setattr("gateway.api.parrot.routes.pieces", split_template)
    async with ScriptedServer() as server, gateway_before(server, parrot_api=True) as (client, _):
        known = await program(client)
        names = [f"p{number}" for number in range(1_000)]
        body = call(known, "".join(f"{{{{{name}}}}}" for name in names), *names)
        status, told = await send(client, "POST", "/v1/semantic_call", body)
        assert status == 200
        assert len(told["param_info"]) == 1_000
        assert len(split) == 2, "not once for each output"
        status, error = await send(client, "POST", "/v1/py_native_call", {"func_name": "f" * 1_000_000})
        assert status == 400
        assert len(error["error"]) <= 2_000


async def test_programs_of_a_key_pass_its_limits() -> None:
    async with keyed_gateway(parrot_api=True) as gateway:
        id, key = await gateway.make_key(rpm=2, budget_tokens=1_000_000)
        client = gateway.client
        status, known = await send(client, "POST", "/v1/session", {"api_key": key})
        assert status == 200
        status, told = await send(client, "POST", "/v1/semantic_call", call(known, "say {{a}}", "a"))
        assert status == 200
        path = f"/v1/semantic_var/{told['param_info'][0]['var_id']}"
        assert (await send(client, "GET", path, known))[0] == 200
        assert (await send(client, "GET", path, known))[0] == 200, "a value that is ready is no request"
        status, error = await send(client, "POST", "/v1/semantic_call", call(known, "say {{b}}", "b"))
        assert status == 429
        assert "2 requests per minute" in error["error"]
        limits = gateway.services.accounts.limits_of(id)
        assert limits is not None
        assert limits.meters["budget_tokens"].used_at(0.0) > 0
        await gateway.admin("PATCH", f"/{id}", {"disabled": True})
        assert (await send(client, "GET", path, known))[0] == 401


async def test_a_program_may_use_the_models_of_its_key_only() -> None:
    async with keyed_gateway(parrot_api=True) as gateway:
        _, key = await gateway.make_key(models=["other"])
        _, known = await send(gateway.client, "POST", "/v1/session", {"api_key": key})
        for models in ([], ["fake"]):
            body = call(known, "say {{a}}", "a", models=models)
            assert (await send(gateway.client, "POST", "/v1/semantic_call", body))[0] == 404
