"""Pool of KV blocks with reference counts, and a prefix tree over full blocks.

This is bookkeeping only; the tensors belong to the model. Sequences share a block by reference. Full blocks are never
written again, so sharing needs no locks and no copies. A sequence that writes to a shared, partly filled block copies
it first (copy-on-write).
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from enum import StrEnum
from typing import NamedTuple
from weakref import WeakValueDictionary

from engine.kv.eviction import EvictionPolicy
from engine.kv.expectations import Expectation, valid_returns
from engine.kv.host_offload import HostOffload

SCRATCH = 0
"""Block without an owner. Rows whose KV is stored already write into it."""

Key = tuple[int, ...]
"""Tokens of one full block."""


class MissReason(StrEnum):
    """Reason why the cache did not hold the rest of a prompt.

    `never_seen`: no cached text begins like it. `diverged`: the cached texts that begin like it continue differently.
    `evicted`: it was evicted for lack of room. `other_key`: only another scope holds it.
    `part_of_a_block`: the rest does not fill a block. `sharing_off`: prefix sharing is off.
    """

    NEVER_SEEN = "never_seen"
    DIVERGED = "diverged"
    EVICTED = "evicted"
    OTHER_KEY = "other_key"
    PART_OF_A_BLOCK = "part_of_a_block"
    SHARING_OFF = "sharing_off"


class LastBlock(NamedTuple):
    """The last block in the tree of a context that was freed, without a reference to it.

    `block`: its number. `path`, `read_count`: see `Evictable`; the block is gone or was read since if they differ.
    `released`: time of the free, in seconds on the cache's clock.
    """

    block: int
    path: int
    read_count: int
    released: float


class Node:
    """A full block in the prefix tree, reached by the tokens of its ancestors and its own.

    `owner`: number of the owner of its scope, see `owner_of`. `text`: digest of the tokens from the beginning to its
    end. `path`: digest of the text and the scope.
    `read_count`, `last_release`, `due_rank`, `expectation`: see `Evictable`.
    `return_count`: number of preempted sequences that will come back for it.
    """

    __slots__ = (
        "__weakref__",
        "block",
        "children",
        "due_rank",
        "expectation",
        "is_evictable",
        "is_ready",
        "key",
        "last_release",
        "owner",
        "parent",
        "path",
        "read_count",
        "return_count",
        "scope",
        "text",
    )

    def __init__(self, parent: "Node | None", key: Key, block: int, scope: int = 0, owner: int = 0) -> None:
        self.parent = parent
        self.key = key
        self.block = block
        self.children: dict[Key, Node] = {}
        self.is_ready = False
        """False while the step that computes it runs. Other sequences wait one step for it instead of computing it
        again."""
        self.scope: int = scope if parent is None else parent.scope
        self.owner: int = owner if parent is None else parent.owner
        self.text: int = 0 if parent is None else hash((parent.text, key))
        self.path = hash((self.scope, self.text))
        self.last_release = 0
        self.read_count = 1
        self.return_count = 0
        self.due_rank: float | None = None
        self.expectation: Expectation | None = None
        self.is_evictable = False


class KVCache:
    """Owner of the state of all blocks.

    A block has one reference for each sequence whose table holds it, and one for the tree. A block without references
    is free. A block that only the tree holds is **cold**: no sequence uses it. It is evictable once its node is a leaf;
    `eviction.py` decides the order. A sequence that holds a block of the tree holds all its ancestors, so a cold node
    never has a node in use below it.
    """

    def __init__(
        self,
        blocks: int,
        block_size: int,
        *,
        shares_prefixes: bool = True,
        eviction_policy: EvictionPolicy | None = None,
        host_offload: HostOffload | None = None,
    ) -> None:
        """Create a pool. `blocks` includes the scratch block; `block_size` is in tokens; evicted blocks go to
        `host_offload`."""
        if blocks < 2:
            raise ValueError("a KV pool needs at least two blocks")
        self.block_size = block_size
        self.capacity = (blocks - 1) * block_size
        """Number of tokens that fit, of all sequences together."""
        self.shares_prefixes = shares_prefixes
        self._references = [0] * blocks
        self._references[SCRATCH] = 1
        self._free = list(range(blocks - 1, SCRATCH, -1))
        self._roots: WeakValueDictionary[str, Node] = WeakValueDictionary()
        """Roots by scope. Sequences and the nodes below a root hold it, so those of unused scopes vanish."""
        self._nodes: dict[int, Node] = {}
        self._texts: Counter[int] = Counter()
        """Number of scopes that hold each text, by digest."""
        self._eviction_policy = EvictionPolicy(blocks - 1) if eviction_policy is None else eviction_policy
        self._cold_count = 0
        self._used_nodes: Counter[int] = Counter()
        """Number of nodes whose blocks sequences hold, by owner."""
        self.host_offload = HostOffload(0) if host_offload is None else host_offload

    @property
    def available(self) -> int:
        """Number of blocks that `allocate` can return: free and cold ones."""
        return len(self._free) + self._cold_count

    @property
    def used_tokens(self) -> dict[int, int]:
        """Tokens of the blocks of the tree that sequences hold, by the number of the owner. Each block counts once."""
        return {owner: nodes * self.block_size for owner, nodes in self._used_nodes.items()}

    def root(self, scope: str) -> Node:
        """Return the root of the paths of `scope`. Scopes share nothing."""
        root = self._roots.get(scope)
        if root is None:
            root = Node(None, (), SCRATCH, hash(scope), owner_of(scope))
            root.is_ready = True
            self._roots[scope] = root
        return root

    def allocate(self) -> int | None:
        """Return a block with one reference, the caller's; None if every block is in use."""
        if not self._free and not self._evict():
            return None
        block = self._free.pop()
        self._references[block] = 1
        return block

    def share(self, block: int) -> None:
        """Add a reference to a block that has one."""
        node = self._nodes.get(block)
        if node is not None:
            if self._references[block] == 1:
                self._cold_count -= 1
                self._used_nodes[node.owner] += 1
                node.is_evictable = False
                self._eviction_policy.record_read(node)
                if not node.return_count:
                    self._eviction_policy.record_reuse(node)
            if not node.return_count:
                node.read_count += 1
        self._references[block] += 1

    def release(self, blocks: Iterable[int]) -> None:
        """Remove one reference from each block.

        Pass a sequence's blocks in reverse: a block must not become cold (see `KVCache`) before the blocks after it.
        """
        for block in blocks:
            self._references[block] -= 1
            remaining = self._references[block]
            if remaining == 0:
                self._free.append(block)
            elif remaining == 1 and (node := self._nodes.get(block)) is not None:
                node.last_release = self._eviction_policy.record_release()
                self._cold_count += 1
                self._count_unused(node.owner)
                self._offer(node)

    def _count_unused(self, owner: int) -> None:
        """Record that no sequence holds a node any more. Owners without used nodes are forgotten."""
        self._used_nodes[owner] -= 1
        if not self._used_nodes[owner]:
            del self._used_nodes[owner]

    def is_shared(self, block: int) -> bool:
        """Return whether the block has another owner, so that writing needs a copy."""
        return self._references[block] > 1

    def child(self, node: Node, key: Key) -> Node | None:
        """Return the child of `node` with the tokens `key`, or None."""
        return node.children.get(key)

    def cached_tokens(self, scope: str, tokens: Sequence[int]) -> int:
        """Return how many tokens at the beginning of a text are in the tree, in full blocks. Blocks that are only in
        host memory do not count."""
        return self.cached_path(scope, tokens)[1]

    def cached_path(self, scope: str, tokens: Sequence[int]) -> tuple[Node, int]:
        """Return the last node in the tree at the beginning of a text, or the root, and the number of tokens up to its
        end."""
        node, size, start = self.root(scope), self.block_size, 0
        while start + size <= len(tokens):
            child = node.children.get(tuple(tokens[start : start + size]))
            if child is None:
                break
            node, start = child, start + size
        return node, start

    @property
    def expected_readers(self) -> int:
        """Number of readers that were expected so far, those that have returned included."""
        return self._eviction_policy.expected_readers

    def expected_tokens(self, counts: Callable[[int, float], bool]) -> dict[int, int]:
        """Return the tokens of cold blocks that a reader is expected for, by the number of the owner.

        `counts` returns whether a group of blocks counts, from its tokens and its forecast in seconds; see
        `expected_wait`.
        """
        size = self.block_size
        found = self._eviction_policy.expected_blocks(lambda blocks, wait: counts(blocks * size, wait))
        return {owner: blocks * size for owner, blocks in found.items()}

    def fetch(self, node: Node, key: Key) -> Node | None:
        """Load the child of `node` with the tokens `key` from host memory. Return it with a reference of the caller, or
        None if it is not offloaded or no block is free."""
        path = hash((node.scope, hash((node.text, key))))
        if not self.host_offload.contains(path, key, node.path):
            return None
        block = self.allocate()
        if block is None:
            return None
        if not self.host_offload.contains(path, key, node.path):  # the eviction for this block took its host slot
            self.release([block])
            return None
        self.host_offload.load(path, block)
        child = self.insert(node, key, block)
        child.is_ready = True
        return child

    def insert(self, node: Node, key: Key, block: int) -> Node:
        """Insert a block as a child of `node`. The caller holds the block and computes it in this step."""
        child = Node(node, key, block)
        child.read_count += self._eviction_policy.record_recompute(child.path)
        self._texts[child.text] += 1
        node.children[key] = child
        node.is_evictable = False
        self._nodes[block] = child
        self._references[block] += 1
        self._used_nodes[child.owner] += 1
        return child

    def remove(self, node: Node) -> None:
        """Remove a childless node from the tree."""
        assert node.parent is not None
        assert not node.children
        del node.parent.children[node.key]
        del self._nodes[node.block]
        node.is_evictable = False
        self._eviction_policy.end_expectation(node)
        self._texts[node.text] -= 1
        if not self._texts[node.text]:
            del self._texts[node.text]
        if self._references[node.block] == 1:
            self._cold_count -= 1
        else:
            self._count_unused(node.owner)
        self.release([node.block])
        if node.parent.parent is not None and self._references[node.parent.block] == 1:
            self._offer(node.parent)

    def miss_reason(self, node: Node, key: Key) -> MissReason:
        """Return why `node` has no child with the tokens `key`."""
        text = hash((node.text, key))
        if self._eviction_policy.was_evicted(hash((node.scope, text))):
            return MissReason.EVICTED
        if node.children and node.parent is not None:  # before the next test: else it would show what other scopes hold
            return MissReason.DIVERGED
        return MissReason.OTHER_KEY if text in self._texts else MissReason.NEVER_SEEN

    def expect_return(self, node: Node, rank: float) -> None:
        """Record that a sequence that releases `node` and its ancestors will come back for them."""
        ancestor: Node | None = node
        while ancestor is not None and ancestor.parent is not None:
            ancestor.return_count += 1
            ancestor.due_rank = rank if ancestor.due_rank is None else min(ancestor.due_rank, rank)
            if ancestor.is_evictable:
                self._eviction_policy.offer(ancestor)
            ancestor = ancestor.parent

    def cancel_return(self, node: Node) -> None:
        """Record that the expected sequence came back or ended."""
        ancestor: Node | None = node
        while ancestor is not None and ancestor.parent is not None:
            ancestor.return_count -= 1
            if not ancestor.return_count:
                ancestor.due_rank = None
                if ancestor.is_evictable:
                    self._eviction_policy.offer(ancestor)
            ancestor = ancestor.parent

    def last_block(self, node: Node) -> LastBlock:
        """Return the record of a node that a context releases for good now."""
        return LastBlock(node.block, node.path, node.read_count, self._eviction_policy.now())

    def expect_reader(self, last_block: LastBlock, returns: Sequence[float]) -> None:
        """Expect that a freed context is continued: its blocks will be read up to the last one.

        The expectation covers the blocks up to the last one that no sequence holds. Blocks before it that other
        contexts share get the latest expectation. If the last block was evicted or read since, or another block follows
        it, nothing changes.

        `returns`: durations of earlier waits, in seconds since the free; see `valid_returns`. If it contains no valid
        one, no reader is expected any more.
        """
        node = self._nodes.get(last_block.block)
        if node is None or (node.path, node.read_count) != (last_block.path, last_block.read_count):
            return
        group: list[Node] = []
        while node.parent is not None and self._references[node.block] == 1 and (group or not node.children):
            group.append(node)
            node = node.parent
        if group:
            self._eviction_policy.expect(group, last_block.released, valid_returns(returns))

    def _offer(self, node: Node) -> None:
        """Make a node whose block is cold evictable, if it is a leaf. See `KVCache` for cold blocks."""
        if not node.children:
            node.is_evictable = True
            self._eviction_policy.offer(node)

    def _evict(self) -> bool:
        node = self._eviction_policy.select_victim()
        if node is None:
            return False
        assert isinstance(node, Node)
        assert node.parent is not None
        self.host_offload.store(node.path, node.key, node.parent.path, node.block)
        self.remove(node)
        return True

    def check_integrity(self, tables: Iterable[Sequence[int]]) -> None:
        """Recount everything from the block tables of all sequences. Raises AssertionError on any difference."""
        expected = [0] * len(self._references)
        expected[SCRATCH] = 1
        for table in tables:
            assert len(set(table)) == len(table), "a block occurs twice in one table"
            for block in table:
                expected[block] += 1
        in_use = list(expected)
        nodes = [node for root in self._roots.values() for node in _descendants(root)]
        for node in nodes:
            expected[node.block] += 1
            assert self._nodes.get(node.block) is node, "a node is not registered under its block"
            assert len(node.key) == self.block_size, "a node's key is not a full block"
        assert len(nodes) == len(self._nodes), "a registered node is not in the tree"
        assert expected == self._references, "reference counts differ from the tables and the tree"
        free = [block for block, references in enumerate(expected) if references == 0]
        assert sorted(self._free) == free, "the free list differs from the unreferenced blocks"
        cold = [node for node in nodes if in_use[node.block] == 0]
        assert len(cold) == self._cold_count, "the count of cold blocks is off"
        used = Counter(node.owner for node in nodes if in_use[node.block])
        assert dict(used) == dict(self._used_nodes), "the count of used nodes is off"
        leaves = {node.block for node in cold if not node.children}
        assert leaves == {node.block for node in nodes if node.is_evictable}, (
            "other blocks can be evicted than cold leaves"
        )
        assert leaves == {candidate.block for candidate in self._eviction_policy.candidates()}, (
            "a cold leaf was never offered"
        )
        assert all((node.due_rank is not None) == (node.return_count > 0) for node in nodes), (
            "a node is due without a returning sequence"
        )
        self._eviction_policy.check_expectations(nodes)
        assert all(
            in_use[node.block] == 0 for node in nodes if node.expectation is not None and node.expectation.is_live
        ), "a block in use is expected to be read"
        assert Counter(node.text for node in nodes) == self._texts, "the counts of texts are off"
        for node in cold:
            assert all(in_use[child.block] == 0 for child in node.children.values()), "a cold node above a used one"


def owner_of(scope: str) -> int:
    """Return the number of the owner of a scope, which its part before a NUL character names. A gateway's scopes are an
    API key, or an API key and a client's salt."""
    return hash(scope.partition("\0")[0])


def _descendants(root: Node) -> Iterator[Node]:
    stack = list(root.children.values())
    while stack:
        node = stack.pop()
        yield node
        stack.extend(node.children.values())
