"""Hit rates of eviction policies: `python -m bench.retention`.

Prompts go one after another through the engine's own cache: with the learned policy, with least recently used, and with
Belady's policy, which knows the future and is not possible in a server. The loads are generated, or recorded by `myna
serve --record`.
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
from engine.sequence import TokenSequence
from gateway.simulator.trace import read_prompts

_BLOCK = 16
Prompt = list[int]
"""Tokens."""


class _Belady(EvictionPolicy):
    """Eviction policy that evicts what is read again last, or never. It knows all prompts, and which one is read
    now."""

    def __init__(self, blocks: int, prompts: Sequence[Prompt]) -> None:
        super().__init__(blocks)
        self.now = 0
        self._far: list[tuple[float, int, int, Evictable]] = []
        """Heap: time of the next read, negated; time of release; a number; the block."""
        self._reads: dict[int, list[int]] = defaultdict(list)
        for index, prompt in enumerate(prompts):
            for path in paths(prompt):
                self._reads[path].append(index)

    def offer(self, block: Evictable) -> None:
        reads = self._reads[block.path]
        index = bisect.bisect_right(reads, self.now)
        again = reads[index] if index < len(reads) else math.inf
        heapq.heappush(self._far, (-again, block.last_release, id(block), block))

    def select_victim(self) -> Evictable | None:
        while self._far:
            _, used, _, block = heapq.heappop(self._far)
            if block.is_evictable and block.last_release == used:
                return block
        return None


def paths(prompt: Prompt) -> Iterator[int]:
    """Return the paths of its full blocks, as `Node` in engine/kv/cache.py has them."""
    scope, text = hash(""), 0
    for index in range(0, len(prompt) - _BLOCK + 1, _BLOCK):
        text = hash((text, tuple(prompt[index : index + _BLOCK])))
        yield hash((scope, text))


def found(prompts: Sequence[Prompt], blocks: int, retention: EvictionPolicy) -> float:
    """Return the share of all tokens that are in the cache when they are read."""
    cache = KVCache(1 + blocks, _BLOCK, eviction_policy=retention)
    tokens = cached = 0
    for index, prompt in enumerate(prompts):
        if isinstance(retention, _Belady):
            retention.now = index
        context = TokenSequence(index, cache, "", 0.0, index)
        context.tokens = prompt[: blocks * _BLOCK]
        context.adopt_cached()
        tokens += len(context.tokens)
        cached += context.computed_tokens
        end = len(context.tokens)
        assert context.reserve(end) is not None
        context.announce(end)
        context.commit(end)
        context.free()
    return cached / max(1, tokens)


class _Load:
    """Generated prompts: texts are runs of tokens that no other text has."""

    def __init__(self, seed: int) -> None:
        self._pick = random.Random(seed)
        self._texts = 0

    def _text(self, tokens: int) -> Prompt:
        self._texts += 1
        return [self._texts] * tokens

    def chats(self, requests: int) -> list[Prompt]:
        """Yield prompts of conversations. Thirty are active at a time, each has some turns, behind twenty system
        prompts of which a few are used much more than others."""
        systems = [self._text(self._pick.randrange(100, 1200)) for _ in range(20)]
        weights = [1 / (1 + index) for index in range(20)]
        talks: list[Prompt] = []
        prompts = []
        for _ in range(requests):
            if len(talks) < 30 or self._pick.random() < 0.2:
                talks.append([*self._pick.choices(systems, weights)[0]])
            index = self._pick.randrange(len(talks))
            talks[index] = [*talks[index], *self._text(self._pick.randrange(20, 300))]
            prompts.append(talks[index])
            if self._pick.random() < 0.2:
                del talks[index]
        return prompts

    def floods(self, requests: int) -> list[Prompt]:
        """Yield the same, and from time to time a hundred long texts that are read once, as a map over a book reads
        them."""
        prompts: list[Prompt] = []
        chats = iter(self.chats(requests))
        while len(prompts) < requests:
            prompts += [next(chats) for _ in range(self._pick.randrange(20, 120))]
            shared = self._text(200)
            prompts += [[*shared, *self._text(800)] for _ in range(100)]
        return prompts[:requests]

    def changing(self, requests: int) -> list[Prompt]:
        """Yield prompts with system prompts that come into use and go out of use, so that frequently read blocks are no
        longer read."""
        prompts, systems = [], [self._text(1000) for _ in range(8)]
        for index in range(requests):
            if index % 50 == 0:
                systems[self._pick.randrange(8)] = self._text(1000)
            prompts.append([*self._pick.choice(systems), *self._text(self._pick.randrange(50, 500))])
        return prompts

    def scan(self, requests: int) -> list[Prompt]:
        """Yield the same hundred texts again and again in one order, which is the worst case for least recently
        used."""
        texts = [self._text(400) for _ in range(100)]
        return [texts[index % 100] for index in range(requests)]


LOADS: dict[str, Callable[[_Load, int], list[Prompt]]] = {
    "chats": _Load.chats,
    "chats and floods": _Load.floods,
    "changing prompts": _Load.changing,
    "one long scan": _Load.scan,
}


def measure(prompts: Sequence[Prompt], room: float) -> dict[str, float]:
    """Return the hit rate of each policy, with room for a share of all tokens that are ever read."""
    distinct = {path for prompt in prompts for path in paths(prompt)}
    longest = max(len(prompt) for prompt in prompts) // _BLOCK + 1
    blocks = max(longest, int(room * len(distinct)))
    return {
        "lru": found(prompts, blocks, EvictionPolicy(blocks, learns=False)),
        "ours": found(prompts, blocks, EvictionPolicy(blocks)),
        "belady": found(prompts, blocks, _Belady(blocks, prompts)),
    }


def main() -> None:
    """Run the command line."""
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
