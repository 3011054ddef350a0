"""A client of one session, for tests."""

from typing import Any

from tests.fakes.in_process_gateway import GatewayClient


class SessionClient:
    """Requests to one session of a gateway."""

    def __init__(self, client: GatewayClient, id: str = "s") -> None:
        self.http = client
        self.id = id

    async def send(self, method: str, path: str = "", body: Any = None, **options: Any) -> tuple[int, Any]:
        """Return status and body of a request to a path below the session."""
        async with self.http.request(method, f"/v1/sessions/{self.id}{path}", json=body, **options) as answer:
            return answer.status, await answer.json()

    async def create(self, **fields: Any) -> Any:
        """Create the session and return its description."""
        async with self.http.post("/v1/sessions", json={"id": self.id, **fields}) as answer:
            assert answer.status == 201, await answer.text()
            return await answer.json()

    async def put(self, name: str, **fields: Any) -> tuple[int, Any]:
        """Set, declare or derive a variable."""
        return await self.send("PUT", f"/variables/{name}", fields)

    async def get(self, name: str, query: str = "") -> tuple[int, Any]:
        """Read a variable."""
        return await self.send("GET", f"/variables/{name}{query}")

    async def ask(self, text: str, output: str, **fields: Any) -> tuple[int, Any]:
        """Send a deferred call."""
        semantic = {"session": self.id, "output": output, "defer": True}
        body = {"model": "fake", "messages": [{"role": "user", "content": text}], "semantic": semantic, **fields}
        async with self.http.post("/v1/chat/completions", json=body) as answer:
            return answer.status, await answer.json()
