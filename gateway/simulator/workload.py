"""Applications, and when they come."""

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from gateway.graph.call import CallSpec, Input, SamplingParams, Segment, Slot, Text
from gateway.graph.references import Reference

_OUT = SamplingParams(max_tokens=32, temperature=0.0, ignore_eos=True)


@dataclass(frozen=True)
class Step:
    """Calls that a client sends together, so many seconds after the variable `after` is there, or after the beginning;
    it waits for those of their outputs that are `wanted`."""

    calls: Sequence[CallSpec]
    wanted: Sequence[str]
    after: str | None = None
    seconds: float = 0.0


@dataclass(frozen=True)
class Application:
    """What a client does in a session."""

    kind: str
    steps: Sequence[Step]


def _at_once(kind: str, calls: Sequence[CallSpec], output: str) -> Application:
    """A graph that a client sends at once, and waits for one text."""
    return Application(kind, [Step(calls, [output])])


def _call(output: str, prompt: Sequence[tuple[int, int] | str], tokens: int = 32) -> CallSpec:
    """`prompt`: texts, as what they hold and how many tokens they have, and names of variables."""
    segments: list[Segment] = [
        Input(Reference(part), "") if isinstance(part, str) else Text([part[0]] * part[1]) for part in prompt
    ]
    sampling = _OUT if tokens == 32 else SamplingParams(max_tokens=tokens, temperature=0.0, ignore_eos=True)
    return CallSpec(model="m", segments=[*segments, Slot(None, sampling)], output=output, share=False)


class Applications:
    """Makes applications; no two have a text in common but for what says so."""

    def __init__(self, pick: random.Random) -> None:
        self._pick = pick
        self._texts = 1000

    def _text(self, tokens: int) -> tuple[int, int]:
        self._texts += 1
        return self._texts, max(1, int(tokens * self._pick.uniform(0.6, 1.4)))

    def chat(self) -> Application:
        """One question."""
        return _at_once("chat", [_call("a", [self._text(60)], self._pick.choice((16, 32, 64)))], "a")

    def copilot(self) -> Application:
        """One question behind one of four long prompts that many share."""
        prompt = (self._pick.randrange(4), 1024)
        return _at_once("copilot", [_call("a", [prompt, self._text(30)])], "a")

    def chain(self) -> Application:
        """Summaries one after another."""
        length = self._pick.randrange(4, 12)
        calls = [_call("s0", [self._text(512)])]
        calls += [_call(f"s{at}", [self._text(512), f"s{at - 1}"]) for at in range(1, length)]
        return _at_once("chain", calls, f"s{length - 1}")

    def map_reduce(self) -> Application:
        """Summaries side by side, and one of them all."""
        width = self._pick.randrange(6, 30)
        calls = [_call(f"m{at}", [self._text(512)]) for at in range(width)]
        calls.append(_call("r", [self._text(10), *(f"m{at}" for at in range(width))]))
        return _at_once("map_reduce", calls, "r")

    def agents(self) -> Application:
        """An architect, coders, reviewers and revisers, who see all code."""
        task = self._text(256)
        calls = [_call("design", [task], 96)]
        calls += [_call(f"c0_{at}", [task, "design", self._text(10)], 96) for at in range(4)]
        for turn in range(2):
            code = [f"c{turn}_{at}" for at in range(4)]
            calls += [_call(f"v{turn}_{at}", [task, "design", *code, self._text(5)]) for at in range(4)]
            calls += [
                _call(f"c{turn + 1}_{at}", [task, "design", *code, f"v{turn}_{at}", self._text(5)], 96)
                for at in range(4)
            ]
        calls.append(_call("all", [self._text(5), *(f"c2_{at}" for at in range(4))], 16))
        return _at_once("agents", calls, "all")

    def of(self, mix: str) -> Iterator[Application]:
        """Applications without end: of one kind, or mixed."""
        kinds: dict[str, Callable[[], Application]] = {
            kind: getattr(self, kind) for kind in ("chat", "copilot", "chain", "map_reduce", "agents")
        }
        while True:
            if mix == "mixed":
                yield self._pick.choices([*kinds.values()], (40, 25, 12, 15, 8))[0]()
            else:
                yield kinds[mix]()


MIXES = ("mixed", "chat", "copilot", "chain", "map_reduce", "agents")


def arrivals(pick: random.Random, rate: float, *, bursts: bool) -> Iterator[float]:
    """Times between two applications, in seconds; `rate` a second on average. In bursts, ten come nearly at once."""
    while True:
        if not bursts:
            yield pick.expovariate(rate)
        else:
            yield pick.expovariate(rate / 10)
            yield from (pick.expovariate(100 * rate) for _ in range(9))
