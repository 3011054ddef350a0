"""Send random requests to every route of a server's /openapi.json, as a fuzzer does.

Bodies are made from the document's schemas and then corrupted: wrong types, deep nesting, numbers of every size,
strings of any characters, missing and unknown fields.
"""

import asyncio
import json
import random
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

if TYPE_CHECKING:
    from bench.attacks import Attacker

_CLIENTS = 16
_FORM = "multipart/form-data"
_INTEGERS = (0, 1, -1, 3, 2**31, 2**53 + 1, 2**63, 2**64, 10**30, -(2**63))
_STRINGS = (
    *("", "a", "x" * 300, "\x00", "é\u2028😀", "\ufffe\uffff", "0", "null", "[" * 300, "../.."),
    *("<<a>>", "<<a.b.0>>", "\\<<a>>", "<|im_end|>"),
)
_ESCAPES = ("\\ud800", "\\udfff\\ud800", "\\u0000")
_PATIENCE_SECONDS = 2.0
"""Time after which a client disconnects, in seconds: some requests wait for values that are never set, and some streams
do not end."""
_MOST_TOKENS = 4
"""Maximum number of tokens of an answer. They are few, because the requests test the gateway and not the engine."""


class RandomRequests:
    """A number of random requests, several at a time."""

    def __init__(self, count: int) -> None:
        self._left = count

    async def run(self, by: "Attacker") -> None:
        """Send all requests."""
        _, document = await by.send("GET", "/openapi.json")
        for session in ("a", "b", "s1"):  # so that requests to routes of sessions and variables find existing ones
            await by.send("POST", "/v1/sessions", {"id": session})
            await by.send("PUT", f"/v1/sessions/{session}/variables/a", {"value": {"b": ["x"]}})
        async with asyncio.TaskGroup() as group:
            for number in range(_CLIENTS):
                group.create_task(self._client(by, document, random.Random(f"{by.random.random()} {number}")))

    async def _client(self, by: "Attacker", document: Mapping[str, Any], rng: random.Random) -> None:
        routes = [
            (method, path, operation)
            for path, methods in document["paths"].items()
            for method, operation in methods.items()
        ]
        maker = _Maker(document["components"]["schemas"], by.model, rng)
        while self._left > 0:
            self._left -= 1
            method, path, operation = rng.choice(routes)
            target, headers = maker.path(path, operation), maker.headers(operation)
            body, media_type = maker.body(operation)
            if media_type:
                headers["Content-Type"] = media_type
            await by.send(method.upper(), target, body, headers, _PATIENCE_SECONDS)


