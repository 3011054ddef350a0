"""Limits of all requests of all APIs."""

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


def _subclasses(base: type[BoundedModel]) -> Iterator[type[BoundedModel]]:
    for model in base.__subclasses__():
        yield model
        yield from _subclasses(model)


def _all_models() -> list[type[BoundedModel]]:
    for package in pkgutil.walk_packages(compat.__path__, "compat."):
        if "langchain" not in package.name:
            importlib.import_module(package.name)
    return sorted(set(_subclasses(BoundedModel)), key=lambda model: f"{model.__module__}.{model.__name__}")


def _numbers(schema: Any) -> Iterator[dict[str, Any]]:
    if isinstance(schema, dict):
        if schema.get("type") in ("integer", "number") and "const" not in schema and "enum" not in schema:
            yield schema
        for child in schema.values():
            yield from _numbers(child)
    elif isinstance(schema, list):
        for child in schema:
            yield from _numbers(child)


@pytest.mark.parametrize("model", _all_models(), ids=lambda model: f"{model.__module__}.{model.__name__}")
def test_every_number_of_a_request_is_limited(model: type[BoundedModel]) -> None:
    for number in _numbers(model.model_json_schema()):
        assert {"minimum", "exclusiveMinimum"} & number.keys(), number
        assert {"maximum", "exclusiveMaximum"} & number.keys(), number


VALID: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "x"}]}


@pytest.mark.parametrize(
    ("model", "body"),
    [
        (ChatCompletionRequest, {**VALID, "messages": [1] * 50_000}),
        (ChatCompletionRequest, {**VALID, "messages": [{}] * 50_000}),
        (ChatCompletionRequest, {**VALID, "messages": [{"role": "user", "content": [{}] * 50_000}]}),
        (ChatCompletionRequest, {**VALID, "stop": [1] * 50_000}),
        (ChatCompletionRequest, {**VALID, **{f"k{n}": 1 for n in range(MAX_MEMBERS)}}),
        (ChatCompletionRequest, {**VALID, "logit_bias": {str(n): "x" for n in range(MAX_ENTRIES + 1)}}),
        (ChatCompletionRequest, {**VALID, "tools": [{"type": "function", "function": {}}] * 50_000}),
        (CompletionRequest, {"model": "m", "prompt": [{}] * 50_000}),
        (CompletionRequest, {"model": "m", "prompt": [[{}] * 50_000]}),
    ],
)
def test_a_body_with_many_errors_is_refused_with_few_of_them(model: type[BoundedModel], body: dict[str, Any]) -> None:
    with pytest.raises(ValidationError) as refusal:
        model.model_validate(body)
    assert refusal.value.error_count() < 50


def test_integers_without_limits_of_their_own_are_limited() -> None:
    for value, is_valid in ((MAX_INTEGER, True), (MAX_INTEGER + 1, False), (2**64, False), (10**4000, False)):
        body = {**VALID, "top_k": value}
        if is_valid:
            assert ChatCompletionRequest.model_validate(body).top_k == value
        else:
            with pytest.raises(ValidationError, match="less than or equal"):
                ChatCompletionRequest.model_validate(body)


def test_a_huge_number_of_tokens_means_no_limit() -> None:
    assert ChatCompletionRequest.model_validate({**VALID, "max_tokens": 2**62}).max_tokens == MAX_INTEGER
    assert ChatCompletionRequest.model_validate({**VALID, "max_completion_tokens": 7}).token_limit == 7
    with pytest.raises(ValidationError):
        ChatCompletionRequest.model_validate({**VALID, "max_tokens": 2**63})


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
