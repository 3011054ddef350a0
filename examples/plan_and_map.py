"""Plan and map: one call writes a plan with a list of steps, one call explains each step, and one call joins them.

One request has the whole graph. The server starts the call for the first step while the plan is still generated, and
runs the calls for all steps together. `--client` runs the same application as an ordinary client does: it waits for the
plan, then sends a request for each step, and then the last one.
"""

import asyncio
import json
import os
import sys
from typing import Any

from openai import AsyncOpenAI, AsyncStream

MODEL = "SmolLM2-135M-Instruct"
URL = os.environ.get("OPENAI_BASE_URL", "http://127.0.0.1:8000/v1")
KEY = os.environ.get("OPENAI_API_KEY", "none")

PLAN = {
    "type": "object",
    "properties": {
        "steps": {
            "type": "array",
            "items": {"type": "string", "minLength": 15, "maxLength": 40},
            "minItems": 6,
            "maxItems": 6,
        },
        "tools": {"type": "string", "minLength": 150, "maxLength": 250},
    },
    "required": ["steps", "tools"],
    "additionalProperties": False,
}


def plan_call() -> dict[str, Any]:
    """Return the request for the plan."""
    prompt = "Plan a small garden: six short steps, then the tools that it needs. Answer in JSON."
    format = {"type": "json_schema", "json_schema": {"name": "plan", "schema": PLAN}}
    return {**chat(prompt, 250), "response_format": format}


def chat(prompt: str, max_tokens: int) -> dict[str, Any]:
    """Return the body of a chat completion."""
    messages = [{"role": "user", "content": prompt}]
    return {"model": MODEL, "messages": messages, "max_tokens": max_tokens, "temperature": 0}


def step_call(step: str) -> dict[str, Any]:
    """Return the request for one step."""
    return chat(f"Explain this step of making a garden in two sentences: {step}", 50)


def join_call(steps: str, tools: str) -> dict[str, Any]:
    """Return the request for the whole."""
    return chat(f"Give this guide a title of a few words.\n\nTools: {tools}\n\nSteps: {steps}", 16)


def graph() -> dict[str, Any]:
    """Return the application as one request of `POST /v1/graphs`."""
    plan = {**plan_call(), "semantic": {"output": "plan"}}
    explanations = {
        "map": {"over": "<<plan.steps>>", "as": "step", "call": step_call("<<step>>")},
        "output": "explanations",
    }
    title = {**join_call("<<explanations>>", "<<plan.tools>>"), "semantic": {"output": "title"}}
    return {"calls": [plan, explanations, title], "outputs": ["plan", "explanations", "title"]}


async def run_graph(client: AsyncOpenAI) -> list[str]:
    """Send the graph, and follow its events until the end. Return the title and the explanations."""
    body = {**graph(), "stream": True}
    events = await client.post("/graphs", cast_to=object, body=body, stream=True, stream_cls=AsyncStream[Any])
    finished: list[str] = []
    outputs: dict[str, str] = {}
    async for event in events:
        if event.get("state") == "ready":
            finished.append(event["name"])
        outputs = event.get("outputs", outputs)
    print("the first explanation was ready", "after" if finished[0] == "plan" else "before", "the end of the plan")
    return [outputs["title"], *json.loads(outputs["explanations"])]


async def run_client(client: AsyncOpenAI) -> list[str]:
    """Do the same with ordinary requests. Return the title and the explanations."""

    async def ask(body: dict[str, Any]) -> str:
        answer = await client.chat.completions.create(**body)
        return answer.choices[0].message.content or ""

    plan = json.loads(await ask(plan_call()))
    explanations = await asyncio.gather(*(ask(step_call(step)) for step in plan["steps"]))
    listed = json.dumps(explanations, ensure_ascii=False, separators=(",", ":"))
    return [await ask(join_call(listed, plan["tools"])), *explanations]


async def main() -> None:
    """Run the application, and print its results."""
    async with AsyncOpenAI(base_url=URL, api_key=KEY) as client:
        title, *explanations = await (run_client(client) if "--client" in sys.argv else run_graph(client))
    print(title.strip())
    for number, text in enumerate(explanations, start=1):
        print(f"{number}. {text.strip()}")


if __name__ == "__main__":
    asyncio.run(main())