class _Maker:
    """Makes parts of a request from JSON schemas."""

    def __init__(self, schemas: Mapping[str, Any], model: str, rng: random.Random) -> None:
        self._schemas = schemas
        self._model = model
        self._random = rng

    def path(self, path: str, operation: Mapping[str, Any]) -> str:
        """Return a path with random parameters and a random query."""
        for part in [part for part in path.split("/") if part.startswith("{")]:
            path = path.replace(part, quote(self._random.choice(["a", "b", "s1", *_STRINGS]) or "x", safe=""))
        query = [
            f"{quote(known['name'])}={quote(str(self._scalar(known['schema'])))}"
            for known in operation.get("parameters", ())
            if known["in"] == "query" and self._random.random() < 0.5
        ]
        return f"{path}?{'&'.join(query)}" if query else path

    def headers(self, operation: Mapping[str, Any]) -> dict[str, str]:
        """Return random values for some of the operation's headers."""
        names = [known["name"] for known in operation.get("parameters", ()) if known["in"] == "header"]
        values = ("s1", "true", "false", "7", "1" * 400, "-1", "é", "a b")
        return {name: self._random.choice(values) for name in names if self._random.random() < 0.3}

    def body(self, operation: Mapping[str, Any]) -> tuple[bytes | None, str]:
        """Return a body and its media type. An operation without a body gets none."""
        described = operation.get("requestBody")
        if described is None:
            return None, ""
        media_types = described["content"]
        media_type = self._random.choice([*media_types])
        value = self._value(media_types[media_type]["schema"], 0)
        if media_type == _FORM:
            return self._form(value)
        return self._json(value), media_type

    def _form(self, value: Any) -> tuple[bytes, str]:
        """Return a multipart form with these fields, sometimes a broken one."""
        boundary = self._random.choice(["x", "y" * 70, "-"])
        parts = []
        for name, field in value.items() if isinstance(value, dict) else [("model", value)]:
            shown = self._model if name == "model" and self._random.random() < 0.8 else str(field)
            file = '; filename="f.wav"' if self._random.random() < 0.3 else ""
            head = f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"{file}\r\n\r\n'
            parts.append(head.encode(errors="replace") + shown.encode(errors="replace") + b"\r\n")
        raw = b"".join([*parts, f"--{boundary}--\r\n".encode()])
        if self._random.random() < 0.1:
            raw = raw[: self._random.randrange(len(raw) + 1)]
        shown_boundary = boundary if self._random.random() < 0.9 else "other"
        return raw, f"{_FORM}; boundary={shown_boundary}"

    def _json(self, value: Any) -> bytes:
        if isinstance(value, dict):
            if "model" in value or self._random.random() < 0.8:
                value["model"] = self._model
            for name in ("max_tokens", "max_completion_tokens", "max_output_tokens"):
                if isinstance(value.get(name), int) and value[name] > _MOST_TOKENS:
                    value[name] = self._random.choice([_MOST_TOKENS, 2**64])
            value.setdefault("max_output_tokens" if "input" in value else "max_tokens", _MOST_TOKENS)
            for name in ("n", "best_of"):
                value.pop(name, None)
        raw = json.dumps(value)
        if self._random.random() < 0.02:
            raw = raw.replace('"a"', f'"{self._random.choice(_ESCAPES)}"')
        if self._random.random() < 0.02:
            raw = raw[: self._random.randrange(len(raw) + 1)]
        return raw.encode()

    def _value(self, schema: Any, depth: int) -> Any:
        if self._random.random() < 0.04:
            return self._anything(depth)
        if not isinstance(schema, dict):
            return self._anything(depth)
        if "$ref" in schema:
            return self._value(self._schemas[schema["$ref"].rpartition("/")[2]], depth)
        for key in ("anyOf", "oneOf", "allOf"):
            if key in schema:
                return self._value(self._random.choice(schema[key]), depth)
        if "enum" in schema:
            return self._random.choice(schema["enum"])
        if "const" in schema:
            return schema["const"]
        match schema.get("type"):
            case "object":
                return self._object(schema, depth)
            case "array":
                few = self._random.randrange(1, 3 if depth < 8 else 2)
                return [self._value(schema.get("items", {}), depth + 1) for _ in range(few)]
        return self._scalar(schema)

    def _object(self, schema: Mapping[str, Any], depth: int) -> dict[str, Any]:
        required = set(schema.get("required", ()))
        result = {
            name: self._value(inner, depth + 1)
            for name, inner in schema.get("properties", {}).items()
            if name in required or self._random.random() < (0.15 if depth < 6 else 0.02)
        }
        if not schema.get("properties"):
            result = {self._random.choice(["a", "b", "1"]): self._anything(depth + 1)}
        if self._random.random() < 0.03:
            result[self._random.choice(_STRINGS)] = self._anything(depth + 1)
        if result and self._random.random() < 0.03:
            del result[self._random.choice(sorted(result))]
        return result

    def _scalar(self, schema: Mapping[str, Any]) -> Any:
        match schema.get("type"):
            case "string":
                return self._random.choice(_STRINGS)
            case "integer":
                return self._random.choice(_INTEGERS)
            case "number":
                return self._random.choice((0.0, 0.5, 1.0, 1e300, -1.5, *_INTEGERS))
            case "boolean":
                return self._random.random() < 0.5
            case "null":
                return None
        return self._anything(9)

    def _anything(self, depth: int) -> Any:
        kind = self._random.randrange(8 if depth < 6 else 5)
        if kind == 0:
            return self._random.choice(_INTEGERS)
        if kind == 1:
            return self._random.choice(_STRINGS)
        if kind == 2:
            return self._random.choice((None, True, False, 1.5, 1e300))
        if kind == 3:
            value: Any = 1
            for _ in range(self._random.choice((5, 50, 190, 900))):
                value = [value] if self._random.random() < 0.5 else {"a": value}
            return value
        if kind == 4:
            return [] if self._random.random() < 0.5 else {}
        if kind < 7:
            return {self._random.choice(["a", "type", "text"]): self._anything(depth + 1) for _ in range(2)}
        return [self._anything(depth + 1) for _ in range(2)]
