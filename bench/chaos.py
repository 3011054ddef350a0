"""Kill engines and gateways under load, and check that no accepted work is lost.

`python -m bench.chaos --engine-kills 200 --gateway-kills 50` starts a server with a journal. Clients run sessions of
chains, map-reduce, slots, templates and streams, and background responses. SIGKILL arrives at random times. Every
answer is checked against the guarantees of docs/api.md: an accepted value or response is never lost, none is assigned
twice, every wait ends, and events arrive without a gap. If one does not hold, the exit status is 1, and the program
prints what was wrong.

With `--gateways 2 --journal postgresql://…`, two gateways share a journal. Each request goes to any of them, and a
killed gateway restarts only after the other had to take over.
"""

import argparse
import asyncio
import json
import random
import re
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import psutil

from bench.servers import free_port

_PATIENCE_SECONDS = 120.0
"""Maximum duration of a wait, restarts included, in seconds."""
_FAILURES = {"interrupted", "engine_failed", "engine_unavailable", "upstream_failed", "transform_failed"}
"""Error codes that a variable may have when a process of its call was killed."""


class Broken(Exception):
    """A guarantee did not hold."""


class Victim:
    """A server on a fixed port that is killed and started again."""

    def __init__(self, journal: str, arguments: Sequence[str]) -> None:
        self.port = free_port()
        self._command = [sys.executable, "-m", "gateway", "serve", "--port", str(self.port), "--journal", journal]
        self._command += ["--log-level", "error", *arguments]
        self._process: subprocess.Popen[str] | None = None
        self.model = ""

    @property
    def url(self) -> str:
        """Base URL of the server."""
        return f"http://127.0.0.1:{self.port}/v1"

    def start(self) -> None:
        """Start the server and wait until it is ready."""
        self._process = subprocess.Popen(
            self._command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, stdin=subprocess.DEVNULL, text=True
        )
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        served = re.search(r"myna serves (\S+)", line)
        if served is None:
            raise Broken(f"the server did not start: exit status {self._process.wait()}")
        self.model = served[1]

    def kill_gateway(self) -> None:
        """Send SIGKILL to the gateway; its engine ends by itself."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()

    def wait_for_engine(self, *, loading: bool) -> None:
        """Wait until an engine runs, or until it accepts work."""
        while not (self._engines() if loading else self._ready()):
            time.sleep(0.05)

    def kill_engine(self) -> None:
        """Send SIGKILL to the engine, if there is one."""
        for engine in self._engines():
            with suppress(psutil.NoSuchProcess):
                engine.kill()

    def _engines(self) -> list[psutil.Process]:
        assert self._process is not None
        found = []
        for process in psutil.Process(self._process.pid).children():
            with suppress(psutil.NoSuchProcess):  # a killed process is a zombie for a moment
                if "engine.server.worker" in process.cmdline():
                    found.append(process)
        return found

    def _ready(self) -> bool:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/health/ready", timeout=5) as response:
                return bool(response.status == 200)
        except OSError:
            return False

    def stop(self) -> int:
        """Stop the server with SIGTERM. Return the exit status."""
        assert self._process is not None
        assert self._process.stdout is not None
        self._process.terminate()
        self._process.stdout.close()
        return self._process.wait(60)


@dataclass
class Session:
    """Everything that one session's client received, to be compared with later answers."""

    id: str
    values: dict[str, str] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)
    accepted: set[str] = field(default_factory=set)
    last_event: int = 0
    ready: Counter[str] = field(default_factory=Counter)
    responses: dict[str, Any] = field(default_factory=dict)
    """Accepted background responses, as they ended."""


