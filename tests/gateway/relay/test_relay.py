"""gateway/relay/relay.py: the choice of a server, its slots, and another attempt after a failure."""

import asyncio

import pytest

from gateway.engines.openai.engine import OpenAIEngine
from gateway.engines.openai.upstream import Upstream, UpstreamConfig
from gateway.engines.pool import EnginePool
from gateway.errors import RequestError
from gateway.relay import Relay, RelayedRequest
from tests.fakes.engine import FakeEngine
from tests.fakes.media_server import MediaServer

REQUEST = RelayedRequest("/v1/embeddings", "m", "t", "application/json", b'{"input": "a"}')


async def engine(server: MediaServer, *capabilities: str, name: str = "there", concurrency: int = 0) -> OpenAIEngine:
    upstream = Upstream(UpstreamConfig(name, "openai", server.url, concurrency=concurrency), lambda: None)
    await upstream.start()
    return OpenAIEngine(name, upstream, "m", capabilities=capabilities or ("embeddings",))


async def answer_of(relay: Relay, request: RelayedRequest = REQUEST) -> bytes:
    async with relay.send(request) as response:
        return await response.read()


async def test_work_goes_to_the_idlest_engine_that_can_do_it() -> None:
    async with MediaServer() as one, MediaServer() as other:
        first, second, chat = await engine(one), await engine(other), await engine(one, "chat")
        pool = EnginePool(1.0)
        for each in (chat, first, second):
            pool.add("m", each)
        relay = Relay(pool, 10)
        first.contexts = 1
        await answer_of(relay)
        assert (len(one.asked), len(other.asked)) == (0, 1)
        second.contexts = 2
        await answer_of(relay)
        assert (len(one.asked), len(other.asked)) == (1, 1)
        assert (first.contexts, second.contexts, chat.contexts) == (1, 2, 0)
        assert first.upstream.limiter.running == second.upstream.limiter.running == 0
        for each in (first, second, chat):
            await each.upstream.close()


async def test_an_engine_of_this_project_answers_no_such_request() -> None:
    pool = EnginePool(1.0)
    pool.add("m", FakeEngine())
    with pytest.raises(RequestError) as refused:
        await answer_of(Relay(pool, 10))
    assert (refused.value.status, refused.value.code, refused.value.param) == (400, "unsupported_by_engine", "model")
    with pytest.raises(RequestError) as refused:
        await answer_of(Relay(EnginePool(0.01), 10))
    assert refused.value.status == 503


async def test_slots_are_given_back_after_every_end() -> None:
    async with MediaServer() as server:
        only = await engine(server, concurrency=1)
        pool = EnginePool(1.0)
        pool.add("m", only)
        relay = Relay(pool, 2)
        for statuses in ([200], [400], [500, 200], [404]):
            server.statuses = list(statuses)
            if statuses[-1] == 200:
                await answer_of(relay)
            else:
                with pytest.raises(RequestError):
                    await answer_of(relay)
            assert (only.contexts, only.upstream.limiter.running) == (0, 0)
        server.pieces = [b"x"]
        async with relay.send(REQUEST):
            waiting = asyncio.create_task(answer_of(relay))
            await asyncio.sleep(0.05)
            assert only.upstream.limiter.running == 1, "the other request waits for the slot"
            with pytest.raises(RequestError) as refused:
                await answer_of(relay)
            assert refused.value.code == "overloaded"
            waiting.cancel()
            await asyncio.gather(waiting, return_exceptions=True)
        assert (only.contexts, only.upstream.limiter.running) == (0, 0)
        server.pieces = []
        await answer_of(relay)
        await only.upstream.close()


async def test_a_busy_server_says_when_to_come_back() -> None:
    async with MediaServer() as server:
        only = await engine(server)
        pool = EnginePool(0.01)
        pool.add("m", only)
        server.statuses = [429] * 3
        with pytest.raises(RequestError) as refused:
            await answer_of(Relay(pool, 2))
        assert refused.value.status in (429, 503)
        assert "Retry-After" in refused.value.headers
        await only.upstream.close()
