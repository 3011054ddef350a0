"""Graphs with forms: bodies of calls, upstream servers that answer prompts, and requests."""

import asyncio
from collections.abc import Callable
from typing import Any

from aiohttp import web

from tests.fakes.in_process_gateway import GatewayClient
from tests.fakes.scripted_server import Behaviour, says

IS_X = {"value": "x", "equals": "x"}
"""A condition that holds."""


def call(text: str, output: str | None = None, **more: Any) -> dict[str, Any]:
    semantic = {} if output is None else {"semantic": {"output": output}}
    return {"model": "fake", "messages": [{"role": "user", "content": text}], **semantic, **more}


def text_of(body: dict[str, Any]) -> str:
    """Return the text of the last message that the upstream server got."""
    return str(body["messages"][-1]["content"])


def answers(function: Callable[[str], str | Behaviour]) -> Behaviour:
    """Return a behaviour that answers a prompt with the result of a function."""

    async def behave(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        answer = function(text_of(body))
        return await (says(answer) if isinstance(answer, str) else answer)(request, body)

    return behave


async def send(client: GatewayClient, **body: Any) -> tuple[int, Any]:
    async with client.post("/v1/graphs", json=body) as answer:
        return answer.status, await answer.json()


def mapped(over: Any, text: str, output: str = "results", **more: Any) -> dict[str, Any]:
    return {"map": {"over": over, "call": call(text), **more}, "output": output}


async def until(condition: Callable[[], bool]) -> None:
    """Wait until a condition holds."""
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0.01)
