"""Attacks of one client on a server, by name. `bench.hostile` runs them and measures what other clients suffer.

To add one, write a coroutine with an `Attacker` as its parameter, and decorate it with `@attack("its name")`.
"""

import asyncio
import gzip
import io
import json
import random
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

import aiohttp

from bench.hostile_engine import ANSWERS, MODEL

ATTACKER = "attacker-key"
"""The API key of attacks."""

PATIENCE_SECONDS = 120.0
"""Longest wait for an answer; a longer one is a fault of the server."""

Attack = Callable[["Attacker"], Awaitable[None]]
ATTACKS: dict[str, Attack] = {}
LONG: set[str] = set()
"""Names of attacks that take over 15 seconds. The short form leaves them out."""


def attack(name: str, *, long: bool = False) -> Callable[[Attack], Attack]:
    """Return a decorator that adds an attack to `ATTACKS`. `long`: whether it takes over 15 seconds."""

    def add(run: Attack) -> Attack:
        ATTACKS[name] = run
        if long:
            LONG.add(name)
        return run

    return add


class Attacker:
    """Client with the attacker's key. It counts answers and collects faults of the server."""

    def __init__(self, http: aiohttp.ClientSession, url: str, model: str, rng: random.Random) -> None:
        self.http = http
        self.url = url
        self.model = model
        self.random = rng
        self.answers: Counter[str] = Counter()
        self.faults: list[str] = []

    @property
    def address(self) -> tuple[str, int]:
        """Host and port of the server."""
        host, _, port = self.url.removeprefix("http://").partition(":")
        return host, int(port)

    def chat_body(self, text: str = "hi", **more: Any) -> dict[str, Any]:
        """Return the body of a short chat completion."""
        messages = [{"role": "user", "content": text}]
        return {"model": self.model, "max_tokens": 4, "temperature": 0, "messages": messages, **more}

    async def chat(self, text: str = "hi", *, session: str | None = None, **more: Any) -> tuple[int, Any]:
        """Request a short chat completion. Return the status and the body."""
        headers = {} if session is None else {"X-Semantic-Session": session}
        return await self.send("POST", "/v1/chat/completions", self.chat_body(text, **more), headers)

    async def send(
        self,
        method: str,
        path: str,
        body: Any = None,
        headers: dict[str, str] | None = None,
        seconds: float | None = None,
    ) -> tuple[int, Any]:
        """Send a request and return its status and body. `body`: bytes, or an object to send as JSON.

        `seconds`: disconnect after that time, because some answers wait for values that are never set.
        """
        raw = body if isinstance(body, bytes) else None if body is None else json.dumps(body).encode()
        sent = {"Authorization": f"Bearer {ATTACKER}", "Content-Type": "application/json", **(headers or {})}
        try:
            limit = aiohttp.ClientTimeout(total=seconds or PATIENCE_SECONDS)
            data = None if raw is None else io.BytesIO(raw)  # which aiohttp sends in pieces
            async with self.http.request(method, self.url + path, data=data, headers=sent, timeout=limit) as answer:
                content = await answer.read()
                self.check(method, path, answer.status, content)
                try:
                    return answer.status, json.loads(content)
                except ValueError:
                    return answer.status, content
        except aiohttp.ClientError as error:  # the server may close a connection whose body it refuses
            self.answers[type(error).__name__] += 1
            return 0, None
        except TimeoutError:
            if seconds is not None:
                self.answers["hung up"] += 1
                return 0, None
            self.faults.append(f"{method} {path}: no answer within {PATIENCE_SECONDS:g} s")
            return 0, None

    def check(self, method: str, path: str, status: int, content: bytes) -> None:
        """Count an answer. A 5xx is a fault, unless it is 503 or 504 with a code."""
        self.answers[str(status)] += 1
        reason = b'"code":' in content and b'"code":null' not in content
        if status >= 500 and not (status in (503, 504) and reason):
            self.faults.append(f"{method} {path}: {status} {content[:120].decode(errors='replace')}")

    async def leave(self) -> None:
        """Delete all sessions of the key."""
        status, listed = await self.send("GET", "/v1/sessions")
        if status == 200:
            for session in listed["data"]:
                await self.send("DELETE", f"/v1/sessions/{session['id']}")


# text that is not Unicode


@attack("surrogates through paths, patterns and values")
async def _surrogates(by: Attacker) -> None:
    await by.send("POST", "/v1/sessions", {"id": "sur"})
    put = "/v1/sessions/sur/variables/"
    await by.send("PUT", put + "a", {"value": '{"a":"\\ud800","b":["\\udfff x"]}'})
    for number, template in enumerate(("<<a.a>>!", "<<a.b.0>>", "<<a.b>>", "<<a>>")):
        await by.send("PUT", put + f"t{number}", {"template": template})
        await by.chat(template, session="sur")
    await by.send("PUT", put + "raw", b'{"value": "\\ud800"}')
    await by.send("PUT", put + "bytes", b'{"value": "\xed\xa0\x80"}')
    await by.send("PUT", put + "%ED%A0%80", {"value": "x"})
    await by.send("GET", put + "t0?wait=true&timeout=5")


@attack("surrogates in raw requests")
async def _raw_surrogates(by: Attacker) -> None:
    for target in (b"/v1/sessions/\xed\xa0\x80", b"/v1/models/\xff\xfe", b"/v1/sessions?\xed\xa0\x80=\xff"):
        for header in (b"X-Semantic-Session", b"X-Request-Id", b"Last-Event-ID", b"Authorization", b"Origin"):
            await _raw(by, b"GET " + target + b" HTTP/1.1\r\nHost: x\r\n" + header + b": \xed\xa0\x80\r\n\r\n")