class Load:
    """Clients that retry until they succeed, and record what they receive."""

    def __init__(self, http: aiohttp.ClientSession, victims: Sequence[Victim], seed: int) -> None:
        self._http = http
        self._victims = victims
        self._random = random.Random(seed)
        self.sessions: list[Session] = []
        self.requests = 0
        self.retries = 0
        self.streams = 0

    @property
    def _url(self) -> str:
        """Return the URL of a random server."""
        return self._random.choice(self._victims).url

    async def run(self, until: asyncio.Event) -> None:
        """Run one client: session after session."""
        while not until.is_set():
            session = Session(f"chaos-{len(self.sessions)}")
            self.sessions.append(session)
            await self._session(session)

    async def _session(self, session: Session) -> None:
        pick = self._random
        await self._accept("POST", "/sessions", {"id": session.id, "ttl": 86_400}, already="session_exists")
        topic = f"the number {pick.randrange(10**6)} & <<not_a_reference"
        await self._accept("PUT", f"/sessions/{session.id}/variables/topic", {"value": topic})
        session.values["topic"] = topic
        session.accepted.add("topic")
        count = pick.randrange(1, 4)
        for index in range(count):
            await self._defer(session, f"map_{index}", f"Point {index} of <<topic>>", pick.choice([0.0, 1.0]))
        points = " ".join(f"<<map_{index}>>" for index in range(count))
        await self._defer(session, "reduce", f"Sum up: {points}", 0.0)
        await self._accept(
            "PUT", f"/sessions/{session.id}/variables/page", {"template": "Topic: <<topic>>\n<<reduce>>"}
        )
        session.accepted.add("page")
        await self._defer(
            session,
            "verdict",
            "Judge <<page>>",
            0.0,
            answer="Good: <<good>>. Bad: <<bad>>.",
            slots={"good": {"max_tokens": 4}, "bad": {"max_tokens": 4, "temperature": 1.0}},
        )
        names = sorted(session.accepted)
        waits = [self._wait(session, name) for name in pick.sample(names, 2)]
        others = [self._respond(session, temperature) for temperature in (0.0, pick.choice([0.0, 1.0]))]
        await asyncio.gather(*waits, self._stream(session, "map_0"), self._events(session, 12), *others)
        for name in names:
            await self._wait(session, name)
        await self._events(session, 1)

    async def _defer(
        self, session: Session, name: str, text: str, temperature: float, answer: str = "", **semantic: Any
    ) -> None:
        messages = [{"role": "user", "content": text}, *([{"role": "assistant", "content": answer}] if answer else [])]
        body = {
            "model": self._victims[0].model,
            "messages": messages,
            "max_tokens": self._random.randrange(4, 40),
            "temperature": temperature,
            "semantic": {"session": session.id, "output": name, "defer": True, **semantic},
        }
        await self._accept("POST", "/chat/completions", body)
        session.accepted |= {name, *semantic.get("slots", ())}

    async def _accept(self, method: str, path: str, body: Any, already: str = "variable_already_set") -> None:
        """Send a request until the server accepts it. A retry that the server has already accepted counts as
        success."""
        async for status, answer in self._until_answered(method, path, body):
            if status in (200, 201):
                return
            if status == 409 and answer["error"]["code"] == already:
                return
            raise Broken(f"{method} {path} was answered {status}: {answer}")

    async def _until_answered(self, method: str, path: str, body: Any = None) -> AsyncIterator[tuple[int, Any]]:
        """Return the first answer that is neither a broken connection nor 503."""
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while True:
            self.requests += 1
            try:
                async with self._http.request(method, self._url + path, json=body) as response:
                    status, answer = response.status, await response.json()
            except (aiohttp.ClientError, ConnectionError):
                status, answer = 503, None
            if status != 503:
                yield status, answer
                return
            self.retries += 1
            if time.monotonic() > deadline:
                raise Broken(f"{method} {path} had no answer in {_PATIENCE_SECONDS:g} s: {answer}")
            await asyncio.sleep(0.1)

    async def _wait(self, session: Session, name: str) -> None:
        async for status, answer in self._until_answered(
            "GET", f"/sessions/{session.id}/variables/{name}?wait=true&timeout={_PATIENCE_SECONDS:g}"
        ):
            if status != 200:
                raise Broken(f"{session.id}/{name}: waiting was answered {status}: {answer}")
            self._told(session, answer)

    def _told(self, session: Session, variable: Any) -> None:
        name, state = variable["name"], variable["state"]
        where = f"{session.id}/{name}"
        if state == "ready":
            value = variable["value"]
            if session.values.setdefault(name, value) != value:
                raise Broken(f"{where} was {session.values[name]!r} and is {value!r}")
        elif state == "failed" and variable["error"]["code"] in _FAILURES:
            if name in session.values:
                raise Broken(f"{where} was {session.values[name]!r} and has failed: {variable['error']}")
            session.failures[name] = variable["error"]["code"]
        else:
            raise Broken(f"{where} ended as {variable}")

    async def _stream(self, session: Session, name: str) -> None:
        """Read a value as it grows, and start again from its beginning if the connection breaks."""
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while time.monotonic() < deadline:
            path = f"{self._url}/sessions/{session.id}/variables/{name}"
            self.streams += 1
            text = ""
            try:
                async with self._http.get(path, headers={"Accept": "text/event-stream"}) as response:
                    if response.status == 200:
                        async for kind, data, _ in _events_of(response):
                            if kind == "delta":
                                text += data["text"]
                            else:
                                self._told(session, data)
                                if data["state"] == "ready" and text != data["value"]:
                                    raise Broken(f"{session.id}/{name} streamed {text!r} and is {data['value']!r}")
                                return
            except (aiohttp.ClientError, ConnectionError):
                pass  # the server was killed; ask again
            self.retries += 1
            await asyncio.sleep(0.1)
        raise Broken(f"{session.id}/{name}: its stream had no end")

    async def _events(self, session: Session, enough: int) -> None:
        """Read some more events, from where the last ones ended."""
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while time.monotonic() < deadline:
            headers = {"Last-Event-ID": str(session.last_event)}
            try:
                async with self._http.get(f"{self._url}/sessions/{session.id}/events", headers=headers) as response:
                    if response.status == 200:
                        async for kind, data, id in _events_of(response):
                            if id <= session.last_event:
                                raise Broken(f"{session.id}: event {id} came behind {session.last_event}")
                            session.last_event = id
                            if kind == "variable" and data["state"] == "ready":
                                session.ready[data["name"]] += 1
                                if session.ready[data["name"]] > 1:
                                    raise Broken(f"{session.id}/{data['name']} was assigned twice")
                            enough -= 1
                            if enough <= 0:
                                return
            except (aiohttp.ClientError, ConnectionError):
                pass  # the server was killed; resume after the last event
            self.retries += 1
            await asyncio.sleep(0.1)
        raise Broken(f"{session.id}: no more events")

    async def _respond(self, session: Session, temperature: float) -> None:
        """Create a background response, wait until it has ended, with or without its stream, and continue the
        conversation."""
        body = {
            "model": self._victims[0].model,
            "input": f"Tell of {session.id}.",
            "max_output_tokens": self._random.randrange(4, 60),
            "temperature": temperature,
            "background": True,
        }
        answer = await self._answered("POST", "/responses", body)
        id = answer["id"]
        session.responses[id] = None
        if self._random.random() < 0.5:
            await self._watch(session, id)
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while (answer := await self._answered("GET", f"/responses/{id}"))["status"] in ("queued", "in_progress"):
            if time.monotonic() > deadline:
                raise Broken(f"{id} has not ended in {_PATIENCE_SECONDS:g} s")
            await asyncio.sleep(0.1)
        self._ended(session, answer)
        if answer["status"] != "failed":
            asked = {**body, "input": "Go on.", "previous_response_id": id, "background": False}
            await self._answered("POST", "/responses", asked)

    def _ended(self, session: Session, answer: Any) -> None:
        known = session.responses[answer["id"]]
        if known not in (None, answer):
            raise Broken(f"a response was {known} and is {answer}")
        fine = answer["status"] in ("completed", "incomplete")
        if not fine and (answer["status"] != "failed" or answer["error"]["type"] not in _FAILURES):
            raise Broken(f"a response ended as {answer}")
        session.responses[answer["id"]] = answer

    async def _answered(self, method: str, path: str, body: Any = None) -> Any:
        status, answer = await anext(self._until_answered(method, path, body))
        if status != 200:
            raise Broken(f"{method} {path} was answered {status}: {answer}")
        return answer

    async def _watch(self, session: Session, id: str) -> None:
        """Read the events of a response to the last one, and resume after the last event if the connection breaks."""
        deadline = time.monotonic() + _PATIENCE_SECONDS
        position, text, gap = -1, "", False
        while time.monotonic() < deadline:
            query = "stream=true" + (f"&starting_after={position}" if position >= 0 else "")
            self.streams += 1
            try:
                async with self._http.get(f"{self._url}/responses/{id}?{query}") as response:
                    if response.status == 200:
                        async for kind, data, _ in _events_of(response):
                            number = data["sequence_number"]
                            if number != position + 1:
                                raise Broken(f"{id}: event {number} came after {position}")
                            position = number
                            if kind == "response.output_text.delta":
                                text += data["delta"]
                            elif kind in ("response.completed", "response.incomplete", "response.failed"):
                                self._ended(session, data["response"])
                                self._streamed(data["response"], text, gap=gap)
                                return
            except (aiohttp.ClientError, ConnectionError):
                gap = True  # the server was killed: it may send only the last event
            self.retries += 1
            await asyncio.sleep(0.1)
        raise Broken(f"{id}: its stream had no end")

    def _streamed(self, response: Any, text: str, *, gap: bool) -> None:
        if response["status"] == "failed":
            return
        whole = "".join(part["text"] for item in response["output"] for part in item.get("content", ()))
        if not (whole.startswith(text) if gap else whole == text):
            raise Broken(f"{response['id']} streamed {text!r} and is {whole!r}")

    async def check_all(self) -> None:
        """Read everything again that a client ever received."""
        for session in self.sessions:
            for id in session.responses:
                self._ended(session, await self._answered("GET", f"/responses/{id}"))
            async for _, answer in self._until_answered("GET", f"/sessions/{session.id}/variables"):
                found = {variable["name"]: variable for variable in answer["data"]}
                for name in session.accepted:
                    if name not in found:
                        raise Broken(f"{session.id}/{name} was accepted and is not there")
                    self._told(session, found[name])


