"""gateway/api/openai/relayed.py: embeddings, rerank, speech, transcription and images reach upstream servers unchanged."""

import asyncio
import hashlib
import io
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from typing import Any

import aiohttp
import pytest
from aiohttp import MultipartWriter
from prometheus_client import REGISTRY

from gateway.telemetry.metrics import render_metrics
from tests.fakes.in_process_gateway import GatewayClient, gateway_of
from tests.fakes.media_server import MediaServer

BODIES: dict[str, dict[str, Any]] = {
    "/v1/embeddings": {"input": ["a", "é"], "dimensions": 5, "encoding_format": "base64", "big": 2**70, "f": 1.5e-300},
    "/rerank": {"query": "q", "documents": ["a", "b"], "top_n": 1},
    "/v1/rerank": {"query": "q", "documents": ["a", "b"]},
    "/v2/rerank": {"query": "q", "documents": ["a", "b"]},
    "/score": {"text_1": "a", "text_2": ["b"]},
    "/v1/score": {"queries": "a", "documents": ["b"]},
    "/v1/audio/speech": {"input": "Hello", "voice": "alloy"},
    "/v1/images/generations": {"prompt": "a bee", "n": 2},
}
FORMS = ("/v1/audio/transcriptions", "/v1/audio/translations", "/v1/images/edits")


def gateway(
    *servers: MediaServer, timeout: float = 60.0, **settings: Any
) -> AbstractAsyncContextManager[GatewayClient]:
    """Return a client of a gateway in front of the servers. `timeout`: longest silence of a server, in seconds."""
    engines = [{"kind": "openai", "url": server.url, "timeout": timeout} for server in servers]
    return gateway_of(engines, **settings)


def form(data: bytes, *, model: Any = "fake", model_last: bool = False) -> MultipartWriter:
    """Return a form with a file of the data."""
    writer = MultipartWriter("form-data")
    parts = [("language", b"de", {}), ("file", io.BytesIO(data), {"filename": "ä b.wav"})]
    parts = [*parts, ("model", model, {})] if model_last else [("model", model, {}), *parts]
    for name, value, more in parts:
        if value is not None:
            part = writer.append(value, {"Content-Type": "audio/wav"} if more else {})  # type: ignore[arg-type]
            part.set_content_disposition("form-data", quote_fields=False, name=name, **more)
    return writer


def metric(name: str, **labels: str) -> float:
    render_metrics({})
    return REGISTRY.get_sample_value(name, labels) or 0.0


@pytest.mark.parametrize("path", BODIES)
async def test_bodies_and_answers_are_passed_on(path: str) -> None:
    async with MediaServer() as server, gateway(server, engine_key=["openai=secret"], alias=["other=fake"]) as client:
        before = metric("myna_relayed_tokens_total", model="fake", route=path)
        for name in ("fake", "other"):
            body = {**BODIES[path], "model": name}
            async with client.post(path, json=body, headers={"Authorization": "Bearer mine"}) as answer:
                assert (answer.status, answer.content_type) == (200, "application/json")
                assert (await answer.json())["asked"] == path
                assert "x-request-id" in answer.headers
                assert "Server-Secret" not in answer.headers
            asked = server.asked.pop()
            assert asked == {
                "path": path,
                "key": "Bearer secret",
                "traceparent": None,
                "body": {**body, "model": "fake"},
            }
        assert metric("myna_relayed_tokens_total", model="fake", route=path) == before + 10


