"""KV cache as a tree of extents: each is a run of tokens that follow its parent's tokens.

A whole block table would cost time for each block. An extent costs time once for each call. It is evicted from its end,
token by token if need be, and only after all extents that follow it.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence

from gateway.simulator.agents.sessions import RecordedSession


class Extent:
    """Run of tokens in the tree of prompts.

    `start`: tokens before it. `length`: its tokens. `resident`: its first tokens that have memory. `ready`: those that
    are computed. `pins`: calls that hold it. `released`: time at which a call last released it, in seconds.
    `reads`: number of calls that held it. `chain`: session and agent of the call that released it last.
    """

    __slots__ = (
        "chain",
        "children",
        "length",
        "number",
        "parent",
        "pins",
        "reads",
        "ready",
        "released",
        "resident",
        "start",
    )

    def __init__(self, parent: "Extent | None", length: int, number: int = 0) -> None:
        self.parent = parent
        self.length = length
        self.start: int = 0 if parent is None else parent.start + parent.length
        self.number = number
        self.resident = 0
        self.ready = 0
        self.pins = 0
        self.reads = 0
        self.released = 0.0
        self.chain: tuple[int, str] = (-1, "")
        self.children = 0
        """Number of extents with memory that follow it."""


Path = tuple[Extent, ...]
"""Extents of a prompt, in order."""


def build_paths(sessions: Sequence[RecordedSession]) -> list[list[Path]]:
    """Build the tree of all prompts. Return the path of each request of each session.

    Main agents with equal sizes of tools and system prompt share an extent for these. An answer is no part of the tree:
    the recording says which tokens of a prompt were in an earlier prompt, and nothing about answers.
    """
    prefixes: dict[tuple[int, int], Extent] = {}
    number = 0
    paths = []
    for session in sessions:
        ends: list[Extent] = []
        for request in session.requests:
            if request.source >= 0 and request.shared:
                base: Extent | None = _split(ends[request.source], request.shared)
            else:
                key = (session.tools, session.system)
                base = prefixes.get(key)
                prefix = min(sum(key), request.prompt)
                if request.agent or not prefix:
                    base = None
                elif base is None:
                    number += 1
                    base = prefixes[key] = Extent(None, prefix, number)
                elif request.prompt < base.length:
                    base = _split(base, request.prompt)
            shared = 0 if base is None else base.start + base.length
            if base is None or request.prompt > shared:
                number += 1
                base = Extent(base, request.prompt - shared, number)
            ends.append(base)
        paths.append(ends)
    return [[_path(end) for end in ends] for ends in paths]


def _split(end: Extent, tokens: int) -> Extent:
    """Return the extent that ends after the first `tokens` tokens of the path to `end`; divide one if need be."""
    extent = end
    while extent.start >= tokens and extent.parent is not None:
        extent = extent.parent
    if extent.start + extent.length == tokens:
        return extent
    upper = Extent(extent.parent, tokens - extent.start, -extent.number)
    extent.parent, extent.start = upper, tokens
    extent.length -= upper.length
    return upper


def _path(end: Extent) -> Path:
    extents = []
    extent: Extent | None = end
    while extent is not None:
        extents.append(extent)
        extent = extent.parent
    return tuple(reversed(extents))


Select = Callable[[Mapping[Extent, None]], Extent]
"""Return the extent whose end is evicted first, of those that can be."""


class KvPool:
    """Owner of the memory of all extents and answers. `used` never exceeds `capacity`."""

    def __init__(self, capacity: int, select: Select) -> None:
        """`capacity`: tokens. `select`: the eviction policy."""
        self.capacity = capacity
        self.used = 0
        self.pinned = 0
        """Tokens that calls hold: extents with a pin, and answers."""
        self.peak = 0
        self.candidates: dict[Extent, None] = {}
        """Extents whose ends can be evicted: no call holds them, and no extent with memory follows them."""
        self._select = select

    @property
    def available(self) -> int:
        """Tokens that a call can get, free or by eviction."""
        return self.capacity - self.pinned

    @staticmethod
    def cached(path: Path) -> int:
        """Return the number of computed tokens at the beginning of a path.

        Tokens before a computed one are computed, so the search begins at the end.
        """
        for extent in reversed(path):
            if extent.ready:
                return extent.start + extent.ready
        return 0

    @staticmethod
    def unpinned(path: Path) -> int:
        """Return how many more tokens are pinned when a call acquires the path."""
        tokens = 0
        for extent in reversed(path):
            if extent.pins:
                # all extents before it are pinned, and so are their tokens
                tokens += extent.length - extent.resident
                break
            tokens += extent.length
        return tokens

    def acquire(self, path: Path) -> None:
        """Pin a path and give memory to all of it. The caller has checked that `unpinned` fits `available`."""
        missing = 0
        for extent in path:
            if not extent.pins:
                self.pinned += extent.resident
                self.candidates.pop(extent, None)
            extent.pins += 1
            missing += extent.length - extent.resident
        self.make_room(missing)
        for extent in path:
            if extent.resident < extent.length:
                added = extent.length - extent.resident
                if not extent.resident and extent.parent is not None:
                    extent.parent.children += 1
                extent.resident = extent.length
                self.used += added
                self.pinned += added
        self.peak = max(self.peak, self.used)

    def mark_computed(self, path: Path, tokens: int) -> None:
        """Record that the first tokens of a path are computed."""
        for extent in path:
            if extent.start >= tokens:
                return
            extent.ready = max(extent.ready, min(extent.length, tokens - extent.start))

    def release(self, path: Path, chain: tuple[int, str], now: float) -> None:
        """Unpin a path. Tokens that are not computed lose their memory, the others stay cached."""
        for extent in reversed(path):
            extent.pins -= 1
            extent.released = now
            extent.reads += 1
            extent.chain = chain
            if not extent.pins:
                self.pinned -= extent.resident
                if extent.ready < extent.resident:
                    self._shrink(extent, extent.resident - extent.ready)
                self._offer(extent)

    def drop(self, extent: Extent) -> None:
        """Free the memory of an extent that no call will read again."""
        self.candidates.pop(extent, None)
        if extent.resident:
            self._shrink(extent, extent.resident)

    def grow(self, tokens: int) -> None:
        """Give memory to tokens of answers. The caller has checked that they fit `available`."""
        self.make_room(tokens)
        self.used += tokens
        self.pinned += tokens
        self.peak = max(self.peak, self.used)

    def adopt(self, parent: Extent, tokens: int, chain: tuple[int, str], now: float) -> Extent:
        """Return a cached extent with the tokens of an answer that was interrupted. Its call holds the parent."""
        extent = Extent(parent, tokens)
        extent.resident = extent.ready = tokens
        extent.chain, extent.released = chain, now
        parent.children += 1
        self.pinned -= tokens
        self.candidates[extent] = None
        return extent

    def free(self, tokens: int) -> None:
        """Free memory of answers."""
        self.used -= tokens
        self.pinned -= tokens

    def make_room(self, tokens: int) -> None:
        """Evict until there is memory for the tokens. Raises RuntimeError if calls hold too much."""
        needed = self.used + tokens - self.capacity
        while needed > 0:
            if not self.candidates:
                raise RuntimeError("calls hold more memory than the pool has")
            extent = self._select(self.candidates)
            evicted = min(needed, extent.resident)
            self._shrink(extent, evicted)
            needed -= evicted

    def _shrink(self, extent: Extent, tokens: int) -> None:
        extent.resident -= tokens
        extent.ready = min(extent.ready, extent.resident)
        self.used -= tokens
        if not extent.resident:
            self.candidates.pop(extent, None)
            if extent.parent is not None:
                extent.parent.children -= 1
                self._offer(extent.parent)

    def _offer(self, extent: Extent) -> None:
        if extent.resident and not extent.pins and not extent.children:
            self.candidates[extent] = None

    def check_integrity(self, extents: Iterable[Extent], answers: int) -> None:
        """Compute the sums again. Raises AssertionError on any difference. `answers`: tokens of running answers."""
        every = list(extents)
        assert self.used == answers + sum(extent.resident for extent in every), "used memory differs"
        assert self.pinned == answers + sum(extent.resident for extent in every if extent.pins), "pinned memory differs"
        assert self.used <= self.capacity, "the pool is exceeded"
        for extent in every:
            assert 0 <= extent.ready <= extent.resident <= extent.length
            parent = extent.parent
            assert not extent.resident or parent is None or parent.resident == parent.length, "a gap in the tree"
            children = sum(child.parent is extent and child.resident > 0 for child in every)
            assert extent.children == children, "the number of children differs"
            free = bool(extent.resident and not extent.pins and not extent.children)
            assert free == (extent in self.candidates), "the candidates differ"
