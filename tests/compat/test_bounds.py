"""compat/bounds.py: every request of every API."""

import importlib
import pkgutil
from collections.abc import Iterator
from typing import Any

import pytest
from pydantic import ValidationError

import compat
from compat.bounds import MAX_ENTRIES, MAX_INTEGER, MAX_MEMBERS, BoundedModel
from compat.openai import ChatCompletionRequest, CompletionRequest, SessionRequest
from compat.openai.responses import ResponseRequest


def _models(base: type[BoundedModel]) -> Iterator[type[BoundedModel]]:
    for model in base.__subclasses__():
        yield model
        yield from _models(model)


def _loaded() -> list[type[BoundedModel]]:
    for package in pkgutil.walk_packages(compat.__path__, "compat."):
        if "langchain" not in package.name:
            importlib.import_module(package.name)
    return sorted(set(_models(BoundedModel)), key=lambda model: f"{model.__module__}.{model.__name__}")


def _numbers(schema: Any) -> Iterator[dict[str, Any]]:
    if isinstance(schema, dict):
        if schema.get("type") in ("integer", "number") and "const" not in schema and "enum" not in schema:
            yield schema
        for child in schema.values():
            yield from _numbers(child)
    elif isinstance(schema, list):
        for child in schema:
            yield from _numbers(child)


@pytest.mark.parametrize("model", _loaded(), ids=lambda model: f"{model.__module__}.{model.__name__}")
def test_every_number_of_a_request_has_bounds(model: type[BoundedModel]) -> None:
    for number in _numbers(model.model_json_schema()):
        assert {"minimum", "exclusiveMinimum"} & number.keys(), number
        assert {"maximum", "exclusiveMaximum"} & number.keys(), number


GOOD: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "x"}]}


@pytest.mark.parametrize(
    ("model", "body"),
    [
        (ChatCompletionRequest, {**GOOD, "messages": [1] * 50_000}),
        (ChatCompletionRequest, {**GOOD, "messages": [{}] * 50_000}),
        (ChatCompletionRequest, {**GOOD, "messages": [{"role": "user", "content": [{}] * 50_000}]}),
        (ChatCompletionRequest, {**GOOD, "stop": [1] * 50_000}),
        (ChatCompletionRequest, {**GOOD, **{f"k{n}": 1 for n in range(MAX_MEMBERS)}}),
        (ChatCompletionRequest, {**GOOD, "logit_bias": {str(n): "x" for n in range(MAX_ENTRIES + 1)}}),
        (ChatCompletionRequest, {**GOOD, "tools": [{"type": "function", "function": {}}] * 50_000}),
        (CompletionRequest, {"model": "m", "prompt": [{}] * 50_000}),
        (CompletionRequest, {"model": "m", "prompt": [[{}] * 50_000]}),
    ],
)
def test_a_body_that_is_wrong_everywhere_is_refused_with_few_errors(
    model: type[BoundedModel], body: dict[str, Any]
) -> None:
    with pytest.raises(ValidationError) as refusal:
        model.model_validate(body)
    assert refusal.value.error_count() < 50


def test_integers_without_a_bound_of_their_own_are_bounded() -> None:
    for value, good in ((MAX_INTEGER, True), (MAX_INTEGER + 1, False), (2**64, False), (10**4000, False)):
        body = {**GOOD, "top_k": value}
        if good:
            assert ChatCompletionRequest.model_validate(body).top_k == value
        else:
            with pytest.raises(ValidationError, match="less than or equal"):
                ChatCompletionRequest.model_validate(body)


def test_a_huge_number_of_tokens_means_no_limit() -> None:
    assert ChatCompletionRequest.model_validate({**GOOD, "max_tokens": 2**62}).max_tokens == MAX_INTEGER
    assert ChatCompletionRequest.model_validate({**GOOD, "max_completion_tokens": 7}).length == 7
    with pytest.raises(ValidationError):
        ChatCompletionRequest.model_validate({**GOOD, "max_tokens": 2**63})


@pytest.mark.parametrize(
    "metadata",
    [{f"k{number}": "v" for number in range(17)}, {"k" * 65: "v"}, {"k": "v" * 513}, {"k": 1}],
)
@pytest.mark.parametrize(
    ("kind", "body"),
    [
        (ChatCompletionRequest, {"model": "m", "messages": [{"role": "user", "content": "x"}]}),
        (ResponseRequest, {"model": "m", "input": "x"}),
        (SessionRequest, {}),
    ],
)
def test_metadata_is_within_openais_limits(kind: type[BoundedModel], body: dict[str, Any], metadata: Any) -> None:
    kind.model_validate({**body, "metadata": {f"k{number}": "v" * 512 for number in range(16)}})
    with pytest.raises(ValidationError):
        kind.model_validate({**body, "metadata": metadata})
