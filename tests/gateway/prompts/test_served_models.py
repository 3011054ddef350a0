"""ServedModels: names of models, and requests during the start."""

import asyncio
import time

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


async def test_an_alias_may_be_a_pattern(tokenizer: Tokenizer) -> None:
    models = ServedModels(1.0)
    for name in ("small", "large", "claude-own"):
        models.add(served(tokenizer, name))
    aliases = {"claude-*-haiku": "small", "c*e-h*u-*": "small", "exact": "small", "*": "large"}
    models.set_aliases({"claude-haiku-*": "small", **aliases}, {})
    expected = {
        "claude-haiku-4-5": "small",
        "claude-x-haiku": "small",
        "claude-opus": "large",
        "ce-hu-u-": "small",
        "claude-own": "claude-own",
        "exact": "small",
        "exactly": "large",
        "claude--haiku": "small",
    }
    assert {name: (await models.get(name)).id for name in expected} == expected
    models.set_aliases({"ab*ba": "small"}, {})
    with pytest.raises(RequestError):
        await models.get("aba")
    models.set_aliases({"*".join("a" * 20): "small"}, {})
    with pytest.raises(RequestError):
        await asyncio.wait_for(models.get("a" * 1_000_000 + "b"), 5)


async def test_built_in_names_of_agents_are_the_only_model(tokenizer: Tokenizer) -> None:
    models = ServedModels(1.0)
    models.add(served(tokenizer, "one"))
    assert (await models.get_or_substitute("claude-haiku-4-5-20251001")).id == "one"
    with pytest.raises(RequestError, match="does not exist"):
        await models.get_or_substitute("gpt-4o")
    models.add(served(tokenizer, "two"))
    with pytest.raises(RequestError, match="does not exist"):
        await models.get_or_substitute("claude-haiku-4-5-20251001")
    models.set_aliases({"claude-*": "two"}, {})
    assert (await models.get_or_substitute("claude-haiku-4-5-20251001")).id == "two"


async def test_the_error_for_an_unknown_name_lists_similar_ones(tokenizer: Tokenizer) -> None:
    models = ServedModels(1.0)
    for name in ("SmolLM2-135M-Instruct", "other"):
        models.add(served(tokenizer, name))
    with pytest.raises(RequestError, match=r"served: SmolLM2-135M-Instruct$") as refusal:
        await models.get("SmolLM2-135M")
    assert (refusal.value.status, refusal.value.code, refusal.value.param) == (404, "model_not_found", "model")


async def test_a_huge_name_costs_no_time(tokenizer: Tokenizer) -> None:
    models = ServedModels(1.0)
    models.add(served(tokenizer, "one"))
    began = time.process_time()
    for name in ("x" * 15_000_000, "claude-" + "x" * 15_000_000):
        with pytest.raises(RequestError, match="does not exist"):
            await models.get(name)
    assert time.process_time() - began < 0.5
