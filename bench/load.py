"""Load on an OpenAI-compatible server, as a client makes it."""

import asyncio
import random
import re
import time
from dataclasses import dataclass
from statistics import median

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

    async def ask(self, text: str, max_tokens: int) -> tuple[int, int]:
        """One greedy answer of exactly so many tokens, not streamed. Returns prompt and completion tokens."""
        body = {
            "model": self.model,
            "messages": [{"role": "user", "content": text}],
            "max_tokens": max_tokens,
            "temperature": 0,
            "ignore_eos": True,
        }
        async with self.http.post(f"{self.url}/chat/completions", json=body) as response:
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
            await self.ask("Hi", 1)
            waits.append(time.perf_counter() - began)
        return median(waits)

    async def request_rate(self, requests: int, at_once: int) -> float:
        """Requests a second with so many clients."""
        began = time.perf_counter()

        async def client() -> None:
            for _ in range(requests // at_once):
                await self.ask("Hi", 1)

        await asyncio.gather(*(client() for _ in range(at_once)))
        return requests // at_once * at_once / (time.perf_counter() - began)
