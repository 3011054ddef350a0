"""A stub server with OpenAI's API and minimal cost, to measure gateways in front of it.

`python -m bench.upstream` prints its address and serves until its input closes. Every answer is one token. If the
request has `"max_tokens": N` with N over 1, it streams N tokens, one every `PACE` seconds, each with the time at which
it was sent.
"""

import asyncio
import re
import sys
import time
from typing import cast

import uvloop

PACE = 0.1
_LENGTH = re.compile(rb"content-length: *(\d+)", re.IGNORECASE)
_TOKENS = re.compile(rb'"max_(?:completion_)?tokens": ?(\d+)')
_MODELS = b'{"object":"list","data":[{"id":"stub","object":"model","max_model_len":8192}]}'
_USAGE = b'{"prompt_tokens":1,"completion_tokens":1,"total_tokens":2}'
_WHOLE = (
    b'{"id":"x","object":"chat.completion","created":0,"model":"stub","choices":[{"index":0,"message":'
    b'{"role":"assistant","content":"1"},"finish_reason":"stop"}],"usage":' + _USAGE + b"}"
)
_CHUNK = b'data: {"id":"x","object":"chat.completion.chunk","created":0,"model":"stub","choices":[%s]%s}\n\n'
_ROLE = _CHUNK % (b'{"index":0,"delta":{"role":"assistant","content":""},"finish_reason":null}', b"")
_END = _CHUNK % (b'{"index":0,"delta":{},"finish_reason":"stop"}', b"") + _CHUNK % (b"", b',"usage":' + _USAGE)
_DONE = b"data: [DONE]\n\n"


def _token(text: bytes) -> bytes:
    return _CHUNK % (b'{"index":0,"delta":{"content":"%s"},"finish_reason":null}' % text, b"")


def _json(body: bytes) -> bytes:
    return b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)


def _chunked(body: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(body), body)


_EVENTS = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
_AT_ONCE = _EVENTS + _chunked(_ROLE + _token(b"1") + _END + _DONE) + b"0\r\n\r\n"


class _Connection(asyncio.Protocol):
    def __init__(self) -> None:
        self._data = b""
        self._transport: asyncio.Transport | None = None
        self._streams: set[asyncio.Task[None]] = set()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def connection_lost(self, error: Exception | None) -> None:
        for stream in self._streams:
            stream.cancel()

    def data_received(self, data: bytes) -> None:
        assert self._transport is not None
        self._data += data
        head, found, rest = self._data.partition(b"\r\n\r\n")
        length = _LENGTH.search(head)
        if not found or (length is not None and len(rest) < int(length[1])):
            return
        self._data = rest[int(length[1]) :] if length is not None else rest
        if head.startswith(b"GET /v1/models"):
            self._transport.write(_json(_MODELS))
        elif head.startswith(b"GET"):
            self._transport.write(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")
        elif (asked := _TOKENS.search(rest)) is not None and int(asked[1]) > 1:
            stream = asyncio.create_task(self._paced(int(asked[1])))
            self._streams.add(stream)
            stream.add_done_callback(self._streams.discard)
        else:
            streamed = b'"stream":true' in rest or b'"stream": true' in rest
            self._transport.write(_AT_ONCE if streamed else _json(_WHOLE))

    async def _paced(self, tokens: int) -> None:
        assert self._transport is not None
        self._transport.write(_EVENTS + _chunked(_ROLE))
        began = time.perf_counter()
        for index in range(tokens):
            await asyncio.sleep(began + (index + 1) * PACE - time.perf_counter())
            self._transport.write(_chunked(_token(b"%d " % time.monotonic_ns())))
        self._transport.write(_chunked(_END + _DONE) + b"0\r\n\r\n")


async def _serve() -> None:
    server = await asyncio.get_running_loop().create_server(_Connection, "127.0.0.1", 0, backlog=2048)
    async with server:
        print(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", flush=True)
        await asyncio.to_thread(sys.stdin.read)


if __name__ == "__main__":
    uvloop.run(_serve())  # it shares the machine with the measured gateway
