"""Continue conversations: resolve `previous_response_id`, and build the turns that are stored for it."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from compat.bounds import MAX_ELEMENTS
from compat.openai import Message
from compat.openai.messages import (
    AnyToolCall,
    CalledFunction,
    MediaPart,
    RefusalPart,
    TextPart,
    ToolCall,
    arguments_of_input,
)
from compat.openai.responses import (
    ConversationReference,
    CustomToolCall,
    FunctionToolCall,
    McpApprovalRequest,
    McpCall,
    McpListTools,
    OutputItem,
    OutputMessage,
    ReasoningItem,
    Response,
    ResponseRequest,
    ToolCallItem,
    ToolSearchCall,
    items_of,
    to_messages,
)
from compat.openai.responses.items import found_tools, mcp_result
from compat.openai.responses.tools import SEARCH_NAME, ResponseTool, flat_name, mcp_name
from gateway.api.responses.conversation_store import (
    ConversationRecord,
    append_response,
    check_size,
    find_conversation,
    is_conversation_id,
)
from gateway.api.responses.mcp_history import McpHistory, is_approval_row
from gateway.api.semantic.extension import Scope, agent_scope
from gateway.errors import RequestError
from gateway.graph.ids import new_id
from gateway.graph.session import Session
from gateway.prompts.tool_calls.description import Verbatim
from gateway.responses import CONVERSATION_BYTES, ResponseStore, ResponseStoreError, StoredResponse, StoredTurn
from gateway.runtime.json_codec import encode_json

_Part = TextPart | RefusalPart | MediaPart


class _StoredRequest(msgspec.Struct):
    """The part of a request's body that is stored."""

    input: msgspec.Raw = msgspec.Raw(b"[]")


class _StoredAnswer(msgspec.Struct):
    """The part of an answer that the next turn reads."""

    output: list[OutputItem]
    conversation: ConversationReference | None = None


_NO_OUTPUT = b'{"output":[]}'
_decode_request = msgspec.json.Decoder(_StoredRequest).decode
_decode_answer = msgspec.json.Decoder(_StoredAnswer).decode
_items = msgspec.json.Decoder(list[msgspec.Raw]).decode


