"""ServedModels: names of models, and requests during the start."""

import asyncio

import pytest

from engine.tokenizer import Tokenizer
from gateway.errors import RequestError
from gateway.prompts.served_models import ServedModel, ServedModels
from gateway.prompts.template_builder import TemplatePromptBuilder


def served(tokenizer: Tokenizer, name: str) -> ServedModel:
    return ServedModel(name, 100, tokenizer.vocabulary, tokenizer, TemplatePromptBuilder(tokenizer))


async def test_requests_during_the_start_wait(tokenizer: Tokenizer) -> None:
    models = ServedModels(30.0)
    waiting = asyncio.create_task(models.get("one"))
    await asyncio.sleep(0)
    assert not waiting.done()
    model = served(tokenizer, "one")
    models.add(model)
    assert await waiting is model


async def test_requests_during_the_start_time_out() -> None:
    with pytest.raises(RequestError) as refusal:
        await ServedModels(0.01).all()
    assert (refusal.value.status, refusal.value.code) == (503, "engine_unavailable")


async def test_the_error_for_an_unknown_name_lists_similar_ones(tokenizer: Tokenizer) -> None:
    models = ServedModels(1.0)
    for name in ("SmolLM2-135M-Instruct", "other"):
        models.add(served(tokenizer, name))
    with pytest.raises(RequestError, match=r"served: SmolLM2-135M-Instruct$") as refusal:
        await models.get("SmolLM2-135M")
    assert (refusal.value.status, refusal.value.code, refusal.value.param) == (404, "model_not_found", "model")
