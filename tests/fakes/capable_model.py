"""A scripted stand-in for a model that can use tools, as an upstream server with OpenAI's chat API.

It cannot think, but it behaves as a capable model does: it calls the tools of its script one after another, each after
the result of the one before, and ends with an answer.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

from tests.fakes.scripted_server import ScriptedServer, chunk, stream

Step = str | tuple[str, Mapping[str, Any]]
"""An answer, or a tool call: the name of the tool and its arguments."""


@dataclass
class CapableModel:
    """Answers requests by scripts. `scripts`: the steps to take after a user's message that contains the key.

    A request without one of the keys, or without the tool of its step, is a side call of the agent, for example for a
    title; it gets `side_answer`. `results`: the texts of all tool results, in order, under the key of their script.
    `requests`: the bodies of all requests.
    """

    scripts: Mapping[str, Sequence[Step]]
    side_answer: str = "Edit a file"
    results: dict[str, list[str]] = field(default_factory=dict)
    requests: list[dict[str, Any]] = field(default_factory=list)

    def server(self, model: str, window: int = 200_000) -> ScriptedServer:
        """Return a server of this model."""
        server = ScriptedServer(model, window=window)
        server.always = self.behave
        return server

    async def behave(self, request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        """Answer a chat request with the next step."""
        self.requests.append(body)
        step = self._next_step(body)
        if isinstance(step, str):
            words = step.split(" ")
            texts = [word if index == 0 else f" {word}" for index, word in enumerate(words)]
            return await _answer(request, body, [{"content": text} for text in texts], "stop")
        name, arguments = step
        text = json.dumps(arguments)
        call = {"index": 0, "id": f"call_{len(self.requests)}", "type": "function"}
        pieces: list[dict[str, Any]] = [{"tool_calls": [{**call, "function": {"name": name, "arguments": ""}}]}]
        for begin in range(0, len(text), 20):
            pieces.append({"tool_calls": [{"index": 0, "function": {"arguments": text[begin : begin + 20]}}]})
        return await _answer(request, body, pieces, "tool_calls")

    def _next_step(self, body: dict[str, Any]) -> Step:
        messages = body["messages"]
        tools = {tool["function"]["name"] for tool in body.get("tools", ())}
        for index in reversed(range(len(messages))):
            message = messages[index]
            if message["role"] != "user":
                continue
            key = next((key for key in self.scripts if key in text_of(message)), None)
            if key is None:
                continue
            results = [text_of(later) for later in messages[index:] if later["role"] == "tool"]
            step = self.scripts[key][len(results)]
            if not isinstance(step, str) and step[0] not in tools:
                return self.side_answer
            self.results[key] = results
            return step
        return self.side_answer


def text_of(message: Mapping[str, Any]) -> str:
    """Return the text of a chat message."""
    content = message["content"] or ""
    return content if isinstance(content, str) else "\n".join(part.get("text", "") for part in content)


async def _answer(
    request: web.Request, body: dict[str, Any], deltas: Sequence[dict[str, Any]], finish: str
) -> web.StreamResponse:
    prompt = len(json.dumps(body["messages"])) // 4
    usage = {"prompt_tokens": prompt, "completion_tokens": len(deltas), "total_tokens": prompt + len(deltas)}
    if not body.get("stream"):
        message: dict[str, Any] = {"role": "assistant", "content": None}
        if finish == "stop":
            message["content"] = "".join(delta["content"] for delta in deltas)
        else:
            first = deltas[0]["tool_calls"][0]
            arguments = "".join(delta["tool_calls"][0]["function"]["arguments"] for delta in deltas)
            call = {"id": first["id"], "type": "function", "function": {**first["function"], "arguments": arguments}}
            message["tool_calls"] = [call]
        choice = {"index": 0, "message": message, "finish_reason": finish}
        return web.json_response({"id": "x", "model": body["model"], "choices": [choice], "usage": usage})
    events = []
    for delta in deltas:
        event = chunk(body, None)
        event["choices"][0]["delta"] = delta
        events.append(event)
    return await stream(request, [*events, chunk(body, None, finish), {"choices": [], "usage": usage}])
