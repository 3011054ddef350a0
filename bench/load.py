"""Load on an OpenAI-compatible server, as a client makes it."""

import asyncio
import random
import re
import time
from dataclasses import dataclass
from itertools import pairwise
from statistics import median
from typing import Any

import aiohttp

_WORDS = re.findall(
    r"\w+",
    "river stone window garden letter morning engine mountain silver paper music harbour winter bridge candle forest "
    "market ladder copper island voice shadow kitchen signal thread meadow planet hammer basket ocean",
)


def prompt(words: int, seed: int) -> str:
    """A text of so many words, about as many tokens, that no earlier prompt shares a beginning with."""
    pick = random.Random(seed)
    return f"{seed} " + " ".join(pick.choice(_WORDS) for _ in range(words))


@dataclass(frozen=True)
class Client:
    """A server to measure."""

    http: aiohttp.ClientSession
    url: str
    model: str
    short: str = "Hi"
    """What is asked where little is to be done for it."""

    def _body(self, text: str, max_tokens: int) -> dict[str, Any]:
        """A request for a greedy answer of exactly so many tokens."""
        return {
            "model": self.model,
            "messages": [{"role": "user", "content": text}],
            "max_tokens": max_tokens,
            "temperature": 0,
            "ignore_eos": True,
        }

    async def ask(self, text: str, max_tokens: int) -> tuple[int, int]:
        """One greedy answer of exactly so many tokens, not streamed. Returns prompt and completion tokens."""
        async with self.http.post(f"{self.url}/chat/completions", json=self._body(text, max_tokens)) as response:
            if response.status != 200:
                raise RuntimeError(f"{response.status}: {await response.text()}")
            usage = (await response.json())["usage"]
        return usage["prompt_tokens"], usage["completion_tokens"]

    async def decode_rate(self, streams: int, tokens: int, runs: int) -> float:
        """Output tokens a second, all streams together, short prompts included."""
        rates = []
        for _ in range(runs):
            texts = [prompt(8, random.randrange(10**9)) for _ in range(streams)]
            began = time.perf_counter()
            counts = await asyncio.gather(*(self.ask(text, tokens) for text in texts))
            rates.append(sum(made for _, made in counts) / (time.perf_counter() - began))
        return median(rates)

    async def rate_behind(self, streams: int, words: int, tokens: int, runs: int, *, shared: bool) -> float:
        """Output tokens a second of streams behind long prompts that were read before: their own, or one that all
        begin with."""
        rates = []
        for _ in range(runs):
            seed = random.randrange(10**9)
            prompts = [prompt(words, seed if shared else seed + stream) for stream in range(streams)]
            for text in dict.fromkeys(prompts):
                await self.ask(text, 1)
            began = time.perf_counter()
            asked = (self.ask(f"{text} Number {stream}.", tokens) for stream, text in enumerate(prompts))
            counts = await asyncio.gather(*asked)
            rates.append(sum(made for _, made in counts) / (time.perf_counter() - began))
        return median(rates)

    async def cached_first_token(self, words: int, runs: int) -> float:
        """Median seconds to the first token of a long prompt that was read before, but for its last words."""
        waits = []
        for _ in range(runs):
            text = prompt(words, random.randrange(10**9))
            await self.ask(text, 1)
            began = time.perf_counter()
            await self.ask(f"{text} And now?", 1)
            waits.append(time.perf_counter() - began)
        return median(waits)

    async def stream(self, text: str, max_tokens: int, times: list[float]) -> None:
        """One answer of so many tokens, streamed; when each of its chunks came. It is chosen by chance: a small model's
        greedy one repeats itself before long, and then comes many tokens a chunk."""
        chance = {"temperature": 1.0, "seed": random.randrange(10**9)}
        body = {**self._body(text, max_tokens), **chance, "stream": True}
        async with self.http.post(f"{self.url}/chat/completions", json=body) as response:
            response.raise_for_status()
            async for line in response.content:
                if line.startswith(b"data: {"):
                    times.append(time.perf_counter())

    async def mixed(self, streams: int, prompts: int, words: int) -> tuple[float, float, float]:
        """Streams that decode while long prompts arrive: the part of their speed that they keep meanwhile, the
        longest gap between two chunks of one of them, and the seconds until the last prompt had its first token."""
        times: list[list[float]] = [[] for _ in range(streams)]
        texts = [prompt(8, random.randrange(10**9)) for _ in range(streams)]
        readers = [asyncio.create_task(self.stream(text, 3000, own)) for text, own in zip(texts, times, strict=True)]
        while min(map(len, times)) < 5:  # noqa: ASYNC110 (a client has nothing to be told by)
            await asyncio.sleep(0.05)
        settled = time.perf_counter()
        await asyncio.sleep(3.0)
        began = time.perf_counter()
        await asyncio.gather(*(self.ask(prompt(words, random.randrange(10**9)), 1) for _ in range(prompts)))
        ended = time.perf_counter()
        await asyncio.sleep(3.0)
        left = time.perf_counter()
        for reader in readers:
            reader.cancel()
        await asyncio.gather(*readers, return_exceptions=True)

        def rate(start: float, end: float) -> float:
            return sum(start <= at < end for own in times for at in own) / (end - start)

        inside = [[at for at in own if began <= at < ended] for own in times]
        gap = max(after - before for own in inside for before, after in pairwise(own))
        # texts grow meanwhile, and with them the cost of a step: what they run at alone is the mean of both sides
        alone = (rate(settled, began) + rate(ended, left)) / 2
        return rate(began, ended) / alone, gap, ended - began

    async def prefill_rate(self, words: int, runs: int) -> tuple[float, float]:
        """Prompt tokens a second of one long prompt, and the seconds to its first token."""
        rates, waits = [], []
        for _ in range(runs):
            text = prompt(words, random.randrange(10**9))
            began = time.perf_counter()
            read, _made = await self.ask(text, 1)
            waits.append(time.perf_counter() - began)
            rates.append(read / waits[-1])
        return median(rates), median(waits)

    async def latency(self, requests: int) -> float:
        """Median seconds of a one-token answer to a short prompt, one after another."""
        waits = []
        for _ in range(requests):
            began = time.perf_counter()
            await self.ask(self.short, 1)
            waits.append(time.perf_counter() - began)
        return median(waits)

    async def request_rate(self, requests: int, at_once: int) -> float:
        """Requests a second with so many clients."""
        began = time.perf_counter()

        async def client() -> None:
            for _ in range(requests // at_once):
                await self.ask(self.short, 1)

        await asyncio.gather(*(client() for _ in range(at_once)))
        return requests // at_once * at_once / (time.perf_counter() - began)
