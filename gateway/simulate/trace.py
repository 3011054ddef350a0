"""What was asked of a server, as a file: `myna serve --record` writes it, `myna simulate --trace` runs it again.

A line of JSON for each call that was done. No texts: what stands in prompts is there as digests, so that equal
beginnings are seen to be equal, and as numbers of tokens.
"""

import json
import logging
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from hashlib import blake2b
from itertools import pairwise
from pathlib import Path
from typing import IO, Any

from gateway.graph.call import Call, CallSpec, CallState, Input, Sampling, Segment, Slot, Text
from gateway.graph.references import Reference
from gateway.graph.variable import Variable
from gateway.simulate.load import Application, Step

log = logging.getLogger("myna.record")

_CHUNK = 16
"""Tokens that have a digest together, as they share a block in an engine."""
_TOGETHER_SECONDS = 0.05
"""Calls that came so soon one after another came at once."""
_CHARACTERS_PER_TOKEN = 4


class BadTrace(Exception):
    """The file is not what a recorder writes."""


class Recorder:
    """Owner of the file. Give `observe` every call that ends."""

    def __init__(self, file: IO[str]) -> None:
        """`file`: open for appending."""
        self._file = file
        self._full = False

    def observe(self, call: Call) -> None:
        """Writes a line, if the call was done. A file that cannot be written to any more is left at that."""
        if call.state is CallState.DONE and not self._full:
            try:
                self._file.write(json.dumps(_described(call), separators=(",", ":")) + "\n")
            except OSError as error:
                self._full = True
                log.error("the record of calls ends here: %s", error.strerror or error)


def _described(call: Call) -> dict[str, Any]:
    session, spec = call.session, call.spec
    known = session.id and blake2b(f"{session.tenant}\0{session.id}".encode(), digest_size=8).hexdigest()
    each = call.usage.completion // max(1, len(spec.slots))
    prompt: list[Any] = []
    for segment in spec.segments:
        match segment:
            case Text(tokens):
                prompt.append({"text": _chunks(tokens)})
            case Slot(name):
                prompt.append({"slot": name, "tokens": each})
            case Input(reference) if reference.name in call.slots:
                prompt.append({"value": reference.name})
            case Input(reference):
                prompt.append(_value(call.inputs[reference.name]))
    parts = [_value(call.inputs[part.reference.name]) for part in spec.parts or () if isinstance(part, Input)]
    return {
        "session": known or call.id,
        "at": call.times.created,
        "ended": call.times.finished,
        "output": call.output.name if session.id else "answer",
        "prompt": prompt if spec.model and call.leader is None else [],
        "parts": [{"value": call.leader.output.name}] if call.leader else [] if spec.model else parts,
        "read": call.output.hurried > 0 or not session.id,
    }


def _chunks(tokens: Sequence[int]) -> list[tuple[int, int]]:
    data = array("i", tokens).tobytes()
    return [
        (_digest(data[4 * at : 4 * (at + _CHUNK)]), min(_CHUNK, len(tokens) - at))
        for at in range(0, len(tokens), _CHUNK)
    ]


def _digest(data: bytes) -> int:
    """Small enough for a token."""
    return int.from_bytes(blake2b(data, digest_size=4).digest()) >> 1


def _value(variable: Variable) -> dict[str, Any]:
    if variable.producer is not None:
        return {"value": variable.name}
    text = variable.value or ""
    return {"text": [(_digest(text.encode()), -(-len(text) // _CHARACTERS_PER_TOKEN))]}


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
                    tokens += [_digest(f"{session}\0{name}".encode())] * values.get(name, 0)
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
            sampling = Sampling(max_tokens=max(1, part["tokens"]), temperature=0.0, ignore_eos=True)
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
