"""Build the prompts of agents, and read their answers. See `gateway.scheduler.forms.agent_run`."""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from compat.openai import ChatCompletionRequest
from gateway.api.openai.chat import ChatSpecBuilder
from gateway.api.openai.tools import tool_call_parser_factory
from gateway.api.pipeline import build_spec
from gateway.errors import RequestError
from gateway.graph.call import CallSpec
from gateway.graph.errors import GraphError
from gateway.graph.forms.form import Agent
from gateway.prompts.served_models import ServedModels
from gateway.prompts.tool_calls.parser import parse_answer
from gateway.runtime.executors import offload
from gateway.scheduler.forms.agent_run import AgentAnswer, TurnRefused

_LONG = 50_000
"""Length of an agent's request, in characters, from which it is checked in a thread."""
_NO_MESSAGE = {"role": "user", "content": ""}


class RequestAgentPrompts:
    """Prompts of agents, built from their requests as those of chat completions are. It has no state of its own."""

    def __init__(self, models_of: Callable[[str], ServedModels]) -> None:
        """`models_of` returns the models that a tenant may use."""
        self._models_of = models_of

    async def turn(
        self, form: Agent, history: Sequence[Mapping[str, Any]], tenant: str, *, has_tools: bool
    ) -> CallSpec:
        """See `AgentPrompts.turn`."""
        request = agent_request(form, is_first=not history)
        if request.get("tools") and not has_tools:
            request["tool_choice"] = "none"
        request["messages"] += history
        names = AgentNames(form.prefix)
        try:
            body = await _validated(request, len(form.body))
            models = self._models_of(tenant)
            model = await models.get(form.model)
            length = len(form.body) + sum([message.length for message in body.messages])
            builder = ChatSpecBuilder(body, references=names, deferred=False)
            return await build_spec(builder, model, models.fallbacks_of(model), length)
        except ValidationError as error:
            raise TurnRefused("invalid_value", str(error.errors()[0]["msg"])) from error
        except (RequestError, GraphError) as error:
            raise TurnRefused(error.code or "invalid_value", str(error)) from error

    async def answer(
        self, form: Agent, text: str, finish_reason: str | None, tenant: str, *, is_first: bool
    ) -> AgentAnswer:
        """See `AgentPrompts.answer`."""
        request = agent_request(form, is_first=is_first)
        body = await _validated({**request, "messages": [_NO_MESSAGE]}, len(form.body))
        try:
            model = await self._models_of(tenant).get(form.model)
        except RequestError as error:
            raise TurnRefused(error.code or "invalid_value", str(error)) from error
        factory = tool_call_parser_factory(body, model)
        if factory is None:
            return AgentAnswer(text, ())
        content, found = parse_answer(factory(), text, cut=finish_reason == "length")
        return AgentAnswer(content, found)


async def _validated(request: Mapping[str, Any], length: int) -> ChatCompletionRequest:
    """Return a request after its check, which runs in a thread if the request is long."""
    if length < _LONG:
        return ChatCompletionRequest.model_validate(request)
    return await offload(lambda: ChatCompletionRequest.model_validate(request), length)


def agent_request(form: Agent, *, is_first: bool) -> dict[str, Any]:
    """Return the chat completion of an agent's answer, without the messages of its turns. Only the first answer has to
    call a tool, unless `forces_each`: an agent whose every answer calls one never ends."""
    request: dict[str, Any] = json.loads(form.body)
    if not is_first and not form.forces_each and request.get("tool_choice") not in (None, "none"):
        request["tool_choice"] = "auto"
    return request


class AgentNames:
    """Names that begin with an agent's prefix."""

    def __init__(self, prefix: str) -> None:
        self._prefix = f"{prefix}_"

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and name.startswith(self._prefix)
