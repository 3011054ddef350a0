"""Which blocks a full cache gives up, by what is found in it: `python -m bench.retention`.

Prompts one after another through the engine's own cache; as it is, by least recent use alone, and by knowing the future
(Belady's, which no server can do). Loads of its own making, and those that `myna serve --record` has written.
"""

import argparse
import bisect
import heapq
import json
import math
import random
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from engine.kv.cache import KVCache
from engine.kv.eviction import Evictable, EvictionPolicy
from engine.sequence import Context
from gateway.simulator.trace import read_prompts

_BLOCK = 16
Prompt = list[int]
"""Tokens."""


class _Belady(EvictionPolicy):
    """Gives up what is read again last, or never. Knows all prompts, and which one is read now."""

    def __init__(self, blocks: int, prompts: Sequence[Prompt]) -> None:
        super().__init__(blocks)
        self.now = 0
        self._far: list[tuple[float, int, int, Evictable]] = []
        """When read again, negative; when given back; a number; the block."""
        self._reads: dict[int, list[int]] = defaultdict(list)
        for at, prompt in enumerate(prompts):
            for path in paths(prompt):
                self._reads[path].append(at)

    def offer(self, block: Evictable) -> None:
        reads = self._reads[block.path]
        at = bisect.bisect_right(reads, self.now)
        again = reads[at] if at < len(reads) else math.inf
        heapq.heappush(self._far, (-again, block.used, id(block), block))

    def choose(self) -> Evictable | None:
        while self._far:
            _, used, _, block = heapq.heappop(self._far)
            if block.evictable and block.used == used:
                return block
        return None


def paths(prompt: Prompt) -> Iterator[int]:
    """Of its full blocks, as `kv_cache.Node` has them."""
    scope, text = hash(""), 0
    for at in range(0, len(prompt) - _BLOCK + 1, _BLOCK):
        text = hash((text, tuple(prompt[at : at + _BLOCK])))
        yield hash((scope, text))


def found(prompts: Sequence[Prompt], blocks: int, retention: EvictionPolicy) -> float:
    """The share of all tokens that are in the cache when they are read."""
    cache = KVCache(1 + blocks, _BLOCK, retention=retention)
    tokens = cached = 0
    for at, prompt in enumerate(prompts):
        if isinstance(retention, _Belady):
            retention.now = at
        context = Context(at, cache, "", 0.0, at)
        context.tokens = prompt[: blocks * _BLOCK]
        context.adopt_cached()
        tokens += len(context.tokens)
        cached += context.computed
        end = len(context.tokens)
        assert context.reserve(end) is not None
        context.announce(end)
        context.commit(end)
        context.free()
    return cached / max(1, tokens)


class _Load:
    """Prompts of its own making: texts are runs of tokens that no other text has."""

    def __init__(self, seed: int) -> None:
        self._pick = random.Random(seed)
        self._texts = 0

    def _text(self, tokens: int) -> Prompt:
        self._texts += 1
        return [self._texts] * tokens

    def chats(self, requests: int) -> list[Prompt]:
        """Conversations, of which thirty go on at a time, each of some turns, behind twenty system prompts of which a
        few are much more in use than others."""
        systems = [self._text(self._pick.randrange(100, 1200)) for _ in range(20)]
        weights = [1 / (1 + at) for at in range(20)]
        talks: list[Prompt] = []
        prompts = []
        for _ in range(requests):
            if len(talks) < 30 or self._pick.random() < 0.2:
                talks.append([*self._pick.choices(systems, weights)[0]])
            at = self._pick.randrange(len(talks))
            talks[at] = [*talks[at], *self._text(self._pick.randrange(20, 300))]
            prompts.append(talks[at])
            if self._pick.random() < 0.2:
                del talks[at]
        return prompts

    def floods(self, requests: int) -> list[Prompt]:
        """The same, and now and then a hundred long texts that are read once, as a map over a book has them."""
        prompts: list[Prompt] = []
        chats = iter(self.chats(requests))
        while len(prompts) < requests:
            prompts += [next(chats) for _ in range(self._pick.randrange(20, 120))]
            shared = self._text(200)
            prompts += [[*shared, *self._text(800)] for _ in range(100)]
        return prompts[:requests]

    def changing(self, requests: int) -> list[Prompt]:
        """System prompts that come into use and go out of it, so that what was read often is read no more."""
        prompts, systems = [], [self._text(1000) for _ in range(8)]
        for at in range(requests):
            if at % 50 == 0:
                systems[self._pick.randrange(8)] = self._text(1000)
            prompts.append([*self._pick.choice(systems), *self._text(self._pick.randrange(50, 500))])
        return prompts

    def scan(self, requests: int) -> list[Prompt]:
        """The same hundred texts again and again in one order, which is the worst for least recent use."""
        texts = [self._text(400) for _ in range(100)]
        return [texts[at % 100] for at in range(requests)]


LOADS: dict[str, Callable[[_Load, int], list[Prompt]]] = {
    "chats": _Load.chats,
    "chats and floods": _Load.floods,
    "changing prompts": _Load.changing,
    "one long scan": _Load.scan,
}


def measure(prompts: Sequence[Prompt], room: float) -> dict[str, float]:
    """What each way finds, with room for such a share of all that is ever read."""
    distinct = {path for prompt in prompts for path in paths(prompt)}
    longest = max(len(prompt) for prompt in prompts) // _BLOCK + 1
    blocks = max(longest, int(room * len(distinct)))
    return {
        "lru": found(prompts, blocks, EvictionPolicy(blocks, learns=False)),
        "ours": found(prompts, blocks, EvictionPolicy(blocks)),
        "belady": found(prompts, blocks, _Belady(blocks, prompts)),
    }


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="bench.retention", description=__doc__, allow_abbrev=False)
    parser.add_argument("--requests", type=int, default=1500)
    parser.add_argument("--room", type=float, nargs="+", default=[0.02, 0.05, 0.1, 0.2])
    parser.add_argument("--trace", type=Path, nargs="*", default=[], help="files that `myna serve --record` wrote")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    chosen = parser.parse_args()
    loads = {name: make(_Load(chosen.seed), chosen.requests) for name, make in LOADS.items()}
    loads |= {path.name: read_prompts(path) for path in chosen.trace}
    rows = []
    for name, prompts in loads.items():
        for room in chosen.room:
            rows.append({"load": name, "room": room, **measure(prompts, room)})
            print(f"{name} at {room:.0%} done", file=sys.stderr)
    if chosen.json:
        print(json.dumps(rows))
        return
    print("| load | room | least recent use | ours | Belady |\n| --- | --- | --- | --- | --- |")
    for row in rows:
        print(f"| {row['load']} | {row['room']:.0%} | {row['lru']:.1%} | {row['ours']:.1%} | {row['belady']:.1%} |")


if __name__ == "__main__":
    main()
