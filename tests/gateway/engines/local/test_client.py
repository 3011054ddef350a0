"""Tests of gateway/engines/local/client.py: the commands that a client sends, without an engine."""

import asyncio
from typing import Any

import pytest

from engine.protocol import (
    Command,
    EngineInfo,
    Fill,
    FrameBuffer,
    Free,
    Retain,
    StepReport,
    Update,
    command_decoder,
)
from gateway.engines.local.client import EngineClient
from tests.gateway.engines.generation import URGENT

INFO = EngineInfo(
    model="tiny",
    folder="",
    architecture="llama",
    parameters=1,
    dtype="float32",
    device="cpu",
    kernels="cpu",
    threads=1,
    window=512,
    vocabulary=320,
    kv_tokens=1024,
    block_size=16,
    load_seconds=0.0,
)


class RecordingWriter:
    """Writer of a connection that decodes the commands."""

    def __init__(self) -> None:
        self.commands: list[Command] = []
        self._frames = FrameBuffer()

    def is_closing(self) -> bool:
        return False

    def write(self, data: bytes) -> None:
        self.commands += map(command_decoder.decode, self._frames.feed(data))


def connect(client: EngineClient) -> RecordingWriter:
    writer: Any = RecordingWriter()
    client.on_connected(writer)
    client.on_ready(INFO, asyncio.get_running_loop().create_future())
    return writer


@pytest.fixture
async def client() -> EngineClient:
    return EngineClient("test", lambda: None)


async def test_freed_context_is_expected_to_continue(client: EngineClient) -> None:
    writer = connect(client)
    context = client.open("", URGENT)
    context.fill([1, 2])
    context.retain([9.0])
    context.free()
    context.retain((1.0, 2.5))
    context.retain([])
    await asyncio.sleep(0)
    assert writer.commands == [Fill(1, [1, 2]), Free(1), Retain(1, [1.0, 2.5]), Retain(1, [])]


async def test_context_that_the_engine_never_had_is_not_expected(client: EngineClient) -> None:
    writer = connect(client)
    empty, refused = client.open("", URGENT), client.open("", URGENT)
    empty.free()
    empty.retain([1.0])
    refused.fill([1])
    client.on_step(StepReport([Update(2, error=("bad_token", "no"))], running=0, free_tokens=0, commands=2))
    refused.free()
    refused.retain([1.0])
    await asyncio.sleep(0)
    assert not any(isinstance(command, Retain) for command in writer.commands)


async def test_context_of_an_earlier_connection_is_not_expected(client: EngineClient) -> None:
    writers = [connect(client)]
    freed, lost = client.open("", URGENT), client.open("", URGENT)
    freed.fill([1])
    freed.free()
    lost.fill([2])
    client.on_disconnected()
    freed.retain([1.0])
    writers.append(connect(client))
    freed.retain([1.0])
    lost.free()
    lost.retain([1.0])
    context = client.open("", URGENT)
    context.fill([3])
    context.free()
    context.retain([4.0])
    await asyncio.sleep(0)
    assert writers[0].commands == []
    assert writers[1].commands == [Fill(3, [3]), Free(3), Retain(3, [4.0])]
