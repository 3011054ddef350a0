"""Which KV block holds what: a pool of blocks with reference counts and a prefix tree over full blocks.

Bookkeeping only; the tensors themselves belong to the model. A block is shared by reference. Full blocks are
never written again, so sharing needs no locks and no copies; a partly filled block that is shared is copied by
whoever writes first (copy on write).
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from enum import StrEnum

from engine.kv.eviction import EvictionPolicy
from engine.kv.host_offload import HostOffload

SCRATCH = 0
"""A block that belongs to nobody; rows whose KV is already there write into it."""

Key = tuple[int, ...]
"""The tokens of one full block."""


class Missing(StrEnum):
    """Why the KV of the rest of a prompt was not there: nothing begins like it; what begins like it goes on otherwise;
    it was given up for lack of room; it is there, but for another tenant; it does not fill a block; nothing is kept."""

    NEVER_SEEN = "never_seen"
    DIVERGED = "diverged"
    EVICTED = "evicted"
    OTHER_KEY = "other_key"
    PART_OF_A_BLOCK = "part_of_a_block"
    SHARING_OFF = "sharing_off"


class Node:
    """A full block in the prefix tree, reached by the tokens of its ancestors and its own.

    `text`: a digest of the tokens from the beginning to its end; `path`: the same of one scope. `reads`, `used`: see
    `retention.Evictable`. `returning`: contexts that gave it back and will come for it.
    """

    __slots__ = (
        "block",
        "children",
        "due",
        "evictable",
        "key",
        "parent",
        "path",
        "reads",
        "ready",
        "returning",
        "scope",
        "text",
        "used",
    )

    def __init__(self, parent: "Node | None", key: Key, block: int, scope: int = 0) -> None:
        self.parent = parent
        self.key = key
        self.block = block
        self.children: dict[Key, Node] = {}
        self.ready = False
        """False while the step that computes it runs; whoever wants it waits one step instead of redoing it."""
        self.scope: int = scope if parent is None else parent.scope
        self.text: int = 0 if parent is None else hash((parent.text, key))
        self.path = hash((self.scope, self.text))
        self.used = 0
        self.reads = 1
        self.returning = 0
        self.due: float | None = None
        self.evictable = False


class KVCache:
    """Owner of all block state.

    References to a block: one for each context whose table holds it, one for the tree. A block with none is
    free; one that only the tree holds is cold and goes when room is needed: see `retention` for which goes first, but
    leaves go before their parents. Whoever holds a block of the tree holds all its ancestors, so a
    cold node never stands above a used one.
    """

    def __init__(
        self,
        blocks: int,
        block_size: int,
        *,
        sharing: bool = True,
        retention: EvictionPolicy | None = None,
        shelf: HostOffload | None = None,
    ) -> None:
        """`blocks` counts the scratch block; `block_size` is in tokens. `shelf`: where blocks go that are given up."""
        if blocks < 2:
            raise ValueError("a KV pool needs at least two blocks")
        self.block_size = block_size
        self.capacity = (blocks - 1) * block_size
        """Tokens that fit, all contexts together."""
        self.sharing = sharing
        self._references = [0] * blocks
        self._references[SCRATCH] = 1
        self._free = list(range(blocks - 1, SCRATCH, -1))
        self._roots: dict[str, Node] = {}
        self._nodes: dict[int, Node] = {}
        self._texts: Counter[int] = Counter()
        """In how many scopes a text is there."""
        self._retention = EvictionPolicy(blocks - 1) if retention is None else retention
        self._cold_count = 0
        self.shelf = HostOffload(0) if shelf is None else shelf

    @property
    def available(self) -> int:
        """Blocks that `allocate` can give: free ones and cold ones."""
        return len(self._free) + self._cold_count

    def root(self, scope: str) -> Node:
        """Where the paths of `scope` begin. Scopes share nothing."""
        if scope not in self._roots:
            root = Node(None, (), SCRATCH, hash(scope))
            root.ready = True
            self._roots[scope] = root
        return self._roots[scope]

    def allocate(self) -> int | None:
        """A block with one reference, the caller's; None when every block is in use."""
        if not self._free and not self._evict():
            return None
        block = self._free.pop()
        self._references[block] = 1
        return block

    def share(self, block: int) -> None:
        """One more reference to a block that has some."""
        node = self._nodes.get(block)
        if node is not None:
            if self._references[block] == 1:
                self._cold_count -= 1
                node.evictable = False
                if not node.returning:
                    self._retention.read_again(node)
            if not node.returning:
                node.reads += 1
        self._references[block] += 1

    def release(self, blocks: Iterable[int]) -> None:
        """Gives back one reference to each; pass a table's blocks last to first, so that leaves cool first."""
        for block in blocks:
            self._references[block] -= 1
            left = self._references[block]
            if left == 0:
                self._free.append(block)
            elif left == 1 and (node := self._nodes.get(block)) is not None:
                node.used = self._retention.given_back()
                self._cold_count += 1
                self._offer(node)

    def shared(self, block: int) -> bool:
        """Whether somebody else holds the block too, so that writing needs a copy."""
        return self._references[block] > 1

    def child(self, node: Node, key: Key) -> Node | None:
        """The block behind `node` that holds the tokens `key`."""
        return node.children.get(key)

    def fetch(self, node: Node, key: Key) -> Node | None:
        """The block behind `node` that holds the tokens `key`, back from the shelf and held by the caller; None if it
        is not there, or no block is free for it."""
        path = hash((node.scope, hash((node.text, key))))
        if not self.shelf.has(path, key, node.path):
            return None
        block = self.allocate()
        if block is None:
            return None
        if not self.shelf.has(path, key, node.path):  # it made room for what was given up just now
            self.release([block])
            return None
        self.shelf.bring(path, block)
        child = self.insert(node, key, block)
        child.ready = True
        return child

    def insert(self, node: Node, key: Key, block: int) -> Node:
        """Puts a block, held by the caller and being computed in this step, behind `node`."""
        child = Node(node, key, block)
        child.reads += self._retention.returned(child.path)
        self._texts[child.text] += 1
        node.children[key] = child
        node.evictable = False
        self._nodes[block] = child
        self._references[block] += 1
        return child

    def remove(self, node: Node) -> None:
        """Takes a childless node out of the tree again."""
        assert node.parent is not None
        assert not node.children
        del node.parent.children[node.key]
        del self._nodes[node.block]
        node.evictable = False
        self._texts[node.text] -= 1
        if not self._texts[node.text]:
            del self._texts[node.text]
        if self._references[node.block] == 1:
            self._cold_count -= 1
        self.release([node.block])
        if node.parent.parent is not None and self._references[node.parent.block] == 1:
            self._offer(node.parent)

    def missing(self, node: Node, key: Key) -> Missing:
        """Why the block behind `node` that holds the tokens `key` is not there."""
        text = hash((node.text, key))
        if self._retention.evicted(hash((node.scope, text))):
            return Missing.EVICTED
        if text in self._texts:
            return Missing.OTHER_KEY
        return Missing.DIVERGED if node.children and node.parent is not None else Missing.NEVER_SEEN

    def expect(self, node: Node, rank: float) -> None:
        """Somebody who gives back `node` and its ancestors now will come for them again."""
        at: Node | None = node
        while at is not None and at.parent is not None:
            at.returning += 1
            at.due = rank if at.due is None else min(at.due, rank)
            if at.evictable:
                self._retention.offer(at)
            at = at.parent

    def expect_no_more(self, node: Node) -> None:
        """Who was expected has come, or never will."""
        at: Node | None = node
        while at is not None and at.parent is not None:
            at.returning -= 1
            if not at.returning:
                at.due = None
                if at.evictable:
                    self._retention.offer(at)
            at = at.parent

    def _offer(self, node: Node) -> None:
        """It can be evicted if it is a leaf."""
        if not node.children:
            node.evictable = True
            self._retention.offer(node)

    def _evict(self) -> bool:
        node = self._retention.choose()
        if node is None:
            return False
        assert isinstance(node, Node)
        assert node.parent is not None
        self.shelf.keep(node.path, node.key, node.parent.path, node.block)
        self.remove(node)
        return True

    def check_integrity(self, tables: Iterable[Sequence[int]]) -> None:
        """Recounts everything from the tables of all contexts. Raises AssertionError on any difference."""
        expected = [0] * len(self._references)
        expected[SCRATCH] = 1
        for table in tables:
            assert len(set(table)) == len(table), "a block stands twice in one table"
            for block in table:
                expected[block] += 1
        in_use = list(expected)
        nodes = [node for root in self._roots.values() for node in _descendants(root)]
        for node in nodes:
            expected[node.block] += 1
            assert self._nodes.get(node.block) is node, "a node is not registered under its block"
            assert len(node.key) == self.block_size, "a node's key is not a full block"
        assert len(nodes) == len(self._nodes), "a registered node is not in the tree"
        assert expected == self._references, "reference counts differ from what tables and tree hold"
        free = [block for block, references in enumerate(expected) if references == 0]
        assert sorted(self._free) == free, "the free list differs from the unreferenced blocks"
        cold = [node for node in nodes if in_use[node.block] == 0]
        assert len(cold) == self._cold_count, "the count of cold blocks is off"
        leaves = {node.block for node in cold if not node.children}
        assert leaves == {node.block for node in nodes if node.evictable}, (
            "other blocks can be evicted than cold leaves"
        )
        assert leaves == {one.block for one in self._retention.offered()}, "a cold leaf was never offered"
        assert all((node.due is not None) == (node.returning > 0) for node in nodes), "due for nobody"
        assert Counter(node.text for node in nodes) == self._texts, "texts that are not there"
        for node in cold:
            assert all(in_use[child.block] == 0 for child in node.children.values()), "a cold node above a used one"


def _descendants(root: Node) -> Iterator[Node]:
    stack = list(root.children.values())
    while stack:
        node = stack.pop()
        yield node
        stack.extend(node.children.values())
