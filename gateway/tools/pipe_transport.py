"""Transport of MCP over the pipes of a child process.

The transport of the `mcp` package reads lines of any length, starts a task for each notification, and passes on parts
of the gateway's environment. This one bounds the size of a message while it arrives, and lets through only what the
gateway has asked for.
"""

import asyncio
import json
import logging
import re
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import anyio
from mcp.client import Transport
from mcp.shared.message import SessionMessage
from mcp_types import JSONRPCNotification, JSONRPCRequest, jsonrpc_message_adapter
from pydantic import ValidationError

from gateway.tools.child_process import CannotStart, ChildProcess
from gateway.tools.loop_share import LoopShare
from gateway.tools.messages import BadMessage, failure_message, one_line, parse_message
from gateway.tools.protocol import PROTOCOL_ERROR, TOO_LARGE, UNAVAILABLE

log = logging.getLogger("myna.tools")

_READ_BYTES = 64 << 10
"""Size of a read from the pipe, in bytes."""
_SKIPPED_BYTES = 64 << 20
"""Size of the rest of a message over the limit that is read and dropped before the process is ended, in bytes."""
_MAX_UNSENT_BYTES = 8 << 20
"""Size of unsent messages from which a process counts as one that does not read, in bytes."""
_MAX_UNSENT_ANSWER_BYTES = 64 << 10
"""Size of unsent messages from which requests of the process are not answered, in bytes."""
_WRITE_SECONDS = 10.0
"""Time in which the process has to read a message, in seconds."""
_MAX_GARBAGE = 100
"""Number of lines that are not JSON objects after which the process is ended. Some servers print a greeting."""
_HEAD_ID = re.compile(rb'^\s*\{\s*(?:"jsonrpc"\s*:\s*"2\.0"\s*,\s*)?"id"\s*:\s*(\d{1,18})\s*,')
_TAIL_ID = re.compile(rb'"id"\s*:\s*(\d{1,18})\s*(?:,\s*"jsonrpc"\s*:\s*"2\.0"\s*)?\}\s*$')
_ID_BYTES = 200
"""Size of the beginning and the end of a message in which its id is searched, in bytes."""
_FORWARDED = frozenset({"notifications/subscriptions/acknowledged"})
"""Notifications that the session needs."""


class PipeLost(Exception):
    """The connection has ended. `code`: code of the ToolFailed that waiting calls raise. The message says why."""

    def __init__(self, code: str, reason: str) -> None:
        super().__init__(reason)
        self.code = code


