"""Read a multipart form while it arrives, and write it again for an upstream server."""

import asyncio
import secrets
from collections.abc import AsyncIterator, Awaitable
from typing import TypeVar

from aiohttp import BodyPartReader, MultipartReader, hdrs, web
from aiohttp.http_exceptions import HttpProcessingError

from gateway.errors import RequestError
from gateway.http.json_body import BODY_SECONDS, reserve_bytes

_CHUNK_BYTES = 64 << 10
_MAX_PARTS = 128
"""Maximum number of parts of a form."""
_MAX_MODEL_BYTES = 1_000
"""Maximum length of a model's name, in bytes."""
_LARGE_BYTES = 256 << 10
"""Number of bytes that may be held before they count among the bytes in progress."""
_MIN_RATE = 50_000
"""Minimum rate of a form that arrives, in bytes a second: it holds a place on its server meanwhile."""
_Result = TypeVar("_Result")


class Upload:
    """A multipart form of a request. It is read up to the field `model`, which names its server, and then streamed.

    Only what precedes that field is held in memory. Clients send fields before files, so this is little.
    """

    def __init__(self, request: web.Request, max_bytes: int) -> None:
        """`max_bytes`: maximum size of the form. Raises RequestError if the request has no multipart form, or the form
        is too large."""
        if request.content_type != "multipart/form-data":
            message = f"the body must be multipart/form-data, not {request.content_type}"
            raise RequestError(400, message, code="invalid_value")
        length = request.content_length
        if length is not None and length > max_bytes:
            raise _too_large(max_bytes)
        self._request = request
        self._max_bytes = max_bytes
        self._start = asyncio.get_running_loop().time()
        self._read_bytes = 0
        self._reserved_bytes = 0
        self._parts = 0
        self._held: list[bytes] = []
        """Encoded parts before the field `model`."""
        self._boundary = f"myna-{secrets.token_hex(16)}"
        try:
            self._reader = MultipartReader(request.headers, request.content)
        except (ValueError, AssertionError) as error:
            raise _malformed(error) from None

    @property
    def content_type(self) -> str:
        """Content type of the form as it is written."""
        return f"multipart/form-data; boundary={self._boundary}"

    async def read_model(self) -> str:
        """Read up to the field `model`, and return its value. Raises RequestError."""
        while (part := await self._next_part()) is not None:
            if part.name == "model":
                value = b"".join([chunk async for chunk in self._chunks(part, _MAX_MODEL_BYTES)])
                try:
                    return value.decode()
                except UnicodeDecodeError:
                    raise RequestError(
                        400, "model: the text is not UTF-8", code="invalid_value", param="model"
                    ) from None
            async for piece in self._encode(part):
                self._held.append(piece)
                self._reserve(len(piece))
        message = "model: this field is required"
        raise RequestError(400, message, code="missing_required_parameter", param="model")

    async def pieces(self, model: str) -> AsyncIterator[bytes]:
        """Yield the form, with this name of the model. Raises RequestError if the rest of the form is invalid."""
        head = f'--{self._boundary}\r\nContent-Disposition: form-data; name="model"\r\n\r\n{model}\r\n'
        yield head.encode()
        held, self._held = self._held, []
        for piece in held:
            yield piece
        while (part := await self._next_part()) is not None:
            if part.name == "model":
                raise RequestError(400, "model: the form has this field twice", code="invalid_value", param="model")
            async for piece in self._encode(part):
                yield piece
        yield f"--{self._boundary}--\r\n".encode()

    async def _next_part(self) -> BodyPartReader | None:
        part = await self._read(self._reader.next())
        if part is None:
            return None
        self._parts += 1
        if self._parts > _MAX_PARTS:
            raise RequestError(400, f"the form has more than {_MAX_PARTS} parts", code="invalid_value")
        if isinstance(part, MultipartReader):
            raise RequestError(400, "a part of the form is a form itself", code="invalid_value")
        if part.name is None:
            raise RequestError(400, "a part of the form has no name", code="invalid_value")
        return part

    async def _encode(self, part: BodyPartReader) -> AsyncIterator[bytes]:
        """Yield the part with its headers."""
        headers = (
            (name, part.headers[name])
            for name in (hdrs.CONTENT_DISPOSITION, hdrs.CONTENT_TYPE, hdrs.CONTENT_TRANSFER_ENCODING)
            if name in part.headers
        )
        lines = "".join([f"{name}: {' '.join(value.split())}\r\n" for name, value in headers])
        yield f"--{self._boundary}\r\n{lines}\r\n".encode("utf-8", "surrogateescape")
        async for chunk in self._chunks(part, self._max_bytes):
            yield chunk
        yield b"\r\n"

    async def _chunks(self, part: BodyPartReader, max_bytes: int) -> AsyncIterator[bytes]:
        """Yield the content of a part. Raises RequestError if it has more than `max_bytes`."""
        size = 0
        while not part.at_eof():
            chunk = await self._read(part.read_chunk(_CHUNK_BYTES))
            size += len(chunk)
            self._read_bytes += len(chunk)
            if size > max_bytes:
                message = f"the field {part.name!r} has more than {max_bytes} bytes"
                raise RequestError(413, message, code="too_large", param=part.name)
            if self._read_bytes > self._max_bytes:
                raise _too_large(self._max_bytes)
            yield bytes(chunk)

    def _reserve(self, size: int) -> None:
        """Count bytes that are held, in large steps."""
        self._reserved_bytes += size
        if self._reserved_bytes > _LARGE_BYTES:
            reserve_bytes(self._request, self._reserved_bytes)
            self._reserved_bytes = 0

    async def _read(self, reading: Awaitable[_Result]) -> _Result:
        """Return the result of reading a part. Raises RequestError if the form is malformed, or does not arrive."""
        try:
            async with asyncio.timeout_at(self._start + BODY_SECONDS + self._read_bytes / _MIN_RATE):
                return await reading
        except TimeoutError:
            message = f"the request's body did not arrive within {BODY_SECONDS:g} s and 1 s for each {_MIN_RATE} bytes"
            raise RequestError(408, message, code="request_timeout", headers={"Connection": "close"}) from None
        except (ValueError, AssertionError, RuntimeError, HttpProcessingError, web.RequestPayloadError) as error:
            raise _malformed(error) from None


def _malformed(error: Exception) -> RequestError:
    message = f"the multipart form is malformed: {' '.join(str(error).split()) or type(error).__name__}"
    return RequestError(400, message, code="invalid_value", headers={"Connection": "close"})


def _too_large(max_bytes: int) -> RequestError:
    message = f"the form has more than {max_bytes} bytes, the maximum of this server"
    return RequestError(413, message, code="too_large", headers={"Connection": "close"})
