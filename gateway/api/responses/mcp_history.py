"""Calls of MCP tools in a conversation: which of them wait for the client's approval, and which it has approved."""

import hashlib
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import msgspec
from aiohttp import web

from compat.openai import Message
from compat.openai.responses import McpApprovalRequest, McpCall, McpListTools, OutputItem
from compat.openai.responses.items import (
    NOT_APPROVED,
    InputItem,
    McpApprovalRequestItem,
    McpApprovalResponseItem,
    McpCallItem,
    McpListItem,
)
from gateway.errors import RequestError
from gateway.responses import ResponseStore, StoredResponse

_ROW_PREFIX = "used_"
_MAX_USED = 100_000
"""Number of approvals that are remembered, so that none is used twice."""


class PendingCall(msgspec.Struct, frozen=True):
    """A call that the client approves in this request. `id`: that of the request for approval."""

    id: str
    label: str
    name: str
    arguments: str


@dataclass
class McpHistory:
    """Calls of MCP tools in a conversation.

    `listed`: labels of the servers whose tools are listed. `requests`: calls that wait for an approval, by id.
    `answered`: ids of requests that the client has answered in earlier turns, or whose call was run. `pending`: calls
    that this request approves.
    """

    listed: set[str] = field(default_factory=set)
    requests: dict[str, PendingCall] = field(default_factory=dict)
    answered: set[str] = field(default_factory=set)
    pending: list[PendingCall] = field(default_factory=list)
    results: set[str] = field(default_factory=set)
    """Ids of the calls whose results the request contains."""

    def add_earlier(self, inputs: Iterable[InputItem], output: Iterable[OutputItem]) -> None:
        """Add an earlier turn of the conversation."""
        for item in (*inputs, *output):
            self._add(item)
            if isinstance(item, McpApprovalResponseItem):
                self.answered.add(item.approval_request_id)

    def add_request(self, items: Sequence[InputItem]) -> None:
        """Add the items of the request. Raises RequestError if an approval is for an unknown request, or for one that
        was answered before."""
        for item in items:
            self._add(item)
        calls = [item for item in items if isinstance(item, McpCallItem)]
        self.results = {item.approval_request_id or item.id for item in calls}
        run = {item.approval_request_id for item in calls}
        approved: set[str] = set()
        for index, item in enumerate(items):
            if not isinstance(item, McpApprovalResponseItem) or item.approval_request_id in run:
                continue
            id, param = item.approval_request_id, f"input.{index}.approval_request_id"
            request = self.requests.get(id)
            if request is None:
                message = f"No approval request found with id {id!r} in this conversation"
                raise RequestError(400, message, code="approval_request_not_found", param=param)
            if id in self.answered or id in approved:
                message = f"the approval request {id!r} is already answered"
                raise RequestError(400, message, code="approval_already_answered", param=param)
            approved.add(id)
            if item.approve:
                self.pending.append(request)

    def _add(self, item: "InputItem | OutputItem") -> None:
        match item:
            case McpListTools(server_label=label) | McpListItem(server_label=str(label)):
                self.listed.add(label)
            case McpApprovalRequest() | McpApprovalRequestItem():
                self.requests[item.id] = PendingCall(item.id, item.server_label, item.name, item.arguments)
            case McpCall(approval_request_id=str(id)) | McpCallItem(approval_request_id=str(id)):
                self.answered.add(id)

    def place_results(self, messages: list[Message], paths: list[str]) -> tuple[list[Message], list[str]]:
        """Return the messages with the results of calls that needed an approval after the messages that make them, as
        models expect it.

        The result of a call that this request approves is not known yet: its message has no content. A call that the
        client has not answered has a text that says so.
        """
        if not self.requests:
            return messages, paths
        results: dict[str, tuple[Message, str]] = {}
        for message, path in zip(messages, paths, strict=True):
            if message.role == "tool" and message.tool_call_id in self.requests:
                results.setdefault(message.tool_call_id or "", (message, path))
        pending = {call.id for call in self.pending}
        placed: list[tuple[Message, str]] = []
        for message, path in zip(messages, paths, strict=True):
            if message.role == "tool" and message.tool_call_id in self.requests:
                continue
            placed.append((message, path))
            for call in message.tool_calls or ():
                if call.id not in self.requests:
                    continue
                if call.id in pending:
                    placed.append((_result(call.id, None), path))
                elif call.id in results:
                    placed.append(results.pop(call.id))
                else:
                    placed.append((_result(call.id, NOT_APPROVED), path))
        return [message for message, _ in placed], [path for _, path in placed]


def _result(id: str, content: str | None) -> Message:
    return Message.model_construct(role="tool", tool_call_id=id, content=content)


class UsedApprovals:
    """Approvals that requests have used, so that a repeated request does not run a tool again.

    The response store has a row for each, if it stores responses; otherwise they are known to this process alone.
    """

    def __init__(self, store: ResponseStore) -> None:
        self._store = store
        self._used: OrderedDict[tuple[str, str], None] = OrderedDict()

    @asynccontextmanager
    async def using(
        self, tenant: str, calls: Sequence[PendingCall], has_begun: Callable[[], bool] = lambda: False
    ) -> AsyncIterator[None]:
        """Use the approvals of a request in an `async with` body, which submits its calls. If it fails before they have
        begun, the approvals can be used again. Raises RequestError if one is used already, and ResponseStoreError."""
        taken: list[PendingCall] = []
        try:
            for call in calls:
                await self._use(tenant, call, taken)
            yield
        except BaseException:
            if not has_begun():
                for call in taken:
                    self._used.pop((tenant, call.id), None)
                    if self._store.is_enabled:
                        await self._store.delete(tenant, _row_id(call))
            raise
        while len(self._used) > _MAX_USED:
            self._used.popitem(last=False)

    async def _use(self, tenant: str, call: PendingCall, taken: list[PendingCall]) -> None:
        """Use an approval, and add it to `taken`."""
        key, row = (tenant, call.id), _row_id(call)
        if key in self._used:
            raise _refusal(call)
        self._used[key] = None  # before the first wait: two requests may arrive at once
        try:
            if self._store.is_enabled:
                if await self._store.find(tenant, row) is not None:
                    raise _refusal(call)
                await self._store.add(StoredResponse(tenant, row, b"[]", b"{}"))
        except BaseException:
            del self._used[key]
            raise
        taken.append(call)


def is_approval_row(id: str) -> bool:
    """Return whether the id of a row in the response store is that of a used approval."""
    return id.startswith(_ROW_PREFIX)


def _row_id(call: PendingCall) -> str:
    """Return the id of the row for an approval. The client may have chosen the id of the request."""
    return f"{_ROW_PREFIX}{hashlib.blake2b(call.id.encode(), digest_size=20).hexdigest()}"


def _refusal(call: PendingCall) -> RequestError:
    message = f"the approval request {call.id[:100]!r} is already answered: its call has begun"
    return RequestError(409, message, code="approval_already_answered", param="input")


USED_APPROVALS = web.AppKey("used_approvals", UsedApprovals)
