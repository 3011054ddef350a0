"""Helpers of tests that send requests to a scripted upstream server."""

from collections.abc import Sequence
from typing import Any

from engine.sampling_params import SamplingParams
from gateway.engines.openai import OpenAIEngine, Upstream, UpstreamConfig
from gateway.engines.protocol import (
    ContextEvent,
)
from gateway.graph.segments import Input, Slot
from gateway.prompts.passthrough_builder import PassthroughPromptBuilder
from gateway.prompts.prompt import ChatInput
from tests.fakes.prompt_contents import content_of
from tests.fakes.scripted_server import ScriptedServer
from tests.gateway.engines.generation import URGENT, stream_events

DEFAULTS = SamplingParams()
ANSWER = Slot(None, DEFAULTS)
PROMPTS = PassthroughPromptBuilder()
HELLO = [{"role": "user", "content": "hello"}]


async def connected(server: ScriptedServer, kind: str = "openai", **options: Any) -> Upstream:
    upstream = Upstream(UpstreamConfig("there", kind, server.url, **options), lambda: None)
    await upstream.start()
    return upstream


async def ask(
    upstream: Upstream,
    messages: Sequence[dict[str, Any]] = HELLO,
    sampling: SamplingParams = DEFAULTS,
    scope: str = "",
    **how: Any,
) -> list[ContextEvent]:
    engine = OpenAIEngine("there", upstream, upstream.models[0].id)
    context = engine.open(scope, URGENT)
    prompt = PROMPTS.chat(ChatInput(messages, **how), ANSWER)
    for segment in prompt.segments:
        if not isinstance(segment, Input | Slot):
            context.fill(content_of(segment))
    try:
        return [event async for event in stream_events(context, sampling)]
    finally:
        context.free()
        assert engine.load == 0
