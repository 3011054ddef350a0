"""Which KV block holds what: a pool of blocks with reference counts and a prefix tree over full blocks.

Bookkeeping only; the tensors themselves belong to the model. A block is shared by reference. Full blocks are
never written again, so sharing needs no locks and no copies; a partly filled block that is shared is copied by
whoever writes first (copy on write).
"""

import heapq
from collections.abc import Iterable, Iterator, Sequence

SCRATCH = 0
"""A block that belongs to nobody; rows whose KV is already there write into it."""

Key = tuple[int, ...]
"""The tokens of one full block."""


class Node:
    """A full block in the prefix tree, reached by the tokens of its ancestors and its own."""

    __slots__ = ("block", "children", "key", "parent", "ready", "retention", "used")

    def __init__(self, parent: "Node | None", key: Key, block: int) -> None:
        self.parent = parent
        self.key = key
        self.block = block
        self.children: dict[Key, Node] = {}
        self.ready = False
        """False while the step that computes it runs; whoever wants it waits one step instead of redoing it."""
        self.used = 0
        self.retention = 0.0


class KVCache:
    """Owner of all block state.

    References to a block: one for each context whose table holds it, one for the tree. A block with none is
    free; one that only the tree holds is cold and goes when room is needed: lowest retention first, then least
    recently used, leaves before their parents. Whoever holds a block of the tree holds all its ancestors, so a
    cold node never stands above a used one.
    """

    def __init__(self, blocks: int, block_size: int, *, sharing: bool = True) -> None:
        """`blocks` counts the scratch block; `block_size` is in tokens."""
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
        self._cold: list[tuple[float, int, int, Node]] = []
        self._cold_count = 0
        self._clock = 0

    @property
    def available(self) -> int:
        """Blocks that `allocate` can give: free ones and cold ones."""
        return len(self._free) + self._cold_count

    def root(self, scope: str) -> Node:
        """Where the paths of `scope` begin. Scopes share nothing."""
        if scope not in self._roots:
            root = Node(None, (), SCRATCH)
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
        if node is not None and self._references[block] == 1:
            self._cold_count -= 1
        self._references[block] += 1

    def release(self, blocks: Iterable[int]) -> None:
        """Gives back one reference to each; pass a table's blocks last to first, so that leaves cool first."""
        for block in blocks:
            self._references[block] -= 1
            left = self._references[block]
            if left == 0:
                self._free.append(block)
            elif left == 1 and (node := self._nodes.get(block)) is not None:
                self._clock += 1
                node.used = self._clock
                self._cold_count += 1
                self._offer(node)

    def shared(self, block: int) -> bool:
        """Whether somebody else holds the block too, so that writing needs a copy."""
        return self._references[block] > 1

    def child(self, node: Node, key: Key) -> Node | None:
        """The block behind `node` that holds the tokens `key`."""
        return node.children.get(key)

    def insert(self, node: Node, key: Key, block: int) -> Node:
        """Puts a block, held by the caller and being computed in this step, behind `node`."""
        child = Node(node, key, block)
        node.children[key] = child
        self._nodes[block] = child
        self._references[block] += 1
        return child

    def remove(self, node: Node) -> None:
        """Takes a childless node out of the tree again."""
        assert node.parent is not None
        assert not node.children
        del node.parent.children[node.key]
        del self._nodes[node.block]
        if self._references[node.block] == 1:
            self._cold_count -= 1
        self.release([node.block])
        if node.parent.parent is not None and self._references[node.parent.block] == 1:
            self._offer(node.parent)

    def retain(self, node: Node, hint: float) -> None:
        """Sets the worth of `node` and its ancestors; see `Retain` in engine/link.py."""
        at: Node | None = node
        while at is not None and at.parent is not None:
            at.retention = hint
            if self._references[at.block] == 1:
                self._offer(at)
            at = at.parent

    def _offer(self, node: Node) -> None:
        """Notes a node for eviction if it is a leaf. Notes go stale; `_evict` checks them."""
        if not node.children:
            heapq.heappush(self._cold, (node.retention, node.used, id(node), node))
            if len(self._cold) > 4 * len(self._references):
                self._cold = [note for note in self._cold if self._valid(note)]
                heapq.heapify(self._cold)

    def _valid(self, note: tuple[float, int, int, Node]) -> bool:
        retention, used, _, node = note
        return (
            self._nodes.get(node.block) is node
            and not node.children
            and self._references[node.block] == 1
            and (node.retention, node.used) == (retention, used)
        )

    def _evict(self) -> bool:
        while self._cold:
            note = heapq.heappop(self._cold)
            if self._valid(note):
                self.remove(note[3])
                return True
        return False

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
        offered = {id(note[3]) for note in self._cold if self._valid(note)}
        assert all(id(node) in offered for node in cold if not node.children), "a cold leaf was never offered"
        for node in cold:
            assert all(in_use[child.block] == 0 for child in node.children.values()), "a cold node above a used one"


def _descendants(root: Node) -> Iterator[Node]:
    stack = list(root.children.values())
    while stack:
        node = stack.pop()
        yield node
        stack.extend(node.children.values())