class Turn:
    """One turn of a conversation: the turns before it, and whether it is stored."""

    def __init__(
        self,
        response_store: ResponseStore,
        tenant: str,
        body: ResponseRequest,
        previous_turns: Sequence[StoredTurn],
        scope: Scope,
        conversation: ConversationRecord | None = None,
    ) -> None:
        """`previous_turns`: the turns before it, oldest first. `conversation`: the conversation that it continues
        instead. See `load`."""
        self._store = response_store
        self._tenant = tenant
        self._body = body
        self._previous_turns = previous_turns
        self.scope = scope
        """The scope of the request. It is the session of the turns before if these belong to one."""
        self._conversation = conversation
        self.earlier_tools: list[ResponseTool] = []
        """Tools that items of the turns before have added, once `messages_with_paths` was read."""
        self.mcp = McpHistory()
        """Calls of MCP tools in the conversation, once `messages_with_paths` was read."""
        self.is_stored = response_store.is_enabled
        """Whether the response is stored."""

    @classmethod
    async def load(
        cls,
        response_store: ResponseStore,
        tenant: str,
        body: ResponseRequest,
        scope: Scope,
        agent_session: Session | None = None,
        *,
        local: "LocalTurns | None" = None,
    ) -> "Turn":
        """Return the turn of a request. `agent_session`: the session that `X-Session-Id` names; see
        `find_agent_session`. `local`: turns of the client's connection, which need not be stored. Raises RequestError
        and GraphError."""

        async def load_turns(id: str) -> Sequence[StoredTurn]:
            if local is not None and (turns := local.find(id)) is not None:
                return turns
            return await response_store.load_conversation(tenant, id) if is_response_id(id) else []

        conversation = None
        if body.conversation_id is not None:
            if scope.is_named or scope.is_deferred:
                message = "a conversation cannot be continued in a session; use previous_response_id"
                raise RequestError(400, message, code="unsupported_with_semantic", param="conversation")
            conversation = await find_conversation(response_store, tenant, body.conversation_id, "conversation")
            check_size(conversation, "conversation")
        previous_turns: Sequence[StoredTurn] = []
        if body.previous_response_id is not None:
            previous_turns = await load_turns(body.previous_response_id)
            before = previous_turns[-1].session if previous_turns else None
            if agent_session is not None and not scope.is_named and before == agent_session.id:
                scope = agent_scope(agent_session, frozenset(agent_session.variables))
            _check(body.previous_response_id, previous_turns, scope.session.id if scope.is_named else None)
        turn = cls(response_store, tenant, body, previous_turns, scope, conversation)
        reason = "a deferred response cannot be stored; use its reference to continue" if scope.is_deferred else None
        if not response_store.is_enabled:
            reason = "this server does not store responses"
        for name, is_requested in (("background", body.background), ("store", body.store)):
            if is_requested and reason is not None:
                raise RequestError(400, reason, code="unsupported_value", param=name)
        turn.is_stored = body.store is not False and reason is None
        return turn

    @property
    def messages_with_paths(self) -> tuple[list[Message], list[str]]:
        """Return all messages that the model reads, and the path of each message's content in the request. Raises
        RequestError."""
        messages, places = self._body.messages_with_paths
        before: list[Message] = []
        items = 0
        self.earlier_tools, self.mcp = [], McpHistory()
        field = "previous_response_id"
        turns = self._previous_turns
        if self._conversation is not None:
            field, turns = "conversation", [StoredTurn(self._conversation.row.input, _NO_OUTPUT, None)]
        for stored_turn in turns:
            turn, count, tools = _messages(stored_turn, self.mcp)
            self.earlier_tools += tools
            items += count
            if items > MAX_ELEMENTS:
                message = f"the conversation has more than {MAX_ELEMENTS} items; start a new one"
                raise RequestError(400, message, code="invalid_value", param=field)
            before += turn
        if self._body.input is not None and not isinstance(self._body.input, str):
            self.mcp.add_request(self._body.input)
            messages = [
                message.model_copy(update={"content": _verbatim(message)})
                if message.role == "tool" and message.tool_call_id in self.mcp.results
                else message
                for message in messages
            ]
        _check_tool_outputs(before, messages, places)
        instructions = self._body.instructions
        first = [] if instructions is None else [Message(role="system", content=instructions)]
        paths = [*["instructions"] * len(first), *[field] * len(before), *places]
        return self.mcp.place_results([*first, *before, *messages], paths)

    @property
    def size(self) -> int:
        """Return the size of the turns before, in bytes."""
        size = 0 if self._conversation is None else self._conversation.row.size
        return size + sum(len(stored_turn.input) + len(stored_turn.answer) for stored_turn in self._previous_turns)

    @property
    def previous_turns(self) -> Sequence[StoredTurn]:
        """Return the turns before, oldest first."""
        return self._previous_turns

    async def store(self, response: Response, raw: bytes, *, slots: bool) -> None:
        """Store the response once it has ended. Raises ResponseStoreError."""
        await self._store.add(self.to_row(response, raw, slots=slots), self._previous_turns)

    async def append(self, response: Response, raw: bytes) -> bool:
        """Add the response to the conversation that it continues. `raw`: body of the request. Return whether it was
        added."""
        assert self._conversation is not None
        try:
            return await append_response(self._store, self._tenant, self._conversation.row.id, _input_of(raw), response)
        except ResponseStoreError:
            return False

    def to_row(self, response: Response, raw: bytes, *, slots: bool) -> StoredResponse:
        """Return the row that stores the response. `raw`: body of the request. `slots`: whether the answer is in slots
        of the last message."""
        input = _input_of(raw)
        if slots:
            input = encode_json(_items(input)[:-1])
        before = self._body.previous_response_id
        session = self.scope.session.id if self.scope.is_named else None
        return StoredResponse(self._tenant, response.id, input, encode_json(response), before, session)


