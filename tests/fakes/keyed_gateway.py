"""The gateway in the process of the test, with an admin key, in front of a scripted upstream server."""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

from gateway.api.services import SERVICES, Services
from tests.fakes.in_process_gateway import GatewayClient, gateway_before
from tests.fakes.scripted_server import ScriptedServer

ADMIN_KEY = "admin-key-of-the-tests"


class KeyedGateway:
    """A gateway whose virtual keys a test makes."""

    def __init__(self, client: GatewayClient, server: ScriptedServer) -> None:
        self.client = client
        self.server = server

    @property
    def services(self) -> Services:
        app = self.client.app
        assert app is not None
        services: Services = app[SERVICES]
        return services

    async def send(
        self, method: str, path: str, key: str = "", body: Any = None, **headers: str
    ) -> tuple[int, Any, Mapping[str, str]]:
        """Send a request, and return status, body and headers of the answer."""
        headers |= {"Authorization": f"Bearer {key}"} if key else {}
        async with self.client.request(method, path, json=body, headers=headers) as answer:
            content = await answer.json() if answer.content_type == "application/json" else await answer.text()
            return answer.status, content, answer.headers

    async def admin(self, method: str, path: str = "", body: Any = None) -> tuple[int, Any]:
        """Send a request to /v1/admin/keys."""
        status, content, _ = await self.send(method, f"/v1/admin/keys{path}", ADMIN_KEY, body)
        return status, content

    async def make_key(self, **fields: Any) -> tuple[str, str]:
        """Make a key. Return its id and the key."""
        status, content = await self.admin("POST", "", fields)
        assert status == 201, content
        return content["id"], content["key"]

    async def chat(self, key: str, **fields: Any) -> tuple[int, Any, Mapping[str, str]]:
        """Send a chat completion."""
        body = {"model": "fake", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 10, **fields}
        return await self.send("POST", "/v1/chat/completions", key, body)


@asynccontextmanager
async def keyed_gateway(**settings: Any) -> AsyncIterator[KeyedGateway]:
    """Yield a gateway with an admin key."""
    settings = {"admin_key": [ADMIN_KEY], **settings}
    async with ScriptedServer() as server, gateway_before(server, **settings) as (client, _):
        yield KeyedGateway(client, server)