async def _events_of(response: aiohttp.ClientResponse) -> AsyncIterator[tuple[str, Any, int]]:
    """Yield name, data and id of server-sent events."""
    kind, data, id = "", None, 0
    async for raw in response.content:
        line = raw.decode().rstrip("\n")
        if not line and data is not None:
            yield kind, data, id
            kind, data = "", None
        elif line.startswith("event: "):
            kind = line[7:]
        elif line.startswith("id: "):
            id = int(line[4:])
        elif line.startswith("data: "):
            data = json.loads(line[6:])


async def _strike(victims: Sequence[Victim], order: list[str], pick: random.Random, away: float) -> float:
    """Kill everything in `order`, in random order, at random times.

    `order` contains the names of what is killed, and `stop` for a gateway that is stopped with SIGTERM. A gateway stays
    away for `away` seconds. Returns the longest time, in seconds, until one was ready again.
    """
    pick.shuffle(order)
    slowest = 0.0
    for kind in order:
        victim = pick.choice(victims)
        if kind != "engine":
            await asyncio.sleep(pick.uniform(0.0, 3.0))
            if kind == "gateway":
                victim.kill_gateway()
            elif status := await asyncio.to_thread(victim.stop):
                raise Broken(f"a gateway that was stopped ended with status {status}")
            await asyncio.sleep(away)
            began = time.monotonic()
            await asyncio.to_thread(victim.start)
            slowest = max(slowest, time.monotonic() - began)
        else:
            loading = pick.random() < 0.1
            await asyncio.to_thread(victim.wait_for_engine, loading=loading)
            await asyncio.sleep(pick.uniform(0.0, 3.0))
            victim.kill_engine()
    return slowest