class LocalTurns:
    """The latest response of a client's connection with the turns before it. It can be continued on the connection
    even if it is not stored."""

    def __init__(self) -> None:
        self._id: str | None = None
        self._turns: Sequence[StoredTurn] = ()

    @property
    def id(self) -> str | None:
        """Id of the response."""
        return self._id

    def find(self, id: str) -> Sequence[StoredTurn] | None:
        """Return the response and all turns before it, oldest first; None if it is another one."""
        return self._turns if id == self._id else None

    def remember(self, turn: Turn, response: Response, raw: bytes) -> None:
        """Keep the response that has ended, instead of the one before. A conversation that is too large is not kept."""
        row = turn.to_row(response, raw, slots=False)
        turns = [*turn.previous_turns, StoredTurn(row.input, row.answer, None)]
        if sum(len(each.input) + len(each.answer) for each in turns) <= CONVERSATION_BYTES:
            self._id, self._turns = response.id, turns
        else:
            self.forget()

    def forget(self) -> None:
        """Drop the response."""
        self._id, self._turns = None, ()


def _input_of(raw: bytes) -> bytes:
    """Return the input in a request's body, as JSON."""
    input = bytes(_decode_request(raw).input)
    return b"[]" if input == b"null" else input


def new_response_id() -> str:
    """Return a new id for a response."""
    return f"resp_{new_id(24)}"


def is_response_id(id: str) -> bool:
    """Return whether the id may be that of a response. The response store has rows of other kinds as well."""
    return not is_conversation_id(id) and not is_approval_row(id)


def not_found_message(id: str) -> str:
    """Return the message of the error for an unknown response."""
    return f"Response with id {id!r} not found: it was not stored, was deleted, or was evicted by newer responses"


def _check(id: str, previous_turns: Sequence[StoredTurn], session: str | None) -> None:
    """Raise RequestError unless the last of these turns can be continued in that session."""
    if not previous_turns:
        code = "previous_response_not_found"
        raise RequestError(400, not_found_message(id), code=code, param="previous_response_id")
    last = previous_turns[-1]
    if not last.has_ended:
        message = f"response {id!r} has not ended yet; wait until it is completed"
        raise RequestError(400, message, code="previous_response_not_ended", param="previous_response_id")
    if last.session not in (None, session):
        message = f"response {id!r} belongs to session {last.session!r} and can be continued only in it"
        raise RequestError(400, message, code="session_conflict", param="previous_response_id")
    conversation = _decode_answer(last.answer).conversation
    if conversation is not None:
        message = f"response {id!r} belongs to conversation {conversation.id!r}; continue it by `conversation`"
        raise RequestError(400, message, code="invalid_value", param="previous_response_id")


def _check_tool_outputs(before: Sequence[Message], messages: Sequence[Message], places: Sequence[str]) -> None:
    """Raise RequestError if a message has the output of a tool call that no earlier message makes. `before`: messages
    of the turns before. `places`: paths of the messages' contents."""
    if all(message.role != "tool" for message in messages):
        return
    called = {call.id for message in before for call in message.tool_calls or ()}
    for message, place in zip(messages, places, strict=True):
        called.update(call.id for call in message.tool_calls or ())
        if message.role == "tool" and message.tool_call_id not in called:
            text = f"No tool call found for the output with call_id {message.tool_call_id!r}"
            param = f"{place.removesuffix('.output')}.call_id"
            raise RequestError(400, text, code="tool_call_not_found", param=param)


