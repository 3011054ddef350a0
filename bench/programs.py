"""Measure the CPU time that the gateway's index of programs needs for a request: `python -m bench.programs`.

For each kind of request, the benchmark creates live programs, each with one call and an answer of 200 characters. Then
it measures new requests. The time of a request has three parts: hashing its messages; finding its program, and the
answers that its prompt contains; and recording its end, with an answer of 200 characters. A figure is the median over
the rounds, of the mean of the requests of a round.

The texts are random words. A prompt contains an earlier answer only if it extends that conversation: in the rows "turn
of an agent", and with `--agents`. Requests of several messages begin with a system message. They have no tool calls.

With `--agents FILE`, the benchmark also replays recorded sessions of agents, one after the other: all requests in full
size, with tool calls and their results. The texts are random words again. The other live programs are as above. The
figures are the median over the rounds, of the median and of the mean of all requests of a round.

Python's garbage collector is tuned as in the server. Not measured: the comparison of prompts, the durations of gaps,
and the rest of the gateway.
"""

import argparse
import gc
import json
import random
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from bench.agent_sessions import AgentSession, BadSessions, Conversation, Scale, Turn, choose, read_sessions
from compat.openai import Message
from gateway.api.program_tracker import chat_messages
from gateway.programs import AnswerFacts, ProgramFacts, ProgramIndex, ProgramLimits, PromptMessage, text_message
from gateway.server.gc_tuning import GcTuner

_WORDS = 4_000
"""Number of different words in the texts."""
_ANSWER_CHARACTERS = 200
"""Length of an answer, in characters."""
_TOKEN_CHARACTERS = 4
"""Average length of a token, in characters."""
_FULL_SIZE = Scale(tokens=1.0, turns=1 << 30, window=1 << 30)
"""Scale of a replay with all tokens and all requests."""
_MESSAGES = TypeAdapter(list[Message])


class TooManyPrograms(ValueError):
    """An index cannot hold so many programs."""


@dataclass(frozen=True, slots=True)
class Shape:
    """Shape of a request. `messages`, `characters`: number of its messages, and of their characters together.
    `new_messages`: number of its last messages that are new; the others are those of an earlier call and its answer.
    None: all are new."""

    name: str
    messages: int
    characters: int
    new_messages: int | None = None


SHAPES = (
    Shape("short request", 1, 100),
    Shape("new conversation: 3 KB in 6 messages", 6, 3_000),
    Shape("new conversation: 32 KB in 42 messages", 42, 32_000),
    Shape("turn of an agent: 32 KB in 42 messages, one new", 42, 32_000, 1),
    Shape("turn of an agent: 500 KB in 300 messages, one new", 300, 500_000, 1),
)