async def _raw(by: Attacker, data: bytes, seconds: float = 5.0) -> None:
    """Send bytes and read the beginning of an answer, if one arrives in time."""
    reader, writer = await asyncio.open_connection(*by.address)
    try:
        writer.write(data)
        with suppress(TimeoutError, ConnectionError):
            async with asyncio.timeout(seconds):
                head = await reader.read(4096)
                if head.startswith(b"HTTP/1."):
                    by.check("raw", repr(data[:40]), int(head[9:12]), head)
    finally:
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()


# values made of values


@attack("templates that double")
async def _doubling(by: Attacker) -> None:
    variables: dict[str, Any] = {"t0": "xxxxxxxx"}
    variables |= {f"t{n}": {"template": f"<<t{n - 1}>><<t{n - 1}>>"} for n in range(1, 40)}
    await by.send("POST", "/v1/graphs", {"variables": variables, "calls": [_call(by, "<<t39>>", "o")]})


@attack("references without number")
async def _many_references(by: Attacker) -> None:
    await by.send("POST", "/v1/sessions", {"id": "refs"})
    await by.send("PUT", "/v1/sessions/refs/variables/a", {"value": "x"})
    await by.send("PUT", "/v1/sessions/refs/variables/t", {"template": "<<a>>" * 3_000_000})
    for number in range(3):
        await by.chat("<<a>>" * 1_000_000, session="refs", semantic={"defer": True, "output": f"o{number}"})
    calls = [_call(by, "<<a>>" * 9_000, f"g{number}") for number in range(200)]
    await by.send("POST", "/v1/graphs", {"session": "refs", "calls": calls})
    for number in range(20):
        await by.send("POST", "/v1/sessions", {"metadata": {f"k{number}": "x" * 1_000_000}})


@attack("a large value, named many times")
async def _named_often(by: Attacker) -> None:
    large = json.dumps(["x" * 100_000] * 10)
    for text in ("<<v>>" * 2_000, "<<v.0>>" * 2_000):
        await by.send(
            "POST", "/v1/graphs", {"variables": {"v": large, "t": {"template": text}}, "calls": [_call(by, text, "o")]}
        )
        messages = [{"role": "user", "content": "x"}, {"role": "assistant", "content": "<<s>>" + text}]
        semantic = {"slots": {"s": {"max_tokens": 2}}, "inputs": {"v": large}}
        await by.chat(messages=messages, semantic=semantic, session=f"often{len(text)}")


@attack("paths into large values")
async def _large_paths(by: Attacker) -> None:
    values = {f"v{n}": json.dumps([{"a": "x"}] * 60_000) for n in range(6)}
    text = "".join(f"<<v{n % 6}.{n}.a>>" for n in range(600))
    calls = [_call(by, text, f"o{n}") for n in range(10)]
    await by.send("POST", "/v1/graphs", {"variables": values, "calls": calls})


def _call(by: Attacker, text: str, output: str, **semantic: Any) -> dict[str, Any]:
    return {**by.chat_body(text), "semantic": {"output": output, **semantic}}


# patterns and grammars

_PATTERNS = {
    "nested counts": "((((a{200}){200}){200}){200}){200}",
    "many words": "|".join(f"w{n}" for n in range(150_000)),
    "500 parentheses": "(" * 500 + ")" * 500,
    "20,000 parentheses": "(" * 20_000 + ")" * 20_000,
    "recursion": "(?R)",
    "backtracking": "(a|a)*(b|b)*(a*)*c",
    "classes": r"[\pL\pN]{900}",
    "optional counts": "(a?){900}a{900}",
}


@attack("patterns of transforms, slots and answers")
async def _patterns(by: Attacker) -> None:
    for pattern in _PATTERNS.values():
        await by.chat(session="p", semantic={"transform": {"regex": pattern}})
        await by.chat(structured_outputs={"regex": pattern})
        messages = [{"role": "user", "content": "x"}, {"role": "assistant", "content": "<<s>>"}]
        await by.chat(messages=messages, session="p", semantic={"slots": {"s": {"regex": pattern}}})


def _deep_schema(depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(depth):
        schema = {"type": "object", "properties": {"a": schema}, "required": ["a"]}
    return schema


def _exponential_schema(width: int) -> dict[str, Any]:
    parts = [{"properties": {f"p{n}": {"type": "string"}}, "required": [f"p{n}"]} for n in range(width)]
    return {
        "type": "object",
        "allOf": [{"anyOf": [part, {"properties": {"z": {"const": n}}}]} for n, part in enumerate(parts)],
    }


_SCHEMAS: dict[str, Any] = {
    "multipleOf": {"type": "integer", "multipleOf": 99_999_999},
    "multipleOf of multipleOf": {"allOf": [{"type": "integer", "multipleOf": n} for n in (9973, 9967, 9949)]},
    "maxItems": {"type": "array", "items": {"type": "integer"}, "minItems": 1_000_000},
    "maxLength": {"type": "string", "minLength": 10_000_000, "maxLength": 10_000_001},
    "deep": _deep_schema(60),
    "all of any": _exponential_schema(18),
    "endless": {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/a"}}},
    "many patterns": {"type": "string", "allOf": [{"pattern": f".*{c}.{{12}}"} for c in "abcdefgh"]},
    "wide": {"type": "object", "properties": {f"p{n}": {"type": "string"} for n in range(5_000)}},
    "large enum": {"enum": [f"value number {n}" for n in range(60_000)]},
    "large integers": {"type": "integer", "minimum": 10**300, "maximum": 10**301},
}
_GRAMMARS = {
    "intersections": "start: A\nA: /(.*a.{18})/ & /(.*b.{17})/ & ~/(.*c.{16})/",
    "ambiguous": 'start: start start | "a" | ""',
    "endless": 'start: a\na: "x" a',
    "long chain": "start: r0\n" + "\n".join(f"r{n}: r{n + 1}" for n in range(5_000)) + '\nr5000: "x"',
}


@attack("schemas and grammars")
async def _schemas(by: Attacker) -> None:
    for name, schema in _SCHEMAS.items():
        for strict in (True, False):
            form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema, "strict": strict}}
            await by.chat(response_format=form)
        tool = {
            "type": "function",
            "function": {"name": "f", "parameters": {"type": "object", "properties": {"a": schema}}},
        }
        for choice in ("auto", "required"):
            await by.chat(f"call {name}", tools=[tool], tool_choice=choice)
    for grammar in _GRAMMARS.values():
        await by.chat(structured_outputs={"grammar": grammar}, max_tokens=60)
    await by.chat(structured_outputs={"choice": [f"text number {n}" for n in range(100_000)]})
    await by.chat(guided_json="[" * 5_000 + "]" * 5_000)