def _messages(stored_turn: StoredTurn, mcp: McpHistory) -> tuple[list[Message], int, list[ResponseTool]]:
    """Return a turn as messages, how many items it has, as some items make no message, and the tools that they add. Add
    its calls of MCP tools to `mcp`.

    If the turn belonged to no session, `<<name>>` in it is text and not a reference.
    """
    items = items_of(msgspec.json.decode(stored_turn.input))
    inputs, _ = to_messages(items, "")
    if stored_turn.session is None:
        inputs = [message.model_copy(update={"content": _verbatim(message)}) for message in inputs]
    output = _decode_answer(stored_turn.answer).output
    mcp.add_earlier(items, output)
    return [*inputs, *_answer_messages(output)], len(items) + len(output), found_tools(items)


def _verbatim(message: Message) -> Any:
    """Return the content of a message with all texts marked as free of references."""
    if isinstance(message.content, str):
        return Verbatim(message.content)
    return None if message.content is None else [_verbatim_part(part) for part in message.content]


def _verbatim_part(part: _Part) -> _Part:
    return part.model_copy(update={"text": Verbatim(part.text)}) if isinstance(part, TextPart) else part


def _answer_messages(output: Sequence[OutputItem]) -> list[Message]:
    """Return an answer as messages: one, or several with results of MCP tools between them.

    A tool call that was cut off is omitted, because it cannot be executed. Reasoning is included only with tool calls.
    """
    messages: list[Message] = []
    answer = _Answer()
    for item in output:
        match item:
            case ReasoningItem():
                answer.reasoning += "".join(part.text for part in item.content)
            case OutputMessage():
                answer.text = (answer.text or "") + "".join(part.text for part in item.content)
            case McpListTools():
                pass
            case McpCall() if item.status not in ("completed", "failed"):
                pass
            case McpCall():
                id = item.approval_request_id
                if id is None:  # otherwise its request is the call
                    id = item.id
                    answer.tool_calls.append(_mcp_call(item))
                messages += [*answer.messages, _mcp_result(item, id)]
                answer = _Answer()
            case McpApprovalRequest():
                answer.tool_calls.append(_mcp_call(item))
            case _ if (tool_call := _tool_call(item)) is not None:
                answer.tool_calls.append(tool_call)
    return [*messages, *answer.messages]


@dataclass
class _Answer:
    """A message of the model while its items are read."""

    text: str | None = None
    reasoning: str = ""
    tool_calls: list[AnyToolCall] = field(default_factory=list)

    @property
    def messages(self) -> list[Message]:
        """The message; none if it is empty."""
        if self.text is None and not self.tool_calls:
            return []
        return [
            Message.model_construct(
                role="assistant",
                content=None if self.text is None else Verbatim(self.text),
                tool_calls=self.tool_calls or None,
                reasoning_content=self.reasoning if self.tool_calls else None,
            )
        ]


def _mcp_call(item: McpCall | McpApprovalRequest) -> ToolCall:
    name = mcp_name(item.server_label, item.name)
    return ToolCall(id=item.id, function=CalledFunction(name=name, arguments=item.arguments))


def _mcp_result(item: McpCall, id: str) -> Message:
    content = Verbatim(mcp_result(item.output, item.error))
    return Message.model_construct(role="tool", content=content, tool_call_id=id)


def _tool_call(item: ToolCallItem) -> ToolCall | None:
    """Return a call as the model knows it; None if it was cut off."""
    match item:
        case FunctionToolCall():
            name, arguments = flat_name(item.namespace or None, item.name), item.arguments
        case CustomToolCall() if item.status == "incomplete":
            return None
        case CustomToolCall():
            name, arguments = flat_name(item.namespace or None, item.name), arguments_of_input(item.input)
        case ToolSearchCall():
            name, arguments = SEARCH_NAME, json.dumps(item.arguments)
    if not _is_json(arguments):
        return None
    return ToolCall(id=item.call_id, function=CalledFunction(name=name, arguments=arguments))


def _is_json(text: str) -> bool:
    try:
        json.loads(text or "{}")
    except ValueError:
        return False
    return True
