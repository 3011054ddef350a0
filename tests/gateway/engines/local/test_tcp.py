"""gateway/engines/local/tcp.py and engine/server/tcp.py: a real engine with a tiny model, over TCP."""

import asyncio
import os
import signal
import ssl
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import psutil
import pytest
import trustme

from bench.servers import free_port
from engine.protocol import VERSION, Fill, FrameBuffer, Generate, Hello, encode_frame, welcome_decoder
from engine.protocol import SamplingParams as LinkSampling
from gateway.engines.local.client import EngineStartFailed
from gateway.engines.local.tcp import TcpEngine
from gateway.engines.protocol import ContextEvent, EngineLost
from gateway.graph.call import SamplingParams
from tests.checkpoints import write_tiny_llama
from tests.gateway.engines.asking import LONG, SOON, coming, generated, read, text, until
from tests.server import EngineElsewhere

TOKEN = EngineElsewhere.TOKEN


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_llama(tmp_path_factory.mktemp("tiny"), window=512)


@pytest.fixture(scope="module")
def elsewhere(folder: Path) -> Iterator[EngineElsewhere]:
    with EngineElsewhere("--model", str(folder), "--kv-tokens", "2048") as engine:
        yield engine


def calling(elsewhere: EngineElsewhere, token: str = TOKEN, **other: float) -> TcpEngine:
    return TcpEngine("test", "127.0.0.1", elsewhere.port, token, lambda: None, **other)


@pytest.fixture
async def engine(elsewhere: EngineElsewhere) -> AsyncIterator[TcpEngine]:
    engine = calling(elsewhere)
    await engine.start()
    yield engine
    await engine.close()


async def test_it_says_what_it_is(engine: TcpEngine, folder: Path) -> None:
    assert engine.info is not None
    assert engine.info.model == folder.name
    assert engine.info.kv_tokens == 2048
    assert engine.tokenizer.encode("abc"), "its tokenizer came over the link"
    assert engine.tokenizer.chat_template


async def test_gateways_do_not_see_each_other(elsewhere: EngineElsewhere, engine: TcpEngine) -> None:
    """Both number their contexts from one."""
    other = calling(elsewhere)
    await other.start()
    sampling = SamplingParams(max_tokens=30, ignore_eos=True, temperature=0.0)
    first, second = engine.open("a", SOON), other.open("b", SOON)
    first.fill([5, 6, 7])
    second.fill([8, 9])

    async def all_of(events: AsyncIterator[ContextEvent]) -> list[ContextEvent]:
        return [event async for event in events]

    told = await asyncio.gather(all_of(coming(first, sampling)), all_of(coming(second, sampling)))
    assert [generated(one) for one in told] == [30, 30]
    assert text(told[0]) != text(told[1])
    first.free()
    second.fill([4])
    assert generated(await all_of(coming(second, sampling))) == 30, "the other's context is another one"
    second.free()
    await other.close()


async def test_what_a_gateway_leaves_behind_is_freed(elsewhere: EngineElsewhere, engine: TcpEngine) -> None:
    other = calling(elsewhere)
    await other.start()
    context = other.open("", SOON)
    context.fill([3] * 400)
    await anext(coming(context, LONG))
    await other.close()
    pid = elsewhere.process.pid
    process = psutil.Process(pid)
    events = await read(engine, SamplingParams(max_tokens=2, ignore_eos=True))
    assert len(events) == 3
    async with asyncio.timeout(30):  # it has nothing to do, and does nothing
        while True:
            before = process.cpu_times()
            await asyncio.sleep(1.0)
            after = process.cpu_times()
            if after.user + after.system - before.user - before.system < 0.02:
                break
    assert process.is_running(), "an engine outlives its gateways"


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
async def test_an_engine_that_went_is_found_again(folder: Path, number: int) -> None:
    first = EngineElsewhere("--model", str(folder), "--kv-tokens", "2048")
    engine = calling(first)
    await engine.start()
    context = engine.open("", SOON)
    context.fill([1, 2, 3])
    stream = coming(context, LONG)
    await anext(stream)
    await asyncio.to_thread(first.stop, number)
    with pytest.raises(EngineLost, match="was lost while it worked"):
        while True:
            await anext(stream)
    await until(lambda: not engine.ready)
    with pytest.raises(EngineLost, match="is not running"):
        engine.open("", SOON)
    with await asyncio.to_thread(EngineElsewhere, "--model", str(folder), "--kv-tokens", "2048", port=first.port):
        await until(lambda: engine.ready)
        assert await read(engine, SamplingParams(max_tokens=1))
        with pytest.raises(EngineLost):
            context.fill([4])  # half a prompt must not go on in the new engine
        await engine.close()


async def test_another_model_at_the_same_place_is_not_taken(folder: Path, tmp_path: Path) -> None:
    first = EngineElsewhere("--model", str(folder), "--kv-tokens", "2048")
    engine = calling(first)
    await engine.start()
    await asyncio.to_thread(first.stop)
    await until(lambda: not engine.ready)
    other = write_tiny_llama(tmp_path / "other")
    with await asyncio.to_thread(EngineElsewhere, "--model", str(other), "--kv-tokens", "1024", port=first.port):
        await until(lambda: engine.restarts >= 2)
        assert not engine.ready
        await engine.close()


