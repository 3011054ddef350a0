"""Review until accepted: a text is revised in rounds, until a reviewer finds no problem.

In each round one call names a problem of the text, and one call writes the text again. One request has the whole loop.
The server decides after each round whether another one follows, so that no round waits for the network. `--client` runs
the same loop in the client, with two requests in each round.
"""

import asyncio
import os
import sys
from typing import Any

from openai import AsyncOpenAI

MODEL = "SmolLM2-135M-Instruct"
URL = os.environ.get("OPENAI_BASE_URL", "http://127.0.0.1:8000/v1")
KEY = os.environ.get("OPENAI_API_KEY", "none")

DRAFT = "The club meets on mondays, it is good to come early because of the chairs."
ROUNDS = 4
ACCEPTED = "none"
"""Answer of the reviewer that accepts a text."""


def review_call(draft: str) -> dict[str, Any]:
    """Return the request that reviews a text."""
    return chat(f"Name one problem of this notice in a few words. If there is none, answer: none\n\n{draft}", 16)


def revise_call(draft: str, problem: str) -> dict[str, Any]:
    """Return the request that revises a text."""
    return chat(f"Write this notice again, short and clear.\n\n{draft}\n\nProblem of the notice: {problem}", 40)


def chat(prompt: str, max_tokens: int) -> dict[str, Any]:
    """Return the body of a chat completion."""
    messages = [{"role": "user", "content": prompt}]
    return {"model": MODEL, "messages": messages, "max_tokens": max_tokens, "temperature": 0}


def graph() -> dict[str, Any]:
    """Return the application as one request of `POST /v1/graphs`."""
    repeat = {
        "calls": [
            {**review_call("<<draft>>"), "semantic": {"output": "problem"}},
            {**revise_call("<<draft>>", "<<problem>>"), "semantic": {"output": "revised"}},
        ],
        "start": {"draft": DRAFT},
        "carry": {"draft": "<<revised>>"},
        "until": {"value": "<<problem>>", "equals": ACCEPTED},
        "max": ROUNDS,
        "on_max": "last",
    }
    return {"calls": [{"repeat": repeat, "outputs": ["draft", "problem"]}]}


async def run_graph(client: AsyncOpenAI) -> tuple[str, str]:
    """Send the graph. Return the text that was reviewed last, and its problem."""
    answer: Any = await client.post("/graphs", cast_to=object, body=graph())
    return answer["outputs"]["draft"], answer["outputs"]["problem"]


async def run_client(client: AsyncOpenAI) -> tuple[str, str]:
    """Do the same with ordinary requests. Return the text that was reviewed last, and its problem."""

    async def ask(body: dict[str, Any]) -> str:
        answer = await client.chat.completions.create(**body)
        return answer.choices[0].message.content or ""

    draft, problem = DRAFT, ""
    for number in range(1, ROUNDS + 1):
        problem = await ask(review_call(draft))
        revised = await ask(revise_call(draft, problem))
        if problem.strip() == ACCEPTED or number == ROUNDS:
            break
        draft = revised
    return draft, problem


async def main() -> None:
    """Run the application, and print the last text."""
    async with AsyncOpenAI(base_url=URL, api_key=KEY) as client:
        text, problem = await (run_client(client) if "--client" in sys.argv else run_graph(client))
    print(text.strip())
    print(f"problem: {problem.strip()}")


if __name__ == "__main__":
    asyncio.run(main())