# sizes and numbers


@attack("deep, wide and wrong bodies")
async def _bodies(by: Attacker) -> None:
    nested = b'{"a":' * 1200 + b"1" + b"}" * 1200
    model = by.model.encode()
    for body in (
        b"[" * 100_000,
        b"[" * 1200 + b"]" * 1200,
        b'{"model":"x","messages":[{"role":"user","content":"x"}],"metadata":' + nested + b"}",
        b'{"model":"x","messages":[' + b"1," * 1_900_000 + b"1]}",
        b'{"model":"x","messages":[' + b"{}," * 200_000 + b"{}]}",
        b'{"model":"x",' + b",".join(b'"k%d":1' % n for n in range(150_000)) + b"}",
        b'{"model":"x","prompt":[' + b"{}," * 200_000 + b"{}]}",
        b'{"model":"%b","messages":[{"role":"user","content":"x"}],"logit_bias":{%b}}'
        % (model, b",".join(b'"%d":"x"' % n for n in range(150_000))),
        b" " * 5_000_000 + b"{}",
    ):
        for path in ("/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages", "/v1/graphs"):
            await by.send("POST", path, body)


@attack("numbers of every size")
async def _numbers(by: Attacker) -> None:
    fields = ("max_tokens", "max_completion_tokens", "top_k", "seed", "n", "min_tokens", "top_logprobs", "temperature")
    for value in (2**31, 2**53, 2**63, 2**64, 10**400, -(2**63), -1, 1e308):
        for name in fields:
            await by.chat(**{name: value})
        body = {"model": by.model, "input": "x", "max_output_tokens": value}
        await by.send("POST", "/v1/responses", body, seconds=2)  # a large number means no limit
        await by.send("POST", "/v1/sessions", {"ttl": value})
        await by.chat(logit_bias={str(value): 1})
        await by.chat(stop_token_ids=[value])
        messages = [{"role": "user", "content": "x"}, {"role": "assistant", "content": "<<a>>"}]
        for name in ("max_tokens", "top_k"):
            semantic = {"slots": {"a": {name: value}}}
            await by.chat(messages=messages, session=f"n{by.random.random()}", semantic=semantic)
        await by.send("POST", "/detokenize", {"model": by.model, "tokens": [value]})
    digits = "1" * 5000
    await by.chat(logit_bias={digits: 1})
    await by.chat(f"<<j.{digits}>>", session="j", semantic={"inputs": {"j": [1]}})
    await by.send("GET", "/v1/sessions/j/events", headers={"Last-Event-ID": digits})
    await by.send("GET", f"/v1/responses?limit={digits}")
    await by.chat(chat_template_kwargs={"self": 1})


@attack("long texts")
async def _long_texts(by: Attacker) -> None:
    texts = (" " * 15_000_000, "\U0001f600" * 3_600_000, "x" * 15_000_000, "字" * 4_900_000, "a b\n" * 3_000_000)
    for text in texts:
        await by.send("POST", "/tokenize", {"model": by.model, "prompt": text})
        await by.chat(text)
    await by.chat(messages=[{"role": "user", "content": "x"}] * 60_000)
    await by.chat(stop=["a" * 1_000_000] * 4)
    await by.chat(tools=[{"type": "function", "function": {"name": "f", "description": "x" * 10_000_000}}])
    await by.chat(model="m" * 10_000_000)


# shares


@attack("calls on a value that never comes")
async def _never(by: Attacker) -> None:
    for session in ("never0", "never1", "never2", "never3", "never4"):
        await by.send("POST", "/v1/sessions", {"id": session})
        await by.send("PUT", f"/v1/sessions/{session}/variables/x", {"value": None})
        for batch in range(2):
            calls = [_call(by, "<<x>>", f"o{batch}_{n}", defer=True) for n in range(500)]
            await by.send("POST", "/v1/graphs", {"session": session, "calls": calls, "outputs": []})


@attack("as many sessions as there may be")
async def _sessions(by: Attacker) -> None:
    async def some(count: int) -> None:
        for _ in range(count):
            status, _answer = await by.send("POST", "/v1/sessions", {})
            if status != 201:
                return

    await asyncio.gather(*(some(700) for _ in range(16)))


@attack("as many bytes as there may be")
async def _bytes(by: Attacker) -> None:
    value = "x" * 1_000_000
    for number in range(4):
        await by.send("POST", "/v1/sessions", {"id": f"bytes{number}"})
        for name in range(20):
            await by.send("PUT", f"/v1/sessions/bytes{number}/variables/v{name}", {"value": value})


@attack("as many waiters as there may be")
async def _waiters(by: Attacker) -> None:
    await by.send("POST", "/v1/sessions", {"id": "wait"})
    await by.send("PUT", "/v1/sessions/wait/variables/x", {"value": None})
    path = "/v1/sessions/wait/variables/x?wait=true&timeout=3"
    await asyncio.gather(*(by.send("GET", path) for _ in range(400)))


@attack("slots in several turns")
async def _slots(by: Attacker) -> None:
    session = f"slots{by.random.random()}"
    turns = [
        {"role": "user", "content": "Name a fruit."},
        {"role": "assistant", "content": "<<f>>"},
        {"role": "user", "content": "Its colour?"},
        {"role": "assistant", "content": "<<c>> <<f>>"},
    ]
    slots = {"f": {"max_tokens": 4}, "c": {"max_tokens": 4}}
    await by.chat(messages=turns, session=session, semantic={"slots": slots, "defer": True})
    status, answer = await by.send("GET", f"/v1/sessions/{session}/variables/c?wait=true&timeout=60")
    if status == 504:
        by.faults.append(f"slots in two turns are never generated: {answer}")


