"""An agent with tools: the model and tools of an MCP server take turns until the model answers.

One request has the whole agent. The server runs the tools, so that no turn waits for the network, and prefills the
next prompt while they run. `--client` runs the same loop in the client, with an MCP server of its own.

The operator allows the server `time` of the MCP reference set (`pip install mcp-server-time`):

    echo '{"servers": {"time": {"command": ["python", "-m", "mcp_server_time"], "tools": ["*"]}}}' >tools.json
    myna serve --tool-servers tools.json

The small model calls a tool in each turn because `tool_choice` says so. A larger one decides by itself.
"""

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from openai import AsyncOpenAI, AsyncStream

MODEL = "SmolLM2-135M-Instruct"
URL = os.environ.get("OPENAI_BASE_URL", "http://127.0.0.1:8000/v1")
KEY = os.environ.get("OPENAI_API_KEY", "none")

QUESTION = "When it is 09:30 in Lima, how late is it in Oslo, in Tokyo and in Auckland?"
TURNS = 8


def request() -> dict[str, Any]:
    """Return the body of the agent's chat completions, without its tools."""
    messages = [{"role": "user", "content": QUESTION}]
    return {"model": MODEL, "messages": messages, "max_tokens": 60, "temperature": 0, "tool_choice": "required"}


def graph() -> dict[str, Any]:
    """Return the application as one request of `POST /v1/graphs`."""
    agent = {**request(), "tools": ["time/*"], "max_turns": TURNS, "on_max": "answer"}
    return {"calls": [{"agent": agent, "output": "answer"}], "stream": True}


async def run_graph(client: AsyncOpenAI) -> str:
    """Send the graph, print its turns, and return the answer."""
    events = await client.post("/graphs", cast_to=object, body=graph(), stream=True, stream_cls=AsyncStream[Any])
    result: Any = None
    async for event in events:
        if event.get("state") == "done" and "parent" in event:
            print("done:", event["output"])
        if "outputs" in event:
            result = event
    if "errors" in result:
        raise RuntimeError(result["errors"]["answer"]["message"])
    answer: str = result["outputs"]["answer"]
    return answer


@asynccontextmanager
async def tool_session() -> AsyncIterator[Any]:
    """Start the MCP server for `run_client`, and yield a session with it."""
    from mcp import Client, StdioServerParameters

    # the same client as the server's: it gets the tools in the newest version of the protocol, as the same texts
    async with Client(StdioServerParameters(command=sys.executable, args=["-m", "mcp_server_time"])) as client:
        yield client


async def run_client(client: AsyncOpenAI, session: Any) -> str:
    """Do the same with ordinary requests and an MCP client. Return the answer."""
    tools = []
    for tool in (await session.list_tools()).tools:
        function = {"name": tool.name, "description": tool.description or "", "parameters": tool.input_schema}
        tools.append({"type": "function", "function": function})
    body, messages = request(), list(request()["messages"])
    for turn in range(1, TURNS + 1):
        options = {"tool_choice": "none"} if turn == TURNS else {}
        answer = await client.chat.completions.create(**{**body, **options, "messages": messages, "tools": tools})
        message = answer.choices[0].message
        if not message.tool_calls:
            return message.content or ""
        messages.append(message.model_dump(exclude_none=True))
        for called in message.tool_calls:
            result = await session.call_tool(called.function.name, json.loads(called.function.arguments))
            text = "\n".join(part.text for part in result.content if part.type == "text")
            if result.is_error:
                text = f"error: tool time/{called.function.name} failed: {text}"
            messages.append({"role": "tool", "tool_call_id": called.id, "content": text})
    raise RuntimeError("the agent gave no answer")


async def main() -> None:
    """Run the agent, and print its answer."""
    async with AsyncOpenAI(base_url=URL, api_key=KEY) as client:
        if "--client" in sys.argv:
            async with tool_session() as session:
                answer = await run_client(client, session)
        else:
            answer = await run_graph(client)
    print("answer:", answer.strip())


if __name__ == "__main__":
    asyncio.run(main())
