"""A sequence: the tokens of one text, and the blocks that hold their KV."""

from collections import deque
from dataclasses import dataclass
from itertools import count

from engine.generation import Generation
from engine.kv.cache import KVCache, LastBlock, MissReason, Node
from engine.pooling import Pooling

_versions = count(1)


@dataclass(slots=True)
class Pause:
    """Pause of a prompt, see `engine.admission`. `since`: time of the first check of the prompt. `cached`: number of
    its tokens that were cached at the last lookup. `looked_up`: time of this lookup; minus infinity before the first
    one. `was_tried`: whether the prompt was admitted for one step at least once. Times are in seconds."""

    since: float
    cached: int
    looked_up: float
    was_tried: bool = False


class TokenSequence:
    """Owner of a text's tokens and block table. The blocks themselves belong to the cache.

    The KV of `tokens[:computed_tokens]` is in `blocks`. The first `_path_length` blocks are in the prefix tree, the
    last of them at `_tip`. The tokens remain even if the blocks are lost, so a sequence can always be recomputed.
    """

    def __init__(self, id: int, cache: KVCache, scope: str, rank: float, arrival: int) -> None:
        self.id = id
        self.scope = scope
        self.rank = rank
        self.is_interactive = True
        """Whether a client reads the generated text as it grows."""
        self.arrival = arrival
        self.tokens: list[int] = []
        self.computed_tokens = 0
        self.cached_tokens = 0
        """Number of tokens of the pending fills that were in the tree and not computed."""
        self.budget_wait = 0.0
        """How long steps had no room for its prompt since the last report, in seconds."""
        self.memory_wait = 0.0
        """How long steps had no free blocks for it since the last report, in seconds."""
        self.blocks: list[int] = []
        self.table_version = next(_versions)
        """Number unique to this state of the block table. It changes whenever `blocks` changes other than by
        growing."""
        self.pending_fills: deque[int] = deque()
        """Lengths at which pending fills are done."""
        self.generation: Generation | None = None
        self.pooling: Pooling | None = None
        """Embedding that waits for the hidden states."""
        self.has_own_blocks = False
        """Whether the sequence got blocks of its own since it last had none."""
        self.prompt_tokens = 0
        """Number of tokens to compute when the current prefill was first planned; 0 between prefills."""
        self.is_pausable = False
        """Whether its prompt may have to wait, because it belongs to a program; see `Fill`."""
        self.is_admitted = True
        """Whether the prompt may begin. If `pause` is set as well, the admission is valid for one step; see
        `engine.admission`."""
        self.pause: Pause | None = None
        """State of the prompt's wait, from its first check to its final admission; otherwise None."""
        self.cached_prompt_tokens = 0
        """Number of tokens that were cached at the last lookup before the final admission; see `engine.admission`."""
        self._cache = cache
        self._tip = cache.root(scope)
        self._path_length = 0
        self._announced: list[tuple[Node, bool]] = []
        """Nodes that the planned step completes, each with whether this sequence inserted it into the tree."""
        self._longest = 0
        """Maximum of `computed_tokens` before blocks were given back. Tokens before it were counted already."""
        self._return_node: Node | None = None
        """Last tree node of the blocks that it gave back, or found in the tree, and will come back for."""
        self.fill_tokens = 0
        """Number of tokens in the pending fills."""
        self.miss_reason: MissReason | None = None
        """Reason why the tree did not hold all of them, once that is known."""

    @property
    def priority(self) -> tuple[float, int]:
        """Sort key: rank, then arrival. Smaller goes first."""
        return (self.rank, self.arrival)

    @property
    def has_work(self) -> bool:
        """Whether a fill or a generate waits for a step of this sequence.

        A preempted sequence without work stays without blocks until its next fill or generate.
        """
        generates = self.generation is not None and not self.generation.is_exhausted
        return generates or self.pooling is not None or bool(self.pending_fills)

    @property
    def known_tokens(self) -> int:
        """Number of known tokens. Those after them stand for tokens that were sampled on the device and not read
        yet."""
        return len(self.tokens) - (self.generation.pending if self.generation is not None else 0)

    @property
    def target_length(self) -> int:
        """Number of tokens to compute now: all of them if a generate waits, else only full blocks.

        The rest of a block is computed with the next fill or generate. So sequences with equal fills in small pieces
        stay at block boundaries, where one can adopt the blocks of another.
        """
        length = len(self.tokens)
        if self.generation is not None or self.pooling is not None:
            return length
        return max(self.computed_tokens, length - length % self._cache.block_size)

    def finish_fills(self) -> int | None:
        """Remove the pending fills that are done. Return the length of the last one, or None."""
        settled = None
        while self.pending_fills and self.computed_tokens >= min(self.pending_fills[0], self.target_length):
            settled = self.pending_fills.popleft()
        if settled is not None and self.generation is None and not self.pending_fills:
            self.prompt_tokens = 0
        return settled

    def take_misses(self) -> dict[str, int]:
        """Reset the account of finished fills. Return the number of their tokens that the tree did not hold, by
        reason."""
        missed, self.fill_tokens = self.fill_tokens - self.cached_tokens, 0
        why, self.miss_reason = self.miss_reason, None
        if missed <= 0:
            return {}
        return {why or (MissReason.PART_OF_A_BLOCK if self._cache.shares_prefixes else MissReason.SHARING_OFF): missed}

    @property
    def is_decoding(self) -> bool:
        """Whether the next step computes the token sampled last, and those that a grammar forced after it."""
        generation = self.generation
        return (
            generation is not None
            and 0 < len(self.tokens) - self.computed_tokens <= 1 + generation.forced_count
            and generation.has_started
            and not generation.is_exhausted
        )

    @property
    def fits_last_block(self) -> bool:
        """Whether the next token goes into a private block without filling it. The step then needs no lookup,
        allocation or announcement."""
        index, inside = divmod(self.computed_tokens, self._cache.block_size)
        return 0 < inside < self._cache.block_size - 1 and not self._cache.is_shared(self.blocks[index])

    def fork_from(self, parent: "TokenSequence") -> None:
        """Take over the parent's tokens and share its blocks, the last one copy-on-write."""
        size = self._cache.block_size
        self.tokens = parent.tokens[: parent.known_tokens]
        self.computed_tokens = min(parent.computed_tokens, len(self.tokens))
        self.blocks = parent.blocks[: -(-self.computed_tokens // size)]
        for block in self.blocks:
            self._cache.share(block)
        self._tip, self._path_length = parent._tip, parent._path_length

    def adopt_cached(self) -> bool:
        """Adopt blocks from the tree as long as they match the tokens still to compute.

        Return False if another sequence computes the next block in the planned step: waiting for it is cheaper than
        computing it twice.
        """
        if not self._cache.shares_prefixes:
            return True
        if not self._longest:  # it did not hold these blocks before, so this counts as a read
            self._cancel_return()
        ready = self._adopt()
        self._cancel_return()
        return ready

    def _adopt(self) -> bool:
        cache, size = self._cache, self._cache.block_size
        while self.computed_tokens == self._path_length * size and len(self.tokens) - self.computed_tokens >= size:
            key = tuple(self.tokens[self.computed_tokens : self.computed_tokens + size])
            node = cache.child(self._tip, key)
            if node is not None:
                if not node.is_ready:
                    return False
                cache.share(node.block)
            elif (
                cache.available * size >= len(self.tokens) - self.computed_tokens
            ):  # otherwise the fetched block would be evicted immediately
                node = cache.fetch(self._tip, key)
            if node is None:
                if self.miss_reason is None and self.pending_fills:
                    self.miss_reason = cache.miss_reason(self._tip, key)
                return True
            self.blocks.append(node.block)
            self._tip = node
            self._path_length += 1
            self.computed_tokens += size
            if self.pending_fills:
                self.cached_tokens += min(size, max(0, self.computed_tokens - self._longest))
        return True

    def reserve(self, end: int) -> list[tuple[int, int]] | None:
        """Extend `blocks` to hold `end` tokens, and make the next write private.

        Return the block copies (from, to) to make before the step. Return None, and change nothing, if the pool has too
        few blocks.
        """
        cache, size = self._cache, self._cache.block_size
        index, inside = divmod(self.computed_tokens, size)
        needs_copy = inside > 0 and self.computed_tokens < end and cache.is_shared(self.blocks[index])
        missing = -(-end // size) - len(self.blocks)
        if cache.available < missing + needs_copy:
            return None
        copies = []
        if needs_copy:
            fresh = self._allocate()
            copies.append((self.blocks[index], fresh))
            cache.release([self.blocks[index]])
            self.blocks[index] = fresh
            self.table_version = next(_versions)
        for _ in range(missing):
            self.blocks.append(self._allocate())
        self.has_own_blocks = True
        return copies

    def _allocate(self) -> int:
        block = self._cache.allocate()
        assert block is not None, "the pool has fewer blocks than `available` says"
        return block

    def announce(self, end: int) -> None:
        """Insert the blocks that this step completes into the tree, as not ready. A block with unknown tokens follows
        when they are known."""
        cache, size = self._cache, self._cache.block_size
        if not cache.shares_prefixes:
            return
        parent = self._tip
        for index in range(self._path_length, min(end, self.known_tokens) // size):
            key = tuple(self.tokens[index * size : (index + 1) * size])
            own_block = self.blocks[index]
            node = cache.child(parent, key)
            inserted = node is None
            if node is None:
                node = cache.insert(parent, key, own_block)
            elif node.block != own_block:  # it is the own block if a fork announced it first
                cache.share(node.block)  # another was first; the reference keeps it until the commit
            self._announced.append((node, inserted))
            parent = node

    def truncate(self, length: int) -> None:
        """Delete all tokens after the first `length`, and their KV."""
        del self.tokens[length:]
        self._longest = min(self._longest, length)
        if length >= self.computed_tokens:
            return
        size = self._cache.block_size
        kept_blocks = -(-length // size)
        self._cache.release(reversed(self.blocks[kept_blocks:]))
        del self.blocks[kept_blocks:]
        self.table_version = next(_versions)
        while self._path_length * size > length:
            assert self._tip.parent is not None
            self._tip = self._tip.parent
            self._path_length -= 1
        self.computed_tokens = length

    def commit(self, end: int) -> None:
        """Record that the KV up to `end` is computed. Of blocks that were computed twice, retain one copy."""
        for node, _ in self._announced:
            own_block = self.blocks[self._path_length]
            if node.block != own_block:
                self.blocks[self._path_length] = node.block
                self.table_version = next(_versions)
                self._cache.release([own_block])
            node.is_ready = True
            self._tip = node
            self._path_length += 1
        self._announced = []
        self.computed_tokens = end
        if end == len(self.tokens):
            self.prompt_tokens = 0

    def accept(self, end: int) -> None:
        """Record that the drafted tokens before `end` were accepted, and release the KV of the others."""
        if end > self.computed_tokens:
            self.announce(end)
            self.commit(end)
        kept_blocks = -(-self.computed_tokens // self._cache.block_size)
        if len(self.blocks) > kept_blocks:
            self._cache.release(reversed(self.blocks[kept_blocks:]))
            del self.blocks[kept_blocks:]
            self.table_version = next(_versions)

    def abort(self) -> None:
        """Undo `announce` after a step that failed: remove the blocks that the step did not compute from the tree.

        Call it for the sequences of the batch in reverse order."""
        for offset, (node, inserted) in reversed(list(enumerate(self._announced))):
            if inserted:
                self._cache.remove(node)
            elif node.block != self.blocks[self._path_length + offset]:
                self._cache.release([node.block])
        self._announced = []

    @property
    def private_blocks(self) -> int:
        """Number of blocks that are not in the prefix tree."""
        return len(self.blocks) - self._path_length

    def expect_blocks(self, node: Node) -> None:
        """Let the pool evict the cached beginning of a prompt that has not begun after blocks that no sequence will
        read. `node`: its last block in the tree, or the root, as `KVCache.cached_path` returns it."""
        if node.parent is None or self.blocks or self._return_node is not None or not self._cache.shares_prefixes:
            return
        self._return_node = node
        self._cache.expect_return(node, self.rank)

    def drop_blocks(self) -> None:
        """Give all blocks back for now; the tree may retain them. Later steps find them there or recompute them."""
        if self.computed_tokens and self._path_length:
            self._cancel_return()
            self._return_node = self._tip
            self._cache.expect_return(self._tip, self.rank)
        self._release()

    def free(self) -> LastBlock | None:
        """Give all blocks back for good. Return the record of the last one in the tree, or None if there is none."""
        node = self._return_node if self._longest else None
        if node is None and self._path_length:
            node = self._tip
        last_block = None if node is None else self._cache.last_block(node)
        self._cancel_return()
        self._release()
        return last_block

    def _cancel_return(self) -> None:
        if self._return_node is not None:
            self._cache.cancel_return(self._return_node)
            self._return_node = None

    def _release(self) -> None:
        blocks, self.blocks = self.blocks, []
        self.table_version = next(_versions)
        self.has_own_blocks = False
        self._cache.release(reversed(blocks))
        self._longest = max(self._longest, self.computed_tokens)
        self.computed_tokens = 0
        self._tip, self._path_length = self._cache.root(self.scope), 0
