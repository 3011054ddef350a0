"""Clients of one session, for tests."""

from itertools import count
from typing import Any

import aiohttp
from openai import AsyncOpenAI

from tests.fakes.gateway_harness import MODEL, GatewayHarness

_numbers = count()


class SessionClient:
    """Clients of a new session on the server: OpenAI's client, and plain HTTP."""

    def __init__(self, server: GatewayHarness, http: aiohttp.ClientSession) -> None:
        self.session = f"test-{next(_numbers)}"
        self.http = http
        self.openai = AsyncOpenAI(
            base_url=f"{server.address}/v1",
            api_key="none",
            max_retries=0,
            default_headers={"X-Semantic-Session": self.session},
        )

    async def ask(self, content: str, semantic: dict[str, Any] | None = None, **options: Any) -> Any:
        messages: Any = [{"role": "user", "content": content}]
        options.setdefault("max_tokens", 8)
        options.setdefault("temperature", 0)
        extra = {"semantic": semantic} if semantic is not None else {}
        return await self.openai.chat.completions.create(model=MODEL, messages=messages, extra_body=extra, **options)

    async def call(self, method: str, path: str, body: Any = None) -> tuple[int, Any]:
        async with self.http.request(method, f"/v1{path}", json=body) as response:
            return response.status, await response.json()

    async def variable(self, name: str, query: str = "?wait=true") -> Any:
        _, body = await self.call("GET", f"/sessions/{self.session}/variables/{name}{query}")
        return body

    async def put(self, name: str, value: Any) -> tuple[int, Any]:
        return await self.call("PUT", f"/sessions/{self.session}/variables/{name}", {"value": value})

    async def graph(self) -> Any:
        return (await self.call("GET", f"/sessions/{self.session}/graph"))[1]


def content(answer: Any) -> str:
    return str(answer.choices[0].message.content)
