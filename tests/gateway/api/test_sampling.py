"""gateway/api/sampling.py: parameters of requests as parameters of the graph."""

from types import SimpleNamespace
from typing import Any, cast

import pytest

from compat.openai import ChatCompletionRequest
from gateway.api.sampling import request_sampling
from gateway.prompts.served_models import ServedModel
from tests.fakes.in_process_gateway import ScriptedGateway
from tests.fakes.scripted_server import refuses

USUAL = {"model": "m", "messages": [{"role": "user", "content": "Hi"}]}
ANY = cast("ServedModel", SimpleNamespace(vocabulary=None, window=None))


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"temperature": 0},
        {"temperature": 0.5, "top_p": 0.9},
        {"seed": 7, "max_tokens": 3},
        {"max_completion_tokens": 5, "ignore_eos": True},
        {"temperature": None},
    ],
)
def test_the_short_way_for_usual_requests_gives_the_same_parameters(more: dict[str, Any]) -> None:
    """`stop: null` changes nothing, but is not among what most say."""
    body = {**USUAL, **more}
    short, long = (ChatCompletionRequest.model_validate(one) for one in (body, {**body, "stop": None}))
    made = request_sampling(short, ANY)
    assert made is request_sampling(ChatCompletionRequest.model_validate(body), ANY), "made once"
    assert made == request_sampling(long, ANY)
    assert made.given == request_sampling(long, ANY).given


@pytest.mark.parametrize(
    "told",
    [
        *({"temperature": 0.25}, {"top_p": 0.25}, {"top_k": 3}, {"min_p": 0.1}, {"seed": 3}, {"ignore_eos": True}),
        *({"stop": ["x"]}, {"stop_token_ids": [1]}, {"max_tokens": 9}, {"max_completion_tokens": 9}, {"min_tokens": 1}),
        *({"logit_bias": {"1": 2.0}}, {"presence_penalty": 1.0}, {"frequency_penalty": 1.0}),
        *({"repetition_penalty": 1.1}, {"skip_special_tokens": False}, {"logprobs": True}),
        *({"guided_regex": "a+"}, {"guided_choice": ["a"]}, {"guided_json": {"type": "object"}}),
        *({"guided_grammar": 'start: "a"'}, {"response_format": {"type": "json_object"}}),
        *({"structured_outputs": {"regex": "a+"}}, {"prediction": {"type": "content", "content": "x"}}),
    ],
    ids=lambda told: next(iter(told)),
)
def test_every_parameter_changes_the_sampling(told: dict[str, Any]) -> None:
    usual = request_sampling(ChatCompletionRequest.model_validate(USUAL), ANY)
    chosen = request_sampling(ChatCompletionRequest.model_validate({**USUAL, **told}), ANY)
    assert (chosen, chosen.prediction) != (usual, usual.prediction)


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("chat/completions", {"messages": [{"role": "user", "content": "x"}]}, "messages"),
        ("completions", {"prompt": "x"}, "prompt"),
        ("responses", {"input": "x"}, "input"),
    ],
)
async def test_a_refusal_of_an_engine_names_the_field(
    scripted_gateway: ScriptedGateway, path: str, body: Any, param: str
) -> None:
    client, server, _ = scripted_gateway
    server.always = refuses(400, "This model's maximum context length is 5 tokens", code="context_length_exceeded")
    for more, code, field in (
        ({}, "context_length_exceeded", param),
        ({"top_k": 5}, "unsupported_by_engine", "top_k"),
        ({"min_p": 0.5}, "unsupported_by_engine", "min_p"),
    ):
        async with client.post(f"/v1/{path}", json={"model": "fake", **body, **more}) as answer:
            error = (await answer.json())["error"]
            assert (answer.status, error["code"], error["param"]) == (400, code, field)
