"""A model of an upstream server with Anthropic's API."""

from array import array
from collections.abc import Sequence
from typing import Any

from engine.sampling_params import SamplingParams
from gateway.engines.anthropic.message_parser import MessageParser
from gateway.engines.anthropic.thinking_memory import Block, ThinkingMemory, answer_key
from gateway.engines.anthropic.translation import messages_request, text_refusal
from gateway.engines.openai.engine import UNCHANGED, OpenAIEngine, RequestChanges
from gateway.engines.openai.upstream import ListedModel, Upstream
from gateway.engines.protocol import Urgency
from gateway.graph.segments import Messages
from gateway.prompts.message_join import join_messages


class AnthropicEngine(OpenAIEngine):
    """One model of an upstream server with Anthropic's API. See `Engine`. It sends messages.

    Only the request's body and the answer's events differ from those of other upstream servers.
    """

    def __init__(self, name: str, upstream: Upstream, model: ListedModel) -> None:
        """`model`: the model as the server lists it."""
        super().__init__(name, upstream, model.id, capabilities=model.capabilities)
        self._answer_tokens = model.answer_tokens
        self._thinking = ThinkingMemory()

    def new_parser(self, scope: str, *, is_streamed: bool) -> MessageParser:
        """Return a parser of an answer, whose thinking blocks are remembered. See `OpenAIEngine.new_parser`."""

        def remember(text: str, tool_calls: Sequence[tuple[str, Any]], blocks: Sequence[Block]) -> None:
            self._thinking.remember(_tenant_of(scope), answer_key(text, tool_calls), blocks)

        malformed = self.upstream.config.malformed
        return MessageParser(is_streamed=is_streamed, malformed=malformed, remember=remember)

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

        def recall(text: str, tool_calls: Sequence[tuple[str, Any]]) -> Sequence[Block]:
            return self._thinking.recall(_tenant_of(scope), answer_key(text, tool_calls))

        request = messages_request(
            join_messages(prompt), sampling, profile, recall=recall, answer_tokens=self._answer_tokens
        )
        body = {"model": self.model, **request, "stream": True}
        for name in (*self.upstream.dropped, *changes.dropped):
            body.pop(name, None)
        return "/v1/messages", body


def _tenant_of(scope: str) -> str:
    """Return the tenant of a scope, which may have a salt as well."""
    return scope.partition("\0")[0]
