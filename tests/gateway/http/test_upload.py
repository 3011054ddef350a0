"""gateway/http/upload.py: forms are written again as they were, and malformed ones are refused."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

import pytest
from aiohttp import MultipartReader, StreamReader, web
from aiohttp.base_protocol import BaseProtocol
from aiohttp.test_utils import TestClient, TestServer
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gateway.errors import RequestError
from gateway.http.upload import Upload

NAMES = st.sampled_from(["file", "language", "prompt", "image[]", "ä"])
CONTENTS = st.binary(max_size=300) | st.just(b"\r\n--b") | st.just(b"--b--\r\n") | st.just(b"\r\n\r\n--bx")


async def rewritten(content: bytes, max_bytes: int = 100_000, cuts: int = 7) -> tuple[str, list[tuple[str, bytes]]]:
    """Return the model of a form, and the fields of the form that an upstream server gets. Raises RequestError."""
    result: list[Any] = []

    async def handle(request: web.Request) -> web.Response:
        try:
            upload = Upload(request, max_bytes)
            model = await upload.read_model()
            parts = [piece async for piece in upload.pieces(model)]
        except RequestError as error:
            result.append(error)
            return web.Response()
        result.append((model, upload.content_type, b"".join(parts)))
        return web.Response()

    async def pieces() -> AsyncIterator[bytes]:
        for begin in range(0, len(content), max(1, len(content) // cuts)):
            yield content[begin : begin + max(1, len(content) // cuts)]

    app = web.Application()
    app.router.add_post("/", handle)
    headers = {"Content-Type": "multipart/form-data; boundary=b"}
    async with TestClient(TestServer(app)) as client, client.post("/", data=pieces(), headers=headers):
        pass
    if isinstance(result[0], RequestError):
        raise result[0]
    model, content_type, written = result[0]

    reader = await _reader(content_type, written)
    fields = [(str(part.name), bytes(await part.read())) async for part in reader]  # type: ignore[union-attr]
    return model, fields


async def _reader(content_type: str, content: bytes) -> MultipartReader:
    loop = asyncio.get_running_loop()
    stream = StreamReader(BaseProtocol(loop), 1 << 20, loop=loop)
    stream.feed_data(content)
    stream.feed_eof()
    return MultipartReader({"Content-Type": content_type}, stream)


def form(fields: list[tuple[str, bytes]]) -> bytes:
    parts = [
        f'--b\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n'.encode() + content + b"\r\n"
        for name, content in fields
    ]
    return b"".join(parts) + b"--b--\r\n"


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.tuples(NAMES, st.binary(max_size=200).filter(lambda data: b"--b" not in data)), max_size=5), st.data()
)
async def test_fields_keep_their_order_and_content(fields: list[tuple[str, bytes]], data: st.DataObject) -> None:
    position = data.draw(st.integers(0, len(fields)))
    cuts = data.draw(st.integers(1, 40))
    sent = [*fields[:position], ("model", b"m"), *fields[position:]]
    assert await rewritten(form(sent), cuts=cuts) == ("m", [("model", b"m"), *fields])


@settings(max_examples=60)
@given(
    st.lists(
        st.sampled_from(
            [
                b"--b",
                b"--",
                b"\r\n",
                b"Content-Disposition: form-data; name=model",
                b"x",
                b":",
                b"\n",
                b"\x00",
                b"Content-Length: 5",
                b"Content-Transfer-Encoding: base64",
                b'name="_charset_"',
            ]
        ),
        max_size=25,
    )
)
async def test_any_body_is_a_form_or_an_error_of_the_client(pieces: list[bytes]) -> None:
    with suppress(RequestError):  # any other error fails the test
        await rewritten(b"".join(pieces), max_bytes=2_000, cuts=3)


@pytest.mark.parametrize("content", [form([("file", b"x" * 70_000)] * 3 + [("model", b"m")])])
async def test_a_form_may_not_be_too_large(content: bytes) -> None:
    with pytest.raises(RequestError) as refused:
        await rewritten(content)
    assert refused.value.status == 413
