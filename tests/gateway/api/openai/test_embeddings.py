"""gateway/api/openai/embeddings.py: embeddings of a model of this project, through a running server."""

import base64
import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2 as httpx
import numpy as np
import pytest
import torch

from engine.tokenizer import Tokenizer
from tests.fakes.checkpoints import write_tiny_embedder
from tests.fakes.gateway_harness import GatewayHarness

TEXTS = ["A bee.", "Ein Bär </s> <s>", "x" * 150, "A bee."]


@pytest.fixture(scope="module", params=["lasttoken", "mean_tokens"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_embedder(tmp_path_factory.mktemp("embedder"), "Qwen3", request.param)


@pytest.fixture(scope="module")
def embedder(folder: Path) -> Iterator[GatewayHarness]:
    options = ("--model", str(folder), "--model-name", "tiny", "--dtype", "float32", "--kernels", "torch")
    with GatewayHarness(*options, "--kv-tokens", "2048", "--journal", "memory") as server:
        yield server


@pytest.fixture(scope="module")
def expected(folder: Path) -> list[np.ndarray[Any, Any]]:
    """Return the embeddings of the texts by transformers, whose tokenizer adds the end token."""
    from transformers import AutoModel, PreTrainedTokenizerFast

    model: Any = AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))
    pooling = json.loads((folder / "1_Pooling" / "config.json").read_text())
    vectors = []
    for text in TEXTS:
        ids = tokenizer(text, split_special_tokens=True)["input_ids"]
        assert Tokenizer(folder).encode_document(text) == ids
        with torch.no_grad():
            hidden = model(torch.tensor([ids])).last_hidden_state[0]
        vector = hidden[-1] if pooling.get("pooling_mode_lasttoken") else hidden.mean(dim=0)
        vectors.append((vector / vector.norm()).numpy())
    return vectors


def post(server: GatewayHarness, status: int = 200, **body: Any) -> Any:
    answer = httpx.post(f"{server.address}/v1/embeddings", json={"model": "tiny", **body}, timeout=60)
    assert answer.status_code == status, answer.text
    return answer.json()


def test_embeddings_equal_those_of_transformers(embedder: GatewayHarness, expected: Any, folder: Path) -> None:
    answer = post(embedder, input=TEXTS)
    assert (answer["object"], answer["model"]) == ("list", "tiny")
    assert [item["index"] for item in answer["data"]] == [0, 1, 2, 3]
    for item, vector in zip(answer["data"], expected, strict=True):
        assert np.allclose(item["embedding"], vector, atol=1e-4)
    tokenizer = Tokenizer(folder)
    tokens = [tokenizer.encode_document(text) for text in TEXTS]
    assert answer["usage"] == dict.fromkeys(("prompt_tokens", "total_tokens"), sum(map(len, tokens)))
    for content in (tokens, tokens[0]):
        first = post(embedder, input=content)["data"][0]["embedding"]
        assert np.allclose(first, expected[0], atol=1e-4)
    assert len(post(embedder, input="A bee.")["data"]) == 1


def test_encodings_and_dimensions(embedder: GatewayHarness, expected: Any) -> None:
    text = post(embedder, input=TEXTS[0], encoding_format="base64")["data"][0]["embedding"]
    assert np.allclose(struct.unpack("<64f", base64.b64decode(text)), expected[0], atol=1e-4)
    for encoding in ("float", "base64"):
        short = post(embedder, input=TEXTS[0], dimensions=8, encoding_format=encoding)["data"][0]["embedding"]
        values = np.array(short if encoding == "float" else struct.unpack("<8f", base64.b64decode(short)))
        assert np.allclose(values, expected[0][:8] / np.linalg.norm(expected[0][:8]), atol=1e-4)


def test_the_openai_package(embedder: GatewayHarness, expected: Any) -> None:
    answer = embedder.client().embeddings.create(model="tiny", input=TEXTS)  # it asks for base64 by itself
    for item, vector in zip(answer.data, expected, strict=True):
        assert np.allclose(item.embedding, vector, atol=1e-4)


@pytest.mark.parametrize(
    ("body", "code", "param"),
    [
        ({}, "missing_required_parameter", "input"),
        ({"input": []}, "invalid_value", "input"),
        ({"input": [[1], "a"]}, "invalid_value", "input"),
        ({"input": "a", "dimensions": 65}, "invalid_value", "dimensions"),
        ({"input": "a", "dimensions": 0}, "invalid_value", "dimensions"),
        ({"input": "a", "encoding_format": "int8"}, "unsupported_value", "encoding_format"),
        ({"input": "a", "unknown": 1}, "unsupported_parameter", "unknown"),
        ({"input": [[10**6]]}, "invalid_value", "input.0"),
        ({"input": ["a", "x" * 10_000]}, "context_length_exceeded", "input.1"),
        ({"input": [[1] * 1_000]}, "context_length_exceeded", "input.0"),
    ],
)
def test_invalid_requests(embedder: GatewayHarness, body: dict[str, Any], code: str, param: str) -> None:
    error = post(embedder, 400, **body)["error"]
    assert (error["code"], error["param"]) == (code, param), error


def test_a_model_for_embeddings_generates_no_text(embedder: GatewayHarness) -> None:
    (model,) = httpx.get(f"{embedder.address}/v1/models").json()["data"]
    assert model["capabilities"] == ["embeddings"]
    bodies = {
        "completions": {"prompt": "a"},
        "chat/completions": {"messages": [{"role": "user", "content": "a"}]},
        "responses": {"input": "a"},
        "rerank": {"query": "a", "documents": ["b"]},
    }
    for path, body in bodies.items():
        answer = httpx.post(f"{embedder.address}/v1/{path}", json={"model": "tiny", **body}, timeout=60)
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, "unsupported_by_engine"), answer.text


def test_many_texts_at_once(embedder: GatewayHarness, expected: Any) -> None:
    answer = post(embedder, input=TEXTS * 100)
    for index in range(0, 400, 37):
        assert np.allclose(answer["data"][index]["embedding"], expected[index % 4], atol=1e-4)
