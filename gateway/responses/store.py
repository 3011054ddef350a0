"""What is kept of responses, and what keeping them means, wherever it is done."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

from gateway.graph.errors import GraphError

ROW = 200
"""Bytes of a row beside its texts, about."""


CONVERSATION_BYTES = 16 << 20
"""Most bytes of a conversation that is continued by its last response's id: what a request that holds all of it itself
may have by default."""


class ConversationTooLarge(GraphError):
    """The responses before the one that is continued are too large together."""

    code: ClassVar[str] = "too_large"


class ResponseStoreError(GraphError):
    """Responses cannot be kept, or read, now."""

    code: ClassVar[str] = "journal_failed"


@dataclass(frozen=True)
class StoredResponse:
    """A response. What is in its texts is whose it is; here they are bytes of JSON.

    `input`: what it was asked with, of a conversation that it went on with only what is new. `answer`: as it was
    answered, as it would be again. `session`: the one with a name that it belongs to, if to one. `begun`: what is
    needed to go on with it, if it has not ended, and `runs_in` the session that its call is in then.
    """

    tenant: str
    id: str
    input: bytes
    answer: bytes
    before: str | None = None
    session: str | None = None
    begun: bytes = b""
    runs_in: str | None = None

    @property
    def size(self) -> int:
        """Bytes, about, without what came before."""
        return ROW + len(self.input) + len(self.answer) + len(self.begun)


@dataclass(frozen=True)
class Told:
    """A turn of a conversation, as in `StoredResponse`."""

    input: bytes
    answer: bytes
    session: str | None
    ended: bool = True


class ResponseStore(Protocol):
    """Owner of the responses that clients may come back to. All methods raise ResponseStoreError.

    What came before a response stays as long as that does, also where it cannot be found any more itself. Where there
    is no more room, the oldest can be found no longer; never one that has not ended.
    """

    keeps: bool
    """Whether it keeps anything at all."""

    async def keep(self, response: StoredResponse, earlier: Sequence[Told] = ()) -> None:
        """From the return on it can be found, also after a crash. `earlier`: what came before, for the case that it has
        gone meanwhile."""

    async def end(self, response: StoredResponse) -> bool:
        """Puts a response that has ended in the place of itself unfinished; whether that was still there."""

    async def find(self, tenant: str, id: str) -> StoredResponse | None:
        """The key's response of that id, if it is still there."""

    async def conversation(self, tenant: str, id: str) -> Sequence[Told]:
        """Return the response and all that came before it, oldest first; nothing if it cannot be found.

        Raises ConversationTooLarge if they have more than CONVERSATION_BYTES, before all of them are read.
        """

    async def unfinished(self, tenant: str | None = None, session: str | None = None) -> Sequence[StoredResponse]:
        """Responses that have not ended: all, or those whose calls are in that session."""

    async def forget(self, tenant: str, id: str) -> bool:
        """Nobody finds it any more. Whether there was one."""

    async def forget_sessions(self, sessions: Sequence[tuple[str, str]]) -> None:
        """The same for all that belong to sessions, given by tenant and id."""

    async def tidy(self) -> None:
        """To be called now and then: forgets what is too old."""

    async def close(self) -> None:
        """Gives back what it holds."""


def check_size(turns: Sequence[Told]) -> Sequence[Told]:
    """Return the turns. Raises ConversationTooLarge."""
    size = sum(len(told.input) + len(told.answer) for told in turns)
    if size > CONVERSATION_BYTES:
        message = f"the conversation has more than {CONVERSATION_BYTES} bytes; begin a new one"
        raise ConversationTooLarge(message, "previous_response_id")
    return turns


def hidden(tenant: str, told: Told) -> StoredResponse:
    """A turn that had gone, for a row that nobody finds but through what came after it."""
    return StoredResponse(tenant, "", told.input, told.answer, session=told.session)