async def chaos(
    arguments: Sequence[str],
    *,
    engine_kills: int,
    gateway_kills: int,
    gateway_stops: int = 0,
    clients: int,
    seed: int,
    journal: str,
    gateways: int = 1,
    away: float = 0.0,
) -> dict[str, Any]:
    """Run the load and the kills. Return the report. Raises Broken."""
    victims = [Victim(journal, arguments) for _ in range(gateways)]
    async with AsyncExitStack() as stack:
        for victim in victims:
            await asyncio.to_thread(victim.start)
            stack.callback(victim.kill_gateway)
        timeout = aiohttp.ClientTimeout(total=_PATIENCE_SECONDS)
        http = await stack.enter_async_context(
            aiohttp.ClientSession(timeout=timeout, connector=aiohttp.TCPConnector(limit=0))
        )
        load = Load(http, victims, seed)
        done = asyncio.Event()
        running = asyncio.gather(*(load.run(done) for _ in range(clients)))
        order = ["engine"] * engine_kills + ["gateway"] * gateway_kills + ["stop"] * gateway_stops
        kills = asyncio.ensure_future(_strike(victims, order, random.Random(seed), away))
        await asyncio.wait([running, kills], return_when=asyncio.FIRST_COMPLETED)
        if running.done():
            kills.cancel()
            await running  # raises the clients' errors
        await kills
        done.set()
        await running
        await load.check_all()
        for victim in victims:
            status = await asyncio.to_thread(victim.stop)
            if status:
                raise Broken(f"the server ended with status {status}")
        for victim in victims:
            await asyncio.to_thread(victim.start)
        await load.check_all()  # once more after a restart, from the disk alone
    return {
        "engine_kills": engine_kills,
        "gateway_kills": gateway_kills,
        "gateway_stops": gateway_stops,
        "sessions": len(load.sessions),
        "variables": sum(len(session.accepted) for session in load.sessions),
        "ready": sum(len(session.values) for session in load.sessions),
        "responses": sum(len(session.responses) for session in load.sessions),
        "failed": dict(Counter(code for session in load.sessions for code in session.failures.values())),
        "requests": load.requests,
        "retries": load.retries,
        "slowest_restart_s": round(kills.result(), 2),
    }


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="bench.chaos", description=__doc__, allow_abbrev=False)
    parser.add_argument("--engine-kills", type=int, default=200)
    parser.add_argument("--gateway-kills", type=int, default=50)
    parser.add_argument("--gateway-stops", type=int, default=0, help="SIGTERM, as in a rolling restart")
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--gateways", type=int, default=1)
    parser.add_argument("--journal", help="journal to use instead of a temporary file")
    parser.add_argument("--away", type=float, default=0.0, help="seconds until a killed gateway restarts")
    known, rest = parser.parse_known_args()
    with tempfile.TemporaryDirectory() as folder:
        try:
            report = asyncio.run(
                chaos(
                    rest,
                    engine_kills=known.engine_kills,
                    gateway_kills=known.gateway_kills,
                    gateway_stops=known.gateway_stops,
                    clients=known.clients,
                    seed=known.seed,
                    journal=known.journal or str(Path(folder) / "journal.sqlite"),
                    gateways=known.gateways,
                    away=known.away,
                )
            )
        except Broken as error:
            print(f"broken: {error}", file=sys.stderr)
            return 1
    print(json.dumps(report))
    return 0


if __name__ == "__main__":
    sys.exit(main())
