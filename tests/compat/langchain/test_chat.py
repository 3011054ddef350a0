"""ChatMyna: chains that become graphs on a running server."""

import asyncio
import copy
import pickle
from collections.abc import Iterator
from itertools import count
from typing import Any

import httpx2 as httpx
import pytest
from langchain_core.messages import AIMessage, HumanMessage
from langchain_core.output_parsers import JsonOutputParser, StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import RunnableLambda, RunnableParallel, RunnablePassthrough
from langchain_core.tools import tool

from compat.langchain import ChatMyna, DeferredMessage, SemanticVariable, SemanticVariableError
from tests.fakes.gateway_harness import GatewayHarness

_numbers = count()


class LangChainSession:
    """A session on the server, and models that use it."""

    def __init__(self, server: GatewayHarness) -> None:
        self.url = f"{server.address}/v1"
        self.id = f"langchain-{next(_numbers)}"

    def model(self, **options: Any) -> ChatMyna:
        options = {"session": self.id, "temperature": 0, "max_tokens": 12, **options}
        return ChatMyna(base_url=self.url, **options)

    def graph(self) -> Any:
        return httpx.get(f"{self.url}/sessions/{self.id}/graph").json()


@pytest.fixture
def session(server: GatewayHarness) -> Iterator[LangChainSession]:
    session = LangChainSession(server)
    yield session
    httpx.delete(f"{session.url}/sessions/{session.id}")


def prompt(text: str) -> ChatPromptTemplate:
    return ChatPromptTemplate.from_messages([("human", text)])


@tool
def add(a: int, b: int) -> int:
    """Adds two numbers."""
    return a + b


def test_a_chain_is_a_graph(session: LangChainSession) -> None:
    model = session.model()
    first = prompt("Name a city in {land}.") | model | StrOutputParser()
    chain = {"city": first} | prompt("What is {city} known for?") | model | StrOutputParser()
    answer = chain.invoke({"land": "France"})
    assert isinstance(answer, SemanticVariable)
    calls = session.graph()["calls"]
    assert len(calls) == 2
    assert calls[1]["inputs"] == [calls[0]["output"]]
    assert answer.name == calls[1]["output"]
    text = str(answer)
    plain = session.model(session=None)
    city = plain.invoke("Name a city in France.").content
    assert text == plain.invoke(f"What is {city} known for?").content


def test_branches_and_batches_are_one_graph(session: LangChainSession) -> None:
    model = session.model()
    part = prompt("Say something about {topic}.") | model | StrOutputParser()
    both = RunnableParallel(tea=part, again=RunnablePassthrough() | part) | prompt("{tea} or {again}?") | model
    message = both.invoke({"topic": "tea"})
    assert isinstance(message, DeferredMessage)
    maps = part.batch([{"topic": topic} for topic in ("tea", "milk", "sugar")])
    together = model.invoke("All: " + " ".join(maps))
    graph = session.graph()
    assert len(graph["calls"]) == 7
    assert len(graph["calls"][-1]["inputs"]) == 3
    assert all(isinstance(value, SemanticVariable) for value in maps)
    assert message.content == str(message.text)
    assert "<<" not in str(together.content)


async def test_async_chains_become_a_graph(session: LangChainSession) -> None:
    model = session.model()
    part = prompt("Say {x}.") | model | StrOutputParser()
    values = await part.abatch([{"x": "one"}, {"x": "two"}])
    last = await model.ainvoke(f"{values[0]} and {values[1]}")
    assert len((await asyncio.to_thread(session.graph))["calls"]) == 3
    assert isinstance(last.content, SemanticVariable)
    text = await last.content
    assert text == str(last.content)
    await model.aend_session()
    assert str(last.content) == text, "a fetched text remains available"
    with pytest.raises(Exception, match="there is no session"):
        await values[0]


