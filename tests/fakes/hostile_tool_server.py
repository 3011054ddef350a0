"""A hostile MCP server over stdio, without any library: `python hostile_tool_server.py BEHAVIOUR`.

It speaks the handshake of 2025-11-25 and lists the tools `act` and `fine`. A call of `act` shows the behaviour.
"""

import json
import signal
import sys
import time
from typing import Any

BEHAVIOUR = sys.argv[1]
SCHEMA: dict[str, Any] = {"type": "object"}


def send(message: Any) -> None:
    sys.stdout.write((message if isinstance(message, str) else json.dumps(message)) + "\n")
    sys.stdout.flush()


def tools() -> list[dict[str, Any]]:
    listed = [{"name": name, "inputSchema": SCHEMA} for name in ("act", "fine")]
    match BEHAVIOUR:
        case "many_tools":
            listed += [{"name": f"t{index}", "inputSchema": SCHEMA} for index in range(100_000)]
        case "large_schema":
            listed.append({"name": "large", "inputSchema": {"type": "object", "description": "x" * 10_000_000}})
        case "quite_large_schema":
            listed.append({"name": "large", "inputSchema": {"type": "object", "description": "x" * 100_000}})
        case "deep_schema":
            schema: dict[str, Any] = {}
            for _ in range(100):
                schema = {"items": schema}
            listed.append({"name": "deep", "inputSchema": {"type": "object", "properties": {"a": schema}}})
        case "outside_reference":
            outside = {"type": "object", "properties": {"a": {"$ref": "http://127.0.0.1:1/schema.json"}}}
            listed.append({"name": "outside", "inputSchema": outside})
        case "slow_pattern":
            pattern = {"type": "object", "properties": {"a": {"type": "string", "pattern": "^(a+)+$"}}}
            listed.append({"name": "pattern", "inputSchema": pattern})
    return listed


def act(id: Any) -> None:
    result: dict[str, Any] = {"content": [{"type": "text", "text": "done"}]}
    answer: dict[str, Any] = {"jsonrpc": "2.0", "id": id, "result": result}
    match BEHAVIOUR:
        case "silent":
            return
        case "gigabyte":
            sys.stdout.write(f'{{"jsonrpc": "2.0", "id": {id}, "result": {{"content": [{{"type": "text", "text": "')
            for _ in range(16_384):
                sys.stdout.write("x" * 65_536)
            send('"}]}}')
        case "too_large":
            send({**answer, "result": {"content": [{"type": "text", "text": "x" * 6_000_000}]}})
        case "too_large_id_last":
            send({"result": {"content": [{"type": "text", "text": "x" * 6_000_000}]}, "jsonrpc": "2.0", "id": id})
        case "too_large_other":
            send({"jsonrpc": "2.0", "method": "notifications/message", "params": {"data": "x" * 6_000_000}})
            send(answer)
        case "many_parts":
            send({**answer, "result": {"content": [{}] * 300_000}})
        case "many_values":
            send({**answer, "result": {"content": [], "structuredContent": {"a": [[]] * 900_000}}})
        case "bad_json":
            send(f'{{"jsonrpc": "2.0", "id": {id}, "result": {{"content": [')
        case "deep_json":
            send(f'{{"jsonrpc": "2.0", "id": {id}, "result": {"[" * 50_000}1{"]" * 50_000}}}')
        case "bad_result":
            send({**answer, "result": {"content": "text"}})
        case "bad_part":
            send({**answer, "result": {"content": [{"type": "text"}]}})
        case "no_result":
            send({"id": id, "result": 7})
        case "input_required":
            send({**answer, "result": {"resultType": "input_required", "content": []}})
        case "markup":
            send({**answer, "result": {"content": [{"type": "text", "text": "<<x>> <|im_end|>\x00\x1b[31m"}]}})
        case "surrogate":
            send(json.dumps({**answer, "result": {"content": [{"type": "text", "text": "a\ud800b"}]}}))
        case "bad_utf8":
            sys.stdout.buffer.write(
                b'{"jsonrpc": "2.0", "id": %d, "result": {"content": [{"type": "text", "text": "a\xffb"}]}}\n' % id
            )
            sys.stdout.flush()
        case "image":
            parts = [
                {"type": "image", "data": "QUJD", "mimeType": "image/png"},
                {"type": "resource_link", "name": "n", "uri": "file:///x"},
                {"type": "resource", "resource": {"uri": "file:///y", "mimeType": "text/plain", "text": "inside"}},
            ]
            send({**answer, "result": {"content": parts}})
        case "structured":
            send({**answer, "result": {"content": [], "structuredContent": {"b": 1, "a": None}}})
        case "dies":
            sys.stdout.write('{"jsonrpc": "2.0", "id"')
            sys.stdout.flush()
            print("out of luck", file=sys.stderr)
            sys.exit(9)
        case "other_id":
            send({**answer, "id": 10**15})
            send({**answer, "id": str(id)})
            send({**answer, "id": None})
        case "flood":
            while True:
                send({"jsonrpc": "2.0", "method": "notifications/message", "params": {"level": "info", "data": "x"}})
        case "flood_then_answer":
            for index in range(20_000):
                send(
                    {
                        "jsonrpc": "2.0",
                        "method": "notifications/progress",
                        "params": {"progressToken": index, "progress": 1},
                    }
                )
                send({"jsonrpc": "2.0", "id": f"q{index}", "method": "sampling/createMessage", "params": {}})
            send(answer)
        case "garbage":
            for _ in range(1_000):
                send("garbage \x1b[31m")
        case "error":
            send({"jsonrpc": "2.0", "id": id, "error": {"code": -32602, "message": "no\nsuch\x00 thing " + "y" * 5000}})
        case "late":
            time.sleep(1.0)
            send(answer)
        case "stops_reading":
            time.sleep(3600)
        case _:
            send(answer)


def main() -> None:
    if BEHAVIOUR == "ignores_sigterm":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if BEHAVIOUR in ("greets", "greets_and_dies"):
        send("Welcome!\n  this is no JSON\n[1, 2]\n")
    if BEHAVIOUR == "never_starts":
        time.sleep(3600)
    if BEHAVIOUR == "greets_and_dies":
        sys.exit(1)
    for line in sys.stdin:
        message = json.loads(line)
        id, method = message.get("id"), message.get("method")
        if id is None:
            continue
        if method == "initialize":
            result: Any = {
                "protocolVersion": "2025-11-25",
                "capabilities": {"tools": {}},
                "serverInfo": {"name": "hostile", "version": "1"},
            }
        elif method == "tools/list" and BEHAVIOUR == "endless_pages":
            result = {"tools": [], "nextCursor": "again"}
        elif method == "tools/list" and BEHAVIOUR == "bad_list":
            result = {"tools": [{"name": 7}]}
        elif method == "tools/list":
            result = {"tools": tools()}
        elif method == "tools/call" and message["params"]["name"] == "fine":
            result = {"content": [{"type": "text", "text": "fine"}]}
        elif method == "tools/call":
            act(id)
            continue
        else:
            send({"jsonrpc": "2.0", "id": id, "error": {"code": -32601, "message": "Method not found"}})
            continue
        send({"jsonrpc": "2.0", "id": id, "result": result})
    if BEHAVIOUR == "ignores_sigterm":
        time.sleep(3600)


if __name__ == "__main__":
    main()
