"""Synthetic recordings of agent sessions, with the structure of real ones."""

import json
import random
from pathlib import Path
from typing import Any

from gateway.simulator.agents.sessions import RecordedRequest, RecordedSession

BLOCK = 64


def request(
    prompt: int, output: int = 100, *, source: int = -1, shared: int = 0, pause: float = 0.0, **more: Any
) -> RecordedRequest:
    values = {"stop": "tool_use", "agent": "", "after": -1} | more
    return RecordedRequest(prompt, output, source, shared, pause=pause, **values)


def chain(*prompts: int, output: int = 100, pause: float = 10.0, tools: int = 0) -> RecordedSession:
    """Return a session in which each request extends the one before it."""
    requests = [request(prompts[0], output)]
    for index, prompt in enumerate(prompts[1:]):
        shared = min(prompts[index], prompt)
        requests.append(request(prompt, output, source=index, shared=shared, pause=pause, after=index))
    return RecordedSession("chain", tools, 0, tuple(requests))


def random_lines(seed: int, sessions: int, *, turns: int = 12) -> list[dict[str, Any]]:
    """Return recorded sessions: growing prompts, short and long pauses, persons, dropped history and sub-agents."""
    chance = random.Random(seed)
    lines = []
    for number in range(sessions):
        requests: list[dict[str, Any]] = []
        time, prompt, agents = 0.0, 6000 + chance.randrange(20_000), 0
        previous: int | None = None
        for _ in range(chance.randrange(2, 2 * turns)):
            out = chance.randrange(20, 600)
            keep = 0 if previous is None else min(requests[previous]["in"], prompt) // BLOCK
            if previous is not None and chance.random() < 0.05:
                keep //= 2
            think = chance.expovariate(1 / 8) if chance.random() < 0.9 else chance.expovariate(1 / 400)
            api = out / 50
            requests.append(
                {
                    "t": time,
                    "in": prompt,
                    "out": out,
                    "of": -1 if previous is None else previous,
                    "keep": keep,
                    "stop": chance.choice(["tool_use", "tool_use", "tool_use", "end_turn", ""]),
                    "api": api,
                    "think": 0.0 if previous is None else think,
                }
            )
            previous = len(requests) - 1
            if chance.random() < 0.1:
                agents += 1
                sub = {"t": time + 1, "in": 5000, "out": 80, "of": -1, "keep": 0, "stop": "end_turn", "api": 2.0}
                requests.append(sub | {"think": 0.0, "agent": f"agent_{agents:03}"})
            time += api + think + 5
            prompt += out + chance.randrange(50, 4000)
        lines.append(
            {"id": f"s{number}", "tools": 4000, "system": 1000 + number % 2, "model": "m", "requests": requests}
        )
    return lines


def write(path: Path, lines: list[dict[str, Any]]) -> Path:
    path.write_text("\n".join(map(json.dumps, lines)) + "\n")
    return path
