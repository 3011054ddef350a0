"""Read recorded agent sessions: sizes, times and prefix structure of their requests, without texts."""

import gzip
import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec

from gateway.simulator.trace import BadTrace

BLOCK = 64
"""Tokens of a block in the recording's prefix structure."""
LONG_PAUSE = 600.0
"""Duration, in seconds, from which a pause is shortened; see `shorten_pause`."""


class _Request(msgspec.Struct):
    t: float
    prompt: int = msgspec.field(name="in")
    out: int
    of: int
    keep: int
    stop: str
    api: float
    think: float
    agent: str = ""


class _Session(msgspec.Struct):
    id: str
    tools: int
    system: int
    requests: list[_Request]


@dataclass(frozen=True, slots=True)
class RecordedRequest:
    """Request of a session.

    `prompt`, `output`: tokens. `source`: index of the earlier request with which it shares its first `shared` tokens,
    or -1. `stop`: how its answer ends: `tool_use`, `end_turn`, or empty. `after`: index of the request whose answer it
    follows, -1 for the first. `pause`: seconds from that answer to this request. `extends`: whether its prompt extends
    that of `source`, but for a part of a block.
    """

    prompt: int
    output: int
    source: int
    shared: int
    stop: str
    agent: str
    after: int
    pause: float
    extends: bool = False


@dataclass(frozen=True, slots=True)
class RecordedSession:
    """Session of one main agent and its sub-agents. `tools`, `system`: tokens at the beginning of the main prompts."""

    id: str
    tools: int
    system: int
    requests: tuple[RecordedRequest, ...]


@dataclass(frozen=True, slots=True)
class Recording:
    """Sessions that can be replayed. `cut`: number of sessions that end early, before a request that exceeds the
    window. `left_out`: number of sessions whose first request exceeds it. `requests_left_out`: requests of both."""

    sessions: tuple[RecordedSession, ...]
    cut: int = 0
    left_out: int = 0
    requests_left_out: int = 0


def shorten_pause(seconds: float) -> float:
    """Return the replayed duration of a pause, in seconds.

    Persons pause for hours. The replay would then consist of idle time, and no cache retains a prompt for so long. From
    `LONG_PAUSE` on, a pause grows with the logarithm of the recorded one. So it stays the longer of two, and no
    duration occurs more often than others.
    """
    return seconds if seconds <= LONG_PAUSE else LONG_PAUSE * (1.0 + math.log(seconds / LONG_PAUSE))


def read_sessions(path: Path, window: int) -> Recording:
    """Read JSON lines, compressed by gzip or not. Raises BadTrace, or OSError.

    `window`: maximum number of tokens of a prompt with its answer. A session ends before the first request that exceeds
    it.
    """
    try:
        content = path.read_bytes()
        lines = (gzip.decompress(content) if content.startswith(b"\x1f\x8b") else content).splitlines()
        recorded = [msgspec.json.decode(line, type=_Session) for line in lines if line.strip()]
        sessions = [_convert(session) for session in recorded]
    except (msgspec.DecodeError, gzip.BadGzipFile, zlib.error, EOFError, ValueError) as error:
        raise BadTrace(f"{path} is not a recording of agent sessions: {error}") from error
    if not sessions:
        raise BadTrace(f"{path} is not a recording of agent sessions: it is empty")
    return clip(sessions, window)


def clip(sessions: Sequence[RecordedSession], window: int) -> Recording:
    """Return the sessions up to the first request of each that exceeds the window."""
    kept = []
    cut = left_out = requests = 0
    for session in sessions:
        fitting = 0
        for request in session.requests:
            if request.prompt + request.output > window:
                break
            fitting += 1
        requests += len(session.requests) - fitting
        if not fitting:
            left_out += 1
            continue
        cut += fitting < len(session.requests)
        kept.append(RecordedSession(session.id, session.tools, session.system, session.requests[:fitting]))
    return Recording(tuple(kept), cut, left_out, requests)


def scale_tokens(session: RecordedSession, share: float) -> RecordedSession:
    """Return the session with all numbers of tokens multiplied by a share, up to 1. Times stay."""
    requests = []
    for request in session.requests:
        prompt = max(1, round(request.prompt * share))
        requests.append(
            replace(
                request,
                prompt=prompt,
                output=max(1, round(request.output * share)),
                shared=min(prompt, int(request.shared * share)),
            )
        )
    sizes = round(session.tools * share), round(session.system * share)
    return RecordedSession(session.id, *sizes, tuple(requests))


def _convert(session: _Session) -> RecordedSession:
    """Convert a session. Raises ValueError if a request refers to a later one, or a number is out of range."""
    if not session.requests:
        raise ValueError(f"session {session.id!r} has no requests")
    if session.tools < 0 or session.system < 0:
        raise ValueError(f"session {session.id!r} has negative sizes")
    latest: dict[str, int] = {}
    converted = []
    for index, request in enumerate(session.requests):
        numbers = (request.t, request.api, request.think)
        if request.prompt < 1 or request.out < 0 or request.keep < 0 or not all(0 <= x < math.inf for x in numbers):
            raise ValueError(f"request {index} of session {session.id!r} has a number out of range")
        if not -1 <= request.of < index:
            raise ValueError(f"request {index} of session {session.id!r} shares a prefix with no earlier request")
        before = latest.get(request.agent, -1)
        if before >= 0:
            # a server that did not report its time lets `think` count from an answer before the previous one
            pause = min(request.think, max(0.0, request.t - session.requests[before].t))
        elif index:
            before = index - 1
            previous = session.requests[before]
            pause = max(0.0, request.t - previous.t - previous.api)
        else:
            pause = 0.0
        latest[request.agent] = index
        shared = 0
        extends = False
        if request.of >= 0:
            earlier = session.requests[request.of].prompt
            shared = min(request.keep * BLOCK, request.prompt, earlier)
            extends = shared > earlier - BLOCK
        converted.append(
            RecordedRequest(
                prompt=request.prompt,
                output=max(1, request.out),
                source=request.of,
                shared=shared,
                stop=request.stop,
                agent=request.agent,
                after=before,
                pause=shorten_pause(pause),
                extends=extends,
            )
        )
    return RecordedSession(session.id, session.tools, session.system, tuple(converted))
