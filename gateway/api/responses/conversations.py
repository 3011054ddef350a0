"""What going on with a response means, and what is kept of one so that it can be gone on with."""

import json
from collections.abc import Sequence
from typing import Any

import msgspec

from compat.bounds import MAX_ELEMENTS
from compat.openai import Message
from compat.openai.messages import CalledFunction, MediaPart, RefusalPart, TextPart, ToolCall
from compat.openai.responses import (
    OutputItem,
    OutputMessage,
    ReasoningItem,
    Response,
    ResponseRequest,
    as_messages,
    items_of,
)
from gateway.errors import RequestError
from gateway.graph.ids import new_id
from gateway.http.json_body import encode_json
from gateway.prompts.tool_calls import Verbatim
from gateway.responses import ResponseStore, StoredResponse, Told

_Part = TextPart | RefusalPart | MediaPart


class _Asked(msgspec.Struct):
    """Of a request's body, what is kept."""

    input: msgspec.Raw


class _Answered(msgspec.Struct):
    """Of an answer, what the next turn reads."""

    output: list[OutputItem]


_asked = msgspec.json.Decoder(_Asked).decode
_answered = msgspec.json.Decoder(_Answered).decode
_items = msgspec.json.Decoder(list[msgspec.Raw]).decode


class Turn:
    """Of a conversation: what a response goes on with, and whether it can be gone on with itself."""

    def __init__(
        self, archive: ResponseStore, tenant: str, body: ResponseRequest, earlier: Sequence[Told], session: str | None
    ) -> None:
        """`earlier`: what it goes on with, oldest first. See `begin`."""
        self._archive = archive
        self._tenant = tenant
        self._body = body
        self._earlier = earlier
        self._session = session
        self.keeps = archive.keeps
        """Whether it is kept."""

    @classmethod
    async def begin(
        cls, archive: ResponseStore, tenant: str, body: ResponseRequest, session: str | None, *, deferred: bool
    ) -> "Turn":
        """`session`: the one with a name that the response belongs to, if to one. Raises RequestError, GraphError."""
        id = body.previous_response_id
        earlier = [] if id is None else await archive.conversation(tenant, id)
        if id is not None:
            _check(id, earlier, session)
        turn = cls(archive, tenant, body, earlier, session)
        why = "go on with a deferred answer by its reference" if deferred else None
        if not archive.keeps:
            why = "this server keeps no responses"
        for name, wanted in (("background", body.background), ("store", body.store)):
            if wanted and why is not None:
                raise RequestError(400, why, code="unsupported_value", param=name)
        turn.keeps = body.store is not False and why is None
        return turn

    @property
    def conversation(self) -> tuple[list[Message], list[str]]:
        """All that the model reads, and the path of each message's content in the request."""
        messages, places = self._body.conversation
        before: list[Message] = []
        items = 0
        for told in self._earlier:
            turn, count = _messages(told)
            items += count
            if items > MAX_ELEMENTS:
                why = f"the conversation has more than {MAX_ELEMENTS} items; begin a new one"
                raise RequestError(400, why, code="invalid_value", param="previous_response_id")
            before += turn
        rules = self._body.instructions
        first = [] if rules is None else [Message(role="system", content=rules)]
        return [*first, *before, *messages], [
            *["instructions"] * len(first),
            *["previous_response_id"] * len(before),
            *places,
        ]

    @property
    def size(self) -> int:
        """Bytes of what came before."""
        return sum(len(told.input) + len(told.answer) for told in self._earlier)

    @property
    def earlier(self) -> Sequence[Told]:
        """What it goes on with, oldest first."""
        return self._earlier

    async def keep(self, response: Response, raw: bytes, *, slots: bool) -> None:
        """The response has ended. See `kept`. Raises ResponseStoreError."""
        await self._archive.keep(self.kept(response, raw, slots=slots), self._earlier)

    def kept(self, response: Response, raw: bytes, *, slots: bool) -> StoredResponse:
        """The response as it is kept. `raw`: the request's body. `slots`: whether its last message was the answer, with
        places for slots in it."""
        input = bytes(_asked(raw).input)
        if slots:
            input = encode_json(_items(input)[:-1])
        before = self._body.previous_response_id
        return StoredResponse(self._tenant, response.id, input, encode_json(response), before, self._session)


def new_response_id() -> str:
    """For a response that may be kept."""
    return f"resp_{new_id(24)}"


def not_kept(id: str) -> str:
    """What is said where there is no such response."""
    return f"there is no response {id!r}: none was kept, or it was deleted, or newer ones have taken its place"


def _check(id: str, earlier: Sequence[Told], session: str | None) -> None:
    """Raises RequestError unless the last of these turns can be gone on with, in that session."""
    if not earlier:
        code = "previous_response_not_found"
        raise RequestError(400, not_kept(id), code=code, param="previous_response_id")
    last = earlier[-1]
    if not last.ended:
        message = f"response {id!r} has not ended yet; wait until it is completed"
        raise RequestError(400, message, code="previous_response_not_ended", param="previous_response_id")
    if last.session not in (None, session):
        message = f"response {id!r} belongs to session {last.session!r}, and can be gone on with only there"
        raise RequestError(400, message, code="session_conflict", param="previous_response_id")


def _messages(told: Told) -> tuple[list[Message], int]:
    """Return a turn as messages, and how many items it has: some make no message.

    Where the turn belonged to no session, what looked like a reference was none.
    """
    items = items_of(msgspec.json.decode(told.input))
    asked, _ = as_messages(items, "")
    if told.session is None:
        asked = [message.model_copy(update={"content": _verbatim(message)}) for message in asked]
    output = _answered(told.answer).output
    return [*asked, *_said(output)], len(items) + len(output)


def _verbatim(message: Message) -> Any:
    """Its content, with texts in which nothing is a reference."""
    if isinstance(message.content, str):
        return Verbatim(message.content)
    return None if message.content is None else [_verbatim_part(part) for part in message.content]


def _verbatim_part(part: _Part) -> _Part:
    return part.model_copy(update={"text": Verbatim(part.text)}) if isinstance(part, TextPart) else part


def _said(output: Sequence[OutputItem]) -> list[Message]:
    """An answer as a message. A call that was cut off cannot be made, nor gone on with; reasoning goes with calls."""
    text: str | None = None
    thought = ""
    calls: list[ToolCall] = []
    for item in output:
        if isinstance(item, ReasoningItem):
            thought += "".join(part.text for part in item.content)
        elif isinstance(item, OutputMessage):
            text = (text or "") + "".join(part.text for part in item.content)
        elif _is_json(item.arguments):
            calls.append(ToolCall(id=item.call_id, function=CalledFunction(name=item.name, arguments=item.arguments)))
    if text is None and not calls:
        return []
    content = None if text is None else Verbatim(text)
    return [
        Message.model_construct(
            role="assistant", content=content, tool_calls=calls or None, reasoning_content=thought if calls else None
        )
    ]


def _is_json(text: str) -> bool:
    try:
        json.loads(text or "{}")
    except ValueError:
        return False
    return True
