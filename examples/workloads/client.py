"""Client of a server that runs one program in three modes.

`client`    on any OpenAI server: wait for every answer, and insert its text into the next prompt
`deferred`  the same requests with two more headers: each returns a reference immediately, which is inserted instead
`graph`     collect the calls, and send them as one graph when the program reads a text
"""

import asyncio
import itertools
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import aiohttp

MODES = ("client", "deferred", "graph")
_sessions = itertools.count()


class RequestFailed(Exception):
    """The server answered with an error, which is the message."""


@dataclass(frozen=True)
class Span:
    """Times of one call, in seconds of the client's clock. `first`: time of the first token, if known."""

    name: str
    begin: float
    end: float
    first: float | None = None


def _new_session() -> str:
    return f"app-{time.time_ns():x}-{next(_sessions)}"


@dataclass
class App:
    """One application's connection to a server.

    `rtt`: simulated round-trip time of the network, in seconds. `salt`: applications share the server's cache only with
    applications of the same salt.

    Answers are greedy and have exactly the requested length, so that every server and mode does the same work.
    """

    http: aiohttp.ClientSession
    url: str
    model: str
    mode: str = "client"
    rtt: float = 0.0
    salt: str = ""
    session: str = field(default_factory=_new_session)
    spans: list[Span] = field(default_factory=list)
    answers: dict[str, str] = field(default_factory=dict)
    """Texts of all answers, by the names of the calls; complete after `close`."""
    _calls: list[dict[str, Any]] = field(default_factory=list)
    _names: "itertools.count[int]" = field(default_factory=itertools.count)
    _others: "list[App]" = field(default_factory=list)
    _outputs: dict[str, str] = field(default_factory=dict)
    """Names of the calls, by the names of their outputs."""

    def another_user(self) -> "App":
        """Return a connection of another user, with a new session. It is closed with this one."""
        other = replace(self, session=_new_session(), _calls=[], _names=itertools.count(), _others=[], _outputs={})
        self._others.append(other)
        return other

    async def ask(
        self, prompt: str | Sequence[dict[str, str]], tokens: int, *, needs_text: bool = False, name: str = "call"
    ) -> str:
        """Return an answer to insert into other prompts: its text or a reference, always its text if `needs_text`.

        `name`: name of the call in the timeline.
        """
        messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)
        body: dict[str, Any] = {
            "model": self.model,
            "messages": messages,
            "max_tokens": tokens,
            "temperature": 0,
            "ignore_eos": True,
        }
        if self.salt:
            body["cache_salt"] = self.salt
        if self.mode == "client":
            begin = time.time()
            answer = await self._exchange("POST", "/chat/completions", body)
            self.spans.append(Span(name, begin, time.time()))
            self.answers[name] = str(answer["choices"][0]["message"]["content"])
            return self.answers[name]
        output = f"{re.sub(r'[^A-Za-z0-9]', '_', name)}_{next(self._names)}"
        self._outputs[output] = name
        body["semantic"] = {"output": output, "defer": self.mode == "deferred" and not needs_text}
        if self.mode == "graph":
            self._calls.append(body)
            return (await self.texts(f"<<{output}>>"))[0] if needs_text else f"<<{output}>>"
        answer = await self._exchange("POST", "/chat/completions", body, {"X-Semantic-Session": self.session})
        return str(answer["choices"][0]["message"]["content"])

    async def texts(self, *answers: str) -> list[str]:
        """Wait for answers, and return their texts."""
        if self.mode == "client":
            return list(answers)
        names = [answer.strip("<>") for answer in answers]
        header = {"X-Semantic-Session": self.session}
        if self.mode == "graph":
            calls, self._calls = self._calls, []
            body = {"calls": calls, "outputs": names}
            outputs = (await self._exchange("POST", "/graphs", body, header))["outputs"]
            return [outputs[name] for name in names]
        paths = [f"/sessions/{self.session}/variables/{name}?wait=true" for name in names]
        found = await asyncio.gather(*(self._exchange("GET", path, None, header) for path in paths))
        return [variable["value"] for variable in found]

    async def close(self) -> None:
        """Add the session's calls to the timeline and their texts to the answers, and delete the session."""
        for other in self._others:
            await other.close()
        if self.mode == "client" or not next(self._names):  # no calls were sent
            return
        immediate = replace(self, rtt=0.0)
        graph = await immediate._exchange("GET", f"/sessions/{self.session}/graph")
        for call in graph["calls"]:
            begin = call["created"]
            self.spans.append(Span(call["output"], begin, call["finished"] or begin, call["first_token"]))
        for variable in graph["variables"]:
            self.answers[self._outputs[variable["name"]]] = variable["value"]
        await immediate._exchange("DELETE", f"/sessions/{self.session}")

    async def _exchange(
        self, method: str, path: str, body: dict[str, Any] | None = None, headers: dict[str, str] | None = None
    ) -> Any:
        await asyncio.sleep(self.rtt / 2)
        async with self.http.request(method, self.url + path, json=body, headers=headers) as response:
            if response.status != 200:
                raise RequestFailed(f"{method} {path}: {response.status}: {await response.text()}")
            answer = await response.json()
        await asyncio.sleep(self.rtt / 2)
        return answer
