"""Responses that can be gone on with by their ids, and what going on with one means."""

import json
import re
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from compat.openai import Message
from compat.openai.messages import CalledFunction, MediaPart, TextPart, ToolCall
from compat.openai.responses import OutputItem, OutputMessage, ReasoningItem, Response, ResponseRequest
from gateway.errors import RequestError
from gateway.graph.call import Call
from gateway.graph.ids import new_id
from gateway.http.bodies import encode_json
from gateway.tools import Verbatim

_ID = re.compile(r"resp_([0-9]{1,18})_[0-9a-f]{24}")
_OVERHEAD = 2_000
"""Bytes of a message or a response beside its text, about."""


@dataclass(eq=False)
class Kept:
    """A response as it was answered, and the messages that it added to the conversation that it went on with.

    `session`: the one with a name that it belongs to, if to one; its references mean something only there.
    """

    tenant: str
    id: str
    answer: bytes
    messages: Sequence[Message]
    before: "Kept | None" = None
    session: str | None = None
    holders: int = field(default=0, init=False)
    """The index, and whatever went on with it."""

    @property
    def size(self) -> int:
        """Bytes of memory, about, without what came before."""
        texts = sum(_OVERHEAD + 4 * message.length for message in self.messages)
        return _OVERHEAD + len(self.answer) + texts

    @property
    def conversation(self) -> list[Message]:
        """All messages so far."""
        turns, turn = [], self
        while True:
            turns.append(turn.messages)
            if turn.before is None:
                return [message for messages in reversed(turns) for message in messages]
            turn = turn.before


class Conversations:
    """Owner of the responses that clients may come back to: those that were used last, in memory alone.

    What came before a response stays as long as that does, also where it cannot be found any more itself.
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.gateway = 0
        """Our number, where we are one of several."""
        self.bytes = 0
        self._kept: OrderedDict[tuple[str, str], Kept] = OrderedDict()

    def new_id(self) -> str:
        """For a response that may be kept here: it says where."""
        return f"resp_{self.gateway}_{new_id(24)}" if self.gateway else f"resp_{new_id(24)}"

    def keep(self, response: Kept) -> None:
        """Makes room for it by giving up those that nobody has used for longest; it may be too large itself."""
        self._kept[response.tenant, response.id] = response
        self._hold(response)
        while self.bytes > self.max_bytes:
            self._let_go(self._kept.popitem(last=False)[1])

    def find(self, tenant: str, id: str) -> Kept | None:
        """The key's response of that id, if it is still there."""
        found = self._kept.get((tenant, id))
        if found is not None:
            self._kept.move_to_end((tenant, id))
        return found

    def forget(self, tenant: str, id: str) -> bool:
        """Whether there was one."""
        found = self._kept.pop((tenant, id), None)
        if found is not None:
            self._let_go(found)
        return found is not None

    def _hold(self, response: Kept | None) -> None:
        while response is not None:
            response.holders += 1
            if response.holders > 1:
                return
            self.bytes += response.size
            response = response.before  # which may have been given up meanwhile

    def _let_go(self, response: Kept | None) -> None:
        while response is not None:
            response.holders -= 1
            if response.holders:
                return
            self.bytes -= response.size
            response = response.before


def kept_by(id: str) -> int | None:
    """The number of the gateway that keeps the response of that id, if it keeps it and is one of several."""
    found = _ID.fullmatch(id)
    return None if found is None else int(found[1])


class Turn:
    """Of a conversation: what a response goes on with, and whether it can be gone on with itself."""

    def __init__(
        self, conversations: Conversations, tenant: str, body: ResponseRequest, session: str | None, *, deferred: bool
    ) -> None:
        """`session`: the one with a name that it belongs to, if to one. Raises RequestError."""
        self._conversations = conversations
        self._tenant = tenant
        self._body = body
        self._session = session
        self._before = self._gone_on_with()
        why = "go on with a deferred answer by its reference" if deferred else None
        if not conversations.max_bytes:
            why = "this server keeps no responses"
        if body.store and why is not None:
            raise RequestError(400, why, code="unsupported_value", param="store")
        self.keeps = body.store is not False and why is None

    @property
    def new_id(self) -> str:
        """For the response."""
        return self._conversations.new_id()

    def _gone_on_with(self) -> Kept | None:
        id = self._body.previous_response_id
        if id is None:
            return None
        before = self._conversations.find(self._tenant, id)
        if before is None:
            code = "previous_response_not_found"
            raise RequestError(400, not_kept(id), code=code, param="previous_response_id")
        if before.session not in (None, self._session):
            message = f"response {id!r} belongs to session {before.session!r}, and can be gone on with only there"
            raise RequestError(400, message, code="session_conflict", param="previous_response_id")
        return before

    @property
    def conversation(self) -> tuple[list[Message], list[str]]:
        """All that the model reads, and the path of each message's content in the request."""
        messages, places = self._body.conversation
        before = [] if self._before is None else self._before.conversation
        rules = self._body.instructions
        first = [] if rules is None else [Message(role="system", content=rules)]
        return [*first, *before, *messages], [
            *["instructions"] * len(first),
            *["previous_response_id"] * len(before),
            *places,
        ]

    def keep(self, response: Response, call: Call) -> None:
        """A response that has ended, and what made it."""
        if not self.keeps:
            return
        told = self._body.conversation[0]
        if call.spec.parts is not None:  # its last message is the answer, once its slots are there
            told = told[:-1]
        if self._session is None:  # what looks like a reference was none
            told = [message.model_copy(update={"content": _verbatim(message)}) for message in told]
        messages = [*told, *_as_messages(response.output)]
        kept = Kept(self._tenant, response.id, encode_json(response), messages, self._before, self._session)
        self._conversations.keep(kept)


def not_kept(id: str) -> str:
    """What is said where there is no such response."""
    return f"there is no response {id!r}: the latest are kept in the server's memory, where `store` is not false"


def _verbatim(message: Message) -> Any:
    """Its content, with texts in which nothing is a reference."""
    if isinstance(message.content, str):
        return Verbatim(message.content)
    return None if message.content is None else [_verbatim_part(part) for part in message.content]


def _verbatim_part(part: TextPart | MediaPart) -> TextPart | MediaPart:
    return part.model_copy(update={"text": Verbatim(part.text)}) if isinstance(part, TextPart) else part


def _as_messages(output: Sequence[OutputItem]) -> list[Message]:
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
