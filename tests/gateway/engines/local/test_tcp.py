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
from engine.sampling_params import SamplingParams
from gateway.engines.local.client import EngineStartFailed
from gateway.engines.local.tcp import TcpEngine
from gateway.engines.protocol import ContextEvent, EngineLost
from tests.fakes.checkpoints import write_tiny_llama
from tests.fakes.engine_harness import EngineHarness
from tests.gateway.engines.generation import LONG, URGENT, read_events, stream_events, text, token_count_of, until

pytestmark = pytest.mark.waits

TOKEN = EngineHarness.TOKEN


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_llama(tmp_path_factory.mktemp("tiny"), window=512)


@pytest.fixture(scope="module")
def remote(folder: Path) -> Iterator[EngineHarness]:
    with EngineHarness("--model", str(folder), "--kv-tokens", "2048") as engine:
        yield engine


def client_of(remote: EngineHarness, token: str = TOKEN, **other: float) -> TcpEngine:
    return TcpEngine("test", "127.0.0.1", remote.port, token, lambda: None, **other)


@pytest.fixture
async def engine(remote: EngineHarness) -> AsyncIterator[TcpEngine]:
    engine = client_of(remote)
    await engine.start()
    yield engine
    await engine.close()


async def test_an_engine_reports_its_model_and_tokenizer(engine: TcpEngine, folder: Path) -> None:
    assert engine.info is not None
    assert engine.info.model == folder.name
    assert engine.info.kv_tokens == 2048
    assert engine.tokenizer.encode("abc"), "the engine sends its tokenizer"
    assert engine.tokenizer.chat_template


async def test_contexts_of_two_gateways_are_separate(remote: EngineHarness, engine: TcpEngine) -> None:
    """Use the same context numbers, because both gateways count from one."""
    other = client_of(remote)
    await other.start()
    sampling = SamplingParams(max_tokens=30, ignore_eos=True, temperature=0.0)
    first, second = engine.open("a", URGENT), other.open("b", URGENT)
    first.fill([5, 6, 7])
    second.fill([8, 9])

    async def all_of(events: AsyncIterator[ContextEvent]) -> list[ContextEvent]:
        return [event async for event in events]

    events = await asyncio.gather(all_of(stream_events(first, sampling)), all_of(stream_events(second, sampling)))
    assert [token_count_of(some_events) for some_events in events] == [30, 30]
    assert text(events[0]) != text(events[1])
    first.free()
    second.fill([4])
    assert token_count_of(await all_of(stream_events(second, sampling))) == 30, (
        "freeing one context does not affect the other"
    )
    second.free()
    await other.close()


async def test_contexts_of_a_disconnected_gateway_are_freed(remote: EngineHarness, engine: TcpEngine) -> None:
    other = client_of(remote)
    await other.start()
    context = other.open("", URGENT)
    context.fill([3] * 400)
    await anext(stream_events(context, LONG))
    await other.close()
    pid = remote.process.pid
    process = psutil.Process(pid)
    events = await read_events(engine, SamplingParams(max_tokens=2, ignore_eos=True))
    assert len(events) == 3
    async with asyncio.timeout(30):  # an idle engine uses no CPU
        while True:
            before = process.cpu_times()
            await asyncio.sleep(1.0)
            after = process.cpu_times()
            if after.user + after.system - before.user - before.system < 0.02:
                break
    assert process.is_running(), "an engine outlives its gateways"


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
async def test_the_gateway_reconnects_to_a_restarted_engine(folder: Path, number: int) -> None:
    first = EngineHarness("--model", str(folder), "--kv-tokens", "2048")
    engine = client_of(first)
    await engine.start()
    context = engine.open("", URGENT)
    context.fill([1, 2, 3])
    stream = stream_events(context, LONG)
    await anext(stream)
    await asyncio.to_thread(first.stop, number)
    with pytest.raises(EngineLost, match="was lost while it worked"):
        while True:
            await anext(stream)
    await until(lambda: not engine.is_ready)
    with pytest.raises(EngineLost, match="is not running"):
        engine.open("", URGENT)
    with await asyncio.to_thread(EngineHarness, "--model", str(folder), "--kv-tokens", "2048", port=first.port):
        await until(lambda: engine.is_ready)
        assert await read_events(engine, SamplingParams(max_tokens=1))
        with pytest.raises(EngineLost):
            context.fill([4])  # the second half of a prompt must not reach the new engine
        await engine.close()


async def test_another_model_at_the_same_address_is_rejected(folder: Path, tmp_path: Path) -> None:
    first = EngineHarness("--model", str(folder), "--kv-tokens", "2048")
    engine = client_of(first)
    await engine.start()
    await asyncio.to_thread(first.stop)
    await until(lambda: not engine.is_ready)
    other = write_tiny_llama(tmp_path / "other")
    with await asyncio.to_thread(EngineHarness, "--model", str(other), "--kv-tokens", "1024", port=first.port):
        await until(lambda: engine.restarts >= 2)
        assert not engine.is_ready
        await engine.close()


