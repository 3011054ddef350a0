"""Remember the thinking blocks of answers, because the server wants them back in the next request.

A conversation with tools must return each thinking block, with the server's signature, before the tool calls that
followed it. Clients of other APIs cannot return them, and the gateway's clients may drop them. So the gateway looks
them up by what every client does return: the text and the tool calls of the answer.
"""

import hashlib
import json
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

Block = Mapping[str, Any]
"""A thinking block as the server sent it."""
_MAX_TENANTS = 64
_MAX_TENANT_BYTES = 4 << 20
"""Maximum size of the blocks of one tenant, in bytes."""


def answer_key(text: str, tool_calls: Sequence[tuple[str, Any]]) -> bytes:
    """Return the key of an answer. White space in its text and the order of arguments make no difference.

    `tool_calls`: name and arguments of each tool call.
    """
    canonical = json.dumps([" ".join(text.split()), *tool_calls], sort_keys=True)
    return hashlib.blake2b(canonical.encode(), digest_size=16).digest()


class ThinkingMemory:
    """Owner of the blocks.

    It forgets the oldest answers of a tenant first, and the tenant that was idle longest.
    """

    def __init__(self, tenant_bytes: int = _MAX_TENANT_BYTES, tenants: int = _MAX_TENANTS) -> None:
        self._tenant_bytes = tenant_bytes
        self._tenants = tenants
        self._blocks: OrderedDict[str, OrderedDict[bytes, tuple[Sequence[Block], int]]] = OrderedDict()
        self._sizes: dict[str, int] = {}

    def remember(self, tenant: str, key: bytes, blocks: Sequence[Block]) -> None:
        """Store the thinking blocks of an answer."""
        size = 100 + sum(300 + sum(map(len, block.values())) for block in blocks)  # a dict has some hundred bytes
        answers = self._blocks.setdefault(tenant, OrderedDict())
        self._blocks.move_to_end(tenant)
        self._forget(tenant, key)
        answers[key] = (blocks, size)
        self._sizes[tenant] = self._sizes.get(tenant, 0) + size
        while self._sizes[tenant] > self._tenant_bytes:
            self._forget(tenant, next(iter(answers)))
        while len(self._blocks) > self._tenants:
            idle, _ = self._blocks.popitem(last=False)
            del self._sizes[idle]

    def recall(self, tenant: str, key: bytes) -> Sequence[Block]:
        """Return the thinking blocks of an answer; none if they are not known."""
        return self._blocks.get(tenant, OrderedDict()).get(key, ((), 0))[0]

    def _forget(self, tenant: str, key: bytes) -> None:
        answers = self._blocks[tenant]
        if key in answers:
            self._sizes[tenant] -= answers.pop(key)[1]