class PipeTransport(Transport):
    """Owner of one child process, and of the streams of messages with it."""

    def __init__(
        self,
        name: str,
        start: Callable[[], Any],
        max_bytes: int,
        on_list_changed: Callable[[], None],
        on_lost: Callable[[PipeLost], None],
    ) -> None:
        """`name`: of the server, for logs. `start`: coroutine function that starts the process. `max_bytes`: maximum
        size of a message. `on_lost`: is called once if the connection ends by itself."""
        self._name = name
        self._start = start
        self._max_bytes = max_bytes
        self._on_list_changed = on_list_changed
        self._on_lost = on_lost
        self._process: ChildProcess | None = None
        self._reader: asyncio.Task[None] | None = None
        self._pending: set[int] = set()
        """Ids of requests that are not answered."""
        self._garbage_lines = 0
        self._is_lost = False

    async def __aenter__(self) -> tuple[Any, Any]:
        """Start the process. Return the streams of messages. Raises CannotStart."""
        process: ChildProcess = await self._start()
        self._process = process
        self._writer = _PipeWriter(self, process)
        self._send, receive = anyio.create_memory_object_stream[SessionMessage | Exception](0)
        self._reader = asyncio.create_task(self._read(process), name="stdout of a tool server")
        self._received = receive
        return receive, self._writer

    async def __aexit__(self, *error: object) -> None:
        """End the process."""
        assert self._reader is not None
        assert self._process is not None
        try:
            self._reader.cancel()
            await asyncio.wait({self._reader})
        finally:
            self._send.close()
            self._received.close()
            await self._process.end()

    def note_sent(self, message: Any) -> None:
        """Update the ids of requests that wait for an answer. `message`: a message for the process."""
        if isinstance(message, JSONRPCRequest) and isinstance(message.id, int):
            self._pending.add(message.id)
        elif isinstance(message, JSONRPCNotification) and message.method == "notifications/cancelled":
            id = (message.params or {}).get("requestId")
            if isinstance(id, int):
                self._pending.discard(id)

    def lose(self, error: PipeLost) -> None:
        """End the connection: no more messages arrive."""
        if self._is_lost:
            return
        self._is_lost = True
        if self._reader is not None and self._reader is not asyncio.current_task():
            self._reader.cancel()
        self._send.close()
        self._on_lost(error)

    async def _read(self, process: ChildProcess) -> None:
        try:
            await self._read_lines(process)
            await process.wait_for_end()
            words = process.last_stderr_line()
            ended = process.how_it_ended()
            how = "it closed its output" if ended == "still running" else f"it ended with {ended}"
            self.lose(PipeLost(UNAVAILABLE, f"{how}{f' (stderr: {words})' if words else ''}"))
        except PipeLost as error:
            self.lose(error)
        except (anyio.BrokenResourceError, anyio.ClosedResourceError):
            log.debug("the session with a tool server has ended")
        except OSError as error:
            self.lose(PipeLost(UNAVAILABLE, f"its output cannot be read: {one_line(str(error))}"))

    async def _read_lines(self, process: ChildProcess) -> None:
        """Read messages until the process closes its output. Raises PipeLost."""
        line, share = bytearray(), LoopShare()
        while data := await process.stdout.read(_READ_BYTES):
            begin = 0
            while begin < len(data):
                end = data.find(b"\n", begin)
                line += data[begin:] if end < 0 else data[begin:end]
                begin = len(data) if end < 0 else end + 1
                if end >= 0:
                    await self._accept_line(bytes(line), share)
                    line.clear()
                elif len(line) > self._max_bytes:
                    data, begin = await self._skip(process, bytes(line[:_ID_BYTES]), bytes(line[-_ID_BYTES:])), 0
                    line.clear()

    async def _skip(self, process: ChildProcess, head: bytes, tail: bytes) -> bytes:
        """Drop the rest of a message that is too large, and fail its request. Return the data behind it. Raises
        PipeLost if the message does not end soon, or its request is not known."""
        reason = f"it sent a message of more than {self._max_bytes} bytes"
        found = _HEAD_ID.match(head)
        if found is not None:
            await self._fail(int(found[1]), TOO_LARGE, reason)
        skipped = 0
        while data := await process.stdout.read(_READ_BYTES):
            line, newline, rest = data.partition(b"\n")
            tail = (tail + line)[-_ID_BYTES:]
            skipped += len(line)
            if newline:
                found = found or _TAIL_ID.search(tail)
                if found is None:
                    break
                await self._fail(int(found[1]), TOO_LARGE, reason)
                return rest
            if skipped > _SKIPPED_BYTES:
                break
            await asyncio.sleep(0)
        raise PipeLost(TOO_LARGE if found is None else UNAVAILABLE, reason)

    async def _fail(self, id: int, code: str, reason: str) -> None:
        if id in self._pending:
            await self._forward(failure_message(id, code, reason))

    async def _accept_line(self, line: bytes, share: LoopShare) -> None:
        """Process one line. Raises PipeLost if too many are malformed."""
        if not line.strip():
            await share.spend(len(line))
            return
        if len(line) > self._max_bytes:
            await self._fail_line(
                BadMessage(TOO_LARGE, f"it sent a message of more than {self._max_bytes} bytes"), line
            )
            return
        try:
            message = await parse_message(line)
        except BadMessage as error:
            await self._fail_line(error, line)
        else:
            await self._accept(message)
        await share.spend(len(line))

    async def _fail_line(self, error: BadMessage, line: bytes) -> None:
        found = _HEAD_ID.match(line[:_ID_BYTES]) or _TAIL_ID.search(line[-_ID_BYTES:])
        id = error.id if error.id is not None else int(found[1]) if found is not None else None
        if id is not None and id in self._pending:
            await self._fail(id, error.code, str(error))
            return
        self._garbage_lines += 1
        if self._garbage_lines == 1:
            shown = one_line(line[:400].decode("utf-8", "replace"))
            log.warning("tool server %s: it printed a line that is no message: %s", self._name, shown)
        if self._garbage_lines > _MAX_GARBAGE:
            raise PipeLost(PROTOCOL_ERROR, f"it printed more than {_MAX_GARBAGE} lines that are no messages")

    async def _accept(self, message: dict[str, Any]) -> None:
        """Forward a message that the session waits for; answer or drop others."""
        method, id = message.get("method"), message.get("id")
        if method is None:
            if isinstance(id, int) and not isinstance(id, bool) and id in self._pending:
                await self._forward(message)
        elif id is not None:
            self._answer(method, id)
        elif method == "notifications/tools/list_changed":
            self._on_list_changed()
        elif method in _FORWARDED:
            await self._forward(message)

    async def _forward(self, message: dict[str, Any]) -> None:
        id = message.get("id")
        try:
            parsed = jsonrpc_message_adapter.validate_python(message, by_name=False)
        except ValidationError:
            if not isinstance(id, int):
                return
            reason = "it sent an answer that is not JSON-RPC 2.0"
            parsed = jsonrpc_message_adapter.validate_python(failure_message(id, PROTOCOL_ERROR, reason))
        if "method" not in message and isinstance(id, int):
            self._pending.discard(id)
        await self._send.send(SessionMessage(parsed))

    def _answer(self, method: Any, id: Any) -> None:
        """Answer a request of the process: a ping; the gateway offers nothing else."""
        if not isinstance(id, str | int) or len(str(id)) > 100 or self._writer.unsent_bytes > _MAX_UNSENT_ANSWER_BYTES:
            return
        answer: dict[str, Any] = {"jsonrpc": "2.0", "id": id}
        if method == "ping":
            answer["result"] = {}
        else:
            answer["error"] = {"code": -32601, "message": "Method not found"}
        with suppress(OSError, RuntimeError):
            self._writer.write(json.dumps(answer).encode())


