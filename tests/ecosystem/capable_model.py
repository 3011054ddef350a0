"""An upstream server with OpenAI's API that plays a model which can use tools. It needs only the standard library.

The last user's message with a line `PLAN: [[TOOL, ARGUMENTS], …]` decides: the model calls these tools one after another,
each once the result of the one before has arrived, and then says how many results it has read. So any agent can be driven
through turns whose tool calls are known.
"""

import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

MODEL = "capable"
_PLAN = re.compile(r"^PLAN: (\[.*\])$", re.MULTILINE)


def plan(*calls: tuple[str, dict[str, Any]]) -> str:
    """Return the line of a prompt that makes the model call tools."""
    return "PLAN: " + json.dumps([list(call) for call in calls])


def _text(message: dict[str, Any]) -> str:
    content = message.get("content") or ""
    if isinstance(content, str):
        return content
    return "\n".join(part.get("text", "") for part in content if isinstance(part, dict))


def _answer(messages: list[dict[str, Any]], tools: set[str]) -> dict[str, Any]:
    """Return the delta with the answer: the next tool call of the plan, or a text."""
    planned = [
        (index, found[-1])
        for index, message in enumerate(messages)
        if message["role"] == "user" and (found := _PLAN.findall(_text(message)))
    ]
    if not planned or not tools:
        return {"content": "There is no plan."}
    start, text = planned[-1]
    calls, results = json.loads(text), [message for message in messages[start:] if message["role"] == "tool"]
    if len(results) >= len(calls):
        return {"content": f"I have read {len(results)} results."}
    name, arguments = calls[len(results)]
    if name not in tools:
        return {"content": f"There is no tool {name}."}
    function = {"name": name, "arguments": json.dumps(arguments)}
    return {
        "tool_calls": [{"index": 0, "id": f"call_{start}_{len(results)}", "type": "function", "function": function}]
    }


class _Handler(BaseHTTPRequestHandler):
    asked: list[dict[str, Any]]

    def do_GET(self) -> None:
        models = {"object": "list", "data": [{"id": MODEL, "object": "model", "max_model_len": 200_000}]}
        self._send("application/json", json.dumps(models).encode())

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.asked.append(body)
        tools = {tool["function"]["name"] for tool in body.get("tools", ())}
        delta = _answer(body["messages"], tools)
        finish = "tool_calls" if "tool_calls" in delta else "stop"
        usage = {"prompt_tokens": len(json.dumps(body)) // 4, "completion_tokens": 9, "total_tokens": 0}
        chunks: list[dict[str, Any]] = [
            {"choices": [{"index": 0, "delta": delta}]},
            {"choices": [{"index": 0, "delta": {}, "finish_reason": finish}]},
            {"choices": [], "usage": usage},
        ]
        events = [b"data: " + json.dumps({"id": "x", "model": MODEL, **chunk}).encode() + b"\n\n" for chunk in chunks]
        self._send("text/event-stream", b"".join(events) + b"data: [DONE]\n\n")

    def _send(self, kind: str, body: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *arguments: Any) -> None:
        """Log nothing."""


@contextmanager
def running_model() -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """Yield the URL of a running server, and the list of the requests that it gets."""
    asked: list[dict[str, Any]] = []
    handler = type("Handler", (_Handler,), {"asked": asked})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
