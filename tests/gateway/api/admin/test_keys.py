"""gateway/api/admin/keys.py: the routes of virtual keys."""

import asyncio
import logging
from typing import Any

import pytest
from aiohttp import web

from gateway.http.middleware.auth import tenant_of
from tests.fakes.keyed_gateway import ADMIN_KEY, KeyedGateway, keyed_gateway


async def test_a_key_is_shown_once_and_works(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    async with keyed_gateway() as gateway:
        status, made = await gateway.admin("POST", "", {"name": "team a", "tags": ["a", "b"], "rpm": 100})
        assert (status, made["object"], made["name"], made["tags"]) == (201, "api_key", "team a", ["a", "b"])
        id, key = made["id"], made.pop("key")
        assert key.startswith("sk-myna-")
        assert id.startswith("key_")
        assert await gateway.admin("GET", f"/{id}") == (200, made)
        assert (await gateway.admin("GET"))[1]["data"] == [made]
        status, answer, _ = await gateway.chat(key)
        assert status == 200, answer
        status, metrics, _ = await gateway.send("GET", "/metrics")
        assert key not in metrics
    assert id in caplog.text
    assert key not in caplog.text
    assert ADMIN_KEY not in caplog.text


async def test_the_answer_with_a_key_may_not_be_stored() -> None:
    async with keyed_gateway() as gateway:
        _, _, headers = await gateway.send("POST", "/v1/admin/keys", ADMIN_KEY, {})
        assert headers["Cache-Control"] == "no-store"


async def test_without_an_admin_key_there_are_no_such_routes() -> None:
    async with keyed_gateway(admin_key=[], api_key=["one"]) as gateway:
        for method, path in (("GET", ""), ("POST", ""), ("GET", "/key_1"), ("DELETE", "/key_1")):
            status, answer, _ = await gateway.send(method, f"/v1/admin/keys{path}", "one", {})
            assert (status, answer["error"]["code"]) == (404, "unknown_route")


async def test_admin_keys_and_api_keys_are_not_exchangeable() -> None:
    async with keyed_gateway(api_key=["static"]) as gateway:
        _, key = await gateway.make_key()
        for other in ("", "static", key, "wrong", f"{ADMIN_KEY}x"):
            for method in ("GET", "POST"):
                status, answer, _ = await gateway.send(method, "/v1/admin/keys", other, {})
                assert (status, answer["error"]["code"]) == (401, "invalid_api_key")
        for other in ("", ADMIN_KEY, "wrong"):
            assert (await gateway.chat(other))[0] == 401
        for valid in ("static", key):
            assert (await gateway.chat(valid))[0] == 200


async def test_with_an_admin_key_all_requests_need_a_key() -> None:
    async with keyed_gateway() as gateway:
        assert (await gateway.chat(""))[0] == 401
        assert (await gateway.send("GET", "/v1/models"))[0] == 401
        assert (await gateway.send("GET", "/health"))[0] == 200


async def test_a_key_in_the_query_is_no_key() -> None:
    async with keyed_gateway() as gateway:
        _, key = await gateway.make_key()
        for query in (f"api_key={key}", f"key={key}", f"access_token={key}"):
            assert (await gateway.send("GET", f"/v1/models?{query}"))[0] == 401
        assert (await gateway.send("GET", f"/v1/admin/keys?admin_key={ADMIN_KEY}"))[0] == 401


async def test_the_list_has_pages() -> None:
    async with keyed_gateway() as gateway:
        ids = {(await gateway.make_key(name=str(number)))[0] for number in range(7)}
        found: list[str] = []
        path = "?limit=3"
        while True:
            status, page = await gateway.admin("GET", path)
            assert status == 200
            found += [key["id"] for key in page["data"]]
            assert (page["first_id"], page["last_id"]) == (page["data"][0]["id"], page["data"][-1]["id"])
            if not page["has_more"]:
                break
            path = f"?limit=3&after={page['last_id']}"
        assert len(found) == 7
        assert set(found) == ids
        for query in ("limit=0", "limit=101", "limit=x", "after=key_0", "after='%20OR%201=1"):
            status, answer = await gateway.admin("GET", f"?{query}")
            assert (status, answer["error"]["code"]) == (400, "invalid_value")


HOSTILE: list[Any] = [
    *(None, True, -1, 0, 2**70, 1e400, -0.5, "", "x" * 300, "\0", "a\r\nx-evil: 1", "\ud800", [], {}, [[]]),
    *(["x"] * 200, [""], ["a\nb"], [1], {"$ne": 1}, "1; DROP TABLE api_keys", "٣", "1e3", "month ", "0d", "99999999d"),
]


@pytest.mark.parametrize(
    "field",
    [
        *("name", "models", "weight", "parallel", "rpm", "tpm", "budget_cost", "budget_tokens", "budget_period"),
        *("expires_at", "tags", "disabled", "id", "digest", "previous", "created", "__proto__"),
    ],
)
async def test_hostile_values_are_refused_or_stored_as_they_are(field: str) -> None:
    async with keyed_gateway() as gateway:
        id, key = await gateway.make_key()
        for value in HOSTILE:
            if value == 1e400:  # json has no infinity
                continue
            for method, path in (("POST", ""), ("PATCH", f"/{id}")):
                _, before = await gateway.admin("GET", f"/{id}")
                status, answer = await gateway.admin(method, path, {field: value, "budget_tokens": 5} | {field: value})
                if status >= 300:
                    error = answer["error"]
                    assert status == 400, (value, answer)
                    assert error["param"] or error["code"] == "invalid_json", (value, answer)
                    assert (await gateway.admin("GET", f"/{id}"))[1] == before
                elif value is not None:
                    assert answer[field] == value
        for text in (
            b'{"weight": NaN}',
            b'{"weight": Infinity}',
            b'{"budget_cost": -Infinity}',
            b'{"rpm": 1e999}',
            b"[]",
        ):
            headers = {"Authorization": f"Bearer {ADMIN_KEY}", "Content-Type": "application/json"}
            async with gateway.client.post("/v1/admin/keys", data=text, headers=headers) as answer:
                assert answer.status == 400, text
        await gateway.admin("PATCH", f"/{id}", {"disabled": False, "expires_at": None, "models": None})
        await gateway.admin(
            "PATCH", f"/{id}", dict.fromkeys(("parallel", "rpm", "tpm", "budget_tokens", "budget_cost"))
        )
        status, answer, headers = await gateway.chat(key)
        assert status == 200, answer
        assert "x-evil" not in headers


@pytest.mark.parametrize("id", ["key_0", "'", "%27%20OR%20%271%27=%271", "%00", "..%2F", "%F0%9F%98%80", "a" * 2_000])
async def test_an_unknown_id_is_not_found(id: str) -> None:
    async with keyed_gateway() as gateway:
        for method, path, body in (
            ("GET", "", None),
            ("PATCH", "", {}),
            ("DELETE", "", None),
            ("POST", "/rotate", {}),
        ):
            status, answer = await gateway.admin(method, f"/{id}{path}", body)
            assert (status, answer["error"]["code"]) == (404, "key_not_found")


async def test_a_change_concerns_its_fields_alone() -> None:
    async with keyed_gateway() as gateway:
        id, _ = await gateway.make_key(name="a", rpm=5, tpm=6, models=["fake"], budget_tokens=7, budget_period="1d")
        status, changed = await gateway.admin("PATCH", f"/{id}", {"rpm": None, "name": "b"})
        assert (status, changed["rpm"], changed["tpm"], changed["name"]) == (200, None, 6, "b")
        assert (changed["models"], changed["budget_tokens"], changed["budget_period"]) == (["fake"], 7, "1d")
        _, changed = await gateway.admin("PATCH", f"/{id}", {"models": None, "budget_period": None})
        assert (changed["models"], changed["budget_tokens"], changed["budget_period"]) == (None, 7, None)


async def test_a_new_key_must_not_have_expired() -> None:
    async with keyed_gateway() as gateway:
        status, answer = await gateway.admin("POST", "", {"expires_at": 5})
        assert (status, answer["error"]["param"]) == (400, "expires_at")
        id, key = await gateway.make_key()
        assert (await gateway.admin("PATCH", f"/{id}", {"expires_at": 5}))[0] == 200
        status, answer, headers = await gateway.chat(key)
        assert (status, answer["error"]["code"]) == (401, "api_key_expired")
        assert headers["WWW-Authenticate"] == "Bearer"


async def test_sessions_survive_a_rotation() -> None:
    async with keyed_gateway() as gateway:
        id, old = await gateway.make_key()
        await gateway.send("POST", "/v1/sessions", old, {"id": "run"})
        status, rotated = await gateway.admin("POST", f"/{id}/rotate")
        new = rotated["key"]
        assert status == 200
        assert new != old
        assert rotated["id"] == id
        assert (await gateway.send("GET", "/v1/sessions/run", new))[0] == 200
        status, answer, _ = await gateway.send("GET", "/v1/sessions/run", old)
        assert (status, answer["error"]["code"]) == (401, "invalid_api_key")
        _, newest = await gateway.admin("POST", f"/{id}/rotate", {"grace_seconds": 60})
        for key in (new, newest["key"]):
            assert (await gateway.send("GET", "/v1/sessions/run", key))[0] == 200
        for grace in (-1, "1", None, 1e12):
            status, _ = await gateway.admin("POST", f"/{id}/rotate", {"grace_seconds": grace})
            assert status == (200 if grace is None else 400)


async def running(gateway: KeyedGateway, key: str, count: int = 1) -> tuple["asyncio.Task[Any]", asyncio.Event]:
    """Start a request that the upstream server does not answer until the event is set."""
    asked, answer = asyncio.Event(), asyncio.Event()

    async def wait(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        asked.set()
        await answer.wait()
        return web.json_response({"choices": [{"message": {"content": "late"}, "finish_reason": "stop"}]})

    gateway.server.script = [wait]
    task = asyncio.create_task(gateway.chat(key))
    await asked.wait()
    return task, answer


@pytest.mark.parametrize("way", ["disable", "delete"])
async def test_what_runs_is_cancelled_when_a_key_ends(way: str) -> None:
    async with keyed_gateway() as gateway:
        id, key = await gateway.make_key(parallel=5, budget_tokens=100_000)
        _, other = await gateway.make_key()
        await gateway.send("POST", "/v1/sessions", key, {"id": "run"})
        task, _ = await running(gateway, key)
        limits = gateway.services.accounts.limits_of(id)
        assert limits is not None
        assert limits.reservations == 1
        if way == "disable":
            assert (await gateway.admin("PATCH", f"/{id}", {"disabled": True}))[0] == 200
        else:
            assert await gateway.admin("DELETE", f"/{id}") == (
                200,
                {"id": id, "object": "api_key.deleted", "deleted": True},
            )
        status, answer, _ = await task
        assert (status, answer["error"]["code"]) == (409, "cancelled")
        assert limits.reservations == 0
        assert all(meter.reserved == 0 for meter in limits.meters.values())
        status, answer, _ = await gateway.chat(key)
        expected = "api_key_disabled" if way == "disable" else "invalid_api_key"
        assert (status, answer["error"]["code"]) == (401, expected)
        assert (await gateway.chat(other))[0] == 200
        assert len(list(gateway.services.sessions.of_tenant(id))) == (1 if way == "disable" else 0)
        if way == "disable":
            await gateway.admin("PATCH", f"/{id}", {"disabled": False})
            assert (await gateway.chat(key))[0] == 200
            assert (await gateway.send("GET", "/v1/sessions/run", key))[0] == 200


async def test_responses_are_deleted_with_their_key() -> None:
    async with keyed_gateway() as gateway:
        made = [await gateway.make_key() for _ in range(2)]
        body = {"model": "fake", "input": "hi"}
        ids = [(await gateway.send("POST", "/v1/responses", key, body))[1]["id"] for _, key in made]
        await gateway.admin("DELETE", f"/{made[0][0]}")
        store = gateway.services.response_store
        assert await store.find(made[0][0], ids[0]) is None
        assert await store.find(made[1][0], ids[1]) is not None


async def test_models_of_a_key_are_the_only_ones_that_exist_for_it() -> None:
    async with keyed_gateway() as gateway:
        models = gateway.services.models
        models.set_aliases({"alias": "fake", "any-*": "fake"}, {})
        _, allowed = await gateway.make_key(models=["fa*"])
        _, refused = await gateway.make_key(models=["other", "any-*", "alias"])
        for name in ("fake", "alias", "any-thing"):
            assert (await gateway.chat(allowed, model=name))[0] == 200
            for path, body in (
                ("/v1/chat/completions", {"messages": [{"role": "user", "content": "hi"}]}),
                ("/v1/messages", {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 1}),
                ("/v1/responses", {"input": "hi"}),
                ("/v1/completions", {"prompt": "hi"}),
                ("/v1/embeddings", {"input": "hi"}),
                ("/v1/rerank", {"query": "a", "documents": ["b"]}),
                ("/v1/tokenize", {"prompt": "hi"}),
            ):
                status, answer, _ = await gateway.send("POST", path, refused, {"model": name, **body})
                assert status == 404, (path, answer)
                assert "model_not_found" in str(answer)
                assert "served: fake" not in str(answer), "its name is not told either"
            call = {"model": name, "messages": [{"role": "user", "content": "hi"}], "semantic": {"output": "a"}}
            status, answer, _ = await gateway.send("POST", "/v1/graphs", refused, {"calls": [call]})
            assert (status, answer["error"]["code"]) == (404, "model_not_found")
            assert (await gateway.send("GET", f"/v1/models/{name}", refused))[0] == 404
        assert (await gateway.send("GET", "/v1/models", refused))[1]["data"] == []
        assert [model["id"] for model in (await gateway.send("GET", "/v1/models", allowed))[1]["data"]] == ["fake"]
        status, answer, _ = await gateway.send(
            "POST", "/v1/messages", refused, {"model": "claude-x", "messages": [], "max_tokens": 1}
        )
        assert status in (400, 404)


async def test_tenants_of_virtual_keys_are_their_ids() -> None:
    async with keyed_gateway(api_key=["static"]) as gateway:
        id, key = await gateway.make_key(tags=["x"])
        for name, tenant in ((key, id), ("static", tenant_of("static"))):
            await gateway.send("POST", "/v1/sessions", name, {"id": "same"})
            assert gateway.services.sessions.holds(tenant, "same")
        assert list(gateway.services.accounts.tags_of(id)) == ["x"]
        assert list(gateway.services.accounts.tags_of(tenant_of("static"))) == []


async def test_weights_reach_the_fair_queue() -> None:
    async with keyed_gateway() as gateway:
        id, _ = await gateway.make_key(weight=3)
        weights = gateway.services.accounts.weights
        assert weights[id] == 3
        await gateway.admin("PATCH", f"/{id}", {"weight": 0.5})
        assert weights[id] == 0.5
        await gateway.admin("DELETE", f"/{id}")
        assert id not in weights


async def test_the_routes_are_described() -> None:
    async with keyed_gateway() as gateway:
        _, document, _ = await gateway.send("GET", "/openapi.json")
        assert {"/v1/admin/keys", "/v1/admin/keys/{id}", "/v1/admin/keys/{id}/rotate"} <= document["paths"].keys()
        assert document["components"]["schemas"]["CreateKeyRequest"]["properties"].keys() >= {"models", "budget_cost"}


async def test_an_operator_sees_the_usage_of_all_keys_and_a_key_its_own() -> None:
    async with keyed_gateway(price=["fake=1/1"]) as gateway:
        ids, keys = zip(*[await gateway.make_key(name=name, tags=["team"]) for name in ("a", "b")], strict=True)
        for key in (*keys, keys[1]):
            assert (await gateway.chat(key))[0] == 200
        _, seen, _ = await gateway.send("GET", "/v1/usage?group_by=key", ADMIN_KEY)
        assert {row["key"]: row["calls"] for row in seen["data"]} == {ids[0]: 1, ids[1]: 2}
        _, seen, _ = await gateway.send("GET", "/v1/usage?group_by=key", keys[0])
        assert [row["key"] for row in seen["data"]] == [ids[0]]
        assert (await gateway.send("GET", "/v1/status", ADMIN_KEY))[0] == 200
        assert (await gateway.send("GET", "/v1/sessions", ADMIN_KEY))[1]["data"] == []
        for method, path in (("POST", "/v1/sessions"), ("GET", "/v1/models"), ("GET", "/v1/sessions/s")):
            assert (await gateway.send(method, path, ADMIN_KEY, {}))[0] == 401


async def test_a_budget_of_money_ends_with_the_prices() -> None:
    async with keyed_gateway(price=["fake=1000000/1000000"]) as gateway:  # each token costs 1
        id, key = await gateway.make_key(budget_cost=20)
        statuses = [(await gateway.chat(key))[0] for _ in range(5)]
        assert statuses == [200, 200, 200, 429, 429], "each answer costs 8: 7 tokens of the prompt, and one"
        _, shown = await gateway.admin("GET", f"/{id}")
        assert shown["usage"]["cost"] == 24.0
