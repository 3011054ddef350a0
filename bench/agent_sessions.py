"""Recorded sessions of agents, and conversations that have their sizes and their common beginnings.

A recording has numbers only. The texts are words at random: equal where the recording shares its beginning with an
earlier request, and different from there on.
"""

import gzip
import json
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from bench.load import WORDS

BLOCK_TOKENS = 64
"""Size of a block of the recordings, in tokens."""
MARGIN = 1.125
"""Length of a replayed prompt, relative to the estimate, for which windows and KV pools have room."""
_MESSAGE_TOKENS = 5
"""Tokens that chat templates add to a message, about."""
_SLACK_BLOCKS = 2
"""Blocks at the end of a request that may be missing although the next request extends it: the last one is not full."""


class BadSessions(ValueError):
    """The file is not a recording of sessions of agents."""


@dataclass(frozen=True, slots=True)
class Turn:
    """A request of a session, and its answer.

    `prompt`, `completion`: tokens. `of`: index of the earlier request with which it shares its first `shared` tokens,
    or -1. `calls_tool`: whether the answer is a tool call. `think`: seconds before the request in which a tool runs or
    a person reads. `agent`: name of the sub-agent, empty for the main agent.
    """

    prompt: int
    completion: int
    of: int
    shared: int
    extends: bool
    calls_tool: bool
    think: float
    agent: str

    @property
    def answer_tokens(self) -> int:
        """Tokens of the answer in a replay, about."""
        if not self.calls_tool:
            return self.completion
        return _CALL_TOKENS + TOOLS[tool_for(self.completion)] // _TOKEN_CHARACTERS


@dataclass(frozen=True, slots=True)
class AgentSession:
    """A session. `system`, `tools`: tokens of the system prompt and of the tools; equal numbers mean equal texts."""

    name: str
    system: int
    tools: int
    turns: tuple[Turn, ...]


def without_tool_calls(session: AgentSession) -> AgentSession:
    """Return the session with texts of the recorded lengths in place of tool calls; tools run as long as before."""
    return replace(session, turns=tuple(replace(turn, calls_tool=False) for turn in session.turns))


@dataclass(frozen=True, slots=True)
class Scale:
    """How a recording becomes a shorter one. `tokens`, `seconds`: divisors. `longest`: maximum scaled time of a tool,
    in seconds. `turns`: maximum number of requests of a session. `window`: the model's, in tokens."""

    tokens: float = 64.0
    seconds: float = 20.0
    longest: float = 4.0
    turns: int = 10
    window: int = 8192


