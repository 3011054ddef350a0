"""A server with OpenAI's API that answers nonsense, for `bench.hostile`.

The text of a chat's last message chooses the answer: a name in `ANSWERS`. `python -m bench.hostile_engine` prints its
URL.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import suppress

MODEL = "hostile"

Pieces = AsyncIterator[bytes]
Answer = Callable[[], Pieces]
ANSWERS: dict[str, Answer] = {}

_PAUSE_SECONDS = 0.0005
"""Pause between two pieces of an answer, in seconds, so that this process leaves the CPU to the server under attack."""

_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n"
_PLAIN = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nConnection: close\r\n\r\n"


def _answer(make: Answer) -> Answer:
    ANSWERS[make.__name__.strip("_")] = make
    return make


def _event(text: str, finish: str | None = None, **more: object) -> bytes:
    choice = {"index": 0, "delta": {"content": text}, "finish_reason": finish, **more}
    return b"data: " + json.dumps({"choices": [choice]}).encode() + b"\n\n"


@_answer
async def _fine() -> Pieces:
    yield _HEAD + _event("fine", "stop") + b"data: [DONE]\n\n"


@_answer
async def _endless_text() -> Pieces:
    yield _HEAD
    while True:
        yield _event("x" * 10_000)


@_answer
async def _endless_comments() -> Pieces:
    yield _HEAD
    while True:
        yield b": still there\n\n" * 1_000


@_answer
async def _endless_line() -> Pieces:
    yield _HEAD + b"data: "
    while True:
        yield b"x" * 10_000


@_answer
async def _endless_tail() -> Pieces:
    yield _HEAD + _event("x", "stop") + b"data: [DONE]\n\n"
    while True:
        yield b"x" * 10_000


@_answer
async def _endless_headers() -> Pieces:
    yield b"HTTP/1.1 200 OK\r\n"
    while True:
        yield b"X: y\r\n" * 1_000


@_answer
async def _endless_trailers() -> Pieces:
    yield b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n"
    for number in range(10_000_000):
        yield b"X-%d: y\r\n" % number * 100


@_answer
async def _endless_body() -> Pieces:
    yield _PLAIN + b'{"x":"'
    while True:
        yield b"x" * 10_000


@_answer
async def _endless_error() -> Pieces:
    yield b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n"
    while True:
        yield b"x" * 10_000


@_answer
async def _small_pieces() -> Pieces:
    yield _HEAD + b'data: {"x": "'
    for _ in range(4_000):
        yield b"x" * 150
    yield b'"}\n\n' + _event("x", "stop")


@_answer
async def _silence() -> Pieces:
    yield _HEAD + _event("x")
    await asyncio.sleep(60)


@_answer
async def _many_calls() -> Pieces:
    calls = [{"index": n, "function": {"name": "f", "arguments": '{"a": 1}'}} for n in range(10_000)]
    choice = {"delta": {"tool_calls": calls}, "finish_reason": "tool_calls"}
    yield _HEAD + b"data: " + json.dumps({"choices": [choice]}).encode() + b"\n\ndata: [DONE]\n\n"


@_answer
async def _calls_in_text() -> Pieces:
    call = '<tool_call>\n{"name": "f", "arguments": {"a": 1}}\n</tool_call>\n'
    yield _HEAD + _event(call * 30_000, "stop")


def _nonsense(name: str, event: bytes) -> None:
    async def make() -> Pieces:
        yield _HEAD + b"data: " + event + b"\n\n" + _event("x", "stop") + b"data: [DONE]\n\n"

    ANSWERS[name] = make


for _number, _bad in enumerate(
    (
        b"[" * 1_000_000,
        b'{"usage":' + b"[" * 900 + b"]" * 900 + b"}",
        b'{"error":{"message":"' + b"x" * 3_000_000 + b'","code":400}}',
        b'{"choices":[{"delta":{"content":"\\ud800"}}]}',
        b'{"choices":[{"delta":{"content":"\xed\xa0\x80\xff"}}]}',
        b'{"choices":[{"delta":{"content":5}}]}',
        b'{"choices":[{"text":"x","token_ids":[99999999999,-1]}]}',
        b'{"choices":[{"text":"x","logprobs":{"tokens":["a","b"],"token_logprobs":[1e300],"top_logprobs":[]}}]}',
        b'{"choices":[],"usage":{"prompt_tokens":-5,"completion_tokens":1e400}}',
        b'{"choices":[{"delta":{"tool_calls":[{"index":-9223372036854775808,"function":{}}]}}]}',
        b'{"choices":[{"delta":{"content":"x"},"finish_reason":"' + b"y" * 1_000_000 + b'"}]}',
    )
):
    _nonsense(f"nonsense {_number}", _bad)


async def _serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        head = await reader.readuntil(b"\r\n\r\n")
        if head.startswith(b"GET"):
            listed = json.dumps({"data": [{"id": MODEL, "max_model_len": 4_096}]}).encode()
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(listed), listed))
            await writer.drain()
            return
        length = next(int(line[16:]) for line in head.split(b"\r\n") if line.startswith(b"Content-Length: "))
        body = json.loads(await reader.readexactly(length))
        content = body["messages"][-1]["content"]
        async for piece in ANSWERS[content if isinstance(content, str) else content[-1]["text"]]():
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(_PAUSE_SECONDS)
    except (ConnectionError, asyncio.IncompleteReadError):
        pass  # the gateway closed the connection
    finally:
        writer.close()


async def _main() -> None:
    server = await asyncio.start_server(_serve, "127.0.0.1", 0)
    print(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    with suppress(KeyboardInterrupt):
        asyncio.run(_main())
