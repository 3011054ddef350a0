"""Images and other parts of messages: they are forwarded to upstream servers unchanged, between texts with references."""

import io
import json
from typing import Any

import pytest

from engine.tokenizer import Tokenizer
from tests.fakes.in_process_gateway import GatewayClient, ScriptedGateway, gateway_before
from tests.fakes.scripted_server import ScriptedServer, says

IMAGE: dict[str, Any] = {
    "type": "image_url",
    "image_url": {"url": "data:image/png;base64,iVBORw0KGgo=", "detail": "low"},
}
SOUND: dict[str, Any] = {"type": "input_audio", "input_audio": {"data": "UklGRg==", "format": "wav"}}


def text(said: str) -> dict[str, Any]:
    return {"type": "text", "text": said}


async def ask(
    client: GatewayClient, content: Any, status: int = 200, path: str = "chat/completions", **body: Any
) -> Any:
    headers = body.pop("headers", {})
    asked = (
        {"input": [{"role": "user", "content": content}]}
        if path == "responses"
        else {"messages": [{"role": "user", "content": content}]}
    )
    data = io.BytesIO(json.dumps({"model": "fake", **asked, **body}).encode())
    async with client.post(f"/v1/{path}", data=data, headers=headers) as answer:
        told = await answer.json()
        assert answer.status == status, told
    return told


def content(server: ScriptedServer) -> Any:
    return server.asked[-1]["messages"][-1]["content"]


@pytest.mark.parametrize("headers", [{}, {"X-Semantic-Session": "plain"}])
async def test_parts_are_forwarded_unchanged(scripted_gateway: ScriptedGateway, headers: dict[str, str]) -> None:
    client, server, _ = scripted_gateway
    for parts in ([IMAGE], [text("What is it?"), IMAGE], [IMAGE, text("and"), SOUND, text("?")], [IMAGE, IMAGE]):
        await ask(client, parts, headers=headers)
        assert content(server) == parts


async def test_texts_between_images_may_contain_references(scripted_gateway: ScriptedGateway) -> None:
    client, server, _ = scripted_gateway
    headers = {"X-Semantic-Session": "among"}
    server.script = [says("a <<cat>>"), says("yes")]
    await ask(client, "An animal?", semantic={"output": "animal", "defer": True}, headers=headers)
    await ask(client, [text("Is this <<animal>>?"), IMAGE, text("\\<<animal>> is literal.")], headers=headers)
    assert content(server) == [text("Is this a <<cat>>?"), IMAGE, text("<<animal>> is literal.")]
    refused = await ask(client, [IMAGE, text("<<nobody>>")], 400, headers=headers)
    assert refused["error"]["param"] == "messages.0.content.1.text"


async def test_a_large_image_is_forwarded(scripted_gateway: ScriptedGateway) -> None:
    client, server, _ = scripted_gateway
    large = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "QUJD" * 300_000}}
    for headers in ({}, {"X-Semantic-Session": "large"}):
        await ask(client, [text("What is it?"), large], headers=headers)
        assert content(server) == [text("What is it?"), large]


async def test_a_response_accepts_images_and_can_be_continued(scripted_gateway: ScriptedGateway) -> None:
    client, server, _ = scripted_gateway
    url = IMAGE["image_url"]["url"]
    parts = [
        {"type": "input_text", "text": "What is <<it>>?"},
        {"type": "input_image", "image_url": url, "detail": "low"},
        {"type": "input_file", "file_data": "data:application/pdf;base64,QUJD", "filename": "a.pdf"},
    ]
    file = {"type": "file", "file": {"file_data": "data:application/pdf;base64,QUJD", "filename": "a.pdf"}}
    first = await ask(client, parts, path="responses")
    assert content(server) == [text("What is <<it>>?"), IMAGE, file]
    await ask(client, "Sure?", path="responses", previous_response_id=first["id"], headers={"X-Semantic-Session": "on"})
    assert server.asked[-1]["messages"][0]["content"] == [text("What is <<it>>?"), IMAGE, file]


async def test_an_error_names_the_place_of_an_invalid_part(scripted_gateway: ScriptedGateway) -> None:
    client, _, _ = scripted_gateway
    for parts, param in (
        ([{"type": "image_url"}], "messages.0.content.0.image_url"),
        ([text("a"), {"type": "image"}], "messages.0.content.1.type"),
        ([{"type": "text"}], "messages.0.content.0.text"),
    ):
        assert (await ask(client, parts, 400))["error"]["param"] == param
    messages = [{"role": "assistant", "content": [IMAGE]}]
    assert (await ask(client, "", 400, messages=messages))["error"]["param"] == "messages.0.content"


async def test_a_server_that_receives_tokens_cannot_read_images(tokenizer: Tokenizer) -> None:
    async with ScriptedServer() as server, gateway_before(server, tokenizer, kind="vllm") as (client, _):
        refused = (await ask(client, [text("What is it?"), IMAGE], 400))["error"]
        assert (refused["code"], refused["param"]) == ("unsupported_by_engine", "messages.0.content.1")
        url = IMAGE["image_url"]["url"]
        refused = (await ask(client, [{"type": "input_image", "image_url": url}], 400, path="responses"))["error"]
        assert (refused["code"], refused["param"]) == ("unsupported_by_engine", "input.0.content.0")
        assert not server.asked