async def test_a_wrong_token_is_told(elsewhere: EngineElsewhere) -> None:
    with pytest.raises(EngineStartFailed, match="does not let us in: the token is wrong"):
        await calling(elsewhere, token="another one").start()
    await until(lambda: any("is not let in: the token is wrong" in line for line in elsewhere.log))
    assert not any(TOKEN in line for line in elsewhere.log)


async def test_nobody_there_is_told_and_waited_for(folder: Path) -> None:
    port = free_port()
    with pytest.raises(EngineStartFailed, match=f"127.0.0.1:{port} cannot be reached"):
        await TcpEngine("test", "127.0.0.1", port, TOKEN, lambda: None).start()
    patient = TcpEngine("test", "127.0.0.1", port, TOKEN, lambda: None, patience=60.0)
    starting = asyncio.create_task(patient.start())
    await asyncio.sleep(0.2)
    with await asyncio.to_thread(EngineElsewhere, "--model", str(folder), "--kv-tokens", "1024", port=port):
        await starting
        assert await read(patient, SamplingParams(max_tokens=1))
        await patient.close()


async def test_a_hung_engine_is_hung_up_on_and_called_again(folder: Path) -> None:
    with await asyncio.to_thread(EngineElsewhere, "--model", str(folder), "--kv-tokens", "1024") as hung:
        engine = calling(hung, hang_seconds=0.8)
        await engine.start()
        await read(engine, SamplingParams(max_tokens=2))
        os.kill(hung.process.pid, signal.SIGSTOP)
        with pytest.raises(EngineLost):
            await read(engine, LONG)
        assert not engine.ready
        os.kill(hung.process.pid, signal.SIGCONT)
        await until(lambda: engine.ready)
        assert await read(engine, SamplingParams(max_tokens=1))
        await engine.close()


async def raw(elsewhere: EngineElsewhere, *parts: bytes) -> bytes:
    """What the engine answers to these bytes, until it hangs up."""
    reader, writer = await asyncio.open_connection("127.0.0.1", elsewhere.port)
    for part in parts:
        writer.write(part)
    async with asyncio.timeout(20):
        answer = await reader.read()
    writer.close()
    return answer


@pytest.mark.parametrize(
    ("sent", "why"),
    [
        (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n" + b"\xff" * 64, "another language"),
        (encode_frame(Generate(1, LinkSampling())), "another language"),
        (encode_frame(Hello(TOKEN, VERSION + 1)), "it speaks version"),
        (encode_frame(Hello("x" * 8000, VERSION)), "another language"),
        (encode_frame(Hello(TOKEN, VERSION)) + encode_frame(Fill(1, [2])), "did not wait"),
    ],
)
async def test_strangers_are_not_let_in(elsewhere: EngineElsewhere, engine: TcpEngine, sent: bytes, why: str) -> None:
    (body,) = FrameBuffer().feed(await raw(elsewhere, sent))
    answer = welcome_decoder.decode(body)
    assert why in getattr(answer, "message", ""), answer
    assert await read(engine, SamplingParams(max_tokens=1)), "nobody else is harmed"


async def test_nonsense_behind_the_welcome_ends_the_link_alone(elsewhere: EngineElsewhere, engine: TcpEngine) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", elsewhere.port)
    writer.write(encode_frame(Hello(TOKEN, VERSION)))
    assert await reader.read(100)
    writer.write(b"\xff" * 64)
    async with asyncio.timeout(20):
        await reader.read()
    writer.close()
    assert await read(engine, SamplingParams(max_tokens=1))


async def test_over_tls(folder: Path, tmp_path: Path) -> None:
    authority = trustme.CA()
    certificate = authority.issue_cert("127.0.0.1")
    chain, trusted = tmp_path / "chain.pem", tmp_path / "ca.pem"
    certificate.private_key_and_cert_chain_pem.write_to_path(chain)
    authority.cert_pem.write_to_path(trusted)
    options = ("--model", str(folder), "--kv-tokens", "1024", "--tls-cert", str(chain))
    with await asyncio.to_thread(EngineElsewhere, *options) as secured:
        assert secured.address.startswith("tls://")
        tls = ssl.create_default_context(cafile=trusted)
        engine = TcpEngine("test", "127.0.0.1", secured.port, TOKEN, lambda: None, tls=tls)
        await engine.start()
        assert generated(await read(engine, SamplingParams(max_tokens=40, ignore_eos=True))) == 40
        await engine.close()
        stranger = TcpEngine("test", "127.0.0.1", secured.port, TOKEN, lambda: None, tls=ssl.create_default_context())
        with pytest.raises(EngineStartFailed, match=r"cannot be reached: .*CERTIFICATE_VERIFY_FAILED"):
            await stranger.start()
        plain = TcpEngine("test", "127.0.0.1", secured.port, TOKEN, lambda: None)
        with pytest.raises(EngineStartFailed):
            await plain.start()
