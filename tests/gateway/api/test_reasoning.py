"""Reasoning of models on upstream servers: clients receive it, and it is no part of a value."""

from typing import Any

import pytest
from aiohttp import web

from engine.tokenizer import Tokenizer
from tests.fakes.gateway_harness import GatewayHarness
from tests.fakes.in_process_gateway import GatewayClient, ScriptedGateway, gateway_before
from tests.fakes.scripted_server import Behaviour, ScriptedServer, chunk, says, stream
from tests.gateway.api.responses.test_routes import events_of

ASKED: list[dict[str, Any]] = [{"role": "user", "content": "How many?"}]
USAGE = {"prompt_tokens": 3, "completion_tokens": 9, "completion_tokens_details": {"reasoning_tokens": 5}}


def thinks(
    *thoughts: str, answer: str = "Two.", name: str = "reasoning_content", calls: bool = False, breaks: bool = False
) -> Behaviour:
    """Return an answer after some reasoning."""

    async def behave(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        deltas: list[dict[str, Any]] = [{name: thought, "content": None} for thought in thoughts]
        events = [{"id": "x", "model": body["model"], "choices": [{"index": 0, "delta": delta}]} for delta in deltas]
        if breaks:
            response = await stream(request, events, done=False)
            assert request.transport is not None
            request.transport.abort()
            return response
        if calls:
            call = {"index": 0, "id": "c", "type": "function", "function": {"name": "look", "arguments": "{}"}}
            events.append(
                {"id": "x", "model": body["model"], "choices": [{"index": 0, "delta": {"tool_calls": [call]}}]}
            )
        else:
            events.append(chunk(body, answer))
        return await stream(request, [*events, chunk(body, None, "stop"), {"choices": [], "usage": USAGE}])

    return behave


async def ask(client: GatewayClient, status: int = 200, headers: Any = None, **body: Any) -> Any:
    async with client.post(
        "/v1/chat/completions", json={"model": "fake", "messages": ASKED, **body}, headers=headers
    ) as answer:
        told = await answer.json()
        assert answer.status == status, told
    return told


@pytest.mark.parametrize("name", ["reasoning_content", "reasoning"])
async def test_an_answer_has_its_reasoning_in_a_field_of_its_own(scripted_gateway: ScriptedGateway, name: str) -> None:
    client, server, _ = scripted_gateway
    server.script = [thinks("One and ", "one.", name=name), thinks("One and ", "one.", name=name)]
    told = await ask(client)
    message = told["choices"][0]["message"]
    assert (message["content"], message["reasoning_content"], message["reasoning"]) == ("Two.", *["One and one."] * 2)
    assert told["usage"]["completion_tokens_details"]["reasoning_tokens"] == 5
    async with client.post("/v1/chat/completions", json={"model": "fake", "messages": ASKED, "stream": True}) as answer:
        text = await answer.text()
    assert text.index("one.") < text.index("Two.")
    assert '"reasoning_content":' in text
    assert '"reasoning":' in text


async def test_an_answer_without_reasoning_has_no_such_field(scripted_gateway: ScriptedGateway) -> None:
    assert "reasoning_content" not in (await ask(scripted_gateway[0]))["choices"][0]["message"]


async def test_reasoning_is_not_part_of_a_value(scripted_gateway: ScriptedGateway) -> None:
    client, server, _ = scripted_gateway
    headers = {"X-Semantic-Session": "thoughts"}
    server.script = [thinks("Hm. "), thinks("Hm. ", answer="  Three.  "), thinks("Hm.", answer="Done.")]
    await ask(client, headers=headers, semantic={"output": "a", "defer": True})
    told = await ask(client, headers=headers, semantic={"output": "b", "transform": {"strip": True}})
    assert told["choices"][0]["message"] == {
        "content": "Three.",
        "reasoning_content": "Hm. ",
        "reasoning": "Hm. ",
        "role": "assistant",
        "refusal": None,
    }
    await ask(client, headers=headers, messages=[{"role": "user", "content": "<<a>> <<b>>"}])
    assert server.asked[-1]["messages"] == [{"role": "user", "content": "Two. Three."}]
    async with client.get("/v1/sessions/thoughts/variables/a", headers={"Accept": "text/event-stream"}) as answer:
        text = await answer.text()
    assert "Hm." not in text
    assert "Two." in text


async def test_reasoning_that_a_client_has_seen_is_not_generated_again(scripted_gateway: ScriptedGateway) -> None:
    client, server, _ = scripted_gateway
    server.script = [thinks("Hm.", breaks=True), thinks("Ha.")]
    async with client.post("/v1/chat/completions", json={"model": "fake", "messages": ASKED, "stream": True}) as answer:
        text = await answer.text()
    assert "Hm." in text
    assert "Ha." not in text
    assert "engine_failed" in text
    server.script = [thinks("Hm.", breaks=True), thinks("Ha.")]
    message = (await ask(client))["choices"][0]["message"]
    assert (message["reasoning_content"], message["content"]) == ("Ha.", "Two."), "nobody was shown the first"


async def test_a_response_has_reasoning_as_an_item(scripted_gateway: ScriptedGateway) -> None:
    client, server, _ = scripted_gateway
    server.script = [thinks("One and ", "one."), thinks("One and ", "one.")]
    events = await events_of(client)
    assert [item.type for item in events[-1].response.output] == ["reasoning", "message"]
    thought, message = events[-1].response.output
    assert [part.text for part in thought.content] == ["One and one."]
    assert message.content[0].text == "Two."
    deltas = [event.delta for event in events if event.type == "response.reasoning_text.delta"]
    assert "".join(deltas) == "One and one."
    assert next(event.text for event in events if event.type == "response.reasoning_text.done") == "One and one."
    assert events[-1].response.usage.output_tokens_details.reasoning_tokens == 5


async def test_an_answer_of_reasoning_alone_is_an_empty_message(scripted_gateway: ScriptedGateway) -> None:
    client, server, _ = scripted_gateway
    server.script = [thinks("Hm.", answer="")]
    assert [item.type for item in (await events_of(client))[-1].response.output] == ["reasoning", "message"]


@pytest.mark.parametrize("by_id", [False, True])
async def test_a_conversation_continues_only_with_the_reasoning_before_tool_calls(
    scripted_gateway: ScriptedGateway, by_id: bool
) -> None:
    client, server, _ = scripted_gateway
    tool = {"type": "function", "name": "look", "parameters": {"type": "object", "properties": {}}}
    server.script = [thinks("I see."), thinks("I should look.", calls=True)]

    async def respond(before: Any, *items: dict[str, Any]) -> Any:
        said = (
            {"previous_response_id": before["id"], "input": items} if by_id and before else {"input": [*told, *items]}
        )
        async with client.post("/v1/responses", json={"model": "fake", "tools": [tool], **said}) as answer:
            assert answer.status == 200, await answer.text()
            answered = await answer.json()
        told.extend([*items, *answered["output"]])
        return answered

    told: list[dict[str, Any]] = []
    first = await respond(None, {"role": "user", "content": "Hi"})
    second = await respond(first, {"role": "user", "content": "Look"})
    assert server.asked[-1]["messages"][1] == {"role": "assistant", "content": "Two."}
    call = second["output"][-1]
    await respond(second, {"type": "function_call_output", "call_id": call["call_id"], "output": "a cat"})
    reasoned = [message.get("reasoning_content") for message in server.asked[-1]["messages"]]
    assert reasoned == [None, None, None, "I should look.", None]


async def test_reasoning_that_a_client_sends_is_forwarded(scripted_gateway: ScriptedGateway) -> None:
    client, server, _ = scripted_gateway
    for name in ("reasoning_content", "reasoning"):
        await ask(client, messages=[*ASKED, {"role": "assistant", "content": "Two.", name: "One and one."}, *ASKED])
        assert server.asked[-1]["messages"][1] == {
            "role": "assistant",
            "content": "Two.",
            "reasoning_content": "One and one.",
        }
    refused = await ask(client, 400, messages=[{"role": "user", "content": "x", "reasoning_content": "y"}])
    assert refused["error"]["param"] == "messages.0.reasoning_content"


async def test_the_reasoning_effort_is_forwarded_to_servers_that_support_it(scripted_gateway: ScriptedGateway) -> None:
    client, server, _ = scripted_gateway
    await ask(client, reasoning_effort="low", verbosity="high")
    assert (server.asked[-1]["reasoning_effort"], server.asked[-1]["verbosity"]) == ("low", "high")
    body = {"model": "fake", "input": "x", "reasoning": {"effort": "low"}, "text": {"verbosity": "low"}}
    async with client.post("/v1/responses", json=body) as answer:
        told = await answer.json()
    assert (server.asked[-1]["reasoning_effort"], server.asked[-1]["verbosity"]) == ("low", "low")
    assert (told["reasoning"]["effort"], told["text"]["verbosity"]) == ("low", "low")


def test_an_embedded_engine_ignores_the_reasoning_effort(server: GatewayHarness) -> None:
    client = server.client()
    model = client.models.list().data[0].id
    for effort in ("none", "low"):
        chat: Any = {"reasoning_effort": effort, "max_tokens": 2}
        assert client.chat.completions.create(model=model, messages=ASKED, **chat).choices[0].message.content
        reasoning: Any = {"effort": effort, "summary": "auto"}
        text: Any = {"verbosity": "low"}
        told = client.responses.create(model=model, input="x", reasoning=reasoning, text=text, max_output_tokens=2)
        assert told.text is not None
        assert told.text.verbosity == "medium"
        assert told.reasoning is not None
        assert told.reasoning.effort is None, "the answer says what was done"


class Thinking:
    """A tokenizer whose model thinks."""

    def __init__(self, tokenizer: Tokenizer, end: str = ":{# <think></think> #}") -> None:
        self._tokenizer = tokenizer
        self.chat_template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}assistant" + end

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tokenizer, name)


