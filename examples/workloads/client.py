"""One program, three ways to run it.

`client`    on any OpenAI server: every answer is awaited, and its text pasted into the next prompt
`deferred`  the same requests with two headers more: an answer is a reference, at once, and that is pasted
`graph`     calls are gathered, and sent as one graph when a text is first wanted
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


class Refused(Exception):
    """The server did not do what it was asked; its own words."""


@dataclass(frozen=True)
class Span:
    """One call, for the timeline: seconds of the client's clock. `first` is the first token's, where it is known."""

    name: str
    begin: float
    end: float
    first: float | None = None


def _new_session() -> str:
    return f"app-{time.time_ns():x}-{next(_sessions)}"


@dataclass
class App:
    """One application's connection to a server. `rtt`: seconds that are added to every exchange, as a network would.
    `salt`: what the server has cached is found by applications with the same one only.

    Answers are greedy and exactly as long as was asked, so that every server and every mode does the same work.
    """

    http: aiohttp.ClientSession
    url: str
    model: str
    mode: str = "client"
    rtt: float = 0.0
    salt: str = ""
    session: str = field(default_factory=_new_session)
    spans: list[Span] = field(default_factory=list)
    _calls: list[dict[str, Any]] = field(default_factory=list)
    _names: "itertools.count[int]" = field(default_factory=itertools.count)
    _others: "list[App]" = field(default_factory=list)

    def another(self) -> "App":
        """The same server for somebody else: a session of its own, closed with this one."""
        other = replace(self, session=_new_session(), _calls=[], _names=itertools.count(), _others=[])
        self._others.append(other)
        return other

    async def ask(
        self, prompt: str | Sequence[dict[str, str]], tokens: int, *, wanted: bool = False, name: str = "call"
    ) -> str:
        """An answer to be pasted into other prompts: its text, or the reference to it. If it is `wanted`, its text.

        `name` is for the timeline.
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
            return str(answer["choices"][0]["message"]["content"])
        output = f"{re.sub(r'[^A-Za-z0-9]', '_', name)}_{next(self._names)}"
        body["semantic"] = {"output": output, "defer": self.mode == "deferred" and not wanted}
        if self.mode == "graph":
            self._calls.append(body)
            return (await self.texts(f"<<{output}>>"))[0] if wanted else f"<<{output}>>"
        answer = await self._exchange("POST", "/chat/completions", body, {"X-Session-Id": self.session})
        return str(answer["choices"][0]["message"]["content"])

    async def texts(self, *answers: str) -> list[str]:
        """The texts of answers, as soon as all of them are there."""
        if self.mode == "client":
            return list(answers)
        names = [answer.strip("<>") for answer in answers]
        header = {"X-Session-Id": self.session}
        if self.mode == "graph":
            calls, self._calls = self._calls, []
            body = {"calls": calls, "outputs": names}
            outputs = (await self._exchange("POST", "/graphs", body, header))["outputs"]
            return [outputs[name] for name in names]
        paths = [f"/sessions/{self.session}/variables/{name}?wait=true" for name in names]
        found = await asyncio.gather(*(self._exchange("GET", path, None, header) for path in paths))
        return [one["value"] for one in found]

    async def close(self) -> None:
        """Ends the session, and asks before what became of its calls, for the timeline."""
        for other in self._others:
            await other.close()
        if self.mode == "client" or not next(self._names):  # nothing was asked
            return
        quick = replace(self, rtt=0.0)
        graph = await quick._exchange("GET", f"/sessions/{self.session}/graph")
        for call in graph["calls"]:
            begin = call["created"]
            self.spans.append(Span(call["output"], begin, call["finished"] or begin, call["first_token"]))
        await quick._exchange("DELETE", f"/sessions/{self.session}")

    async def _exchange(
        self, method: str, path: str, body: dict[str, Any] | None = None, headers: dict[str, str] | None = None
    ) -> Any:
        await asyncio.sleep(self.rtt / 2)
        async with self.http.request(method, self.url + path, json=body, headers=headers) as response:
            if response.status != 200:
                raise Refused(f"{method} {path}: {response.status}: {await response.text()}")
            answer = await response.json()
        await asyncio.sleep(self.rtt / 2)
        return answer
