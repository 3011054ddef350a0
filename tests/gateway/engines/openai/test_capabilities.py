"""gateway/engines/openai/capabilities.py: what a model can do, by its name and by the routes of its server."""

from typing import Any

import pytest

from gateway.engines.openai import Upstream, UpstreamConfig
from gateway.engines.openai.capabilities import TEXT, guess_capabilities, order_capabilities
from tests.fakes.scripted_server import ScriptedServer


@pytest.mark.parametrize(
    ("model", "capabilities"),
    [
        ("gpt-4o", TEXT),
        ("Qwen3-8B", TEXT),
        ("text-embedding-3-small", ("embeddings",)),
        ("BAAI/bge-m3", ("embeddings",)),
        ("intfloat/e5-large", ("embeddings",)),
        ("Qwen/Qwen3-Embedding-0.6B", ("embeddings",)),
        ("BAAI/bge-reranker-v2-m3", ("rerank", "score")),
        ("whisper-1", ("transcriptions", "translations")),
        ("gpt-4o-mini-transcribe", ("transcriptions", "translations")),
        ("tts-1-hd", ("speech",)),
        ("gpt-image-1", ("images", "image_edits")),
    ],
)
def test_names_of_models(model: str, capabilities: tuple[str, ...]) -> None:
    assert guess_capabilities(model) == capabilities


def test_routes_of_a_server() -> None:
    assert guess_capabilities("m", ["/v1/embeddings", "/score", "/health"]) == ("embeddings", "score")
    assert guess_capabilities("m", ["/health"]) == TEXT
    assert order_capabilities(["images", "chat", "images", "unknown"]) == ("chat", "images")


@pytest.mark.parametrize(
    ("config", "paths", "expected"),
    [
        ({}, None, TEXT),
        ({}, {"/v1/chat/completions": {}, "/v1/embeddings": {}}, ("chat", "embeddings")),
        ({}, "no object", TEXT),
        ({"capabilities": ("speech",)}, {"/v1/embeddings": {}}, ("speech",)),
        ({"models": ["fake", "whisper-x"]}, None, TEXT),
    ],
)
async def test_a_server_shows_what_its_models_can_do(config: Any, paths: Any, expected: tuple[str, ...]) -> None:
    async with ScriptedServer() as server:
        server.schema = None if paths is None else {"paths": paths}
        upstream = Upstream(UpstreamConfig("there", "vllm", server.url, **config), lambda: None)
        await upstream.start()
        await upstream.close()
        assert upstream.models[0].capabilities == expected
        assert [model.capabilities for model in upstream.models[1:]] in ([], [("transcriptions", "translations")])