async def test_a_wrong_token_is_reported(remote: EngineHarness) -> None:
    with pytest.raises(EngineStartFailed, match="rejects the connection: the token is wrong"):
        await client_of(remote, token="another one").start()
    await until(lambda: any("the token is wrong" in line for line in remote.log))
    assert not any(TOKEN in line for line in remote.log)


async def test_a_missing_engine_is_reported_or_waited_for(folder: Path) -> None:
    port = free_port()
    with pytest.raises(EngineStartFailed, match=f"127.0.0.1:{port} cannot be reached"):
        await TcpEngine("test", "127.0.0.1", port, TOKEN, lambda: None).start()
    patient = TcpEngine("test", "127.0.0.1", port, TOKEN, lambda: None, start_timeout=60.0)
    starting = asyncio.create_task(patient.start())
    await asyncio.sleep(0.2)
    with await asyncio.to_thread(EngineHarness, "--model", str(folder), "--kv-tokens", "1024", port=port):
        await starting
        assert await read_events(patient, SamplingParams(max_tokens=1))
        await patient.close()


async def test_the_connection_to_a_hung_engine_is_closed_and_made_again(folder: Path) -> None:
    with await asyncio.to_thread(EngineHarness, "--model", str(folder), "--kv-tokens", "1024") as hung:
        engine = client_of(hung, hang_seconds=0.8)
        await engine.start()
        await read_events(engine, SamplingParams(max_tokens=2))
        os.kill(hung.process.pid, signal.SIGSTOP)
        with pytest.raises(EngineLost):
            await read_events(engine, LONG)
        assert not engine.is_ready
        os.kill(hung.process.pid, signal.SIGCONT)
        await until(lambda: engine.is_ready)
        assert await read_events(engine, SamplingParams(max_tokens=1))
        await engine.close()


async def exchange(remote: EngineHarness, *parts: bytes) -> bytes:
    """Return the engine's answer to these bytes, until it closes the connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", remote.port)
    for part in parts:
        writer.write(part)
    async with asyncio.timeout(20):
        answer = await reader.read()
    writer.close()
    return answer


@pytest.mark.parametrize(
    ("sent", "why"),
    [
        (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n" + b"\xff" * 64, "its first message is invalid"),
        (encode_frame(Generate(1, SamplingParams())), "its first message is invalid"),
        (encode_frame(Hello(TOKEN, VERSION + 1)), "it uses protocol version"),
        (encode_frame(Hello("x" * 8000, VERSION)), "its first message is invalid"),
        (encode_frame(Hello(TOKEN, VERSION)) + encode_frame(Fill(1, [2])), "did not wait"),
    ],
)
async def test_invalid_handshakes_are_rejected(remote: EngineHarness, engine: TcpEngine, sent: bytes, why: str) -> None:
    (body,) = FrameBuffer().feed(await exchange(remote, sent))
    answer = welcome_decoder.decode(body)
    assert why in getattr(answer, "message", ""), answer
    assert await read_events(engine, SamplingParams(max_tokens=1)), "other connections are not affected"


async def test_invalid_frames_after_the_handshake_end_only_their_connection(
    remote: EngineHarness, engine: TcpEngine
) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", remote.port)
    writer.write(encode_frame(Hello(TOKEN, VERSION)))
    assert await reader.read(100)
    writer.write(b"\xff" * 64)
    async with asyncio.timeout(20):
        await reader.read()
    writer.close()
    assert await read_events(engine, SamplingParams(max_tokens=1))


async def test_over_tls(folder: Path, tmp_path: Path) -> None:
    authority = trustme.CA()
    certificate = authority.issue_cert("127.0.0.1")
    chain, trusted = tmp_path / "chain.pem", tmp_path / "ca.pem"
    certificate.private_key_and_cert_chain_pem.write_to_path(chain)
    authority.cert_pem.write_to_path(trusted)
    options = ("--model", str(folder), "--kv-tokens", "1024", "--tls-cert", str(chain))
    with await asyncio.to_thread(EngineHarness, *options) as secured:
        assert secured.address.startswith("tls://")
        tls = ssl.create_default_context(cafile=trusted)
        engine = TcpEngine("test", "127.0.0.1", secured.port, TOKEN, lambda: None, tls=tls)
        await engine.start()
        assert token_count_of(await read_events(engine, SamplingParams(max_tokens=40, ignore_eos=True))) == 40
        await engine.close()
        stranger = TcpEngine("test", "127.0.0.1", secured.port, TOKEN, lambda: None, tls=ssl.create_default_context())
        with pytest.raises(EngineStartFailed, match=r"cannot be reached: .*CERTIFICATE_VERIFY_FAILED"):
            await stranger.start()
        plain = TcpEngine("test", "127.0.0.1", secured.port, TOKEN, lambda: None)
        with pytest.raises(EngineStartFailed):
            await plain.start()