class Texts:
    """Source of texts of random words. `seed`: seed of the random numbers."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        letters = "etaoinshrdlucmfw"
        self._words = ["".join(self._random.choices(letters, k=self._random.randint(2, 9))) for _ in range(_WORDS)]

    def text(self, length: int) -> str:
        """Return a text of a length in characters."""
        words = self._random.choices(self._words, k=length // 3 + 1)
        return " ".join(words)[:length]

    def conversation(self, shape: Shape) -> list[tuple[str, str]]:
        """Return the roles and texts of a request's messages: a system message, then alternating user and assistant
        messages. A request of one message has a user message only."""
        length = max(1, shape.characters // shape.messages)
        roles = ["user" if number % 2 else "assistant" for number in range(shape.messages)]
        roles[0] = "system" if shape.messages > 1 else "user"
        return [(role, self.text(length)) for role in roles]


class Load:
    """Programs in an index, and requests to it."""

    def __init__(self, programs: int, seed: int) -> None:
        """`programs`: number of live programs. Raises TooManyPrograms."""
        self._texts = Texts(seed)
        self._numbers = count()
        limits = ProgramLimits()
        if programs > limits.programs:
            raise TooManyPrograms(f"an index holds at most {limits.programs} programs")
        self.index = ProgramIndex(limits, several_tenants=False)
        for _ in range(programs):
            message, answer = self._texts.text(100), self._texts.text(_ANSWER_CHARACTERS)
            self.request([text_message("user", message)], AnswerFacts(answer))
        if len(self.index) < programs:
            raise TooManyPrograms(f"an index holds at most {len(self.index)} programs of this size")

    def request(self, messages: Sequence[PromptMessage], answer: AnswerFacts) -> None:
        """Send one request through the index."""
        number = next(self._numbers)
        now = number / 1_000
        call = self.index.begin("key", ProgramFacts(messages), now, call_id=f"call {number}")
        self.index.end(call, answer, now)

    def measure(self, shape: Shape, requests: int) -> float:
        """Return the CPU time of one request of a shape, in seconds: the mean of several."""
        seconds = 0.0
        for _ in range(requests):
            messages = self._texts.conversation(shape)
            if shape.new_messages is not None:
                *known, (_, answer) = messages[: -shape.new_messages]
                self.request([text_message(*message) for message in known], AnswerFacts(answer))
            facts = AnswerFacts(self._texts.text(_ANSWER_CHARACTERS))
            messages = json.loads(json.dumps(messages))  # as from a client: Python would remember hashes of the texts
            began = time.process_time()
            self.request([text_message(*message) for message in messages], facts)
            seconds += time.process_time() - began
        return seconds / requests

    def replay(self, session: AgentSession) -> list[float]:
        """Send the requests of a recorded session. Return the CPU time of each, in seconds."""
        conversation, found = Conversation(session, ""), []
        for index, turn in enumerate(session.turns):
            messages = _MESSAGES.validate_json(json.dumps(conversation.messages(index)))
            answer = self._answer(index, turn)
            calls = [(call["function"]["name"], call["function"]["arguments"]) for call in answer["tool_calls"]]
            facts = AnswerFacts(answer["content"], calls)
            began = time.process_time()
            self.request(chat_messages(messages), facts)
            found.append(time.process_time() - began)
            conversation.record(index, answer, turn.prompt, turn.completion)
        return found

    def _answer(self, index: int, turn: Turn) -> dict[str, Any]:
        """Return an answer of the recorded length; a third of one that calls a tool is text before the call."""
        length = _TOKEN_CHARACTERS * turn.completion
        if not turn.calls_tool:
            return {"content": self._texts.text(length), "tool_calls": []}
        arguments = json.dumps({"path": f"file{index}.py", "text": self._texts.text(2 * length // 3)})
        call = {"id": f"call_{index}", "type": "function", "function": {"name": "edit", "arguments": arguments}}
        return {"content": self._texts.text(length // 3), "tool_calls": [call]}


def _round(chosen: argparse.Namespace, recorded: Sequence[AgentSession], number: int) -> list[float]:
    """Return the CPU times of all kinds of requests in one round, in seconds, with programs of its own for each."""

    def load() -> Load:
        return Load(chosen.programs, chosen.seed + number)

    found = [load().measure(shape, chosen.requests) for shape in SHAPES]
    if recorded:
        last = load()
        times = [seconds for session in recorded for seconds in last.replay(session)]
        found += [statistics.median(times), statistics.mean(times)]
    print(f"round {number + 1} of {chosen.rounds}", file=sys.stderr)
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="bench.programs", description=__doc__, allow_abbrev=False)
    parser.add_argument("--programs", type=int, default=10_000, help="number of live programs (default: 10000)")
    parser.add_argument("--requests", type=int, default=300, help="requests of each kind in a round (default: 300)")
    parser.add_argument("--rounds", type=int, default=5, help="number of rounds; each measures all kinds (default: 5)")
    parser.add_argument("--seed", type=int, default=1, help="seed of the texts (default: 1)")
    parser.add_argument(
        "--agents",
        type=Path,
        metavar="FILE",
        help="recorded sessions of agents to replay, as JSON lines or JSON lines in gzip (default: none)",
    )
    parser.add_argument(
        "--sessions", type=int, default=20, help="number of sessions to replay; only with --agents (default: 20)"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    chosen = parser.parse_args(arguments)
    if min(chosen.programs, chosen.requests, chosen.rounds, chosen.sessions) < 1:
        parser.error("--programs, --requests, --rounds and --sessions must be at least 1")
    recorded: list[AgentSession] = []
    if chosen.agents is not None:
        try:
            recorded = choose(list(read_sessions(chosen.agents, _FULL_SIZE)), chosen.sessions, 1, chosen.seed)
        except (BadSessions, OSError) as error:
            parser.error(str(error))
    names = [shape.name for shape in SHAPES]
    if recorded:
        names += ["recorded agents: median", "recorded agents: mean"]
    thresholds = gc.get_threshold()
    GcTuner().start()  # as in the server
    try:
        rounds = [_round(chosen, recorded, number) for number in range(chosen.rounds)]
    except TooManyPrograms as error:
        parser.error(str(error))
    finally:
        gc.set_threshold(*thresholds)
        gc.unfreeze()
    medians = [statistics.median(values) * 1e6 for values in zip(*rounds, strict=True)]
    if chosen.json:
        requests = [{"name": name, "us": us} for name, us in zip(names, medians, strict=True)]
        print(json.dumps({"programs": chosen.programs, "requests": requests}))
        return
    print("| request | CPU time, median of the rounds |\n| --- | --- |")
    for name, us in zip(names, medians, strict=True):
        print(f"| {name} | {us:.0f} µs |")


if __name__ == "__main__":
    main()
