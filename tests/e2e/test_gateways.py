"""Two gateways on one journal in PostgreSQL: one of them owns a session, and clients may use either."""

import asyncio
import io
import json
import os
import signal
import ssl
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import aiohttp
import psutil
import pytest
import trustme

from bench.chaos import chaos
from tests.fakes.checkpoints import write_tiny_llama
from tests.fakes.gateway_harness import GatewayHarness
from tests.fakes.postgres_server import PostgresServer, running_postgres

pytestmark = pytest.mark.waits

LONG = 3000
"""Number of tokens whose generation takes some time."""
FIRST = {"regex": "(?s)^.{0,30}"}
"""Transform of a long answer into a value that fits into another prompt."""


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a small model that loads fast."""
    return write_tiny_llama(tmp_path_factory.mktemp("models") / "tiny", window=4096)


class GatewayPair:
    """Two gateways on one database, and an HTTP client for both."""

    def __init__(self, postgres: PostgresServer, tiny: Path, *options: str) -> None:
        self.journal = postgres.database()
        self._arguments = ("--model", str(tiny), "--kv-tokens", "32768", "--journal", self.journal, *options)
        self.servers: list[GatewayHarness] = []
        self.http: aiohttp.ClientSession

    def start(self, *options: str) -> GatewayHarness:
        server = GatewayHarness(*self._arguments, *options)
        self.servers.append(server)
        return server

    async def ask(
        self, gateway: GatewayHarness, method: str, path: str, body: Any = None, key: str | None = None, **headers: str
    ) -> tuple[int, Any]:
        if key is not None:
            headers["Authorization"] = f"Bearer {key}"
        async with self.http.request(method, f"{gateway.address}/v1{path}", json=body, headers=headers) as response:
            return response.status, await response.json()

    async def defer(
        self,
        gateway: GatewayHarness,
        session: str,
        output: str,
        text: str = "Hi",
        transform: Any = None,
        **options: Any,
    ) -> tuple[int, Any]:
        options = {"max_tokens": 4, "temperature": 0, **options}
        body = {"model": "tiny", "messages": [{"role": "user", "content": text}], **options}
        body["semantic"] = {"output": output, "defer": True, "transform": transform}
        return await self.ask(gateway, "POST", "/chat/completions", body, **{"X-Semantic-Session": session})

    async def value(self, gateway: GatewayHarness, session: str, name: str) -> Any:
        status, variable = await self.ask(gateway, "GET", f"/sessions/{session}/variables/{name}?wait=true&timeout=60")
        assert status == 200, variable
        return variable

    async def close(self) -> None:
        for server in self.servers:
            with suppress(ProcessLookupError):
                psutil.Process(server.process.pid).resume() if server.process.poll() is None else None
            await asyncio.to_thread(server.stop, signal.SIGKILL)


@pytest.fixture(scope="module")
def pair_module(postgres: PostgresServer, tiny: Path) -> Iterator[GatewayPair]:
    pair = GatewayPair(postgres, tiny)
    try:
        pair.start()
        pair.start()
        yield pair
    finally:
        for server in pair.servers:
            server.stop()


@pytest.fixture
async def pair(pair_module: GatewayPair) -> AsyncIterator[GatewayPair]:
    """Yield two gateways that all tests share, so no test may kill them."""
    async with aiohttp.ClientSession() as pair_module.http:
        yield pair_module


@pytest.fixture
async def killable_pair(postgres: PostgresServer, tiny: Path) -> AsyncIterator[GatewayPair]:
    """Yield two gateways that the test may kill."""
    pair = GatewayPair(postgres, tiny, "--lease", "3")
    async with aiohttp.ClientSession() as pair.http:
        try:
            await asyncio.gather(asyncio.to_thread(pair.start), asyncio.to_thread(pair.start))
            yield pair
        finally:
            await pair.close()


@pytest.mark.slow
async def test_no_accepted_work_is_lost_while_gateways_are_killed_and_stopped(
    postgres: PostgresServer, tiny: Path
) -> None:
    # two gateways under load are killed in turns, each for longer than its lease
    arguments = ["--model", str(tiny), "--kv-tokens", "65536", "--lease", "3"]
    report = await chaos(
        arguments,
        engine_kills=0,
        gateway_kills=1,
        gateway_stops=1,
        clients=4,
        seed=11,
        journal=postgres.database(),
        gateways=2,
        away=4.0,
    )
    assert report["ready"] > 50, "the load made progress"
    assert report["retries"] > 0, "the kills had an effect"


async def test_gateways_forward_over_tls(postgres: PostgresServer, tiny: Path, tmp_path: Path) -> None:
    authority = trustme.CA()
    trusted, chain, key = (tmp_path / name for name in ("ca.pem", "chain.pem", "key.pem"))
    certificate = authority.issue_cert("127.0.0.1")
    authority.cert_pem.write_to_path(str(trusted))
    chain.write_bytes(b"".join(blob.bytes() for blob in certificate.cert_chain_pems))
    certificate.private_key_pem.write_to_path(str(key))
    secured = ("--tls-cert", str(chain), "--tls-key", str(key), "--engine-ca", str(trusted))
    pair = GatewayPair(postgres, tiny, *secured)
    trust = ssl.create_default_context(cafile=trusted)
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=trust)) as pair.http:
        try:
            a, b = await asyncio.gather(asyncio.to_thread(pair.start), asyncio.to_thread(pair.start))
            assert a.address.startswith("https://")
            assert (await pair.ask(a, "POST", "/sessions", {"id": "s"}))[0] == 201
            assert (await pair.defer(b, "s", "first"))[0] == 200
            assert (await pair.value(b, "s", "first"))["state"] == "ready"
        finally:
            await pair.close()


async def test_a_session_is_the_same_at_both_gateways(pair: GatewayPair) -> None:
    a, b = pair.servers
    status, made = await pair.ask(a, "POST", "/sessions", {"id": "same", "metadata": {"k": "v"}})
    assert status == 201
    assert (await pair.ask(b, "PUT", "/sessions/same/variables/x", {"value": "there"}))[0] == 200
    assert (await pair.defer(b, "same", "first", "Say <<x>>"))[0] == 200
    assert (await pair.defer(a, "same", "second", "Again <<first>>"))[0] == 200
    values = [await pair.value(gateway, "same", "second") for gateway in (b, a)]
    assert values[0] == values[1]
    assert values[0]["state"] == "ready"
    for path in ("/sessions/same/graph", "/sessions/same/variables", "/sessions/same/variables/x"):
        result = [await pair.ask(gateway, "GET", path) for gateway in (a, b)]
        assert result[0] == result[1]
    sessions = [(await pair.ask(gateway, "GET", "/sessions/same"))[1] for gateway in (a, b)]
    assert [one["metadata"] for one in sessions] == [{"k": "v"}] * 2
    assert made["id"] == "same"
    body = {"session": "same", "calls": [], "variables": {"y": "z"}, "outputs": ["y"]}
    status, answer = await pair.ask(b, "POST", "/graphs", body)
    assert (status, answer["outputs"]["y"]) == (200, "z")
    prompt = {"model": "tiny", "prompt": "<<x>>", "max_tokens": 2, "semantic": {"session": "same", "output": "third"}}
    assert (await pair.ask(b, "POST", "/completions", prompt))[1]["semantic"]["session"] == "same"
    assert (await pair.ask(b, "DELETE", "/sessions/same"))[1]["state"] == "deleted"
    assert [(await pair.ask(gateway, "GET", "/sessions/same"))[0] for gateway in (a, b)] == [404, 404]
    assert (await pair.ask(b, "POST", "/sessions", {"id": "same"}))[0] == 201, "the name is free"
    assert (await pair.ask(a, "GET", "/sessions/same/variables"))[1]["data"] == []


async def test_forwarded_streams_arrive_as_they_are_generated(pair: GatewayPair) -> None:
    a, b = pair.servers
    await pair.ask(a, "POST", "/sessions", {"id": "streams"})
    await pair.ask(b, "PUT", "/sessions/streams/variables/late", {"value": None})
    assert (await pair.defer(b, "streams", "told", "<<late>>", max_tokens=300, ignore_eos=True))[0] == 200
    pieces: list[float] = []
    text = ""
    headers = {"Accept": "text/event-stream"}
    late = asyncio.create_task(pair.ask(b, "PUT", "/sessions/streams/variables/late", {"value": "now"}))
    async with pair.http.get(f"{b.address}/v1/sessions/streams/variables/told", headers=headers) as response:
        assert response.headers["Content-Type"].startswith("text/event-stream")
        async for line in response.content:
            if line.startswith(b"data: "):
                pieces.append(time.monotonic())
                text += line.decode()
    assert (await late)[0] == 200
    assert len(pieces) > 5
    assert pieces[-1] - pieces[0] > 0.02, "the pieces did not arrive together"
    body = {
        "model": "tiny",
        "stream": True,
        "messages": [{"role": "user", "content": "Hi <<late>>"}],
        "max_tokens": 20,
        "semantic": {"session": "streams"},
    }
    async with pair.http.post(f"{b.address}/v1/chat/completions", json=body) as response:
        events = [line async for line in response.content if line.startswith(b"data: ")]
    assert events[-1] == b"data: [DONE]\n"
    async with pair.http.get(f"{b.address}/v1/sessions/streams/events") as response:
        first = await response.content.readuntil(b"\n\n")
    assert b"id: 1\n" in first


async def test_a_disconnect_is_forwarded_to_the_other_gateway(pair: GatewayPair) -> None:
    a, b = pair.servers
    await pair.ask(a, "POST", "/sessions", {"id": "left"})
    messages = [{"role": "user", "content": "Hi"}]
    body = {"model": "tiny", "messages": messages, "max_tokens": LONG, "ignore_eos": True}
    body["semantic"] = {"session": "left", "output": "unread"}
    asking = asyncio.create_task(pair.ask(b, "POST", "/chat/completions", body))
    async with asyncio.timeout(30):
        while not (await pair.ask(a, "GET", "/sessions/left/graph"))[1]["calls"]:
            await asyncio.sleep(0.02)
    asking.cancel()
    async with asyncio.timeout(30):
        while (await pair.ask(a, "GET", "/sessions/left/graph"))[1]["calls"][0]["state"] != "cancelled":
            await asyncio.sleep(0.02)


async def test_either_gateway_can_continue_a_response(killable_pair: GatewayPair) -> None:
    a, b = killable_pair.servers
    body = {"model": "tiny", "input": "Hi", "max_output_tokens": 4, "temperature": 0}
    _, first = await killable_pair.ask(a, "POST", "/responses", body)
    fields = {**body, "previous_response_id": first["id"]}
    (status, here), (_, there) = [await killable_pair.ask(gateway, "POST", "/responses", fields) for gateway in (a, b)]
    assert status == 200
    assert there["output"][0]["content"] == here["output"][0]["content"]
    assert there["usage"]["input_tokens"] == here["usage"]["input_tokens"] > first["usage"]["input_tokens"]
    assert await killable_pair.ask(b, "GET", f"/responses/{first['id']}") == (200, first)
    assert (await killable_pair.ask(b, "DELETE", f"/responses/{first['id']}"))[0] == 200
    for gateway in (a, b):
        status, refused = await killable_pair.ask(gateway, "POST", "/responses", fields)
        assert (status, refused["error"]["code"]) == (400, "previous_response_not_found")
    fields["previous_response_id"] = here["id"]
    await asyncio.to_thread(a.stop, signal.SIGKILL)
    status, further = await killable_pair.ask(b, "POST", "/responses", fields)
    assert status == 200, "both gateways stored it"
    assert further["usage"]["input_tokens"] > here["usage"]["input_tokens"]


async def test_a_surviving_gateway_finishes_background_responses(killable_pair: GatewayPair) -> None:
    a, b = killable_pair.servers
    body = {"model": "tiny", "input": "Hi", "max_output_tokens": LONG, "temperature": 0, "background": True}
    body["ignore_eos"] = True
    ids = [(await killable_pair.ask(a, "POST", "/responses", body))[1]["id"] for _ in range(2)]
    inside = {**body, "semantic": {"output": "told"}}
    await killable_pair.ask(a, "POST", "/sessions", {"id": "s"})
    async with killable_pair.http.post(
        f"{a.address}/v1/responses", json=inside, headers={"X-Semantic-Session": "s"}
    ) as response:
        ids.append((await response.json())["id"])
    for id in ids:
        status, result = await killable_pair.ask(b, "GET", f"/responses/{id}")
        assert (status, result["status"]) in ((200, "queued"), (200, "in_progress")), (
            "the other gateway reports the state"
        )
    status, result = await killable_pair.ask(b, "POST", f"/responses/{ids[0]}/cancel")
    assert (status, result["status"]) == (200, "cancelled")
    a.process.kill()
    for id in ids[1:]:
        async with asyncio.timeout(60):
            while True:
                status, result = await killable_pair.ask(b, "GET", f"/responses/{id}")
                if status == 200 and result["status"] not in ("queued", "in_progress"):
                    break
                await asyncio.sleep(0.1)
        assert (result["status"], result["usage"]["output_tokens"]) == ("incomplete", LONG)
    assert (await killable_pair.ask(b, "GET", f"/responses/{ids[0]}"))[1]["status"] == "cancelled"
    async with asyncio.timeout(10):
        while [one["id"] for one in (await killable_pair.ask(b, "GET", "/sessions"))[1]["data"]] != ["s"]:
            await asyncio.sleep(0.05)


async def test_only_one_of_concurrent_requests_creates_a_session(pair: GatewayPair) -> None:
    for number in range(5):
        bodies = [pair.ask(gateway, "POST", "/sessions", {"id": f"once-{number}"}) for gateway in pair.servers * 4]
        answers = await asyncio.gather(*bodies)
        assert sorted(status for status, _ in answers) == [201] + [409] * 7
        assert {answer["error"]["code"] for status, answer in answers if status == 409} == {"session_exists"}


async def test_concurrent_calls_share_the_session_that_they_create(pair: GatewayPair) -> None:
    pending = [pair.defer(gateway, "shared", f"v{number}") for number, gateway in enumerate(pair.servers * 4)]
    answers = await asyncio.gather(*pending)
    assert [status for status, _ in answers] == [200] * 8
    for gateway in pair.servers:
        names = {one["name"] for one in (await pair.ask(gateway, "GET", "/sessions/shared/variables"))[1]["data"]}
        assert names == {f"v{number}" for number in range(8)}


async def test_an_agents_header_joins_a_session_only_for_names_that_it_knows(pair: GatewayPair) -> None:
    await pair.defer(pair.servers[0], "agents", "bird")
    bird = (await pair.value(pair.servers[0], "agents", "bird"))["value"]
    prompts: dict[str, int] = {}
    for gateway in pair.servers:
        for session in ("agents", "unknown-to-all"):
            headers = {"x-session-id": session, "x-session-affinity": session}
            for text in ("Hi", "<<interface>> kernel<<<n>>>", "See <<bird>> <<interface>>"):
                body = {"model": "tiny", "messages": [{"role": "user", "content": text}], "max_tokens": 1}
                status, answer = await pair.ask(gateway, "POST", "/chat/completions", body, **headers)
                assert status == 200, answer
                joins = session == "agents" and "bird" in text
                assert answer.get("semantic", {}).get("session") == (session if joins else None)
                written = text.replace("<<bird>>", bird) if joins else text
                assert prompts.setdefault(written, answer["usage"]["prompt_tokens"]) == answer["usage"]["prompt_tokens"]
        graph = (await pair.ask(gateway, "GET", "/sessions/agents/graph"))[1]
        assert len(graph["calls"]) == 2 + pair.servers.index(gateway)
        assert (await pair.ask(gateway, "GET", "/sessions/unknown-to-all"))[0] == 404


async def test_errors_are_the_same_at_both_gateways(pair: GatewayPair) -> None:
    a, b = pair.servers
    await pair.ask(a, "POST", "/sessions", {"id": "refuses"})
    bad = {"model": "tiny", "messages": [{"role": "user", "content": "<<nobody>>"}]}
    for gateway in (a, b):
        headers = {"X-Semantic-Session": "refuses"}
        status, answer = await pair.ask(gateway, "POST", "/chat/completions", bad, **headers)
        assert (status, answer["error"]["code"]) == (400, "unknown_variable")
        assert answer["error"]["param"] == "messages.0.content"
        for unknown in ("nobody", "%00", "%FF", "a%2Fb", "x" * 200):
            assert (await pair.ask(gateway, "GET", f"/sessions/{unknown}"))[0] == 404
        assert (await pair.ask(gateway, "GET", "/sessions/refuses/variables/x"))[0] == 404
        elsewhere = {**bad, "semantic": {"session": "another"}}
        answer = (await pair.ask(gateway, "POST", "/chat/completions", elsewhere, **headers))[1]
        assert answer["error"]["code"] == "session_conflict"
        headers = {"X-Semantic-Session": "no id at all"}
        answer = (await pair.ask(gateway, "POST", "/chat/completions", bad, **headers))[1]
        assert answer["error"]["code"] == "invalid_value"
        async with pair.http.post(f"{gateway.address}/v1/sessions", data=b"{") as response:
            assert (response.status, (await response.json())["error"]["code"]) == (400, "invalid_json")
        large = io.BytesIO(b'{"id": "' + b"x" * (17 << 20) + b'"}')
        async with pair.http.post(f"{gateway.address}/v1/sessions", data=large) as response:
            assert response.status == 413
        async with pair.http.get(
            f"{gateway.address}/v1/sessions/refuses", headers={"x-request-id": "mine"}
        ) as response:
            assert response.headers["x-request-id"] == "mine"
            assert len(response.headers.getall("Content-Type")) == 1


async def test_both_gateways_list_all_sessions(pair: GatewayPair) -> None:
    a, b = pair.servers
    await pair.ask(a, "POST", "/sessions", {"id": "list-a"})
    await pair.ask(b, "POST", "/sessions", {"id": "list-b"})
    listed = [[one["id"] for one in (await pair.ask(gateway, "GET", "/sessions"))[1]["data"]] for gateway in (a, b)]
    assert sorted(listed[0]) == sorted(listed[1])
    assert {"list-a", "list-b"} <= set(listed[0])
    assert len(set(listed[0])) == len(listed[0])


async def test_a_request_for_another_gateway_is_refused(pair: GatewayPair) -> None:
    status, answer = await pair.ask(pair.servers[0], "GET", "/sessions", **{"X-Myna-Forwarded-To": "12345"})
    assert (status, answer["error"]["code"]) == (421, "wrong_gateway")


async def test_another_gateway_finishes_the_work_of_a_lost_one(killable_pair: GatewayPair) -> None:
    a, b = killable_pair.servers
    assert (await killable_pair.ask(a, "POST", "/sessions", {"id": "s"}))[0] == 201
    assert (await killable_pair.defer(a, "s", "short"))[0] == 200
    short = await killable_pair.value(a, "s", "short")
    assert (await killable_pair.defer(a, "s", "long", "<<short>>", FIRST, max_tokens=LONG, ignore_eos=True))[0] == 200
    assert (await killable_pair.defer(b, "s", "next", "<<long>>"))[0] == 200
    waiting = asyncio.create_task(killable_pair.value(b, "s", "next"))  # the other gateway owns the session
    await asyncio.sleep(0.3)
    assert not waiting.done()
    a.process.kill()
    assert (await waiting)["state"] == "ready"
    assert (await killable_pair.value(b, "s", "short"))["value"] == short["value"]
    assert (await killable_pair.ask(b, "GET", "/sessions"))[1]["data"][0]["id"] == "s"
    assert (await killable_pair.defer(b, "s", "more", "<<next>>"))[0] == 200
    again = await asyncio.to_thread(killable_pair.start)
    assert (await killable_pair.value(again, "s", "more"))["state"] == "ready"
    graphs = [await killable_pair.ask(gateway, "GET", "/sessions/s/graph") for gateway in (b, again)]
    assert graphs[0] == graphs[1]


async def test_another_gateway_continues_the_forms_of_a_lost_one(killable_pair: GatewayPair) -> None:
    a, b = killable_pair.servers
    assert (await killable_pair.ask(a, "POST", "/sessions", {"id": "s"}))[0] == 201
    body = {
        "model": "tiny",
        "messages": [{"role": "user", "content": "<<item>> <<index>>"}],
        "max_tokens": LONG,
        "temperature": 0,
        "ignore_eos": True,
        "semantic": {"output": "results", "defer": True, "each": {"over": ["one", "two", "three"]}},
    }
    assert (await killable_pair.ask(a, "POST", "/chat/completions", body, **{"X-Semantic-Session": "s"}))[0] == 200
    waiting = asyncio.create_task(killable_pair.value(b, "s", "results"))
    await asyncio.sleep(0.3)
    assert not waiting.done()
    a.process.kill()
    results = json.loads((await waiting)["value"])
    elements = [(await killable_pair.value(b, "s", f"results.{index}"))["value"] for index in range(3)]
    assert results == elements
    _, graph = await killable_pair.ask(b, "GET", "/sessions/s/graph")
    outputs = sorted(call["output"] for call in graph["calls"])
    assert outputs == ["results", "results.0", "results.1", "results.2"], "no element is lost or made twice"


async def test_a_stream_of_a_lost_gateway_ends_with_an_error(killable_pair: GatewayPair) -> None:
    a, b = killable_pair.servers
    await killable_pair.ask(a, "POST", "/sessions", {"id": "s"})
    messages = [{"role": "user", "content": "Hi"}]
    body = {"model": "tiny", "messages": messages, "max_tokens": LONG, "ignore_eos": True}
    body["semantic"] = {"session": "s"}
    whole = asyncio.create_task(killable_pair.ask(b, "POST", "/chat/completions", body))
    async with killable_pair.http.post(f"{b.address}/v1/chat/completions", json={**body, "stream": True}) as response:
        await response.content.readuntil(b"\n\n")
        a.process.kill()
        with pytest.raises(aiohttp.ClientError):
            await response.read()
    status, answer = await whole
    assert (status, answer["error"]["code"]) == (503, "gateway_lost"), (
        "the request may have had an effect, so it is not repeated"
    )


async def test_a_stopped_gateway_is_replaced_before_its_lease_ends(postgres: PostgresServer, tiny: Path) -> None:
    pair = GatewayPair(postgres, tiny, "--lease", "60", "--drain", "0")
    async with aiohttp.ClientSession() as pair.http:
        try:
            a, b = await asyncio.gather(asyncio.to_thread(pair.start), asyncio.to_thread(pair.start))
            assert (await pair.defer(a, "s", "long", max_tokens=LONG, ignore_eos=True))[0] == 200
            waiting = asyncio.create_task(pair.value(b, "s", "long"))
            await asyncio.sleep(0.2)
            assert await asyncio.to_thread(a.stop) == 0
            assert (await waiting)["state"] == "ready"
            assert [call["state"] for call in (await pair.ask(b, "GET", "/sessions/s/graph"))[1]["calls"]] == ["done"]
        finally:
            await pair.close()


async def test_a_frozen_gateway_exits_when_it_wakes_up(killable_pair: GatewayPair) -> None:
    a, b = killable_pair.servers
    await killable_pair.ask(a, "POST", "/sessions", {"id": "s"})
    assert (await killable_pair.defer(a, "s", "long", max_tokens=LONG, ignore_eos=True, temperature=1.0))[0] == 200
    processes = [psutil.Process(a.process.pid), *a.engine_processes()]
    for process in processes:
        process.suspend()
    value = await killable_pair.value(b, "s", "long")
    assert value["state"] == "ready"
    waiting = asyncio.create_task(killable_pair.value(a, "s", "long"))
    for process in processes:
        process.resume()
    assert await asyncio.to_thread(a.process.wait, 30) == 1
    assert any("other gateways have marked this one as dead" in line for line in a.log)
    with pytest.raises(aiohttp.ClientError):
        await waiting
    assert await killable_pair.value(b, "s", "long") == value
    for process in processes[1:]:
        process.wait(30)


def _keepalives(port: int) -> list[float]:
    """Return the seconds until the next keepalive probe, for each connection of this machine to a port."""
    times = []
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        _, _, remote, state, _, timer, *_ = line.split()
        kind, _, ticks = timer.partition(":")
        if state == "01" and kind == "02" and int(remote.partition(":")[2], 16) == port:
            times.append(int(ticks, 16) / os.sysconf("SC_CLK_TCK"))
    return times


async def test_a_forwarded_wait_notices_a_broken_network(pair: GatewayPair) -> None:
    a, b = pair.servers
    await pair.ask(a, "POST", "/sessions", {"id": "noticed"})
    await pair.ask(a, "PUT", "/sessions/noticed/variables/x", {"value": None})
    waiting = asyncio.create_task(pair.ask(b, "GET", "/sessions/noticed/variables/x?wait=true&timeout=60"))
    async with asyncio.timeout(30):
        while not (looks := _keepalives(int(a.address.rpartition(":")[2]))):
            await asyncio.sleep(0.05)
    assert max(looks) <= 5.0, "otherwise it would wait for hours"
    assert (await pair.ask(a, "PUT", "/sessions/noticed/variables/x", {"value": "there"}))[0] == 200
    assert (await waiting)[1]["value"] == "there"


async def test_gateways_that_reach_the_database_but_not_each_other(postgres: PostgresServer, tiny: Path) -> None:
    # both are alive, so no session is taken over; requests at the wrong gateway get an error
    pair = GatewayPair(postgres, tiny, "--lease", "2")
    async with aiohttp.ClientSession() as pair.http:
        try:
            a = await asyncio.to_thread(pair.start, "--advertise", "http://127.0.0.1:9")  # no server listens there
            b = await asyncio.to_thread(pair.start)
            await pair.ask(a, "POST", "/sessions", {"id": "s"})
            assert (await pair.ask(a, "PUT", "/sessions/s/variables/x", {"value": "kept"}))[0] == 200
            pending = [pair.ask(b, "GET", "/sessions/s/variables/x"), pair.defer(b, "s", "more", "<<x>>")]
            for status, answer in await asyncio.gather(*pending):
                assert (status, answer["error"]["code"]) == (503, "gateway_lost")
            assert (await pair.defer(b, "own", "y"))[0] == 200, "its own sessions continue"
            assert (await pair.value(a, "own", "y"))["state"] == "ready", "forwarding works in this direction"
            assert (await pair.value(a, "s", "x"))["value"] == "kept"
            assert (await pair.defer(a, "s", "more", "<<x>>"))[0] == 200, "the failed request had no effect"
            assert a.process.poll() is b.process.poll() is None
        finally:
            await pair.close()


async def test_gateways_survive_an_unavailable_database(tiny: Path) -> None:
    with running_postgres() as database:
        pair = GatewayPair(database, tiny, "--lease", "3")
        async with aiohttp.ClientSession() as pair.http:
            try:
                a, b = await asyncio.gather(asyncio.to_thread(pair.start), asyncio.to_thread(pair.start))
                assert (await pair.defer(a, "s", "before"))[0] == 200
                before = await pair.value(b, "s", "before")
                database.stop()
                await asyncio.sleep(4.5)  # the leases have ended, and neither gateway can renew its own
                plain = {"model": "tiny", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 2}
                assert [(await pair.ask(gateway, "POST", "/chat/completions", plain))[0] for gateway in (a, b)] == [
                    200,
                    200,
                ]
                assert await pair.value(a, "s", "before") == before, "the value is in memory"
                for gateway in (a, b):
                    status, answer = await pair.defer(gateway, "s", "refused")
                    assert (status, answer["error"]["code"]) == (503, "journal_failed")
                database.start()
                async with asyncio.timeout(30):
                    while (await pair.defer(b, "s", "after"))[0] != 200:
                        await asyncio.sleep(0.1)
                assert (await pair.value(a, "s", "after"))["state"] == "ready"
                assert await pair.value(b, "s", "before") == before
                await asyncio.sleep(4.0)
                assert a.process.poll() is b.process.poll() is None
            finally:
                await pair.close()


async def test_expired_sessions_are_gone_at_both_gateways(postgres: PostgresServer, tiny: Path) -> None:
    pair = GatewayPair(postgres, tiny, "--session-ttl", "0.5")
    async with aiohttp.ClientSession() as pair.http:
        try:
            a, b = await asyncio.gather(asyncio.to_thread(pair.start), asyncio.to_thread(pair.start))
            await pair.ask(a, "POST", "/sessions", {"id": "s"})
            async with asyncio.timeout(30):
                while (await pair.ask(a, "GET", "/sessions"))[1]["data"]:
                    await asyncio.sleep(0.2)
            answers = [await pair.ask(gateway, "GET", "/sessions/s") for gateway in (b, a)]
            assert [(status, answer["error"]["code"]) for status, answer in answers] == [(410, "session_expired")] * 2
        finally:
            await pair.close()


def test_an_unreachable_database_stops_the_start_with_a_one_line_error(tiny: Path) -> None:
    command = [sys.executable, "-m", "gateway", "serve", "--port", "0", "--model", str(tiny)]
    ended = subprocess.run(
        [*command, "--journal", "postgresql://u:secret@127.0.0.1:1/x"], capture_output=True, text=True, timeout=60
    )
    assert ended.returncode == 1
    (line,) = ended.stderr.splitlines()
    assert line.startswith("myna: the journal at postgresql://127.0.0.1:1/x cannot be used")
    assert "secret" not in line
