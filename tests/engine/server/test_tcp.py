"""Tests of engine/server/tcp.py without an engine: handshakes, commands and the ends of connections."""

import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from engine.protocol import (
    VERSION,
    EngineInfo,
    Fill,
    FrameBuffer,
    Free,
    Hello,
    Refusal,
    Shutdown,
    StepReport,
    Welcome,
    encode_frame,
    report_decoder,
    welcome_decoder,
)
from engine.server import tcp
from engine.server.core import Connection, EngineServer
from engine.server.tcp import Listener, tokenizer_files

INFO = EngineInfo(
    model="m",
    folder="f",
    architecture="a",
    parameters=1,
    dtype="float32",
    device="cpu",
    kernels="none",
    threads=1,
    window=64,
    vocabulary=9,
    kv_tokens=64,
    block_size=16,
    load_seconds=0.0,
)
HELLO = encode_frame(Hello("secret", VERSION))


class RecordingServer(EngineServer):
    """Server that records the posted commands instead of applying them."""

    def __init__(self) -> None:
        super().__init__()
        self.posted: list[tuple[Connection, Any]] = []

    def post(self, connection: Connection, commands: Any) -> None:
        self.posted.append((connection, commands))


@pytest.fixture
def server() -> RecordingServer:
    return RecordingServer()


@pytest.fixture
def counts() -> list[int]:
    """Return the numbers of connected gateways that the listener reported."""
    return []


@pytest.fixture
def port(server: RecordingServer, counts: list[int]) -> Iterator[int]:
    listener = Listener(server, "secret", INFO, {"tokenizer.json": b"{}"}, counts.append)
    yield int(listener.start("127.0.0.1", 0).rpartition(":")[2])
    listener.close()


def until(condition: Callable[[], object]) -> None:
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


def connect(port: int, data: bytes = b"") -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", port), timeout=10)
    connection.sendall(data)
    return connection


def receive(connection: socket.socket) -> bytes:
    """Return the body of the next frame."""
    frames = FrameBuffer()
    while True:
        for body in frames.feed(connection.recv(1 << 16)):
            return body


def is_closed(connection: socket.socket) -> bool:
    try:
        return connection.recv(1) == b""
    except ConnectionResetError:
        return True


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (encode_frame(Hello("Secret", VERSION)), "the token is wrong"),
        (encode_frame(Hello("", VERSION)), "the token is wrong"),
        (encode_frame(Hello("secret", VERSION + 1)), f"it uses protocol version {VERSION + 1}"),
        (encode_frame(Free(1)), "its first message is invalid"),
        (b"\xff" * 8, "its first message is invalid"),
        (HELLO + encode_frame(Free(1)), "it did not wait for a reply"),
    ],
)
def test_gateway_is_rejected_with_a_reason(
    port: int, server: RecordingServer, counts: list[int], data: bytes, why: str
) -> None:
    with connect(port, data) as connection:
        answer = welcome_decoder.decode(receive(connection))
        assert isinstance(answer, Refusal)
        assert answer.message.startswith(why)
        assert is_closed(connection)
    assert (server.posted, counts) == ([], [])


def test_silent_gateway_is_rejected(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tcp, "_HELLO_SECONDS", 0.1)
    with connect(port) as connection:
        assert welcome_decoder.decode(receive(connection)) == Refusal("it sent no token within 0.1 s")


def test_commands_of_one_message_are_posted_together(port: int, server: RecordingServer, counts: list[int]) -> None:
    with connect(port) as connection:
        for index in range(len(HELLO)):  # the token in many packets
            connection.sendall(HELLO[index : index + 1])
        assert welcome_decoder.decode(receive(connection)) == Welcome(INFO, {"tokenizer.json": b"{}"})
        until(lambda: counts == [1])
        connection.sendall(encode_frame(Fill(1, [2])) + encode_frame(Free(1)))
        until(lambda: server.posted)
        (link, commands) = server.posted[0]
        assert commands == [Fill(1, [2]), Free(1)]
        link.sink.send(StepReport([], 0, 64, 2))
        assert report_decoder.decode(receive(connection)) == StepReport([], 0, 64, 2)
    until(lambda: len(server.posted) == 2)
    assert server.posted[1] == (link, None), "its contexts are freed"
    until(lambda: counts == [1, 0])


@pytest.mark.parametrize("data", [b"\xff" * 8, encode_frame(Shutdown()), encode_frame(Free(1))[:-1] + b"\xc1"])
def test_invalid_message_and_shutdown_end_only_their_connection(
    port: int, server: RecordingServer, counts: list[int], data: bytes
) -> None:
    with connect(port, HELLO) as other, connect(port, HELLO) as connection:
        receive(other)
        receive(connection)
        until(lambda: counts == [1, 2])
        connection.sendall(data)
        assert is_closed(connection)
        until(lambda: counts == [1, 2, 1])
        until(lambda: [commands for _, commands in server.posted] == [None])
        other.sendall(encode_frame(Free(7)))
        until(lambda: len(server.posted) == 2)
        assert server.posted[1][1] == [Free(7)]


def test_gateway_that_does_not_read_is_disconnected(
    port: int, server: RecordingServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tcp, "_UNREAD_BYTES", 1 << 20)
    with connect(port, HELLO) as connection:
        receive(connection)
        connection.sendall(encode_frame(Free(1)))
        until(lambda: server.posted)
        link, _ = server.posted[0]
        report = StepReport([], 0, 0, 0)
        large = tcp.encode_frame(Welcome(INFO, {"x": bytes(1 << 20)}))
        monkeypatch.setattr(tcp, "encode_frame", lambda message: large)
        for _ in range(20):
            link.sink.send(report)
        until(lambda: server.posted[-1] == (link, None))


def test_tokenizer_files_leave_out_weights(tmp_path: Path) -> None:
    for name in ("tokenizer.json", "config.json", "chat_template.jinja", "model.safetensors.index.json", "a.bin"):
        (tmp_path / name).write_text(name)
    assert tokenizer_files(tmp_path) == {
        name: name.encode() for name in ("tokenizer.json", "config.json", "chat_template.jinja")
    }
