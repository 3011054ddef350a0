"""A model of an upstream server with Anthropic's API."""

from array import array
from collections.abc import Sequence
from typing import Any

from engine.sampling_params import SamplingParams
from gateway.engines.anthropic.message_parser import MessageParser
from gateway.engines.anthropic.translation import messages_request, text_refusal
from gateway.engines.openai.engine import UNCHANGED, OpenAIEngine, RequestChanges
from gateway.engines.protocol import Urgency
from gateway.graph.segments import Messages
from gateway.prompts.message_join import join_messages


class AnthropicEngine(OpenAIEngine):
    """One model of an upstream server with Anthropic's API. See `Engine`. It sends messages.

    Only the request's body and the answer's events differ from those of other upstream servers.
    """

    parser = MessageParser

    def build_request(
        self,
        prompt: "array[int] | Sequence[str | Messages]",
        sampling: SamplingParams,
        scope: str,
        urgency: Urgency,
        changes: RequestChanges = UNCHANGED,
    ) -> tuple[str, dict[str, Any]]:
        """Return path and body of a request. See `OpenAIEngine.build_request`."""
        profile = self.upstream.profile
        if isinstance(prompt, array) or not prompt or not isinstance(prompt[0], Messages):
            raise text_refusal(profile)
        body = {"model": self.model, **messages_request(join_messages(prompt), sampling, profile), "stream": True}
        for name in (*self.upstream.dropped, *changes.dropped):
            body.pop(name, None)
        return "/v1/messages", body
