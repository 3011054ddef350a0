"""Read a trace that `gateway/telemetry/trace_recorder.py` wrote, as applications to simulate or as prompts."""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from engine.sampling_params import SamplingParams
from gateway.graph.call import CallSpec
from gateway.graph.references import Reference
from gateway.graph.segments import Input, Segment, Slot, Text
from gateway.simulator.workload import Application, Step
from gateway.telemetry.trace_recorder import digest

_TOGETHER_SECONDS = 0.05
"""Calls that arrive within this time of each other count as simultaneous."""


class BadTrace(Exception):
    """The file is not a trace."""


def read(path: Path) -> dict[str, list[dict[str, Any]]]:
    """Return the calls by session; sessions and calls in the order of their arrival. Raises BadTrace, or OSError."""
    sessions: dict[str, list[dict[str, Any]]] = {}
    try:
        with path.open() as file:
            calls = sorted((json.loads(line) for line in file), key=lambda call: float(call["at"]))
        for call in calls:
            sessions.setdefault(call["session"], []).append(call)
    except (ValueError, LookupError, TypeError) as error:
        raise BadTrace(f"{path} is not a trace: {error!r}") from error
    return sessions


def read_prompts(path: Path) -> list[list[int]]:
    """Return the prompts of the calls in the order of their arrival, as tokens that are equal where the prompts were.

    Raises the errors of `read`.
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
    """Yield the name and the number of tokens of each slot of a call."""
    for part in call["prompt"]:
        if "slot" in part:
            yield part["slot"] or call["output"], part["tokens"]


def read_applications(path: Path) -> tuple[list[Application], list[float]]:
    """Return the sessions as applications, and the seconds between their arrivals. Raises the errors of `read`."""
    sessions = read(path)
    if not sessions:
        raise BadTrace(f"{path} is not a trace: it has no calls")
    try:
        applications = [_application(calls) for calls in sessions.values()]
    except (ValueError, LookupError, TypeError) as error:
        raise BadTrace(f"{path} is not a trace: {error!r}") from error
    times = [calls[0]["at"] for calls in sessions.values()]
    return applications, [0.0, *(later - earlier for earlier, later in pairwise(times))]


def _application(calls: Sequence[Mapping[str, Any]]) -> Application:
    """Return a session's calls as an application.

    Calls that arrived together form a `Step`. A step begins a fixed time after the call that ended last before it.
    """
    steps: list[Step] = []
    first = calls[0]["at"]
    names = {name for call in calls for name in (call["output"], *(slot for slot, _ in _slots(call)))}
    for group in _groups(calls, lambda earlier, next: next["at"] - earlier["at"] <= _TOGETHER_SECONDS):
        arrival = group[0]["at"]
        before = [call for call in calls if call["ended"] <= arrival]
        last = max(before, key=lambda call: float(call["ended"]), default=None)
        steps.append(
            Step(
                calls=[_spec(call, names) for call in group],
                awaited=[call["output"] for call in group if call["read"]],
                after=None if last is None else last["output"],
                seconds=arrival - (first if last is None else last["ended"]),
            )
        )
    return Application("session" if len(calls) > 1 else "request", steps)


def _groups(
    calls: Iterable[Mapping[str, Any]], belongs: Callable[[Mapping[str, Any], Mapping[str, Any]], bool]
) -> Iterator[list[Mapping[str, Any]]]:
    group: list[Mapping[str, Any]] = []
    for call in calls:
        if group and not belongs(group[-1], call):
            yield group
            group = []
        group.append(call)
    if group:
        yield group


def _spec(call: Mapping[str, Any], names: set[str]) -> CallSpec:
    """Return a recorded call. `names`: outputs of the session's calls. References to other names are left out: their
    producers were not recorded."""
    segments: list[Segment] = []
    for part in call["prompt"]:
        if "slot" in part:
            sampling = SamplingParams(max_tokens=max(1, part["tokens"]), temperature=0.0, ignore_eos=True)
            segments.append(Slot(part["slot"], sampling))
        elif "text" in part:
            segments.append(Text([token for token, count in part["text"] for _ in range(count)]))
        elif part["value"] in names:
            segments.append(Input(Reference(part["value"]), ""))
    parts = [Input(Reference(part["value"]), "") for part in call["parts"] if part.get("value") in names]
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
