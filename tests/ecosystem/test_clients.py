"""Short programs with popular clients: those of docs/clients.md, and agent frameworks."""

import asyncio
import itertools
import re
import subprocess
import sys
from typing import Annotated, Any, TypedDict

import pytest

from tests.ecosystem.documented import blocks

MODEL = "SmolLM2-135M-Instruct"
BLOCKS = blocks("python")


@pytest.mark.parametrize("block", BLOCKS, ids=[re.findall(r"^(?:from|import) (\w+)", block)[0] for block in BLOCKS])
def test_programs_of_the_documentation_run(block: str, base_url: str) -> None:
    program = block.replace("http://127.0.0.1:8000/v1", base_url)
    done = subprocess.run([sys.executable, "-"], input=program, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


def test_langgraph(base_url: str) -> None:
    from langchain_core.tools import tool
    from langchain_openai import ChatOpenAI
    from langgraph.graph import END, START, StateGraph
    from langgraph.graph.message import add_messages
    from langgraph.prebuilt import ToolNode

    @tool
    def weather(city: str) -> str:
        """Return the weather in a city."""
        return f"rain in {city}"

    class State(TypedDict):
        messages: Annotated[list[Any], add_messages]

    llm = ChatOpenAI(model=MODEL, base_url=base_url, api_key="none", temperature=0, max_tokens=64)
    forced = llm.bind_tools([weather], tool_choice="weather")
    graph = StateGraph(State)
    graph.add_node("ask", lambda state: {"messages": [forced.invoke(state["messages"])]})
    graph.add_node("tools", ToolNode([weather]))
    graph.add_node("answer", lambda state: {"messages": [llm.invoke(state["messages"])]})
    graph.add_edge(START, "ask")
    graph.add_edge("ask", "tools")
    graph.add_edge("tools", "answer")
    graph.add_edge("answer", END)
    messages = graph.compile().invoke({"messages": [("user", "What is the weather in Paris?")]})["messages"]
    assert [message.type for message in messages] == ["human", "ai", "tool", "ai"]
    assert messages[2].content.startswith("rain in ")
    assert messages[3].content


def test_llama_index_streams_and_calls_tools(base_url: str) -> None:
    from llama_index.core.llms import ChatMessage
    from llama_index.core.tools import FunctionTool
    from llama_index.llms.openai_like import OpenAILike

    llm = OpenAILike(
        model=MODEL,
        api_base=base_url,
        api_key="none",
        is_chat_model=True,
        is_function_calling_model=True,
        max_tokens=48,
        temperature=0,
    )
    pieces = [piece.delta for piece in llm.stream_chat([ChatMessage(role="user", content="Hello!")])]
    assert len(pieces) > 1
    assert "".join(piece or "" for piece in pieces)

    def add(a: int, b: int) -> int:
        """Adds two numbers."""
        return a + b

    answer = llm.chat_with_tools([FunctionTool.from_defaults(add)], user_msg="Add 1 and 2.", tool_required=True)
    (call,) = llm.get_tool_calls_from_response(answer)
    assert call.tool_name == "add"
    assert {type(value) for value in call.tool_kwargs.values()} == {int}

    def check(answer: Any) -> None:
        (call,) = llm.get_tool_calls_from_response(answer)
        assert call.tool_name == "add"
        assert call.tool_kwargs.keys() == {"a", "b"}

    streamed = llm.stream_chat_with_tools(
        [FunctionTool.from_defaults(add)], user_msg="Add 1 and 2.", tool_required=True
    )
    check(list(streamed)[-1])


def test_instructors_partials_grow(base_url: str) -> None:
    import instructor
    from openai import OpenAI
    from pydantic import BaseModel, Field

    class City(BaseModel):
        name: str = Field(min_length=2, max_length=12)
        people: int = Field(ge=1, le=40_000_000)

    client = instructor.from_openai(OpenAI(base_url=base_url, api_key="none"), mode=instructor.Mode.TOOLS)
    question: Any = [{"role": "user", "content": "Describe Paris."}]
    partials = client.chat.completions.create_partial(
        model=MODEL, response_model=City, max_retries=0, max_tokens=64, messages=question
    )
    names, last = [], None
    for last in partials:
        names += [last.name] if last.name else []
    assert last is not None
    assert City.model_validate(last.model_dump())
    assert all(after.startswith(before) for before, after in itertools.pairwise(names))


@pytest.mark.parametrize("api", ["responses", "chat_completions"])
def test_an_agent_of_the_agents_sdk_calls_its_tool(base_url: str, api: Any) -> None:
    from agents import (
        Agent,
        ModelSettings,
        OpenAIChatCompletionsModel,
        OpenAIResponsesModel,
        Runner,
        function_tool,
        set_tracing_disabled,
    )
    from openai import AsyncOpenAI

    called: list[str] = []

    @function_tool
    def weather(city: str) -> str:
        """Return the weather in a city."""
        called.append(city)
        return "rain"

    set_tracing_disabled(True)
    kind = OpenAIResponsesModel if api == "responses" else OpenAIChatCompletionsModel
    model = kind(model=MODEL, openai_client=AsyncOpenAI(base_url=base_url, api_key="none"))
    settings = ModelSettings(tool_choice="required", temperature=0, max_tokens=48)
    agent = Agent(name="Weather", instructions="Say it.", model=model, tools=[weather], model_settings=settings)
    result = asyncio.run(Runner.run(agent, "What is the weather in Paris?", max_turns=4))
    assert called, "the tool was called"
    assert isinstance(result.final_output, str)


def test_dspy_predicts(base_url: str) -> None:
    import dspy
    import litellm

    known = {"litellm_provider": "openai", "mode": "chat", "supports_response_schema": True}
    litellm.register_model({f"openai/{MODEL}": known, MODEL: known})
    lm = dspy.LM(f"openai/{MODEL}", api_base=base_url, api_key="none", max_tokens=128, temperature=0, cache=False)
    with dspy.context(lm=lm, adapter=dspy.JSONAdapter()):
        answer = dspy.Predict("question: str -> yes: bool")(question="Is water wet?")
    assert isinstance(answer.yes, bool)


def test_instructor_retries_nothing(base_url: str) -> None:
    import instructor
    from openai import OpenAI
    from pydantic import BaseModel, Field

    class City(BaseModel):
        name: str = Field(min_length=2, max_length=12)
        people: int = Field(ge=1, le=40_000_000)

    for mode in (instructor.Mode.TOOLS, instructor.Mode.JSON_SCHEMA):
        client = instructor.from_openai(OpenAI(base_url=base_url, api_key="none"), mode=mode)
        city = client.chat.completions.create(
            model=MODEL,
            response_model=City,
            max_retries=0,
            max_tokens=64,
            messages=[{"role": "user", "content": "Describe Paris."}],
        )
        assert 2 <= len(city.name) <= 12
