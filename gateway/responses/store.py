"""Interface of the response store, and the records in it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

from gateway.graph.errors import GraphError

ROW = 200
"""Approximate size of a row without its texts, in bytes."""


CONVERSATION_BYTES = 16 << 20
"""Maximum size of a conversation that is continued by the id of its last response, in bytes: the default limit of a
request body that contains the whole conversation."""


class ConversationTooLarge(GraphError):
    """The responses before the one that is continued are too large together."""

    code: ClassVar[str] = "too_large"


class ResponseStoreError(GraphError):
    """Responses cannot be stored or read now."""

    code: ClassVar[str] = "journal_failed"


@dataclass(frozen=True)
class StoredResponse:
    """A response. The store does not interpret its texts, which are bytes of JSON.

    `input`: input of the request; in a conversation only the new items. `answer`: the response object that was sent, or
    would be sent now. `previous_id`: id of the response that it continues. `session`: the named session that it belongs
    to, if there is one. `resume_data`: data to resume an unfinished response, empty once it has ended. `call_session`:
    session of the unfinished response's call.
    """

    tenant: str
    id: str
    input: bytes
    answer: bytes
    previous_id: str | None = None
    session: str | None = None
    resume_data: bytes = b""
    call_session: str | None = None

    @property
    def is_unfinished(self) -> bool:
        """Whether the response has not ended yet."""
        return bool(self.resume_data)

    @property
    def size(self) -> int:
        """Approximate size in bytes, without the responses before it."""
        return ROW + len(self.input) + len(self.answer) + len(self.resume_data)


@dataclass(frozen=True)
class StoredTurn:
    """A turn of a conversation. See `StoredResponse`."""

    input: bytes
    answer: bytes
    session: str | None
    has_ended: bool = True


class ResponseStore(Protocol):
    """Owner of the stored responses. All methods raise ResponseStoreError.

    A deleted response cannot be found by its id. Its database row is **hidden**, and stays as long as another response
    continues it. If there is no more room, the store deletes the oldest ended responses; unfinished ones stay.
    """

    is_enabled: bool
    """Whether the store accepts responses at all."""

    async def add(self, response: StoredResponse, previous_turns: Sequence[StoredTurn] = ()) -> None:
        """Store a response. Once this returns, it can be found, also after a crash. `previous_turns`: the turns before
        it, in case they were deleted in the meantime."""

    async def complete(self, response: StoredResponse) -> bool:
        """Replace an unfinished response by the ended one. Return whether the unfinished one was still there."""

    async def replace(self, before: StoredResponse, after: StoredResponse) -> bool:
        """Replace an ended response that no other continues, if its input and answer are still those of `before`.
        Return whether it was replaced. The new one counts as new: it is the last to be deleted."""

    async def find(self, tenant: str, id: str) -> StoredResponse | None:
        """Return the tenant's response of that id, or None."""

    async def load_conversation(self, tenant: str, id: str) -> Sequence[StoredTurn]:
        """Return the response and all responses before it, oldest first; nothing if there is no such response.

        Raises ConversationTooLarge if they have more than CONVERSATION_BYTES, before all of them are read.
        """

    async def list_unfinished(self, tenant: str | None = None, session: str | None = None) -> Sequence[StoredResponse]:
        """Return all unfinished responses, or only the responses whose calls are in that session."""

    async def delete(self, tenant: str, id: str) -> bool:
        """Delete a response. Return whether there was one."""

    async def delete_sessions(self, sessions: Sequence[tuple[str, str]]) -> None:
        """Delete all responses that belong to these sessions, given by tenant and id."""

    async def delete_tenant(self, tenant: str) -> None:
        """Delete all responses of a tenant."""

    async def enforce_retention(self) -> None:
        """Delete responses that are too old or do not fit. Call it periodically."""

    async def close(self) -> None:
        """Release all resources."""


def check_conversation_size(turns: Sequence[StoredTurn]) -> Sequence[StoredTurn]:
    """Return the turns. Raises ConversationTooLarge if they have more than CONVERSATION_BYTES."""
    size = sum(len(turn.input) + len(turn.answer) for turn in turns)
    if size > CONVERSATION_BYTES:
        message = f"the conversation has more than {CONVERSATION_BYTES} bytes; start a new one"
        raise ConversationTooLarge(message, "previous_response_id")
    return turns


def hidden_response(tenant: str, turn: StoredTurn) -> StoredResponse:
    """Return a hidden row for a deleted response, to which only the responses after it refer."""
    return StoredResponse(tenant, "", turn.input, turn.answer, session=turn.session)
