"""gateway/engines/openai/profiles.py: the fields that each kind of server understands."""

import pytest

from engine.sampling_params import SamplingParams
from gateway.engines.openai import Upstream
from gateway.engines.protocol import (
    ContextRefused,
)
from tests.fakes.scripted_server import ScriptedServer
from tests.gateway.engines.openai.upstream_requests import ask, connected


async def test_parameters_are_passed_on(server: ScriptedServer, upstream: Upstream) -> None:
    await ask(
        upstream,
        sampling=SamplingParams(
            max_tokens=9,
            temperature=0.0,
            top_p=0.5,
            seed=3,
            stop=("a", "b"),
            presence_penalty=0.1,
            frequency_penalty=0.2,
            logit_bias={5: -1.0},
            logprobs=True,
            top_logprobs=2,
            json_schema='{"type": "object", "properties": {"a": {}}, "required": ["a"], "additionalProperties": false}',
        ),
    )
    (body,) = server.asked
    schema = {"type": "object", "properties": {"a": {}}, "required": ["a"], "additionalProperties": False}
    expected = {
        "max_tokens": 9,
        "temperature": 0.0,
        "top_p": 0.5,
        "seed": 3,
        "stop": ["a", "b"],
        "presence_penalty": 0.1,
        "frequency_penalty": 0.2,
        "logit_bias": {"5": -1.0},
        "logprobs": True,
        "top_logprobs": 2,
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "answer", "schema": schema, "strict": True},
        },
    }
    assert {key: body[key] for key in expected} == expected


async def test_a_default_is_sent_if_the_client_specified_it(server: ScriptedServer, upstream: Upstream) -> None:
    await ask(upstream, sampling=SamplingParams(given=("temperature",)))
    assert server.asked[0]["temperature"] == 1.0
    assert "top_p" not in server.asked[0]


@pytest.mark.parametrize(
    ("sampling", "what"),
    [
        (SamplingParams(top_k=5), "top_k"),
        (SamplingParams(ignore_eos=True), "ignore_eos"),
        (SamplingParams(regex="a+"), "regex"),
        (SamplingParams(grammar='start: "a"'), "grammar"),
    ],
)
async def test_unsupported_parameters_are_rejected_by_name(
    server: ScriptedServer, upstream: Upstream, sampling: SamplingParams, what: str
) -> None:
    with pytest.raises(ContextRefused, match=what) as refusal:
        await ask(upstream, sampling=sampling)
    assert refusal.value.code == "unsupported_by_engine"
    assert not server.asked


async def test_features_follow_from_the_documented_fields(server: ScriptedServer) -> None:
    server.knows("messages", "top_k", "continue_final_message", "add_generation_prompt", "cache_salt")
    upstream = await connected(server, "vllm")
    await ask(upstream, sampling=SamplingParams(top_k=3))
    assert "priority" not in server.asked[0], "the server does not document this field"
    with pytest.raises(ContextRefused, match="regex"):
        await ask(upstream, sampling=SamplingParams(regex="a"))
    await upstream.close()