class _PipeWriter:
    """Stream of messages to the process."""

    def __init__(self, transport: PipeTransport, process: ChildProcess) -> None:
        self._transport = transport
        self._stdin = process.stdin

    @property
    def unsent_bytes(self) -> int:
        """Size of the messages that the process has not read, in bytes."""
        return self._stdin.transport.get_write_buffer_size()

    def write(self, line: bytes) -> None:
        """Write a line, without a wait."""
        self._stdin.write(line + b"\n")

    async def send(self, item: SessionMessage, /) -> None:
        """Send a message. If the process does not read it, the connection ends. Raises anyio.BrokenResourceError if the
        connection has ended."""
        line = item.message.model_dump_json(by_alias=True, exclude_unset=True).encode()
        if self.unsent_bytes > _MAX_UNSENT_BYTES:
            self._transport.lose(PipeLost(UNAVAILABLE, "it does not read its input"))
            raise anyio.BrokenResourceError
        self._transport.note_sent(item.message)
        try:
            self.write(line)
            async with asyncio.timeout(_WRITE_SECONDS):
                await self._stdin.drain()
        except TimeoutError:
            self._transport.lose(PipeLost(UNAVAILABLE, "it does not read its input"))
            raise anyio.BrokenResourceError from None
        except (OSError, RuntimeError):
            raise anyio.BrokenResourceError from None

    async def aclose(self) -> None:
        """Do nothing: the transport closes the pipe when it ends the process."""

    async def __aenter__(self) -> "_PipeWriter":
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.aclose()


__all__ = ["CannotStart", "PipeLost", "PipeTransport"]
