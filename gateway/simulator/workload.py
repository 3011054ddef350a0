"""Generated applications and their arrival times."""

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from engine.sampling_params import SamplingParams
from gateway.graph.call import CallSpec
from gateway.graph.references import Reference
from gateway.graph.segments import Input, Segment, Slot, Text

_SAMPLING = SamplingParams(max_tokens=32, temperature=0.0, ignore_eos=True)


@dataclass(frozen=True)
class Step:
    """Calls that a client sends together (not a step of an engine).

    It sends them `seconds` after the variable `after` is ready, or after the start. It waits for the `awaited` outputs.
    """

    calls: Sequence[CallSpec]
    awaited: Sequence[str]
    after: str | None = None
    seconds: float = 0.0


@dataclass(frozen=True)
class Application:
    """All that a client does in one session."""

    kind: str
    steps: Sequence[Step]


def _single_step(kind: str, calls: Sequence[CallSpec], output: str) -> Application:
    """Return an application that sends one graph and waits for one variable."""
    return Application(kind, [Step(calls, [output])])


def _call(output: str, prompt: Sequence[tuple[int, int] | str], tokens: int = 32) -> CallSpec:
    """Return a call. `prompt`: texts, as content number and number of tokens, and names of variables."""
    segments: list[Segment] = [
        Input(Reference(part), "") if isinstance(part, str) else Text([part[0]] * part[1]) for part in prompt
    ]
    sampling = _SAMPLING if tokens == 32 else SamplingParams(max_tokens=tokens, temperature=0.0, ignore_eos=True)
    return CallSpec(model="m", segments=[*segments, Slot(None, sampling)], output=output, share=False)


class Applications:
    """Generator of applications. Their texts differ, except where the method says that they are shared."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._texts = 1000

    def _text(self, tokens: int) -> tuple[int, int]:
        self._texts += 1
        return self._texts, max(1, int(tokens * self._rng.uniform(0.6, 1.4)))

    def chat(self) -> Application:
        """Generate one question."""
        return _single_step("chat", [_call("a", [self._text(60)], self._rng.choice((16, 32, 64)))], "a")

    def copilot(self) -> Application:
        """Generate one question behind one of four long shared prompts."""
        prompt = (self._rng.randrange(4), 1024)
        return _single_step("copilot", [_call("a", [prompt, self._text(30)])], "a")

    def chain(self) -> Application:
        """Generate summaries, each of which continues the one before."""
        length = self._rng.randrange(4, 12)
        calls = [_call("s0", [self._text(512)])]
        calls += [_call(f"s{index}", [self._text(512), f"s{index - 1}"]) for index in range(1, length)]
        return _single_step("chain", calls, f"s{length - 1}")

    def map_reduce(self) -> Application:
        """Generate parallel summaries, and one summary of them all."""
        width = self._rng.randrange(6, 30)
        calls = [_call(f"m{index}", [self._text(512)]) for index in range(width)]
        calls.append(_call("r", [self._text(10), *(f"m{index}" for index in range(width))]))
        return _single_step("map_reduce", calls, "r")

    def agents(self) -> Application:
        """Generate an architect, coders, reviewers and revisers, who all read the whole code."""
        task = self._text(256)
        calls = [_call("design", [task], 96)]
        calls += [_call(f"c0_{index}", [task, "design", self._text(10)], 96) for index in range(4)]
        for turn in range(2):
            code = [f"c{turn}_{index}" for index in range(4)]
            calls += [_call(f"v{turn}_{index}", [task, "design", *code, self._text(5)]) for index in range(4)]
            calls += [
                _call(f"c{turn + 1}_{index}", [task, "design", *code, f"v{turn}_{index}", self._text(5)], 96)
                for index in range(4)
            ]
        calls.append(_call("all", [self._text(5), *(f"c2_{index}" for index in range(4))], 16))
        return _single_step("agents", calls, "all")

    def of(self, mix: str) -> Iterator[Application]:
        """Yield applications without end: of one kind, or mixed."""
        kinds: dict[str, Callable[[], Application]] = {
            kind: getattr(self, kind) for kind in ("chat", "copilot", "chain", "map_reduce", "agents")
        }
        while True:
            if mix == "mixed":
                yield self._rng.choices([*kinds.values()], (40, 25, 12, 15, 8))[0]()
            else:
                yield kinds[mix]()


MIXES = ("mixed", "chat", "copilot", "chain", "map_reduce", "agents")


def arrivals(rng: random.Random, rate: float, *, bursts: bool) -> Iterator[float]:
    """Yield times between two applications, in seconds; `rate` per second on average. A burst has ten applications."""
    while True:
        if not bursts:
            yield rng.expovariate(rate)
        else:
            yield rng.expovariate(rate / 10)
            yield from (rng.expovariate(100 * rate) for _ in range(9))