def test_reading_an_answer_waits_for_its_text(session: LangChainSession) -> None:
    model = session.model()
    value = model.invoke("Count: one, two,").content
    assert isinstance(value, SemanticVariable)
    assert repr(value) == f"SemanticVariable('{value.name}')"
    assert f"{value}" == f"{value}" == "".join([value]) == value.reference == f"<<{value.name}>>"
    text = str(value)
    assert text
    assert not text.startswith("<<")
    assert f"{value!s}" == text
    assert value == text
    assert text == value
    assert hash(value) == hash(text)
    assert (len(value), value[0], list(value), value.upper()) == (len(text), text[0], list(text), text.upper())
    assert text[:3] in value
    assert {text: 1}[value] == 1
    assert f"{value:>100}" == f"{text:>100}"
    assert copy.deepcopy(value) is value
    assert pickle.loads(pickle.dumps(value)) == text
    assert (value < text, value <= text, value != text, value * 2) == (False, True, False, text * 2)
    upper = model | StrOutputParser() | RunnableLambda(lambda text: text.upper())
    assert upper.invoke("Count: one, two,") == text.upper()


def test_calls_whose_answers_are_read_at_once_are_not_deferred(session: LangChainSession) -> None:
    model = session.model(max_tokens=40)
    city = model.invoke("Name a city.")
    calls = model.bind_tools([add], tool_choice="any").invoke([HumanMessage(f"Add 1 and 2. {city.content}")]).tool_calls
    assert calls[0]["name"] == "add"
    schema = {"title": "City", "type": "object", "properties": {"name": {"type": "string", "maxLength": 8}}}
    found = model.with_structured_output({**schema, "required": ["name"]}).invoke(f"The city in: {city.content}")
    assert set(found) == {"name"}
    chunks = list(model.stream(f"More of {city.content}"))
    assert len(chunks) > 2
    assert "<<" not in "".join(str(chunk.content) for chunk in chunks)
    graph = session.graph()
    assert [call["inputs"] for call in graph["calls"]] == [[], *[[city.content.name]] * 3]
    immediate = session.model(defer=False).invoke("Name a city.")
    assert immediate.usage_metadata["output_tokens"] > 0
    parser = JsonOutputParser()
    json_chain = session.model(max_tokens=40).bind(extra_body={"guided_json": schema}) | parser
    assert isinstance(json_chain.invoke("A city"), dict), (
        "a format in vLLM's own field is deferred, and parsed when it is read"
    )


def test_history_keeps_references(session: LangChainSession) -> None:
    model = session.model()
    first = model.invoke("Hello!")
    model.invoke([HumanMessage("Hello!"), first, HumanMessage("Again!")])
    calls = session.graph()["calls"]
    assert calls[1]["inputs"] == [calls[0]["output"]]
    assert isinstance(first, AIMessage)


def test_a_failure_is_raised_when_the_text_is_read(session: LangChainSession) -> None:
    model = session.model()
    value = model.invoke("x", extra_body={"semantic": {"transform": {"regex": "no such words at all"}}}).content
    after = model.invoke(f"More: {value}").content
    with pytest.raises(SemanticVariableError) as failure:
        str(after)
    assert failure.value.code == "upstream_failed"
    with pytest.raises(SemanticVariableError) as failure:
        len(value)
    assert failure.value.code == "transform_failed"


def test_variables_are_available_by_name(session: LangChainSession) -> None:
    model = session.model()
    model.invoke("Hi", extra_body={"semantic": {"output": "greeting"}})
    assert model.variable("greeting").reference == "<<greeting>>"
    assert str(model.variable("greeting"))
    with pytest.raises(ValueError, match="no session"):
        session.model(session=None).variable("greeting")


def test_the_default_url_is_taken_from_the_environment(
    session: LangChainSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MYNA_BASE_URL", session.url)
    message = ChatMyna(max_tokens=2, temperature=0).invoke("Hi")
    assert isinstance(message.content, str)
    assert not isinstance(message.content, SemanticVariable)
    assert message.response_metadata["model_name"].startswith("SmolLM2")
