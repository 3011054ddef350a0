"""A gateway in the process of the test, in front of a server whose answers a test releases piece by piece."""

import asyncio
import io
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from aiohttp import web

from tests.fakes.in_process_gateway import GatewayClient, gateway_before
from tests.fakes.scripted_server import ScriptedServer, chunk


class Conductor:
    """Lets a server answer a prompt when the test says so. Prompts without a gate are answered immediately."""

    def __init__(self) -> None:
        self._gates: dict[str, asyncio.Queue[str | None]] = {}

    def hold(self, word: str) -> None:
        """Hold answers to prompts that contain the word."""
        self._gates[word] = asyncio.Queue()

    def say(self, word: str, *texts: str) -> None:
        """Send pieces of a held answer."""
        for text in texts:
            self._gates[word].put_nowait(text)

    def end(self, word: str, *texts: str) -> None:
        """Send the last pieces of a held answer."""
        self.say(word, *texts)
        self._gates[word].put_nowait(None)

    async def answer(self, request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        """Answer a request of the gateway."""
        prompt = json.dumps(body["messages"])
        gate = next((gate for word, gate in self._gates.items() if word in prompt), None)
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        first = None if gate is None else await gate.get()
        await response.prepare(request)
        if gate is None:
            await send_event(response, chunk(body, "a short answer"))
        else:
            piece = first
            while piece is not None:
                await send_event(response, chunk(body, piece))
                piece = await gate.get()
        await send_event(response, chunk(body, None, "stop"))
        usage = {"prompt_tokens": 100, "completion_tokens": 3, "prompt_tokens_details": {"cached_tokens": 40}}
        await send_event(response, {"choices": [], "usage": usage})
        await response.write(b"data: [DONE]\n\n")
        return response


async def send_event(response: web.StreamResponse, event: Any) -> None:
    """Write one event of an answer."""
    await response.write(b"data: " + json.dumps(event).encode() + b"\n\n")


class LiveGateway:
    """A gateway and the answers of its upstream server."""

    def __init__(self, client: GatewayClient, conductor: Conductor, server: ScriptedServer) -> None:
        self.client = client
        self.conductor = conductor
        self.server = server
        self.address = str(client.make_url("")).rstrip("/")

    async def send(self, method: str, path: str, body: Any = None, key: str | None = None) -> Any:
        """Return the JSON answer of a request below /v1. It must succeed."""
        headers = {} if key is None else {"Authorization": f"Bearer {key}"}
        data = None
        if body is not None:
            data = io.BytesIO(json.dumps(body).encode())  # aiohttp warns of large bodies in one piece
            headers["Content-Type"] = "application/json"
        async with self.client.request(method, f"/v1{path}", data=data, headers=headers) as answer:
            assert answer.status < 300, await answer.text()
            return await answer.json()

    async def submit(self, session: str, prompts: dict[str, str], key: str | None = None) -> None:
        """Send deferred calls, each given by the name of its output and its prompt."""
        for output, prompt in prompts.items():
            semantic = {"session": session, "output": output, "defer": True}
            body = {"model": "fake", "messages": [{"role": "user", "content": prompt}], "semantic": semantic}
            await self.send("POST", "/chat/completions", body, key)

    async def graph(self, session: str, key: str | None = None) -> Any:
        """Return the graph of a session."""
        return await self.send("GET", f"/sessions/{session}/graph", key=key)

    async def wait(self, session: str, *names: str) -> None:
        """Wait until the variables are final."""
        for name in names:
            await self.send("GET", f"/sessions/{session}/variables/{name}?wait=true")


@asynccontextmanager
async def live_gateway(**settings: Any) -> AsyncIterator[LiveGateway]:
    """Yield a running gateway."""
    async with ScriptedServer() as server, gateway_before(server, **settings) as (client, _):
        conductor = Conductor()
        server.always = conductor.answer
        yield LiveGateway(client, conductor, server)