async def test_a_model_that_receives_tokens_reasons_in_its_text(tokenizer: Tokenizer) -> None:
    told: Any = Thinking(tokenizer)
    async with ScriptedServer() as server, gateway_before(server, told, kind="vllm") as (client, _):
        texts = ["<th", "ink>\nHm", ".\n</think>", "\n\nTwo."]
        server.script = [says(*texts), says(*texts), says(*texts)]
        message = (await ask(client))["choices"][0]["message"]
        assert (message["content"], message["reasoning_content"]) == ("Two.", "Hm.")
        events = await events_of(client)
        assert [item.type for item in events[-1].response.output] == ["reasoning", "message"]
        assert events[-1].response.output_text == "Two."
        headers = {"X-Semantic-Session": "tokens"}
        await ask(client, headers=headers, semantic={"output": "a"})
        await ask(client, headers=headers, messages=[{"role": "user", "content": "<<a>>!"}])
        assert tokenizer.decode(server.asked[-1]["prompt"]) == "user: Two.!\nassistant:"


async def test_a_server_that_constrains_the_whole_text_leaves_no_room_for_reasoning(tokenizer: Tokenizer) -> None:
    """Check a template that opens the reasoning itself; the upstream server does not know."""
    told: Any = Thinking(tokenizer, ":<think>\n{# </think> #}")
    async with ScriptedServer() as server, gateway_before(server, told, kind="vllm") as (client, _):
        server.script = [says('{"a"', ": 1}"), says("Hm", "</think>\n\nTwo.")]
        message = (await ask(client, response_format={"type": "json_object"}))["choices"][0]["message"]
        assert (message["content"], message.get("reasoning_content")) == ('{"a": 1}', None)
        message = (await ask(client))["choices"][0]["message"]
        assert (message["content"], message["reasoning_content"]) == ("Two.", "Hm")
