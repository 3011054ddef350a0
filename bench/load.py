"""Client load on an OpenAI-compatible server."""

import asyncio
import random
import re
import time
from dataclasses import dataclass
from itertools import pairwise
from statistics import median
from typing import Any

import aiohttp

WORDS = re.findall(
    r"\w+",
    "river stone window garden letter morning engine mountain silver paper music harbour winter bridge candle forest "
    "market ladder copper island voice shadow kitchen signal thread meadow planet hammer basket ocean",
)


def prompt(words: int, seed: int) -> str:
    """Return a text of `words` words, about as many tokens, that shares no beginning with an earlier prompt."""
    pick = random.Random(seed)
    return f"{seed} " + " ".join(pick.choice(WORDS) for _ in range(words))


@dataclass(frozen=True)
class Client:
    """Client of the server to measure."""

    http: aiohttp.ClientSession
    url: str
    model: str
    short: str = "Hi"
    """Prompt of requests with minimal work."""

    def _body(self, text: str, max_tokens: int) -> dict[str, Any]:
        """Return a request for a greedy answer of exactly `tokens` tokens."""
        return {
            "model": self.model,
            "messages": [{"role": "user", "content": text}],
            "max_tokens": max_tokens,
            "temperature": 0,
            "ignore_eos": True,
        }

    async def ask(self, text: str, max_tokens: int) -> tuple[int, int]:
        """Request one greedy answer of exactly `tokens` tokens, not streamed. Return the number of prompt and
        completion tokens."""
        async with self.http.post(f"{self.url}/chat/completions", json=self._body(text, max_tokens)) as response:
            if response.status != 200:
                raise RuntimeError(f"{response.status}: {await response.text()}")
            usage = (await response.json())["usage"]
        return usage["prompt_tokens"], usage["completion_tokens"]

    async def decode_rate(self, streams: int, tokens: int, runs: int) -> float:
        """Return the output tokens per second of all streams together, short prompts included."""
        rates = []
        for _ in range(runs):
            texts = [prompt(8, random.randrange(10**9)) for _ in range(streams)]
            began = time.perf_counter()
            counts = await asyncio.gather(*(self.ask(text, tokens) for text in texts))
            rates.append(sum(count for _, count in counts) / (time.perf_counter() - began))
        return median(rates)

    async def rate_behind(self, streams: int, words: int, tokens: int, runs: int, *, shared: bool) -> float:
        """Return the output tokens per second of streams with long, cached prompts: one each, or one that all begin
        with."""
        rates = []
        for _ in range(runs):
            seed = random.randrange(10**9)
            prompts = [prompt(words, seed if shared else seed + stream) for stream in range(streams)]
            for text in dict.fromkeys(prompts):
                await self.ask(text, 1)
            began = time.perf_counter()
            asked = (self.ask(f"{text} Number {stream}.", tokens) for stream, text in enumerate(prompts))
            counts = await asyncio.gather(*asked)
            rates.append(sum(count for _, count in counts) / (time.perf_counter() - began))
        return median(rates)

    async def cached_first_token(self, words: int, runs: int) -> float:
        """Return the median seconds to the first token of a long prompt that is cached except for its last words."""
        waits = []
        for _ in range(runs):
            text = prompt(words, random.randrange(10**9))
            await self.ask(text, 1)
            began = time.perf_counter()
            await self.ask(f"{text} And now?", 1)
            waits.append(time.perf_counter() - began)
        return median(waits)

    async def stream(self, text: str, max_tokens: int, times: list[float]) -> None:
        """Stream one answer, and return the time of each chunk. It is sampled: a small model's greedy answer soon
        repeats itself, and then speculation yields many tokens per chunk."""
        chance = {"temperature": 1.0, "seed": random.randrange(10**9)}
        body = {**self._body(text, max_tokens), **chance, "stream": True}
        async with self.http.post(f"{self.url}/chat/completions", json=body) as response:
            response.raise_for_status()
            async for line in response.content:
                if line.startswith(b"data: {"):
                    times.append(time.perf_counter())

    async def mixed(self, streams: int, prompts: int, words: int) -> tuple[float, float, float]:
        """Stream answers while long prompts arrive. Return the share of their speed that the streams keep, the longest
        gap between two chunks of one of them, and the seconds until the last prompt had its first token."""
        times: list[list[float]] = [[] for _ in range(streams)]
        texts = [prompt(8, random.randrange(10**9)) for _ in range(streams)]
        readers = [asyncio.create_task(self.stream(text, 3000, own)) for text, own in zip(texts, times, strict=True)]
        while min(map(len, times)) < 5:  # noqa: ASYNC110 (nothing notifies a client)
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
            return sum(start <= index < end for own in times for index in own) / (end - start)

        inside = [[index for index in own if began <= index < ended] for own in times]
        gap = max(after - before for own in inside for before, after in pairwise(own))
        # texts grow meanwhile, and so does the cost of a step: their stand-alone speed is the mean of before and after
        alone = (rate(settled, began) + rate(ended, left)) / 2
        return rate(began, ended) / alone, gap, ended - began

    async def prefill_rate(self, words: int, runs: int) -> tuple[float, float]:
        """Return the prompt tokens per second of one long prompt, and the seconds to its first token."""
        rates, waits = [], []
        for _ in range(runs):
            text = prompt(words, random.randrange(10**9))
            began = time.perf_counter()
            read, _made = await self.ask(text, 1)
            waits.append(time.perf_counter() - began)
            rates.append(read / waits[-1])
        return median(rates), median(waits)

    async def latency(self, requests: int) -> float:
        """Return the median seconds of a one-token answer to a short prompt, one request after another."""
        waits = []
        for _ in range(requests):
            began = time.perf_counter()
            await self.ask(self.short, 1)
            waits.append(time.perf_counter() - began)
        return median(waits)

    async def request_rate(self, requests: int, at_once: int) -> float:
        """Return the requests per second of `clients` clients."""
        began = time.perf_counter()

        async def client() -> None:
            for _ in range(requests // at_once):
                await self.ask(self.short, 1)

        await asyncio.gather(*(client() for _ in range(at_once)))
        return requests // at_once * at_once / (time.perf_counter() - began)
