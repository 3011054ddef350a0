"""CPU time of the index of programs for a request: `python -m bench.programs`.

For each kind of request it creates live programs, each with one call and an answer of 200 characters. Then it measures
new requests: the time to hash their messages, to find their program and the answers that their prompt contains, and to
record their end with an answer of 200 characters. The texts are random words, so no prompt contains an earlier answer;
in the rows of turns, the request extends a known conversation. Conversations begin with a message of the system, and
have no tool calls. The comparison of prompts, the durations of gaps, and the rest of the gateway are left out.
"""

import argparse
import json
import random
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import count

from gateway.programs import AnswerFacts, ProgramFacts, ProgramIndex, ProgramLimits, text_message

_WORDS = 4_000
"""Number of different words in the texts."""
_ANSWER = 200
"""Length of an answer, in characters."""

Message = tuple[str, str]
"""Role and text."""


@dataclass(frozen=True, slots=True)
class Shape:
    """Shape of a request. `messages`, `characters`: its messages, and their characters together. `new`: number of its
    last messages that are new; the others are those of a known call and its answer. None: all are new."""

    name: str
    messages: int
    characters: int
    new: int | None = None


SHAPES = (
    Shape("short request", 1, 100),
    Shape("new conversation: 3 KB in 6 messages", 6, 3_000),
    Shape("new conversation: 32 KB in 42 messages", 42, 32_000),
    Shape("turn of an agent: 32 KB in 42 messages, one new", 42, 32_000, 1),
    Shape("turn of an agent: 500 KB in 300 messages, one new", 300, 500_000, 1),
)


class Texts:
    """Source of texts of random words. `seed`: of the random numbers."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        letters = "etaoinshrdlucmfw"
        self._words = ["".join(self._random.choices(letters, k=self._random.randint(2, 9))) for _ in range(_WORDS)]

    def text(self, length: int) -> str:
        """Return a text of a length in characters."""
        words = self._random.choices(self._words, k=length // 3 + 1)
        return " ".join(words)[:length]

    def conversation(self, shape: Shape) -> list[Message]:
        """Return the messages of a request: of the system, of user and assistant in turns, and the last of the user."""
        length = max(1, shape.characters // shape.messages)
        roles = ["user" if number % 2 else "assistant" for number in range(shape.messages)]
        roles[0] = "system" if shape.messages > 1 else "user"
        return [(role, self.text(length)) for role in roles]


class Load:
    """Programs in an index, and requests to it."""

    def __init__(self, programs: int, seed: int) -> None:
        """`programs`: number of live programs. Raises ValueError if the index cannot hold so many."""
        self._texts = Texts(seed)
        self._numbers = count()
        limits = ProgramLimits()
        if programs > limits.programs:
            raise ValueError(f"an index holds at most {limits.programs} programs")
        self.index = ProgramIndex(limits, several_tenants=False)
        for _ in range(programs):
            self.request([("user", self._texts.text(100))], AnswerFacts(self._texts.text(_ANSWER)))
        if len(self.index) < programs:
            raise ValueError(f"an index holds at most {len(self.index)} programs like these")

    def request(self, messages: Sequence[Message], answer: AnswerFacts) -> None:
        """Send one request through the index."""
        number = next(self._numbers)
        now = number / 1_000
        facts = ProgramFacts([text_message(role, text) for role, text in messages])
        call = self.index.begin("key", facts, now, call_id=f"call {number}")
        self.index.end(call, answer, now)

    def measure(self, shape: Shape, requests: int) -> float:
        """Return the CPU time of one request of a shape, in seconds: the mean of several."""
        seconds = 0.0
        for _ in range(requests):
            messages = self._texts.conversation(shape)
            if shape.new is not None:
                known = messages[: -shape.new]
                self.request(known[:-1], AnswerFacts(known[-1][1]))
            answer = AnswerFacts(self._texts.text(_ANSWER))
            began = time.process_time()
            self.request(messages, answer)
            seconds += time.process_time() - began
        return seconds / requests


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="bench.programs", description=__doc__, allow_abbrev=False)
    parser.add_argument("--programs", type=int, default=10_000, help="number of live programs (default: 10000)")
    parser.add_argument("--requests", type=int, default=300, help="requests of each shape in a round (default: 300)")
    parser.add_argument("--rounds", type=int, default=5, help="number of rounds, all shapes in each (default: 5)")
    parser.add_argument("--seed", type=int, default=1, help="seed of the texts (default: 1)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    chosen = parser.parse_args(arguments)
    if min(chosen.programs, chosen.requests, chosen.rounds) < 1:
        parser.error("--programs, --requests and --rounds must be at least 1")
    rounds = []
    for number in range(chosen.rounds):
        found = []
        for shape in SHAPES:  # with programs of its own: the requests add programs
            try:
                load = Load(chosen.programs, chosen.seed + number)
            except ValueError as error:
                parser.error(str(error))
            found.append(load.measure(shape, chosen.requests) * 1e6)
        rounds.append(found)
        print(f"round {number + 1} of {chosen.rounds}", file=sys.stderr)
    medians = [statistics.median(values) for values in zip(*rounds, strict=True)]
    if chosen.json:
        shapes = [asdict(shape) | {"us": us} for shape, us in zip(SHAPES, medians, strict=True)]
        print(json.dumps({"programs": chosen.programs, "requests": shapes}))
        return
    print("| request | CPU time, median |\n| --- | --- |")
    for shape, us in zip(SHAPES, medians, strict=True):
        print(f"| {shape.name} | {us:.0f} µs |")


if __name__ == "__main__":
    main()
