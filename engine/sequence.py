"""A context: the tokens of one text being read and written, and the blocks that hold their KV."""

from collections import deque
from itertools import count

from engine.generation import Generation
from engine.kv.cache import KVCache, Missing, Node

_versions = count(1)


class Context:
    """Owns its tokens and its block table; the blocks themselves belong to the cache.

    `tokens[:computed]` have their KV in `blocks`. The first `path_length` blocks stand in the prefix tree, the
    last of them at `tip`. Whatever happens to the blocks, the tokens stay, so a context can always be recomputed.
    """

    def __init__(self, id: int, cache: KVCache, scope: str, rank: float, arrival: int) -> None:
        self.id = id
        self.scope = scope
        self.rank = rank
        self.interactive = True
        """Whether somebody reads what it generates as it comes."""
        self.arrival = arrival
        self.tokens: list[int] = []
        self.computed = 0
        self.cached = 0
        """Tokens of the current fills that were found in the tree and not computed."""
        self.held = 0.0
        """Seconds of steps in which there was no room for its prompt, since that was last reported."""
        self.starved = 0.0
        """Seconds of steps in which there was no memory for it."""
        self.blocks: list[int] = []
        self.table_version = next(_versions)
        """A number that no other table has; a new one whenever `blocks` changes other than by growing."""
        self.fills: deque[int] = deque()
        """Lengths at which a pending fill is done."""
        self.generation: Generation | None = None
        self.begun = False
        """Whether it was given blocks of its own since it last had none."""
        self.prompt = 0
        """Tokens that were to be computed when the prefill now running was first planned; 0 between prefills."""
        self._cache = cache
        self._tip = cache.root(scope)
        self._path_length = 0
        self._announced: list[tuple[Node, bool]] = []
        """What the step now planned will complete, and whether this context put it into the tree."""
        self._returns_to: Node | None = None
        """The last block in the tree of those it gave back and will come for."""
        self.filled = 0
        """Tokens of the current fills."""
        self.missing: Missing | None = None
        """Why they were not all in the tree, once that is known."""

    @property
    def priority(self) -> tuple[float, int]:
        """What goes first is smaller: rank, then arrival."""
        return (self.rank, self.arrival)

    @property
    def has_work(self) -> bool:
        """Whether somebody waits for a step of this context.

        A context that lost its blocks while nobody does stays as it is until its next fill or generate.
        """
        return (self.generation is not None and not self.generation.exhausted) or bool(self.fills)

    @property
    def known(self) -> int:
        """How many of its tokens are known; those behind stand for tokens that were chosen and not read yet."""
        return len(self.tokens) - (self.generation.pending if self.generation is not None else 0)

    @property
    def wanted(self) -> int:
        """How many tokens are to be computed now: all that something is generated behind, else full blocks only.

        What is left of a block comes with what is filled or generated next. So contexts that are filled alike, little
        by little, stay at the borders of blocks, where one can take over what another has computed.
        """
        length = len(self.tokens)
        if self.generation is not None:
            return length
        return max(self.computed, length - length % self._cache.block_size)

    def settle_fills(self) -> int | None:
        """Takes the pending fills that are done; the length of the last one."""
        settled = None
        while self.fills and self.computed >= min(self.fills[0], self.wanted):
            settled = self.fills.popleft()
        if settled is not None and self.generation is None and not self.fills:
            self.prompt = 0
        return settled

    def settle_missed(self) -> dict[str, int]:
        """Takes account of the fills that are done: how many of their tokens were not in the tree, by the reason."""
        missed, self.filled = self.filled - self.cached, 0
        why, self.missing = self.missing, None
        if missed <= 0:
            return {}
        return {why or (Missing.PART_OF_A_BLOCK if self._cache.sharing else Missing.SHARING_OFF): missed}

    @property
    def decoding(self) -> bool:
        """Whether the next step computes the token sampled last, and those that a grammar forced behind it."""
        generation = self.generation
        return (
            generation is not None
            and 0 < len(self.tokens) - self.computed <= 1 + generation.forced
            and generation.started
            and not generation.exhausted
        )

    @property
    def has_room(self) -> bool:
        """Whether the next token goes into a block of its own that it does not fill: nothing has to be found,
        reserved or announced for it."""
        index, inside = divmod(self.computed, self._cache.block_size)
        return 0 < inside < self._cache.block_size - 1 and not self._cache.shared(self.blocks[index])

    def fork_from(self, parent: "Context") -> None:
        """Takes over the parent's tokens and shares its blocks, the last one copy on write."""
        size = self._cache.block_size
        self.tokens = parent.tokens[: parent.known]
        self.computed = min(parent.computed, len(self.tokens))
        self.blocks = parent.blocks[: -(-self.computed // size)]
        for block in self.blocks:
            self._cache.share(block)
        self._tip, self._path_length = parent._tip, parent._path_length

    def adopt_cached(self) -> bool:
        """Takes blocks from the tree for as long as they match what is still to compute.

        False if the next block is being computed by somebody else in the step now planned: waiting for it is
        cheaper than doing it twice.
        """
        if not self._cache.sharing:
            return True
        ready = self._adopt()
        self._expected_no_more()
        return ready

    def _adopt(self) -> bool:
        cache, size = self._cache, self._cache.block_size
        while self.computed == self._path_length * size and len(self.tokens) - self.computed >= size:
            key = tuple(self.tokens[self.computed : self.computed + size])
            node = cache.child(self._tip, key)
            if node is not None:
                if not node.ready:
                    return False
                cache.share(node.block)
            elif cache.available * size >= len(self.tokens) - self.computed:  # else it would only come and go
                node = cache.fetch(self._tip, key)
            if node is None:
                if self.missing is None and self.fills:
                    self.missing = cache.missing(self._tip, key)
                return True
            self.blocks.append(node.block)
            self._tip = node
            self._path_length += 1
            self.computed += size
            if self.fills:
                self.cached += size
        return True

    def reserve(self, end: int) -> list[tuple[int, int]] | None:
        """Makes `blocks` hold `end` tokens and the next write private.

        Returns the block copies (from, to) to make before the step, or None if the pool has too little;
        nothing is changed then.
        """
        cache, size = self._cache, self._cache.block_size
        index, inside = divmod(self.computed, size)
        copy = inside > 0 and self.computed < end and cache.shared(self.blocks[index])
        missing = -(-end // size) - len(self.blocks)
        if cache.available < missing + copy:
            return None
        copies = []
        if copy:
            fresh = self._allocate()
            copies.append((self.blocks[index], fresh))
            cache.release([self.blocks[index]])
            self.blocks[index] = fresh
            self.table_version = next(_versions)
        for _ in range(missing):
            self.blocks.append(self._allocate())
        self.begun = True
        return copies

    def _allocate(self) -> int:
        block = self._cache.allocate()
        assert block is not None, "the pool promised more than it had"
        return block

    def announce(self, end: int) -> None:
        """Puts the blocks that this step will complete into the tree, as not ready; those with a token that is not
        known yet when it is."""
        cache, size = self._cache, self._cache.block_size
        if not cache.sharing:
            return
        tip = self._tip
        for index in range(self._path_length, min(end, self.known) // size):
            key = tuple(self.tokens[index * size : (index + 1) * size])
            own = self.blocks[index]
            node = cache.child(tip, key)
            made = node is None
            if node is None:
                node = cache.insert(tip, key, own)
            elif node.block != own:  # it is the own one where a fork announced a block first that both have
                cache.share(node.block)  # somebody was first; held, so that it is still there at the commit
            self._announced.append((node, made))
            tip = node

    def truncate(self, length: int) -> None:
        """Forgets all tokens behind the first `length`, and their KV."""
        del self.tokens[length:]
        if length >= self.computed:
            return
        size = self._cache.block_size
        kept = -(-length // size)
        self._cache.release(reversed(self.blocks[kept:]))
        del self.blocks[kept:]
        self.table_version = next(_versions)
        while self._path_length * size > length:
            assert self._tip.parent is not None
            self._tip = self._tip.parent
            self._path_length -= 1
        self.computed = length

    def commit(self, end: int) -> None:
        """After the step: the KV up to `end` is there. Of blocks that were made twice one copy is kept."""
        for node, _ in self._announced:
            own = self.blocks[self._path_length]
            if node.block != own:
                self.blocks[self._path_length] = node.block
                self.table_version = next(_versions)
                self._cache.release([own])
            node.ready = True
            self._tip = node
            self._path_length += 1
        self._announced = []
        self.computed = end
        if end == len(self.tokens):
            self.prompt = 0

    def accept(self, end: int) -> None:
        """After a step that computed drafted tokens too: those before `end` are the context's now, and the KV of the
        others is given back."""
        if end > self.computed:
            self.announce(end)
            self.commit(end)
        kept = -(-self.computed // self._cache.block_size)
        if len(self.blocks) > kept:
            self._cache.release(reversed(self.blocks[kept:]))
            del self.blocks[kept:]
            self.table_version = next(_versions)

    def abort(self) -> None:
        """After a step that failed: what was announced is taken back. Call it last to first in the batch."""
        for offset, (node, made) in reversed(list(enumerate(self._announced))):
            if made:
                self._cache.remove(node)
            elif node.block != self.blocks[self._path_length + offset]:
                self._cache.release([node.block])
        self._announced = []

    def drop_blocks(self) -> None:
        """Gives all blocks back for now; the tree may keep them. They are found there again or recomputed."""
        if self.computed and self._path_length:
            self._expected_no_more()
            self._returns_to = self._tip
            self._cache.expect(self._tip, self.rank)
        self._release()

    def free(self) -> None:
        """Gives all blocks back and will not come for them."""
        self._expected_no_more()
        self._release()

    def _expected_no_more(self) -> None:
        if self._returns_to is not None:
            self._cache.expect_no_more(self._returns_to)
            self._returns_to = None

    def _release(self) -> None:
        blocks, self.blocks = self.blocks, []
        self.table_version = next(_versions)
        self.begun = False
        self._cache.release(reversed(blocks))
        self.computed = 0
        self._tip, self._path_length = self._cache.root(self.scope), 0