@attack("many answers of one request")
async def _many_answers(by: Attacker) -> None:
    await by.chat("Tell me a story.", n=128, temperature=1, max_tokens=40)
    await by.send(
        "POST", "/v1/completions", {"model": by.model, "prompt": ["x"] * 200, "max_tokens": 8, "temperature": 0}
    )
    await by.chat("x", logit_bias={str(n): n % 7 for n in range(10_000)}, top_logprobs=20, logprobs=True)


# connections


@attack("headers and bodies that do not end")
async def _unfinished(by: Attacker) -> None:
    starts = [
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\n",
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 50\r\n\r\n{",
        b"GET / HTTP/1.1\r\nX: " + b"y" * 4000,
        b"",
    ]
    opened = [await asyncio.open_connection(*by.address) for _ in range(200)]
    for number, (_, writer) in enumerate(opened):
        writer.write(starts[number % len(starts)])
    await asyncio.sleep(2)
    for _, writer in opened:
        writer.close()


@attack("bodies over the bound")
async def _over_the_bound(by: Attacker) -> None:
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {ATTACKER}\r\n"
    await _raw(by, f"{head}Content-Length: 99999999999\r\n\r\n".encode() + b"x" * 100_000)
    await _raw(by, f"{head}Content-Length: {'9' * 5000}\r\n\r\n".encode())
    await _raw(by, f"{head}Transfer-Encoding: chunked\r\n\r\nffffffffff\r\n".encode() + b"x" * 100_000)
    await _raw(by, f"{head}Transfer-Encoding: chunked\r\n\r\nzz\r\n".encode())
    await _raw(by, f"{head}Content-Encoding: gzip\r\nContent-Length: 4\r\n\r\nabcd".encode())
    bomb = await asyncio.to_thread(gzip.compress, b" " * (1 << 28), 9)
    await by.send("POST", "/v1/chat/completions", bomb, {"Content-Encoding": "gzip"})
    await by.send("POST", "/v1/chat/completions", b"x" * (17 << 20))


@attack("garbage and pipelines")
async def _garbage(by: Attacker) -> None:
    for _ in range(40):
        await _raw(by, by.random.randbytes(by.random.randrange(1, 2000)), seconds=0.2)
    await _raw(by, b"GET /v1/models HTTP/1.1\r\nHost: x\r\n\r\n" * 500, seconds=2)
    await _raw(by, b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\n\r\n", seconds=1)
    await _raw(by, b"GET / HTTP/1.1\r\n" + b"A: b\r\n" * 5000 + b"\r\n", seconds=1)


@attack("clients that leave")
async def _leave_early(by: Attacker) -> None:
    async def one(number: int) -> None:
        body = by.chat_body("Tell me a long story.", max_tokens=400, stream=bool(number % 2), ignore_eos=True)
        with suppress(TimeoutError, aiohttp.ClientError):
            async with asyncio.timeout(by.random.random()):
                await by.send("POST", "/v1/chat/completions", body)

    before = len(by.faults)
    await asyncio.gather(*(one(number) for number in range(60)))
    del by.faults[before:]  # these timeouts are the attacker's own


@attack("clients that do not read")
async def _unread(by: Attacker) -> None:
    body = json.dumps(by.chat_body("Tell me a story.", max_tokens=60, stream=True, logprobs=True, top_logprobs=20))
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {ATTACKER}\r\n"
    data = f"{head}Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode()
    opened = [await asyncio.open_connection(*by.address, limit=1) for _ in range(20)]
    for _, writer in opened:
        writer.write(data)
    await asyncio.sleep(3)
    for _, writer in opened:
        writer.close()


@attack("responses, large and many", long=True)
async def _responses(by: Attacker) -> None:
    previous = None
    for number in range(20):
        body = {"model": by.model, "input": f"{number}: {'x ' * 1000}", "max_output_tokens": 2}
        status, answer = await by.send("POST", "/v1/responses", {**body, "previous_response_id": previous})
        previous = answer.get("id") if status == 200 else None
    await by.send("POST", "/v1/responses", {"model": by.model, "input": [1] * 100_000})
    await by.send("POST", "/v1/responses", {"model": by.model, "input": "x", "previous_response_id": "r" * 100_000})


# kinds found in the first tests with hostile users


@attack("layers that read each other, and their graph")
async def _layers(by: Attacker) -> None:
    variables: dict[str, Any] = {"x": None}
    width = 40
    for layer in range(width):
        reads = "<<x>>" if not layer else "".join(f"<<l{layer - 1}_{n}>>" for n in range(width))
        variables |= {f"l{layer}_{n}": {"template": reads} for n in range(width)}
    session = f"layers{by.random.random()}"
    await by.send("POST", "/v1/sessions", {"id": session})
    await by.send("POST", "/v1/graphs", {"session": session, "variables": variables, "outputs": []})
    for form in ("json", "mermaid", "dot"):
        await by.send("GET", f"/v1/sessions/{session}/graph?format={form}")
    await by.send("PUT", f"/v1/sessions/{session}/variables/x", {"value": ""})
    await by.send("GET", f"/v1/sessions/{session}/variables/l{width - 1}_0?wait=true&timeout=20")
    names = {f"{n:040d}_alike_and_long": "x" for n in range(-9_999, 0)}
    await by.send("POST", "/v1/graphs", {"variables": {f"v{name.strip('-')}": value for name, value in names.items()}})


@attack("large answers that no client reads")
async def _large_unread(by: Attacker) -> None:
    await by.send("POST", "/v1/sessions", {"id": "large"})
    for number in range(60):
        await by.send("PUT", f"/v1/sessions/large/variables/v{number}", {"value": "x" * 1_000_000})
    opened = [await asyncio.open_connection(*by.address, limit=1) for _ in range(40)]
    for number, (_, writer) in enumerate(opened):
        what = ("variables", "graph", "events")[number % 3]
        head = f"GET /v1/sessions/large/{what} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {ATTACKER}\r\n\r\n"
        writer.write(head.encode())
    await asyncio.sleep(2)
    for _, writer in opened:
        writer.close()


@attack("conversations without end")
async def _conversations(by: Attacker) -> None:
    previous = None
    for _ in range(4):
        items = [{"type": "reasoning", "id": "r", "summary": []}] * 9_000 + [{"role": "user", "content": "x"}]
        body = {"model": by.model, "input": items, "max_output_tokens": 2, "previous_response_id": previous}
        status, answer = await by.send("POST", "/v1/responses", body)
        previous = answer.get("id") if status == 200 else previous
    small = {"model": by.model, "input": "x", "max_output_tokens": 2, "previous_response_id": previous}
    await asyncio.gather(*(by.send("POST", "/v1/responses", small) for _ in range(20)))
    large = {"type": "reasoning", "id": "r", "summary": [{"type": "summary_text", "text": "x" * 9_000_000}]}
    body = {"model": by.model, "input": [large, {"role": "user", "content": "x"}], "background": True}
    for _ in range(30):
        await by.send("POST", "/v1/responses", {**body, "max_output_tokens": 2})


@attack("many grammars at once")
async def _many_grammars(by: Attacker) -> None:
    async def one(number: int) -> None:
        patterns = {f"p{n}_{number}": {"type": "string", "pattern": f"^[a-z]{{1,{n % 50 + 1}}}x$"} for n in range(800)}
        schema = {"type": "object", "properties": patterns}
        await by.chat(response_format={"type": "json_schema", "json_schema": {"name": "x", "schema": schema}})

    await asyncio.gather(*(one(number) for number in range(24)))
    ambiguous = "start: x\nx: x x | /[a-z ]/ | /[a-z]+ /"
    await by.chat(structured_outputs={"grammar": ambiguous}, n=64, max_tokens=30, temperature=1)


@attack("numbers of tokens that cost time in each step")
async def _costly_steps(by: Attacker) -> None:
    await by.chat(stop_token_ids=list(range(40_000)), n=64)
    await by.chat(stop_token_ids=list(range(1_000)), n=64, min_tokens=20, max_tokens=30)
    await by.chat(logit_bias={str(n): 1 for n in range(1_000)}, n=64, max_tokens=30)
    await by.chat(prediction={"type": "content", "content": "x" * 10_000_000}, n=64)
    await by.chat('{"name": "\\q"', structured_outputs={"choice": ['{"name": "\\q", "arguments": {}}']}, tools=[_TOOL])


_TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}


# Parrot's API


async def _program(by: Attacker) -> dict[str, Any]:
    """Begin a session of Parrot's API. Return the fields that name it in requests."""
    status, answer = await by.send("POST", "/v1/session", {"api_key": ATTACKER})
    return answer if status == 200 else {"session_id": 0, "session_auth": ""}


def _semantic_call(program: dict[str, Any], template: str, *parameters: dict[str, Any], **more: Any) -> dict[str, Any]:
    """Return the body of a Parrot call with an output `o` besides the parameters."""
    output = {"name": "o", "is_output": True, "sampling_config": {"max_gen_length": 2}}
    return {
        "session_id": program["session_id"],
        "template": template + "{{o}}",
        "parameters": [*parameters, output],
        **more,
    }


@attack("Parrot: parameters and placeholders without number")
async def _placeholders(by: Attacker) -> None:
    program = await _program(by)
    for outputs in (0, 9_999):
        parameters = [
            {"name": f"p{n}", "is_output": True} if n < outputs else {"name": f"p{n}", "is_output": False, "value": "x"}
            for n in range(9_999)
        ]
        template = "".join(f"{{{{p{n}}}}}" for n in range(9_999))
        await by.send("POST", "/v1/semantic_call", _semantic_call(program, template, *parameters))
    one = {"name": "a", "is_output": False, "value": "x"}
    for text in ("{{a}}" * 3_000_000, "{{" * 7_000_000 + "{{a}}", "{{b}}" * 3_000_000):
        await by.send("POST", "/v1/semantic_call", _semantic_call(program, text, one))
    many = {"models": ["m" * 10] * 1_000_000, "func_name": "f" * 1_000_000}
    await by.send("POST", "/v1/semantic_call", _semantic_call(program, "{{a}}", one, **many))


@attack("Parrot: calls that no client asks for", long=True)
async def _never_asked(by: Attacker) -> None:
    async def fill() -> None:
        program = await _program(by)
        # as much of the window as possible
        text = "x y z " * 700
        one = {"name": "a", "is_output": False, "value": "x" * 1_000}
        bias = {"logit_bias": {str(n): 1.0 for n in range(10_000)}, "stop_token_ids": list(range(100_000))}
        costly = {"name": "b", "is_output": True, "sampling_config": bias}
        for number in range(250):
            status, _ = await by.send("POST", "/v1/semantic_call", _semantic_call(program, text + "{{a}}", one))
            if number % 10 == 0:
                await by.send("POST", "/v1/semantic_call", _semantic_call(program, "{{b}}{{a}}", one, costly))
            if status != 200:
                return

    await asyncio.gather(*(fill() for _ in range(16)))


@attack("Parrot: calls all asked for at once")
async def _asked_at_once(by: Attacker) -> None:
    for _ in range(3):
        program = await _program(by)
        status, answer = await by.send("POST", "/v1/semantic_var", {**program, "var_name": "x"})
        if status != 200:
            return
        read = {"name": "a", "is_output": False, "var_id": answer["var_id"]}
        outputs = []
        for _ in range(1_500):
            status, answer = await by.send("POST", "/v1/semantic_call", _semantic_call(program, "{{a}}", read))
            if status == 200:
                outputs.append(answer["param_info"][-1]["var_id"])
        reads = [{"name": f"a{n}", "is_output": False, "var_id": output} for n, output in enumerate(outputs)]
        text = "".join(f"{{{{a{n}}}}}" for n in range(len(outputs)))
        last = _semantic_call(program, text, *reads, output_criteria="latency")
        await by.send("POST", "/v1/semantic_call", last)


@attack("Parrot: hostile values")
async def _parrot_values(by: Attacker) -> None:
    program = await _program(by)
    number, variable = program["session_id"], "/v1/semantic_var"
    deep: Any = 1
    for _ in range(180):
        deep = [deep]
    for value in (deep, "\x00", 10**4000, [1e308] * 10, {"a" * 100_000: 1}, "<<a>>", "{{o}}", "<|im_end|>", "", []):
        one = {"name": "a", "is_output": False, "value": value}
        await by.send("POST", "/v1/semantic_call", _semantic_call(program, "{{a}}", one, output_criteria="tpot"))
    digits = "1" * 5_000
    configs: list[dict[str, Any]] = [{"logit_bias": {key: 1}} for key in (digits, "٣", "²", "-1", "", "1_0")]
    configs += [{"stop_token_ids": [value]} for value in (2**31, 10**400, -1, 10**9)]
    configs += [{"max_gen_length": value} for value in (0, 2**31, 2**64)]
    configs += [
        {"temperature": 1e308},
        {"stop_str": "x" * 1_000_000},
        {"stop_str": "\x00"},
        {"repetition_penalty": 1e-300},
    ]
    for config in configs:
        body = _semantic_call(program, "{{b}}", {"name": "b", "is_output": True, "sampling_config": config})
        await by.send("POST", "/v1/semantic_call", {**body, "output_criteria": "latency"})
    for raw in (b"\\ud800", b"\\udfff\\ud800", b"\xed\xa0\x80", b"\\u0000"):
        name = b'"session_id":%d,"session_auth":"%b"' % (number, program["session_auth"].encode())
        await by.send("POST", "/v1/session", b'{"api_key":"%b"}' % raw)
        await by.send("POST", variable, b'{%b,"var_name":"%b"}' % (name, raw))
        await by.send("POST", f"{variable}/x", b'{%b,"content":"%b"}' % (name, raw))
        await by.send("POST", variable, b'{"session_id":%d,"session_auth":"%b","var_name":"a"}' % (number, raw))
        for template, value in ((raw, b"x"), (b"x", raw)):
            body = (
                b'{"session_id":%d,"template":"%b{{a}}{{o}}","output_criteria":"latency","parameters":['
                b'{"name":"a","is_output":false,"value":"%b"},{"name":"o","is_output":true}]}'
                % (number, template, value)
            )
            await by.send("POST", "/v1/semantic_call", body)
        await by.send("POST", "/v1/py_native_call", b'{"func_name":"%b"}' % raw)
    for text in ("x" * 15_000_000, "字" * 5_000_000, ""):
        await by.send("POST", variable, {**program, "var_name": text})
        await by.send("POST", "/v1/py_native_call", {"func_name": text})
        await by.send("POST", "/v1/semantic_call", _semantic_call(program, text))
    for key in (2**65, -(2**65), 10**400, digits, 1e300, True):
        await by.send("POST", variable, {**program, "session_id": key, "var_name": "x"})
        await by.send("DELETE", f"/v1/session/{key}", {"session_auth": ""})
    await by.send("DELETE", f"/v1/sessions/{number}")
    await by.send("POST", "/v1/sessions", {"id": str(number)})  # the same name, but not a session of Parrot's API
    await by.send("POST", variable, {**program, "var_name": "x"})
    await by.send("GET", variable, program)
    await by.send("PUT", f"/v1/sessions/{number}/variables/x", {"value": None})
    await by.send("POST", f"{variable}/x", {**program, "content": "x"})
    await by.send("GET", f"{variable}/x", program, seconds=2)


@attack("Parrot: large lists that no client reads")
async def _parrot_lists(by: Attacker) -> None:
    program = await _program(by)
    for _ in range(60):
        status, answer = await by.send("POST", "/v1/semantic_var", {**program, "var_name": "x"})
        if status == 200:
            body = {**program, "content": "x" * 1_000_000}
            await by.send("POST", f"/v1/semantic_var/{answer['var_id']}", body)
    body = json.dumps(program)
    head = f"GET /v1/semantic_var HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n{body}"
    opened = [await asyncio.open_connection(*by.address, limit=1) for _ in range(40)]
    for _, writer in opened:
        writer.write(head.encode())
    await asyncio.sleep(4)
    for _, writer in opened:
        writer.close()


@attack("Parrot: variables and waiters without end")
async def _parrot_waiters(by: Attacker) -> None:
    async def some(number: int) -> None:
        program = await _program(by)
        for _ in range(60):
            status, answer = await by.send("POST", "/v1/semantic_var", {**program, "var_name": "x"})
            if status == 200:
                path = f"/v1/semantic_var/{answer['var_id']}"
                waits = [by.send("GET", path, program, seconds=1) for _ in range(4)]
                await asyncio.gather(*waits, by.send("POST", path, {**program, "content": "x"}))
                await by.send("GET", path, program)
        await by.send("GET", "/v1/semantic_var", program)
        if number % 2:
            await by.send("DELETE", f"/v1/session/{program['session_id']}", program)

    await asyncio.gather(*(some(number) for number in range(8)))


# sessions


@attack("sessions deleted while requests for them arrive")
async def _deleted_meanwhile(by: Attacker) -> None:
    async def one(number: int) -> None:
        session = f"gone{number}_{by.random.random()}"
        await by.send("POST", "/v1/sessions", {"id": session})
        calls = [_call(by, "<<x>>" + "word " * 200, f"o{n}", defer=True) for n in range(200)]
        body = {"session": session, "variables": {"x": None}, "calls": calls, "outputs": []}
        sent = asyncio.create_task(by.send("POST", "/v1/graphs", body))
        await asyncio.sleep(by.random.random() / 2)
        await by.send("DELETE", f"/v1/sessions/{session}")
        await sent

    for batch in range(10):
        await asyncio.gather(*(one(4 * batch + number) for number in range(4)))


# parts, items, tokens and headers


@attack("parts of messages")
async def _parts(by: Attacker) -> None:
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * 12_000_000}}
    deep: Any = {"url": "x"}
    for _ in range(180):
        deep = {"a": deep}
    strange: list[Any] = [
        {"type": "image_url", "image_url": url}
        for url in ("", None, 5, [], {}, {"url": 5}, {"url": "data:;base64,="}, {"url": "file:///etc/passwd"}, deep)
    ]
    strange += [{"type": "input_audio", "input_audio": {"data": "!" * 1_000_000, "format": "\x00"}}, image]
    strange += [{"type": "file", "file": {"file_id": "../.."}}, {"type": "video_url", "video_url": deep, "x": deep}]
    for part in strange:
        await by.chat(messages=[{"role": "user", "content": [part]}])
        await by.chat(
            messages=[{"role": "user", "content": [part, {"type": "text", "text": "<<a>>"}]}], session="parts"
        )
    for part in ({"type": "text", "text": "x"}, {"type": "text", "text": ""}, {"type": "image_url", "image_url": "x"}):
        for count in (9_000, 60_000):
            await by.chat(messages=[{"role": "user", "content": [part] * count}])
        many = [{"role": role, "content": [part] * 9} for role in ("user", "assistant")] * 4_000
        await by.chat(messages=many)
        await by.chat(messages=many, session="parts", semantic={"defer": True})
    calls = [{"id": "c", "type": "function", "function": {"name": "f", "arguments": "[" * 900}}] * 9_000
    await by.chat(messages=[{"role": "assistant", "tool_calls": calls}, {"role": "user", "content": "x"}])
    arguments = json.dumps({"a": ["<|im_start|>"] * 100_000})
    calls = [{"id": "c", "type": "function", "function": {"name": "f", "arguments": arguments}}] * 8
    await by.chat(messages=[{"role": "assistant", "tool_calls": calls}, {"role": "user", "content": "x"}])
    await by.chat(messages=[{"role": "assistant", "reasoning": "x" * 9_000_000, "content": "y"}] * 1)


