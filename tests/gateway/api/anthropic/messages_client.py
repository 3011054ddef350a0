"""Send Messages requests to a gateway in the process of the test. All answers are validated by Anthropic's types."""

import io
import json
from typing import Any

from anthropic.types import ErrorResponse, Message, RawMessageStreamEvent
from pydantic import TypeAdapter

from tests.fakes.in_process_gateway import GatewayClient

ASKED: list[dict[str, Any]] = [{"role": "user", "content": "Hello"}]
_EVENT: TypeAdapter[Any] = TypeAdapter(RawMessageStreamEvent)


async def send(client: GatewayClient, path: str = "/v1/messages", headers: Any = None, **body: Any) -> tuple[int, Any]:
    """Return status and body of an answer."""
    limit = {"max_tokens": 50} if path == "/v1/messages" else {}
    content = io.BytesIO(json.dumps({"model": "fake", "messages": ASKED, **limit, **body}).encode())
    async with client.post(path, data=content, headers=headers) as answer:
        told = await answer.json()
        if answer.status != 200:
            if answer.status != 413:  # the package has no type for it
                ErrorResponse.model_validate(told)
            assert told["request_id"] == answer.headers["request-id"]
        return answer.status, told


async def ask(client: GatewayClient, headers: Any = None, **body: Any) -> Any:
    """Return the message that answers a request."""
    status, told = await send(client, headers=headers, **body)
    assert status == 200, told
    Message.model_validate(told)
    return told


async def events(client: GatewayClient, headers: Any = None, **body: Any) -> list[Any]:
    """Return the events of a streamed answer."""
    body = {"model": "fake", "messages": ASKED, "max_tokens": 50, "stream": True, **body}
    async with client.post("/v1/messages", json=body, headers=headers) as answer:
        text = await answer.text()
        assert answer.status == 200, text
    assert "[DONE]" not in text
    found = []
    for event in text.removesuffix("\n\n").split("\n\n"):
        name, _, data = event.partition("\n")
        told = json.loads(data.removeprefix("data: "))
        assert name == f"event: {told['type']}"
        if told["type"] == "error":
            ErrorResponse.model_validate(told)
        elif told["type"] != "ping":
            _EVENT.validate_python(told)
        found.append(told)
    return found


def text_of(found: list[Any]) -> str:
    """Return the text of a streamed answer."""
    return "".join(event["delta"].get("text", "") for event in found if event["type"] == "content_block_delta")