@pytest.mark.parametrize("path", FORMS)
@pytest.mark.parametrize("size", [0, 10, 3_000_000])
@pytest.mark.parametrize("model_last", [False, True])
async def test_forms_are_streamed(path: str, size: int, model_last: bool) -> None:
    data = bytes(range(256)) * (size // 256 + 1)
    data = data[:size]
    async with MediaServer() as server, gateway(server, alias=["other=fake"]) as client:
        async with client.post(path, data=form(data, model="other", model_last=model_last)) as answer:
            assert answer.status == 200, await answer.text()
        file = ("ä b.wav", "audio/wav", size, hashlib.sha256(data).hexdigest())
        fields = [("model", "fake"), ("language", "de"), ("file", file)]
        assert server.asked == [{"path": path, "key": None, "traceparent": None, "form": fields}]


async def test_an_answer_is_streamed_and_a_disconnect_ends_it() -> None:
    body = {**BODIES["/v1/audio/speech"], "model": "fake"}
    async with MediaServer() as server, gateway(server) as client:
        server.pieces = [b"one", b"two"]
        async with client.post("/v1/audio/speech", json=body) as answer:
            assert answer.content_type == "audio/mpeg"
            assert await answer.content.readany() == b"one"  # before the second piece exists
            server.go_on.set()
            assert await answer.content.readany() == b"two"
            server.go_on.set()
            assert await answer.content.readany() == b""
        async with client.post("/v1/audio/speech", json=body) as answer:
            assert await answer.content.readany() == b"one"
            answer.close()
        async with asyncio.timeout(5):
            await server.aborted.wait()
        server.aborted.clear()
        server.reads = False
        asking = asyncio.create_task(client.post("/v1/audio/speech", json=body))
        await asyncio.sleep(0.1)
        asking.cancel()
        async with asyncio.timeout(5):
            await server.aborted.wait()


async def test_a_client_that_leaves_before_the_end_pays_for_the_answer() -> None:
    admin = {"Authorization": "Bearer admin-key-of-the-tests"}
    async with MediaServer() as server, gateway(server, admin_key=["admin-key-of-the-tests"]) as client:
        async with client.post("/v1/admin/keys", json={"budget_tokens": 10_000}, headers=admin) as answer:
            made = await answer.json()
        server.pieces, server.content_type = (
            [b'{"data":["most of the answer"],', b'"usage":{"prompt_tokens":5}}'],
            "application/json",
        )
        body, own = {"model": "fake", "input": "x" * 1_000}, {"Authorization": f"Bearer {made['key']}"}
        async with client.post("/v1/embeddings", json=body, headers=own) as answer:
            assert (await answer.content.readany()).startswith(b'{"data"')
            answer.close()
        async with asyncio.timeout(5):
            await server.aborted.wait()
        await asyncio.sleep(0.05)
        async with client.get(f"/v1/admin/keys/{made['id']}", headers=admin) as answer:
            counted = (await answer.json())["usage"]
        assert 500 <= counted["tokens"] <= 600
        assert counted["reserved_tokens"] == 0
        async with client.get("/v1/usage", headers=own) as answer:
            (row,) = (await answer.json())["data"]
        assert (row["calls"], row["prompt_tokens"]) == (1, counted["tokens"])


@pytest.mark.parametrize("name", ["prompt_tokens", "total_tokens"])
async def test_tokens_are_counted_wherever_the_answer_has_them(name: str) -> None:
    """Answer as vLLM's rerank does: the usage is before many results, which repeat texts of the request."""
    result = rb'{"document":{"text":"\"prompt_tokens\":0,\"total_tokens\":0"}},'
    async with MediaServer() as server, gateway(server, ledger="on") as client:
        server.pieces = [b'{"id":"a","usage":{"%s":77},"results":[' % name.encode(), result * 100, b"{}]}"]
        server.content_type = "application/json"
        asking = asyncio.create_task(client.post("/rerank", json={**BODIES["/rerank"], "model": "fake"}))
        while not asking.done() or server.go_on.is_set():
            server.go_on.set()
            await asyncio.sleep(0.01)
        for _ in range(3):
            server.go_on.set()
            await asyncio.sleep(0.01)
        assert (await (await asking).read()).endswith(b"{}]}")
        async with client.get("/v1/usage") as answer:
            (row,) = (await answer.json())["data"]
        assert row["prompt_tokens"] == 77


async def test_a_server_that_does_not_read_slows_the_client_down() -> None:
    sent = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal sent
        yield b'--b\r\nContent-Disposition: form-data; name="model"\r\n\r\nfake\r\n'
        yield b'--b\r\nContent-Disposition: form-data; name="file"\r\n\r\n'
        while True:
            sent += 65_536
            yield b"x" * 65_536

    async with MediaServer() as server, gateway(server, timeout=2.0) as client:
        server.reads = False
        headers = {"Content-Type": "multipart/form-data; boundary=b"}
        asking = asyncio.create_task(client.post(FORMS[0], data=endless(), headers=headers))
        before = -1
        async with asyncio.timeout(10):
            while sent != before:
                before = sent
                await asyncio.sleep(0.3)
        assert sent < 50 << 20
        async with asyncio.timeout(10), await asking as answer:
            assert (answer.status, "no data" in await answer.text()) == (503, True)


@pytest.mark.parametrize(
    ("status", "expected", "code"),
    [
        (400, 400, "engine_refused"),
        (404, 400, "engine_refused"),
        (401, 503, "engine_failed"),
        (500, 503, "engine_failed"),
    ],
)
async def test_errors_of_the_server(status: int, expected: int, code: str) -> None:
    async with MediaServer() as server, gateway(server) as client:
        server.statuses = [status] * 3
        async with client.post("/v1/embeddings", json={"model": "fake", "input": "a"}) as answer:
            error = (await answer.json())["error"]
            assert (answer.status, error["code"]) == (expected, code)
        assert len(server.asked) == (3 if status == 500 else 1)
        server.statuses = [500, 200]
        async with client.post("/v1/embeddings", json={"model": "fake", "input": "a"}) as answer:
            assert answer.status == 200, "another attempt succeeds"


async def test_requests_go_to_the_server_that_can_answer() -> None:
    first, second = MediaServer(capabilities=["embeddings", 5]), MediaServer(capabilities=["speech"])
    async with first, second, gateway(first, second) as client:
        for _ in range(3):
            async with client.post("/v1/embeddings", json={"model": "fake", "input": "a"}) as answer:
                assert answer.status == 200
            async with client.post("/v1/audio/speech", json={"model": "fake", "input": "a"}) as answer:
                assert answer.status == 200
        assert {asked["path"] for asked in first.asked} == {"/v1/embeddings"}
        assert {asked["path"] for asked in second.asked} == {"/v1/audio/speech"}
        async with client.get("/v1/models") as answer:
            (model,) = (await answer.json())["data"]
        assert model["capabilities"] == ["embeddings", "speech"]


@pytest.mark.parametrize(
    ("path", "body", "status", "param"),
    [
        ("/v1/embeddings", {"input": "a"}, 400, "model"),
        ("/v1/embeddings", {"model": "fake"}, 400, "input"),
        ("/v1/embeddings", {"model": 5, "input": "a"}, 400, "model"),
        ("/v1/embeddings", {"model": "x" * 5_000, "input": "a"}, 400, "model"),
        ("/v1/embeddings", {"model": "absent", "input": "a"}, 404, "model"),
        ("/v1/rerank", {"model": "fake", "query": "a"}, 400, "documents"),
        ("/v1/audio/speech", {"model": "fake", "input": ""}, 400, "input"),
        ("/v1/images/generations", {"model": "fake", "prompt": 5}, 400, "prompt"),
        ("/v1/embeddings", [], 400, None),
    ],
)
async def test_invalid_bodies(path: str, body: Any, status: int, param: str | None) -> None:
    async with MediaServer() as server, gateway(server) as client:
        async with client.post(path, json=body) as answer:
            error = (await answer.json())["error"]
        assert (answer.status, error["param"]) == (status, param), error
        assert server.asked == []


HEAD = b'--b\r\nContent-Disposition: form-data; name="model"\r\n\r\nfake\r\n'
FILE = b'--b\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'


@pytest.mark.parametrize(
    ("content", "status"),
    [
        (b"", 400),
        (b"junk", 400),
        (b"--b--\r\n", 400),
        (HEAD, 400),
        (HEAD + FILE + b"cut", 400),
        (HEAD + HEAD + b"--b--\r\n", 400),
        (HEAD + b"--b\r\n\r\nno name\r\n--b--\r\n", 400),
        (
            HEAD
            + b'--b\r\nContent-Disposition: form-data; name="x"\r\nContent-Type: multipart/mixed; boundary=c\r\n\r\n--c--\r\n--b--\r\n',
            400,
        ),
        (HEAD.replace(b"fake", b"absent") + b"--b--\r\n", 404),
        (HEAD.replace(b"fake", b"x" * 2_000) + b"--b--\r\n", 413),
        (HEAD.replace(b"fake", b"\xff\xfe") + b"--b--\r\n", 400),
        (FILE + b"x" * 60_000 + b"\r\n" + HEAD + b"--b--\r\n", 413),
        (HEAD + FILE + b"x" * 60_000 + b"\r\n--b--\r\n", 413),
        (HEAD + (FILE + b"x\r\n") * 200 + b"--b--\r\n", 400),
        (HEAD + b"--b\r\n" + b"X: " + b"y" * 20_000 + b"\r\n\r\nx\r\n--b--\r\n", 400),
    ],
)
async def test_invalid_forms(content: bytes, status: int) -> None:
    headers = {"Content-Type": "multipart/form-data; boundary=b"}
    async with MediaServer() as server, gateway(server, max_upload_bytes=50_000) as client:
        for data in (content, _pieces(content)):
            async with client.post(FORMS[0], data=data, headers=headers) as answer:
                assert answer.status == status, await answer.text()
                assert "error" in await answer.json()
        assert server.asked == []
        async with client.post(FORMS[0], data=form(b"x")) as answer:
            assert answer.status == 200


async def _pieces(content: bytes) -> AsyncIterator[bytes]:
    for begin in range(0, len(content), 7_000):
        yield content[begin : begin + 7_000]
        await asyncio.sleep(0)


async def test_a_body_that_is_no_form_is_refused() -> None:
    async with MediaServer() as server, gateway(server) as client:
        for kind in ("application/json", "multipart/mixed; boundary=b", "multipart/form-data", "text/plain"):
            async with client.post(FORMS[0], data=b"{}", headers={"Content-Type": kind}) as answer:
                assert answer.status == 400, kind


async def test_the_number_of_unanswered_requests_is_limited() -> None:
    async with MediaServer() as server, gateway(server, max_calls=2) as client:
        server.pieces = [b"one"]
        body = {"model": "fake", "input": "a"}
        async with client.post("/v1/audio/speech", json=body), client.post("/v1/audio/speech", json=body):
            async with client.post("/v1/audio/speech", json=body) as refused:
                assert (refused.status, (await refused.json())["error"]["code"]) == (429, "overloaded")
                assert "Retry-After" in refused.headers
            server.go_on.set()
            await asyncio.sleep(0.1)
            server.go_on.set()
        await asyncio.sleep(0.1)
        server.pieces = []
        async with client.post("/v1/audio/speech", json=body) as answer:
            assert answer.status == 200


async def test_the_openai_package_reads_the_answers() -> None:
    openai = pytest.importorskip("openai")
    async with MediaServer() as server, gateway(server) as client:
        api = openai.AsyncOpenAI(base_url=str(client.make_url("/v1")), api_key="none", max_retries=0)
        server.pieces = [b"sound"]
        server.go_on.set()
        speech = await api.audio.speech.create(model="fake", voice="alloy", input="Hi")
        assert speech.content == b"sound"
        server.pieces = []
        await api.audio.transcriptions.create(model="fake", file=("a.wav", b"RIFF"), language="de")
        assert ("model", "fake") in server.asked[-1]["form"]
        await api.images.edit(model="fake", image=[("a.png", b"1"), ("b.png", b"2")], prompt="bees")
        assert [name for name, _ in server.asked[-1]["form"]].count("image[]") == 2
        await api.close()


async def test_an_answer_that_breaks_off_breaks_off_for_the_client() -> None:
    async with MediaServer() as server, gateway(server) as client:
        server.pieces = [b"x" * 100, b"never"]
        with pytest.raises(aiohttp.ClientError):
            async with client.post("/v1/audio/speech", json={"model": "fake", "input": "a"}) as answer:
                assert await answer.content.readany()
                assert server._runner is not None
                for site in server._runner.server.connections:  # type: ignore[union-attr]
                    site.transport.abort()  # type: ignore[union-attr]
                await answer.read()
