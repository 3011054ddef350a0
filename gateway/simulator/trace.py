"""Read a trace that `gateway/telemetry/trace_recorder.py` wrote, as applications to simulate or as prompts."""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from gateway.graph.call import CallSpec, Input, SamplingParams, Segment, Slot, Text
from gateway.graph.references import Reference
from gateway.simulator.workload import Application, Step
from gateway.telemetry.trace_recorder import digest

_TOGETHER_SECONDS = 0.05
"""Calls that arrive within this time of each other count as simultaneous."""


class BadTrace(Exception):
    """The file is not a trace."""


def read(path: Path) -> dict[str, list[dict[str, Any]]]:
    """Calls by session, sessions and calls in the order in which they came. Raises BadTrace, or OSError."""
    sessions: dict[str, list[dict[str, Any]]] = {}
    try:
        with path.open() as file:
            calls = sorted((json.loads(line) for line in file), key=lambda call: float(call["at"]))
        for call in calls:
            sessions.setdefault(call["session"], []).append(call)
    except (ValueError, LookupError, TypeError) as error:
        raise BadTrace(f"{path} is no trace: {error!r}") from error
    return sessions


def read_prompts(path: Path) -> list[list[int]]:
    """What the calls had for prompts, in the order in which they came: tokens, equal where they were.

    Raises as `read`.
    """
    prompts = []
    for session, calls in read(path).items():
        values = {slot: tokens for call in calls for slot, tokens in _slots(call)}
        for call in calls:
            tokens: list[int] = []
            for part in call["prompt"]:
                for token, count in part.get("text", ()):
                    tokens += [token] * count
                if (name := part.get("value")) is not None:
                    tokens += [digest(f"{session}\0{name}".encode())] * values.get(name, 0)
                if "slot" in part:
                    break
            if tokens:
                prompts.append((call["at"], tokens))
    return [tokens for _, tokens in sorted(prompts)]


def _slots(call: Mapping[str, Any]) -> Iterator[tuple[str, int]]:
    """Names and numbers of tokens of what the call makes."""
    for part in call["prompt"]:
        if "slot" in part:
            yield part["slot"] or call["output"], part["tokens"]


def read_applications(path: Path) -> tuple[list[Application], list[float]]:
    """The sessions as applications, and how long after the one before each came, in seconds. Raises as `read`."""
    sessions = read(path)
    try:
        applications = [_application(calls) for calls in sessions.values()]
    except (ValueError, LookupError, TypeError) as error:
        raise BadTrace(f"{path} is no trace: {error!r}") from error
    times = [calls[0]["at"] for calls in sessions.values()]
    return applications, [0.0, *(later - earlier for earlier, later in pairwise(times))]


def _application(calls: Sequence[Mapping[str, Any]]) -> Application:
    """A session's calls as steps: what came together, and after the end of which call."""
    steps: list[Step] = []
    first = calls[0]["at"]
    made = {name for call in calls for name in (call["output"], *(slot for slot, _ in _slots(call)))}
    for together in _groups(calls, lambda one, next: next["at"] - one["at"] <= _TOGETHER_SECONDS):
        at = together[0]["at"]
        before = [call for call in calls if call["ended"] <= at]
        last = max(before, key=lambda call: float(call["ended"]), default=None)
        steps.append(
            Step(
                calls=[_spec(call, made) for call in together],
                wanted=[call["output"] for call in together if call["read"]],
                after=None if last is None else last["output"],
                seconds=at - (first if last is None else last["ended"]),
            )
        )
    return Application("session" if len(calls) > 1 else "request", steps)


def _groups(
    calls: Iterable[Mapping[str, Any]], together: Callable[[Mapping[str, Any], Mapping[str, Any]], bool]
) -> Iterator[list[Mapping[str, Any]]]:
    group: list[Mapping[str, Any]] = []
    for call in calls:
        if group and not together(group[-1], call):
            yield group
            group = []
        group.append(call)
    if group:
        yield group


def _spec(call: Mapping[str, Any], made: set[str]) -> CallSpec:
    """`made`: what the session's calls make; anything else was lost before it was recorded, and is left out."""
    segments: list[Segment] = []
    for part in call["prompt"]:
        if "slot" in part:
            sampling = SamplingParams(max_tokens=max(1, part["tokens"]), temperature=0.0, ignore_eos=True)
            segments.append(Slot(part["slot"], sampling))
        elif "text" in part:
            segments.append(Text([token for token, count in part["text"] for _ in range(count)]))
        elif part["value"] in made:
            segments.append(Input(Reference(part["value"]), ""))
    parts = [Input(Reference(part["value"]), "") for part in call["parts"] if part.get("value") in made]
    named = [segment for segment in segments if isinstance(segment, Slot) and segment.name is not None]
    if not segments:
        return CallSpec(model="", parts=parts, output=call["output"])
    return CallSpec(
        model="m",
        segments=segments,
        parts=[Input(Reference(slot.name or ""), "") for slot in named] if named else None,
        output=call["output"],
        share=False,
    )
