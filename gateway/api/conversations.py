"""Responses that can be gone on with by their ids."""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field

from compat.openai import Message

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
        self.bytes = 0
        self._kept: OrderedDict[tuple[str, str], Kept] = OrderedDict()

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

    def _hold(self, response: Kept) -> None:
        response.holders += 1
        if response.holders == 1:
            self.bytes += response.size
            if response.before is not None:
                self._hold(response.before)

    def _let_go(self, response: Kept | None) -> None:
        while response is not None:
            response.holders -= 1
            if response.holders:
                return
            self.bytes -= response.size
            response = response.before