def read_sessions(path: Path, scale: Scale) -> Iterator[AgentSession]:
    """Yield the sessions of a file of JSON lines, which may be compressed by gzip. A session ends before the first
    request that does not fit into the window. Raises BadSessions and OSError."""
    opened = gzip.open if path.suffix == ".gz" else open
    with opened(path, "rt", encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            try:
                session = _session(json.loads(line), scale)
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise BadSessions(f"{path}, line {number}: not a session of an agent ({error!r})") from error
            if session.turns:
                yield session


def _session(line: Mapping[str, Any], scale: Scale) -> AgentSession:
    turns: list[Turn] = []
    requests = line["requests"][: scale.turns]
    for index, request in enumerate(requests):
        of, shared = int(request["of"]), request["keep"] * BLOCK_TOKENS
        if not -1 <= of < index:
            raise ValueError(f"request {index} extends request {of}")
        prompt, completion = (max(1, round(request[name] / scale.tokens)) for name in ("in", "out"))
        if MARGIN * (prompt + completion) + CALL_LIMIT > scale.window:
            break
        extends = of >= 0 and shared + _SLACK_BLOCKS * BLOCK_TOKENS >= requests[of]["in"]
        think = min(scale.longest, max(0.0, float(request["think"])) / scale.seconds)
        agent = str(request.get("agent") or "")
        calls_tool = request.get("stop") != "end_turn"
        turns.append(Turn(prompt, completion, of, round(shared / scale.tokens), extends, calls_tool, think, agent))
    system, tools = (round(line[name] / scale.tokens) for name in ("system", "tools"))
    return AgentSession(str(line["id"]), system, tools, tuple(turns))


def choose(sessions: Sequence[AgentSession], count: int, turns: int, seed: int) -> list[AgentSession]:
    """Return `count` sessions at random. Those with fewer than `turns` requests are chosen only if there are too few
    others; if there are too few sessions, some are there several times, with other texts."""
    order = sorted(sessions, key=lambda session: session.name)
    random.Random(seed).shuffle(order)
    order.sort(key=lambda session: len(session.turns) < turns)
    return [
        replace(order[index % len(order)], name=f"{index}: {order[index % len(order)].name}") for index in range(count)
    ]


TOOLS = {"read_file": 16, "run_command": 48, "write_file": 192}
"""Tools, and the length of the text that the model writes to call them, in characters."""
_TOKEN_CHARACTERS = 4
"""Average length of a token, in characters."""
_CALL_TOKENS = 20
"""Tokens of a tool call besides that text, about."""
CALL_LIMIT = 2 * _CALL_TOKENS + max(TOOLS.values())
"""Maximum tokens of a tool call: its text may have a token for each character."""


def tool_for(completion: int) -> str:
    """Return the tool whose call is about as long as an answer of `completion` tokens. A token has about four
    characters."""
    return min(TOOLS, key=lambda name: abs(TOOLS[name] - _TOKEN_CHARACTERS * completion))


def tools_of(session: AgentSession) -> list[dict[str, Any]]:
    """Return the definitions of the session's tools."""
    tools = []
    for name, length in TOOLS.items():
        text = {"type": "string", "minLength": length, "maxLength": length}
        parameters = {
            "type": "object",
            "properties": {"text": text},
            "required": ["text"],
            "additionalProperties": False,
        }
        function = {"name": name, "description": f"Tool set {session.tools}.", "parameters": parameters}
        tools.append({"type": "function", "function": function})
    padding = session.tools - len(json.dumps(tools)) // _TOKEN_CHARACTERS
    if padding > 0:
        tools[0]["function"]["description"] += " " + _words(padding, f"tools {session.tools}")  # type: ignore[index]
    return tools


def _words(count: int, seed: str) -> str:
    """Return a text of `count` words, which are about as many tokens."""
    return " ".join(random.Random(seed).choices(WORDS, k=max(1, count)))


@dataclass(slots=True)
class _Sent:
    """Messages of a request. `sizes`: tokens of each, about. `tokens`: tokens of the prompt, as the server counted them
    once it has answered."""

    messages: list[dict[str, Any]]
    sizes: list[int]
    tokens: int
    answer: dict[str, Any] | None = None
    answer_tokens: int = 0


@dataclass(slots=True)
class Conversation:
    """Owner of the messages of one session. `salt`: texts of other salts are different."""

    session: AgentSession
    salt: str
    _sent: dict[int, _Sent] = field(default_factory=dict)

    def messages(self, index: int) -> list[dict[str, Any]]:
        """Return the messages of a request. The request that it shares its beginning with was asked for before."""
        turn = self.session.turns[index]
        base = self._sent.get(turn.of)
        if base is None:
            sent = self._begin(index, turn)
        elif turn.extends:
            sent = self._extend(index, turn, base)
        else:
            sent = self._cut(index, turn, base)
        self._sent[index] = sent
        return sent.messages

    def record(self, index: int, answer: Mapping[str, Any], prompt_tokens: int, completion_tokens: int) -> None:
        """Record the answer to a request, as later requests contain it."""
        sent = self._sent[index]
        kept = {name: answer[name] for name in ("content", "tool_calls") if answer.get(name)}
        sent.answer = {"role": "assistant", "content": "", **kept}
        sent.tokens, sent.answer_tokens = prompt_tokens, completion_tokens

    def estimate(self, index: int) -> int:
        """Return the tokens of a request's prompt, about."""
        return self._sent[index].tokens

    def _text(self, tokens: int, index: int, part: str = "") -> str:
        return _words(tokens, f"{self.salt}/{self.session.name}/{index}/{part}")

    def _system(self) -> tuple[dict[str, Any], int]:
        size = max(1, self.session.system)
        return {"role": "system", "content": _words(size, f"{self.salt}/system {size}")}, size + _MESSAGE_TOKENS

    def _begin(self, index: int, turn: Turn) -> _Sent:
        system, size = self._system()
        tools = len(json.dumps(tools_of(self.session))) // _TOKEN_CHARACTERS
        rest = max(1, turn.prompt - size - tools - _MESSAGE_TOKENS)
        user = {"role": "user", "content": self._text(rest, index)}
        return _Sent([system, user], [size + tools, rest + _MESSAGE_TOKENS], turn.prompt)

    def _extend(self, index: int, turn: Turn, base: _Sent) -> _Sent:
        messages, sizes = [*base.messages], [*base.sizes]
        if base.answer is not None:
            messages.append(base.answer)
            sizes.append(base.answer_tokens + _MESSAGE_TOKENS)
        calls = base.answer.get("tool_calls", ()) if base.answer is not None else ()
        results = max(1, len(calls))
        free = turn.prompt - base.tokens - base.answer_tokens - (results + 1) * _MESSAGE_TOKENS
        rest = max(1, free // results)
        for call in calls:
            text = self._text(rest, index, call["id"] if len(calls) > 1 else "")
            messages.append({"role": "tool", "tool_call_id": call["id"], "content": text})
        if not calls:
            messages.append({"role": "user", "content": self._text(rest, index)})
        sizes += [rest + _MESSAGE_TOKENS] * results
        added = (1 + results) * _MESSAGE_TOKENS + base.answer_tokens + results * rest
        return _Sent(messages, sizes, base.tokens + added)

    def _cut(self, index: int, turn: Turn, base: _Sent) -> _Sent:
        """Return messages that have only the beginning of an earlier request, up to the middle of a message."""
        same = kept = 0
        for message, size in zip(base.messages, base.sizes, strict=True):
            if kept + size > turn.shared or (message is base.messages[-1] and message["role"] != "assistant"):
                break
            same, kept = same + 1, kept + size
        messages, sizes = base.messages[:same], base.sizes[:same]
        next_message = base.messages[same] if same < len(base.messages) else None
        rest = max(1, turn.prompt - kept - _MESSAGE_TOKENS)
        if next_message is None or next_message["role"] == "assistant":
            messages.append({"role": "user", "content": self._text(rest, index)})
        else:
            old = next_message["content"].split(" ")
            if next_message["role"] == "system":  # the tools are part of its size
                old = old[: max(0, turn.shared - (base.sizes[0] - len(old)))]
                rest = max(1, rest - base.sizes[0] - _MESSAGE_TOKENS)
                new = self._text(max(1, self.session.system - len(old)), index, "system")
                messages.append({**next_message, "content": " ".join([*old, new])})
                sizes.append(base.sizes[0])
                messages.append({"role": "user", "content": self._text(rest, index)})
            else:
                old = old[: min(rest, max(0, turn.shared - kept))]
                new = self._text(max(1, rest - len(old)), index)
                messages.append({**next_message, "content": " ".join([*old, new])})
        sizes.append(rest + _MESSAGE_TOKENS)
        return _Sent(messages, sizes, max(turn.prompt, sum(sizes)))


def prompt_tokens(session: AgentSession) -> list[int]:
    """Return the tokens of each prompt of a session, about, as it is replayed."""
    conversation, found = Conversation(session, ""), []
    for index, turn in enumerate(session.turns):
        conversation.messages(index)
        found.append(conversation.estimate(index))
        call = {"id": str(index), "type": "function", "function": {"name": "", "arguments": ""}}
        answer = {"tool_calls": [call]} if turn.calls_tool else {"content": "x"}
        conversation.record(index, answer, found[-1], turn.answer_tokens)
    return found


def peak_tokens(session: AgentSession) -> int:
    """Return the tokens of the longest prompt of a session with its answer, about, as it is replayed."""
    prompts = prompt_tokens(session)
    return max(prompt + turn.answer_tokens for prompt, turn in zip(prompts, session.turns, strict=True))
