"""ServedModels: names of models, and requests during the start."""

import asyncio
import difflib
from types import SimpleNamespace
from typing import Any

import pytest

from engine.tokenizer import Tokenizer
from gateway.errors import RequestError
from gateway.prompts.passthrough_builder import PassthroughPromptBuilder
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
        await models.get("a" * 1_000_000 + "b")


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


async def test_only_the_beginning_of_a_huge_name_is_compared(
    tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    compared: list[int] = []

    def find_matches(name: str, *arguments: Any, **options: Any) -> list[str]:
        compared.append(len(name))
        return difflib.get_close_matches(name, *arguments, **options)

    monkeypatch.setattr("gateway.prompts.served_models.difflib", SimpleNamespace(get_close_matches=find_matches))
    models = ServedModels(1.0)
    models.add(served(tokenizer, "one"))
    for name in ("x" * 15_000_000, "claude-" + "x" * 15_000_000):
        with pytest.raises(RequestError, match="does not exist"):
            await models.get(name)
    assert compared == [200, 200]


def passed_through(*names: str) -> ServedModels:
    """Return models of upstream servers."""
    models = ServedModels(30.0)
    for name in names:
        models.add(ServedModel(name, None, None, None, PassthroughPromptBuilder()))
    return models


async def test_a_view_has_only_the_models_that_may_be_used() -> None:
    models = passed_through("small", "large", "other")
    aliases = {"fast": "small", "best": "large", "large": "other", "any-*": "large", "*": "small"}
    models.set_aliases(aliases, {"small": ["large", "other"], "large": ["small"]})
    view = models.restricted(lambda name: name in ("small", "other"))
    assert [model.id for model in await view.all()] == ["small", "other"]
    assert (await view.get("fast")).id == "small"
    assert [model.id for model in view.fallbacks_of(await view.get("small"))] == ["other"]
    assert (await view.get("large")).id == "other", "an alias goes before the model of that name"
    assert (await view.get("anything")).id == "small"
    for name in ("best", "any-thing"):
        with pytest.raises(RequestError) as refusal:
            await view.get(name)
        assert (refusal.value.status, refusal.value.code) == (404, "model_not_found")
        assert "best" not in str(refusal.value).replace(repr(name), "")
    assert (await models.get("best")).id == "large", "the others are not restricted"


async def test_a_view_of_one_model_needs_no_name_and_one_of_none_has_no_model() -> None:
    models = passed_through("small", "large")
    assert (await models.restricted(lambda name: name == "large").find_or_only(None)).id == "large"
    for name in (None, "small", "claude-x"):
        with pytest.raises(RequestError) as refusal:
            await models.restricted(lambda name: False).find_or_only(name)
        assert refusal.value.status == 404
        assert "large" not in str(refusal.value)


async def test_a_view_during_the_start_waits_too() -> None:
    models = ServedModels(30.0)
    waiting = asyncio.create_task(models.restricted(lambda name: name == "small").get("small"))
    await asyncio.sleep(0)
    models.add(ServedModel("small", None, None, None, PassthroughPromptBuilder()))
    assert (await waiting).id == "small"


def test_the_window_of_a_model_may_be_unknown() -> None:
    models = passed_through("small")
    models.add(ServedModel("large", 4096, None, None, PassthroughPromptBuilder()))
    assert [models.window_of(name) for name in ("small", "large", "none")] == [None, 4096, None]