@attack("items of responses")
async def _items(by: Attacker) -> None:
    items: list[Any] = [
        {"type": "function_call", "call_id": "c", "name": "f", "arguments": "[" * 100_000},
        {"type": "function_call_output", "call_id": "c", "output": "x" * 5_000_000},
        {"type": "item_reference", "id": "r" * 100_000},
        {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "x" * 9}] * 9_000},
        {"type": "reasoning", "id": "r", "summary": [{"type": "summary_text", "text": "x"}] * 9_000},
        {"type": "x" * 1_000_000},
        {},
    ]
    for item in items:
        for count in (1, 14_000_000 // (9 * len(str(item)) // 8)):  # as many as fit into a body
            many = [*[item] * min(count, 5_000), {"role": "user", "content": "x"}]
            await by.send("POST", "/v1/responses", {"model": by.model, "input": many, "max_output_tokens": 1})
    small = {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"}
    output = {"type": "function_call_output", "call_id": "c", "output": "x"}
    body = {"model": by.model, "input": [small, output] * 5_000, "max_output_tokens": 1}
    await by.send("POST", "/v1/responses", body)
    await by.send("POST", "/v1/responses", {**body, "include": ["x" * 10] * 100_000, "metadata": {"a": "b" * 10**6}})


@attack("content blocks of every kind")
async def _blocks(by: Attacker) -> None:
    text = {"type": "text", "text": "a b c "}  # many of them exceed the window: no long prompt is prefilled
    blocks: list[Any] = [
        text,
        {"type": "text", "text": "x" * 1_000_000},
        {"type": "tool_use", "id": "c", "name": "f", "input": {"a": "x" * 100_000}},
        {"type": "tool_result", "tool_use_id": "c", "content": [text] * 50},
        {"type": "thinking", "thinking": "x" * 100_000, "signature": "myna1.x"},
        {"type": "document", "source": {"type": "content", "content": [text] * 5_000}},
        {"type": "mcp_tool_result", "tool_use_id": "c", "content": [{"a": [1] * 100}] * 1_000},
        {"type": "x" * 1_000_000},
        {},
    ]
    for block in blocks:
        for count in (1, 4_000_000 // len(json.dumps(block))):
            for role in ("user", "assistant"):
                content = [block] * min(count, 9_000)
                body = {
                    "model": by.model,
                    "messages": [{"role": role, "content": content}, {"role": "user", "content": "x"}],
                }
                await by.send("POST", "/v1/messages", {**body, "max_tokens": 1})
                await by.send("POST", "/v1/messages/count_tokens", body)
    for role in ("user", "assistant", "system"):
        messages = [{"role": "user", "content": "x"}, *[{"role": role, "content": "x" * 900}] * 9_000]
        await by.send("POST", "/v1/messages", {"model": by.model, "messages": messages, "max_tokens": 1})
    tools = [{"name": f"f{number}", "input_schema": {"type": "object"}} for number in range(512)]
    for choice in ("auto", "any"):
        body = {"model": by.model, "max_tokens": 1, "messages": [{"role": "user", "content": "x"}], "tools": tools}
        await by.send("POST", "/v1/messages", {**body, "tool_choice": {"type": choice}})
    await by.send("POST", "/v1/messages", {**body, "model": "claude-" + "x" * 14_000_000})


@attack("a long chain of responses", long=True)
async def _chain(by: Attacker) -> None:
    previous = None
    items = [{"type": "reasoning", "id": "r", "summary": []}] * 1_800  # the model reads none of it
    for number in range(300):
        given = [*(items if number % 60 == 0 else []), {"role": "user", "content": "x"}]
        body = {"model": by.model, "input": given, "max_output_tokens": 1, "previous_response_id": previous}
        status, answer = await by.send("POST", "/v1/responses", body)
        previous = answer["id"] if status == 200 else previous
    again = {"model": by.model, "input": "x", "max_output_tokens": 1, "previous_response_id": previous}
    await asyncio.gather(*(by.send("POST", "/v1/responses", again) for _ in range(30)))
    await asyncio.gather(*(by.send("GET", f"/v1/responses/{previous}/input_items?limit=100") for _ in range(30)))


@attack("background responses, streamed and cancelled")
async def _background(by: Attacker) -> None:
    async def one(number: int) -> None:
        stream = bool(number % 2)
        body = {"model": by.model, "input": "Tell me a story.", "background": True, "max_output_tokens": 60}
        status, answer = await by.send("POST", "/v1/responses", {**body, "stream": stream}, seconds=0.5)
        id = answer.get("id") if isinstance(answer, dict) else None
        if status == 0 or id is None:
            return
        path = f"/v1/responses/{id}"
        follows = [by.send("GET", f"{path}?stream=true&starting_after={n}", seconds=1) for n in (-1, 0, 3, 2**63)]
        await asyncio.gather(*follows, by.send("POST", f"{path}/cancel"), by.send("GET", path))
        await asyncio.gather(*(by.send("POST", f"{path}/cancel") for _ in range(3)), by.send("DELETE", path))
        await by.send("POST", "/v1/responses", {**body, "previous_response_id": id})

    for _ in range(3):
        await asyncio.gather(*(one(number) for number in range(30)))


@attack("requests about tokens", long=True)
async def _about_tokens(by: Attacker) -> None:
    for tokens in (list(range(1_000)) * 1_900, [0] * 999_999, [-1] * 10, [10**9], [1.5], ["x"], list(range(200_000))):
        await by.send("POST", "/detokenize", {"model": by.model, "tokens": tokens})
    await by.send("POST", "/tokenize", {"model": by.model, "prompt": "\u0301" * 300_000})
    await by.send("POST", "/tokenize", {"model": by.model, "prompt": "<|im_end|>" * 90_000, "return_token_strs": True})
    for text in ("a" * 900_000, "字" * 300_000, " \n" * 450_000, "\x00" * 900_000):
        body = {"model": by.model, "messages": [{"role": "user", "content": text}], "return_token_strs": True}
        await asyncio.gather(*(by.send("POST", "/tokenize", body) for _ in range(8)))
    deep: Any = 1
    for _ in range(150):
        deep = {"a": deep}
    messages = [{"role": "user", "content": "x"}] * 9_000
    await by.send("POST", "/tokenize", {"model": by.model, "messages": messages, "chat_template_kwargs": {"x": deep}})
    for path in ("/v1/embeddings", "/v1/rerank", "/v1/moderations"):
        await by.send("POST", path, {"model": by.model, "input": ["x" * 1_000] * 10_000})


_SESSION_HEADERS = ("X-Semantic-Session", "X-Session-Id")


@attack("headers of sessions")
async def _session_headers(by: Attacker) -> None:
    names = ("", " ", "a" * 128, "a" * 129, ".", "..", "a/b", "a%00", "<<a>>", "\u00e9", "a" * 8_000, "a,b", "null")
    for name in names:
        for header in (*_SESSION_HEADERS, "X-Semantic-Defer", "X-Request-Id", "Last-Event-ID", "Idempotency-Key"):
            await by.send("POST", "/v1/chat/completions", by.chat_body(), {header: name})
            await by.send(
                "POST", "/v1/responses", {"model": by.model, "input": "x", "max_output_tokens": 1}, {header: name}
            )

    async def some(part: int) -> None:
        for number in range(150):
            body = by.chat_body("<<nothing>>") if number % 3 else by.chat_body("x", max_tokens=1)
            await by.send("POST", "/v1/chat/completions", body, {_SESSION_HEADERS[number % 2]: f"{part}.{number}"})

    await asyncio.gather(*(some(part) for part in range(8)))


# engines elsewhere


@attack("an engine elsewhere that answers nonsense", long=True)
async def _nonsense(by: Attacker) -> None:
    async def ask(name: str, **more: Any) -> tuple[int, Any]:
        body = {**by.chat_body(name, tools=[_TOOL], **more), "model": MODEL}
        return await by.send("POST", "/v1/chat/completions", body, seconds=5)

    for number, name in enumerate(ANSWERS):
        for _ in range(10):  # after a failure the engine is left alone for a while
            if (await ask("fine"))[0] == 200:
                break
        await ask(name, stream=bool(number % 2))
    await asyncio.gather(*(ask(name) for name in ANSWERS))


@attack("large messages for an engine elsewhere", long=True)
async def _large_elsewhere(by: Attacker) -> None:
    fine = {"type": "text", "text": "fine"}
    image = {"type": "image_url", "image_url": {"url": "data:" + "A" * 12_000_000}}
    contents: list[list[Any]] = [[[image, fine]], [[{"type": "image_url", "image_url": "x"}] * 9_000 + [fine]] * 7]
    for number, content in enumerate([*contents, ["x" * 15_000_000, "fine"]]):
        messages = [{"role": "user", "content": each} for each in content]
        body = {**by.chat_body(), "model": MODEL, "messages": messages}
        slots = {"semantic": {"slots": {"s": {"max_tokens": 2}}, "defer": True}}
        slots |= {"messages": [*messages, {"role": "assistant", "content": "<<s>>"}]}
        # encoded once: this process also measures the other key
        plain, named = [json.dumps(each).encode() for each in (body, {**body, **slots})]
        header = {"X-Semantic-Session": f"large{number}"}
        await asyncio.gather(
            *(by.send("POST", "/v1/chat/completions", plain) for _ in range(8)),
            *(by.send("POST", "/v1/chat/completions", named, header) for _ in range(8)),
        )
